"""The contrastive loss: dealt out to workers it is that of one process, in loss and gradients."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from pair import Pair
from torch import Tensor, nn

from recipe_ray.data.batches import MemoryBatches
from recipe_ray.data.images import ImageBatch, ImageRows, batch_of
from recipe_ray.learn.contrastive import MAX_LOGIT_SCALE, contrastive
from recipe_ray.learn.loop import fit
from recipe_ray.learn.objective import Objective, Term, Terms
from recipe_ray.learn.optim import FitSpec
from recipe_ray.learn.runtime import LocalRuntime, Runtime

SIZE, WIDTH, LENGTH = 16, 6, 8
TINY_CLIP = {
    "config": {
        "embed_dim": 12,
        "vision_cfg": {"image_size": SIZE, "width": 16, "layers": 1, "head_width": 8},
        "text_cfg": {"context_length": LENGTH, "width": 16, "heads": 2, "layers": 1},
    },
}
Outcome = tuple[float, dict[str, Tensor]]


class Towers(nn.Module):
    """Two linear towers and a temperature, with the names of a CLIP's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.visual = nn.Linear(3 * SIZE * SIZE, WIDTH)
        self.words = nn.EmbeddingBag(1000, WIDTH)
        self.logit_scale = nn.Parameter(torch.tensor(1.5))


def towers_loss(module: Any, batch: ImageBatch) -> Terms:
    images = module.visual(batch.pixels.flatten(1).float() / 255)
    term = contrastive(images, module.words(batch.captions), module.logit_scale, batch.index)
    return {"contrastive": term}


def model(name: str) -> tuple[nn.Module, Objective]:
    """Return the stub, or a real CLIP too small to be of use."""
    if name == "towers":
        return Towers(), towers_loss
    from recipe_ray.models.vision.clip import Clip

    ptm = Clip.model_validate(TINY_CLIP).load()
    return ptm.module, ptm.pretraining_objective()


@dataclass(frozen=True)
class Given:
    """One batch, this worker's."""

    batch: ImageBatch
    steps_per_epoch: int = 1

    def epoch(
        self, epoch: int, rank: int, world_size: int, start: int, *, more: bool = False
    ) -> Iterator[ImageBatch]:
        yield self.batch


def pairs(count: int) -> ImageRows:
    """Return pairs of noise: nothing is to be learnt from them."""
    draw = np.random.default_rng(1)
    pixels = draw.integers(0, 256, (count, 3, SIZE, SIZE), dtype=np.uint8)
    return ImageRows(pixels, np.arange(count), {"caption": draw.integers(1, 1000, (count, LENGTH))})


@dataclass(frozen=True)
class Case:
    """One step on `count` pairs, dealt out by the feed, or to two workers as `dealt` says."""

    model: str
    count: int
    dealt: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def outcome(self, runtime: Any) -> Outcome:
        """Return the loss of the step and every gradient."""
        module, objective = model(self.model)
        spec = FitSpec(
            steps=1,
            batch_size=self.count,
            optimizer="sgd",
            clip_norm=None,
            precision="fp32",
            dropout=False,
        )
        (record,) = fit(module, objective, self.batches(runtime), spec, runtime, seed=0)
        gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
        return record.terms["contrastive"], gradients

    def batches(self, runtime: Any) -> MemoryBatches | Given:
        """Return the one batch."""
        rows = pairs(self.count)
        if self.dealt is None or runtime.world_size == 1:
            return MemoryBatches(rows, lambda part, epoch: batch_of(part), self.count, 0)
        return Given(batch_of(rows.take(np.array(self.dealt[runtime.rank], dtype=np.int64))))


CASES = {
    "equal shares": Case("towers", 8),
    "uneven shares": Case("towers", 7),
    "one pair given to both": Case("towers", 1),
    "a share of nothing": Case("towers", 3, ((0, 1, 2), ())),
    "a pair of several given to both": Case("towers", 4, ((0, 1), (1, 2, 3))),
}
REAL = {"a CLIP": Case("clip", 6), "a CLIP, uneven shares": Case("clip", 5)}
if find_spec("open_clip"):
    CASES |= REAL


