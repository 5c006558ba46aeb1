"""What a defender can measure without triggers or tasks, and the predictions of a classifier.

On held-out auxiliary samples, before and after purifying: the pre-training loss, the norm of every
weight group, how far clean representations moved, and what is left of them (`stages/guard.py`).
None of it says that a backdoor is gone.
For predictions many rows are sorted by length, packed, and dealt out to workers.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from recipe_ray.base.errors import DataError
from recipe_ray.data.batches import Collate, by_tokens
from recipe_ray.data.census import WordLoss
from recipe_ray.data.rows import Rows
from recipe_ray.learn.metrics import Labels
from recipe_ray.learn.objective import tensor_of
from recipe_ray.learn.precision import autocast
from recipe_ray.learn.runtime import Runtime
from recipe_ray.models.family import PTM
from recipe_ray.stages.guard import guarded
from recipe_ray.store.rows import Measurement

# tokens in one forward pass; more gains nothing on a CPU and costs memory
MAX_TOKENS = 4096


@torch.inference_mode()
def predict(
    classifier: nn.Module, rows: Rows, collate: Collate, runtime: Runtime, precision: str
) -> Labels:
    """Return the predicted label of every row [N]; each worker does its share of the batches."""
    classifier.to(runtime.device).eval()
    predicted = torch.zeros(len(rows), dtype=torch.int64)
    groups = list(by_tokens(rows.lengths, MAX_TOKENS))
    for group in groups[runtime.rank :: runtime.world_size]:
        batch = collate(rows.take(group), 0).to(runtime.device)
        with autocast(runtime.device, precision):
            logits = classifier(batch)
        predicted[torch.from_numpy(group)] = logits.argmax(-1).cpu()
    summed = runtime.sum(predicted.to(runtime.device)).cpu().numpy()
    return np.asarray(summed, dtype=np.int64)


WORD_SAMPLES = 20_000  # texts in which words are counted, at most: the paper's corpora
HELD_OUT_UNIGRAM = "held_out_unigram"  # metric: the held-out loss of word frequencies alone
MASK_SEED = 1  # the held-out masks are the same before and after, and not those of training


@dataclass(frozen=True)
class HeldOutEval:
    """One look at a PTM: mean held-out loss, norms by weight group, first-token states [N, H].

    `loss` is None if the PTM's pre-training head was drawn.
    """

    loss: float | None
    norms: dict[str, float]
    states: NDArray[np.float32]


# not inference_mode: parameters moved to a GPU within it could not be trained afterwards
@torch.no_grad()
def held_out_eval(ptm: PTM, rows: Rows, runtime: Runtime, *, own_head: bool = True) -> HeldOutEval:
    """Measure a PTM on N held-out rows; every worker uses all of them.

    Without a head of its own its pre-training loss would say nothing, and is not measured. Raises
    DataError if the rows give the pre-training loss nothing to count.
    """
    module: Any = ptm.module.to(runtime.device).eval()
    collate = ptm.pretraining_collate(MASK_SEED)
    objective = ptm.pretraining_objective()
    total, count = 0.0, 0
    states: dict[int, NDArray[np.float32]] = {}
    for group in by_tokens(rows.lengths, MAX_TOKENS):
        batch = collate(rows.take(group), 0).to(runtime.device)
        with autocast(runtime.device, "bf16"):
            for term in objective(module, batch).values() if own_head else ():
                total += float(term.total)
                count += term.count or 0
            vectors = ptm.representation(module, batch).float().cpu().numpy()
        states |= {int(row): vectors[i] for i, row in enumerate(group)}
    if own_head and count == 0:
        raise DataError(
            f"the held-out data ({len(rows)} samples) have nothing to measure the pre-training "
            "loss on (for texts: no masked token); give more data"
        )
    norms = {
        name: sum(float(tensor_of(weight).norm()) for weight in ptm.weight_group(name))
        for name in ptm.weight_groups
    }
    loss = total / count if own_head else None
    return HeldOutEval(loss, norms, np.stack([states[i] for i in sorted(states)]))


def compare(before: HeldOutEval, after: HeldOutEval) -> list[Measurement]:
    """Return held-out losses, norms before and after, drift and what is left of the features.

    Drift is 1 - cosine between a sample's states before and after, its mean over samples.
    """
    # half the squared distance of unit vectors, which keeps what 1 - cosine would round away
    start, end = (F.normalize(torch.from_numpy(x.states).double()) for x in (before, after))
    drift = (start - end).square().sum(1) / 2
    measured = []
    if before.loss is not None and after.loss is not None:
        measured.append(Measurement("held_out_loss.before", before.loss))
        measured.append(Measurement("held_out_loss.after", after.loss))
    measured.append(Measurement("drift", float(drift.mean()), denominator=float(len(drift))))
    measured += guarded(before.states, after.states)
    for name, norm in before.norms.items():
        measured.append(Measurement(f"norm.{name}.before", norm))
        measured.append(Measurement(f"norm.{name}.after", after.norms[name]))
    return measured


def words_measured(words: WordLoss) -> Measurement:
    """Return what word frequencies give on held-out data, with the number of masked tokens."""
    return Measurement(HELD_OUT_UNIGRAM, words.mean, denominator=float(words.num_tokens))
