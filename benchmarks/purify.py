"""Purification: samples/s of RECIPE's loop against the authors' (`purify_speedup`, `ddp2_speedup`).

MiniLM with 6 layers, batch 32, only the intermediate dense weights train; the plain loop gets two
threads, ours one process with one or two threads, or two DDP workers of one thread.
"""

import time
from functools import partial

import numpy as np
import torch.distributed as dist

from benchmarks.contenders import Contender, Figure, Measure, interleave, ratios
from benchmarks.reference import BATCH, SEED, column, plain_purification
from recipe_ray.data.batches import MemoryBatches
from recipe_ray.learn.loop import fit
from recipe_ray.learn.objective import Objective, Weighted, WeightNorms
from recipe_ray.learn.optim import FitSpec
from recipe_ray.learn.progress import Progress
from recipe_ray.learn.runtime import LocalRuntime, ProcessGroupRuntime
from recipe_ray.models.text.bert import BertPTM
from recipe_ray.models.text.minilm import MiniLM

WARM_UP = 8


def recipe(batch_size: int = BATCH) -> tuple[BertPTM, Objective, MemoryBatches]:
    """Return MiniLM set up for RECIPE, its objective and the batches of 20,000 sentences."""
    ptm = MiniLM().load()
    weights = ptm.weight_group("ffn_in")
    ptm.train_only(weights, pooled=False)
    objective = Weighted([(1.0, WeightNorms(weights)), (1.0, ptm.pretraining_objective())])
    texts = column("bookcorpus", "text")
    rows = ptm.encoder(64)(texts, np.arange(len(texts)))
    return ptm, objective, MemoryBatches(rows, ptm.pretraining_collate(SEED), batch_size, SEED)


def our_purification(steps: int, batch_size: int = BATCH) -> Measure:
    """Return a measurement of our loop: samples/s over `steps` steps, all workers together."""
    ptm, objective, batches = recipe(batch_size)

    def measure() -> float:
        times: list[float] = []

        def note(progress: Progress) -> None:
            times.append(time.perf_counter())

        runtime = ProcessGroupRuntime(note) if dist.is_initialized() else LocalRuntime(note)
        fit(ptm.module, objective, batches, FitSpec(steps=WARM_UP + steps), runtime, seed=SEED)
        if not times:  # not rank 0
            return 0.0
        return steps * batch_size / (times[-1] - times[WARM_UP - 1])

    return measure


def figures(rounds: int = 4) -> list[Figure]:
    """Measure all contenders in turns."""
    ours = partial(our_purification, 40)
    rates = interleave(
        {
            "plain": lambda: Contender(partial(plain_purification, 12), workers=1, threads=2),
            "one": lambda: Contender(ours, workers=1, threads=1),
            "threads2": lambda: Contender(ours, workers=1, threads=2),
            "ddp2": lambda: Contender(ours, workers=2, threads=1),
        },
        rounds,
    )
    return [
        *(Figure(f"purify_{name}", values, "samples/s") for name, values in rates.items()),
        # the placement that is fastest on two cores
        Figure("purify_speedup", ratios(rates["threads2"], rates["plain"]), "x"),
        Figure("purify_ddp2_speedup", ratios(rates["ddp2"], rates["plain"]), "x"),
        Figure("ddp2_speedup", ratios(rates["ddp2"], rates["one"]), "x"),
    ]