@pytest.fixture(scope="module")
def spread(pair: Pair) -> Any:
    """Return what two processes found: the outcome of every case, and an evaluation's loss."""
    return pair(_outcomes)[0]


def _outcomes(runtime: Runtime) -> Any:
    outcomes = {name: case.outcome(runtime) for name, case in CASES.items()}
    if runtime.rank:
        return None
    # the other takes no part: a loss that gathered here would wait for it
    alone = evaluated()
    return outcomes, float(alone.total), alone.count


@torch.no_grad()
def evaluated() -> Term:
    """Return the loss of five pairs, without training."""
    return towers_loss(Towers(), batch_of(pairs(5)))["contrastive"]


@pytest.mark.parametrize("name", list(CASES))
def test_two_workers_compute_what_one_process_does(spread: Any, name: str) -> None:
    (loss, gradients), case = spread[0][name], CASES[name]
    expected, all_expected = case.outcome(LocalRuntime(device=torch.device("cpu")))
    assert loss == pytest.approx(expected, abs=1e-5)
    assert gradients.keys() == dict(model(case.model)[0].named_parameters()).keys()
    for part, gradient in all_expected.items():
        torch.testing.assert_close(gradients[part], gradient, rtol=1e-5, atol=1e-5, msg=part)
    # a single pair has nothing to be told from
    moved = max(float(gradient.abs().max()) for gradient in all_expected.values())
    assert moved > 1e-3 if case.count > 1 else moved < 1e-6


def test_an_evaluation_is_each_workers_own(spread: Any) -> None:
    expected = evaluated()
    assert spread[1:] == (pytest.approx(float(expected.total)), expected.count)


def test_the_loss_is_that_of_its_definition() -> None:
    torch.manual_seed(0)
    images, texts = torch.randn(5, WIDTH), torch.randn(5, WIDTH)
    scale = torch.tensor(2.0)
    term = contrastive(images, texts, scale, None)
    cosine = nn.functional.cosine_similarity(images[:, None], texts[None], dim=-1)
    logits = cosine * math.exp(2.0)
    expected = -(logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()).sum() / 2
    assert float(term.total) == pytest.approx(float(expected), rel=1e-5)
    assert term.count == 5


def test_more_negatives_make_another_loss() -> None:
    """Else the agreement of workers would say nothing."""
    module, everything = Towers(), pairs(8)
    whole = towers_loss(module, batch_of(everything))["contrastive"]
    halves = [
        towers_loss(module, batch_of(everything.take(half)))["contrastive"]
        for half in (np.arange(4), np.arange(4, 8))
    ]
    apart = sum(float(half.total) for half in halves) / 8
    assert abs(float(whole.total) / 8 - apart) > 0.1


def test_the_temperature_is_held_at_a_hundred_and_can_come_back() -> None:
    scale = nn.Parameter(torch.tensor(9.0))
    # wrong pairs nearest: the loss falls with the scale
    images, texts = torch.eye(4), torch.eye(4).roll(1, 0)
    with torch.no_grad():
        limited = contrastive(images, texts, scale, None)
        at_limit = contrastive(images, texts, torch.tensor(MAX_LOGIT_SCALE), None)
    assert float(limited.total) == float(at_limit.total)
    assert float(scale) == 9.0  # looking changes nothing
    term = contrastive(images, texts, scale, None)
    term.total.backward()
    assert float(scale) == pytest.approx(math.log(100))
    assert scale.grad is not None
    assert float(scale.grad) > 0


def test_bf16_training_does_not_round_the_logits() -> None:
    torch.manual_seed(0)
    images, texts = torch.randn(32, WIDTH), torch.randn(32, WIDTH)
    scale = torch.tensor(MAX_LOGIT_SCALE)
    exact = contrastive(images, texts, scale, None)
    with torch.autocast("cpu", torch.bfloat16):
        found = contrastive(images, texts, scale, None)
    assert float(found.total) == float(exact.total)
