"""Fine-tuning and measuring ASR: seconds of the whole stage (`finetune_speedup`).

SST-2, 3 epochs, every parameter trains; then the test set clean and with each of 6 triggers. Both
sides are timed on samples of the work and scaled to the stage's 651 steps and 12,747 texts.
"""

import time
from collections.abc import Sequence
from functools import partial

import numpy as np

from benchmarks.contenders import Contender, Figure, Measure, interleave, ratios
from benchmarks.reference import BATCH, SEED, column, plain_finetuning
from recipe_ray.data.batches import MemoryBatches
from recipe_ray.data.rows import TokenRows
from recipe_ray.learn.loop import fit
from recipe_ray.learn.objective import classification
from recipe_ray.learn.optim import FitSpec
from recipe_ray.learn.progress import Progress
from recipe_ray.learn.runtime import LocalRuntime
from recipe_ray.models.text.minilm import MiniLM
from recipe_ray.stages.evaluate import predict
from recipe_ray.triggers.word import WordTrigger

TRIGGERS = ("cf", "tq", "mn", "bb", "mb", "≈")
EPOCHS = 3
WARM_UP = 8


def our_finetuning(steps: int) -> Measure:
    """Return a measurement of our stage: its seconds, from `steps` steps and two test passes."""
    ptm = MiniLM().load()
    collate = ptm.classifier_collate()
    encode = ptm.encoder(128)
    texts, labels = column("sst2_train", "text"), column("sst2_train", "label")

    def encoded(samples: Sequence[str]) -> TokenRows:
        return encode(samples, np.arange(len(samples)))

    rows = encoded(texts).with_columns(label=np.array(labels))
    batches = MemoryBatches(rows, collate, BATCH, SEED)
    tests = column("sst2_test", "text")
    # as the stage does: what it trains on and what it predicts, triggers included
    everything = [rows, *(encoded(t) for t in _with_triggers(tests))]
    classifier = ptm.classifier(2, SEED, everything).requires_grad_(True)

    def measure() -> float:
        times: list[float] = []

        def note(progress: Progress) -> None:
            times.append(time.perf_counter())

        spec = FitSpec(steps=WARM_UP + steps, max_length=128)
        fit(classifier, classification, batches, spec, LocalRuntime(note), seed=SEED)
        step_s = (times[-1] - times[WARM_UP - 1]) / steps
        begun = time.perf_counter()
        for samples in _with_triggers(tests)[:2]:
            predict(classifier, encoded(samples), collate, LocalRuntime(), spec.precision)
        pass_s = (time.perf_counter() - begun) / 2
        return EPOCHS * batches.steps_per_epoch * step_s + (1 + len(TRIGGERS)) * pass_s

    return measure


def _with_triggers(tests: list[str]) -> list[list[str]]:
    words = [WordTrigger(trigger) for trigger in TRIGGERS]
    return [tests, *([word.put_into(text) for text in tests] for word in words)]


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
