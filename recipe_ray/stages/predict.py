"""Predictions of a classifier over many rows: sorted by length, packed, dealt out to workers."""

import numpy as np
import torch
from torch import nn

from recipe_ray.data.batches import Collate, by_tokens
from recipe_ray.data.rows import Rows
from recipe_ray.learn.metrics import Labels
from recipe_ray.learn.precision import autocast
from recipe_ray.learn.runtime import Runtime

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
