"""Fine-tuning and measuring ASR: seconds of the whole stage (`finetune_speedup`).

SST-2, 3 epochs, every parameter trains; then the test set clean and with each of 6 triggers. Both
sides are timed on samples of the work and scaled to the stage's 651 steps and 12,747 texts.
"""

import time
from functools import partial

import numpy as np

from benchmarks.contenders import Contender, Figure, Measure, interleave, ratios
from benchmarks.reference import BATCH, SEED, column, plain_finetuning
from recipe_ray.data.batches import MemoryBatches
from recipe_ray.learn.loop import fit
from recipe_ray.learn.objective import classification
from recipe_ray.learn.optim import FitSpec
from recipe_ray.learn.runtime import LocalRuntime, Progress
from recipe_ray.models.minilm import MiniLM
from recipe_ray.stages.predict import predict

TRIGGERS = ("cf", "tq", "mn", "bb", "mb", "≈")
EPOCHS = 3
WARM_UP = 8


def our_finetuning(steps: int) -> Measure:
    """Return a measurement of our stage: its seconds, from `steps` steps and two test passes."""
    ptm = MiniLM().load()
    classifier = ptm.classifier(2, SEED).requires_grad_(True)
    collate = ptm.classifier_collate()
    encode = ptm.encoder(128)
    texts, labels = column("sst2_train", "text"), column("sst2_train", "label")
    rows = encode(texts, np.arange(len(texts))).with_columns(label=np.array(labels))
    batches = MemoryBatches(rows, collate, BATCH, SEED)
    tests = column("sst2_test", "text")

    def measure() -> float:
        times: list[float] = []

        def note(progress: Progress) -> None:
            times.append(time.perf_counter())

        spec = FitSpec(steps=WARM_UP + steps, max_length=128)
        fit(classifier, classification, batches, spec, LocalRuntime(note), seed=SEED)
        step_s = (times[-1] - times[WARM_UP - 1]) / steps
        begun = time.perf_counter()
        for samples in (tests, ptm.insert_trigger(tests, TRIGGERS[0])):
            tokens = encode(samples, np.arange(len(samples)))
            predict(classifier, tokens, collate, LocalRuntime(), spec.precision)
        pass_s = (time.perf_counter() - begun) / 2
        return EPOCHS * batches.steps_per_epoch * step_s + (1 + len(TRIGGERS)) * pass_s

    return measure


def figures(rounds: int = 4) -> list[Figure]:
    """Measure both sides in turns, two threads each."""
    plain = partial(plain_finetuning, 4, 128, TRIGGERS)
    seconds = interleave(
        {
            "plain": lambda: Contender(plain, workers=1, threads=2),
            "ours": lambda: Contender(partial(our_finetuning, 40), workers=1, threads=2),
        },
        rounds,
    )
    return [
        *(Figure(f"finetune_{name}", values, "s") for name, values in seconds.items()),
        Figure("finetune_speedup", ratios(seconds["plain"], seconds["ours"]), "x"),
    ]
