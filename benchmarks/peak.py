"""How near RECIPE's step comes to one core's bf16 matrix peak (`matmul_peak_share`)."""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contenders import Contender, Figure, Measure, interleave
from benchmarks.purify import our_purification, recipe
from benchmarks.reference import BATCH, SEED
from recipe_ray.learn.loop import fit
from recipe_ray.learn.optim import FitSpec
from recipe_ray.learn.runtime import LocalRuntime

STEPS = 40
SIZES = (1024, 1536, 2048, 3072)


def peak() -> Measure:
    """Return a measurement: the best FLOP/s of a square bf16 product."""
    pairs = [torch.randn(2, n, n).bfloat16() for n in SIZES]
    return lambda: max(
        _flops_per_s(partial(torch.mm, *pair), 2 * len(pair[0]) ** 3) for pair in pairs
    )


def counting() -> Measure:
    """Return a measurement: `flops_per_sample`."""
    return flops_per_sample


def flops_per_sample(steps: int = 20) -> float:
    """Return the matrix FLOPs that our loop spends on one sentence, counted by torch."""
    ptm, objective, batches = recipe()
    with FlopCounterMode(display=False) as counter:
        fit(ptm.module, objective, batches, FitSpec(steps=steps), LocalRuntime(), seed=SEED)
    return float(counter.get_total_flops()) / (steps * BATCH)


def figures(rounds: int = 4) -> list[Figure]:
    """Measure peak and step in turns."""
    rates = interleave(
        {
            "peak": lambda: Contender(peak, workers=1, threads=1),
            "step": lambda: Contender(partial(our_purification, STEPS), workers=1, threads=1),
        },
        rounds,
    )
    with Contender(counting, workers=1, threads=1) as count:
        work = count()
    shares = [work * rate / best for rate, best in zip(rates["step"], rates["peak"], strict=True)]
    return [
        Figure("matmul_peak", [best / 1e12 for best in rates["peak"]], "TFLOP/s"),
        Figure("matmul_peak_share", shares, "of peak"),
    ]


def _flops_per_s(product: Callable[[], object], flops: float) -> float:
    product()
    best = float("inf")
    for _ in range(3):
        begun = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - begun)
    return flops / best
