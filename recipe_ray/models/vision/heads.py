"""What is put on the features of a PTM on images: classifiers, losses, held-out figures.

A classifier for a downstream task is a new last layer, on a PTM's features or in its own head.

Held-out figures say how good a PTM on images is at its own pre-training task, on samples it has not
seen. Every worker does its share of the batches, and all get the whole answer.

Legend: N held-out samples, E width of the embeddings.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipe_ray.base.errors import DataError
from recipe_ray.data.images import ImageBatch, ImageRows
from recipe_ray.data.rows import Ints
from recipe_ray.learn.metrics import Share, accuracy
from recipe_ray.learn.objective import Objective, Terms, classification
from recipe_ray.learn.runtime import Runtime


def fresh_linear(width: int, num_labels: int, seed: int) -> nn.Linear:
    """Return a linear layer drawn from a seed alone."""
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(width, num_labels)
    nn.init.normal_(linear.weight, std=width**-0.5, generator=generator)
    nn.init.zeros_(linear.bias)
    return linear


class ImageTower(nn.Module):
    """The vision encoder alone, under the name it has in a CLIP."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual


class _Whole(nn.Module):
    """A classifier that trains with all its weights: nothing was left out."""

    def whole_state(self) -> dict[str, Tensor]:
        """Return all weights by name."""
        return {name: tensor.contiguous() for name, tensor in self.state_dict().items()}


class FeatureClassifier(_Whole):
    """A PTM's body with a linear layer on its features: batch -> logits [B, C].

    `body` is the part of the PTM's module that `features` needs, if that is not all of it.
    """

    def __init__(self, ptm: Any, num_labels: int, seed: int, body: nn.Module | None = None) -> None:
        super().__init__()
        self.body = ptm.module if body is None else body
        self._ptm = ptm
        self.linear = fresh_linear(ptm.feature_size, num_labels, seed)

    def forward(self, batch: ImageBatch) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.linear(self._ptm.features(self.body, batch))
        return logits


class HeadClassifier(_Whole):
    """A PTM whose head has been given other labels: batch -> logits [B, C]."""

    def __init__(self, ptm: Any) -> None:
        super().__init__()
        self.body = ptm.module
        self._ptm = ptm

    def forward(self, batch: ImageBatch) -> Tensor:
        """Return the logits."""
        logits: Tensor = self._ptm.logits(self.body, batch)
        return logits


BATCH_SIZE = 128  # images in one forward pass, and queries in one comparison


# not inference_mode: parameters moved to a GPU within it could not be trained afterwards
@torch.no_grad()
def top_1(ptm: Any, rows: ImageRows, runtime: Runtime) -> dict[str, Share]:
    """Return `held_out_acc`, the share of images that `ptm.logits` gives their own label."""
    predicted = torch.zeros(len(rows), dtype=torch.int64, device=runtime.device)
    for share, batch in _batches(ptm, rows, runtime):
        predicted[torch.from_numpy(share)] = ptm.logits(ptm.module, batch).argmax(-1)
    labels = runtime.sum(predicted).cpu().numpy()
    return {"held_out_acc": accuracy(labels, rows.columns["label"])}


@torch.no_grad()
def retrieval(ptm: Any, rows: ImageRows, runtime: Runtime) -> dict[str, Share]:
    """Return recall at 1: the share of images nearest to their own caption of all N, and back.

    If two pairs have exactly the same caption, one can count as missed. Raises DataError for
    images without captions.
    """
    if "caption" not in rows.columns:
        raise DataError("retrieval needs held-out pairs, and these images have no captions")
    width, device = ptm.feature_size, runtime.device
    images, texts = (torch.zeros(len(rows), width, device=device) for _ in range(2))
    for share, batch in _batches(ptm, rows, runtime):
        place = torch.from_numpy(share)
        images[place] = F.normalize(ptm.features(ptm.module, batch).float(), dim=-1)
        texts[place] = F.normalize(ptm.module.encode_text(batch.captions).float(), dim=-1)
    images, texts = runtime.sum(images), runtime.sum(texts)
    return {
        "retrieval_image_to_text": recall_at_1(images, texts),
        "retrieval_text_to_image": recall_at_1(texts, images),
    }


def recall_at_1(queries: Tensor, answers: Tensor) -> Share:
    """Return the share of queries [N, E] whose own answer is the nearest of all answers [N, E].

    Among equally near answers the first is taken, so a model that tells nothing apart scores 1 / N.
    """
    hits = 0
    for first in range(0, len(queries), BATCH_SIZE):
        nearest = (queries[first : first + BATCH_SIZE] @ answers.T).argmax(1)
        own = torch.arange(first, first + len(nearest), device=nearest.device)
        hits += int((nearest == own).sum())
    return Share(hits, len(queries))


def _batches(ptm: Any, rows: ImageRows, runtime: Runtime) -> Iterator[tuple[Ints, Any]]:
    ptm.module.to(runtime.device).eval()
    collate = ptm.classifier_collate()
    for first in range(runtime.rank * BATCH_SIZE, len(rows), runtime.world_size * BATCH_SIZE):
        share = np.arange(first, min(first + BATCH_SIZE, len(rows)), dtype=np.int64)
        yield share, collate(rows.take(share), 0).to(runtime.device)


def labelled_objective(ptm: Any) -> Objective:
    """Return the cross-entropy of `ptm.logits(module, batch)` against the images' labels.

    It raises DataError for a label without an output among `ptm.num_classes`, in every training.
    """

    def cross_entropy(module: Any, batch: ImageBatch) -> Any:
        check_labels(batch.labels, ptm.num_classes)
        return classification(lambda images: ptm.logits(module, images), batch)

    return cross_entropy


def in_one_pass(
    ptm: Any, head: Any, module: Any, batch: ImageBatch, others: ImageBatch
) -> tuple[Terms, Tensor]:
    """Return the loss of a batch under `head`, and other images' features, of one pass for both."""
    check_labels(batch.labels, ptm.num_classes)
    both = ptm.features(module, ImageBatch(torch.cat([batch.pixels, others.pixels])))
    own, beside = both[: batch.num_samples], both[batch.num_samples :]
    return classification(lambda _: head(own), batch), beside


def check_labels(labels: Tensor | None, num_classes: int) -> None:
    """Raise DataError unless labels [B] are given and each has an output among `num_classes`.

    On a GPU a label out of range would end the process by an assertion that names nothing.
    """
    if labels is None:
        raise DataError("the corpus has images without labels, and this pre-training needs them")
    largest = int(labels.max())
    if largest >= num_classes:
        raise DataError(
            f"an image has label {largest}, but the model has {num_classes} classes (labels 0 to "
            f"{num_classes - 1}); give the model `num_classes` of {largest + 1} or more, or "
            "another corpus"
        )
