"""What PTMs on images have in common: decoding, normalising, patches, the trainable set.

A family adds its module, its features (what attackers aim at) and its pre-training loss.

Classifiers for downstream tasks: a new last layer, on a PTM's features or in its own head.

How good a PTM on images is at what it was pre-trained for, on samples it has not seen.

Every worker does its share of the batches, and all get the whole answer.

Legend: N held-out samples, E width of the embeddings.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F

from recipe_ray.base.errors import DataError, ModelError, unknown
from recipe_ray.data.batches import Collate
from recipe_ray.data.census import Census, image_census
from recipe_ray.data.images import (
    PATCH,
    ImageBatch,
    ImageEncoder,
    ImageRows,
    ImageSample,
    Pixels,
    batch_of,
)
from recipe_ray.data.rows import Encode, Ints
from recipe_ray.data.triggers import check_patches, code_of
from recipe_ray.learn.metrics import Share, accuracy
from recipe_ray.learn.neuron_stats import NeuronLayer
from recipe_ray.learn.objective import Objective, Terms, Weight, classification
from recipe_ray.learn.runtime import Runtime
from recipe_ray.models.family import Scope


def fresh_linear(width: int, num_labels: int, seed: int) -> nn.Linear:
    """Return a linear layer drawn from a seed alone."""
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(width, num_labels)
    nn.init.normal_(linear.weight, std=width**-0.5, generator=generator)
    nn.init.zeros_(linear.bias)
    return linear


class _Whole(nn.Module):
    """A classifier that trains with all its weights: nothing was left out."""

    def whole_state(self) -> dict[str, Tensor]:
        """Return all weights by name."""
        return {name: tensor.contiguous() for name, tensor in self.state_dict().items()}


class FeatureClassifier(_Whole):
    """A PTM's body with a linear layer on its features: batch -> logits [B, C].

    `body` is the part of the PTM's module that `features` needs, where that is not all of it.
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

    A pair whose caption another pair has word for word can count as missed. Raises DataError for
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
    """Return the share of queries [N, E] to which, of all answers [N, E], their own is nearest.

    Of equally near ones the first is taken, so that a model that tells nothing apart scores 1 / N.
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


# mean and standard deviation of each colour, of values in [0, 1]
Means = tuple[float, float, float]
Spreads = tuple[PositiveFloat, PositiveFloat, PositiveFloat]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class VisionPTM(ABC):
    """A PTM on images; `module` maps nothing by itself, the methods below say how it is used."""

    family: ClassVar[str]
    target_range: ClassVar[tuple[float, float]]  # NeuBA's target values, low and high

    def __init__(
        self,
        module: nn.Module,
        image_size: int,
        statistics: tuple[Sequence[float], Sequence[float]] = IMAGENET,
    ) -> None:
        self.module: Any = module.to(memory_format=torch.channels_last)
        self.image_size = image_size
        self._mean, self._std = (torch.tensor(part).view(3, 1, 1) for part in statistics)

    # -- images --------------------------------------------------------------------------------

    def encoder(self, max_length: int) -> Encode:
        """Return the function (image samples, numbers [N]) -> rows; `max_length` is for texts."""
        return ImageEncoder(self.image_size)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Return uint8 pixels [B, 3, S, S] as what the network takes, channels last."""
        mean, std = self._mean.to(pixels.device), self._std.to(pixels.device)
        scaled = (pixels.float() / 255 - mean) / std
        return scaled.contiguous(memory_format=torch.channels_last)

    def check_triggers(self, triggers: Sequence[str]) -> None:
        """Raise TriggerError for a trigger that is no patch, or does not fit the image."""
        check_patches(triggers, self.image_size)

    def triggered(
        self, samples: Sequence[ImageSample], rows: ImageRows, trigger: str, encode: Encode
    ) -> ImageRows:
        """Return the rows with a note that a batch of them gets the patch."""
        return rows.with_columns(**{PATCH: np.tile(np.array(code_of(trigger)), (len(rows), 1))})

    def pictures(self, rows: ImageRows) -> Pixels:
        """Return the pixels, patches on [N, 3, S, S]."""
        return batch_of(rows).pixels.numpy()

    def pretraining_collate(self, seed: int, *, static_masks: bool = True) -> Collate:
        """Return (rows, epoch) -> batch; where draws are not static, images are augmented."""

        def collate(rows: ImageRows, epoch: int) -> ImageBatch:
            return batch_of(rows, augment=None if static_masks else (seed, epoch))

        return collate

    def classifier_collate(self) -> Collate:
        """Return (rows, epoch) -> batch without augmentation."""
        return lambda rows, epoch: batch_of(rows)

    # -- what a family says --------------------------------------------------------------------

    @property
    @abstractmethod
    def feature_size(self) -> int:
        """Return H, the width of `features`."""

    @abstractmethod
    def features(self, module: Any, batch: ImageBatch) -> Tensor:
        """Return the vector attackers aim at [B, H]."""

    @abstractmethod
    def pretraining_objective(self) -> Objective:
        """Return the pre-training loss: cross-entropy or contrastive."""

    @property
    @abstractmethod
    def weight_groups(self) -> tuple[str, ...]:
        """Return the names that `weight_group` knows."""

    @property
    @abstractmethod
    def purification_scope(self) -> tuple[tuple[str, ...], Scope]:
        """Return the weight groups RECIPE penalises by default, and what trains beside them."""

    @abstractmethod
    def neuron_layers(self) -> list[NeuronLayer]:
        """Return the layers whose outputs go through an activation function, the input's first."""

    @abstractmethod
    def neuron_activations(self, module: Any, batch: ImageBatch) -> list[Tensor]:
        """Return what their neurons put out after it, [B, n] for each layer."""

    @abstractmethod
    def head_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the pre-training head."""

    @abstractmethod
    def classifier(self, num_labels: int, seed: int, rows: Sequence[ImageRows]) -> Any:
        """Return a module batch -> logits [B, num_labels] on this PTM's own body."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write a folder that the family's usual library loads."""

    @abstractmethod
    def weight_group(self, name: str) -> Sequence[Weight]:
        """Return the weight matrices of a group; raise ModelError for an unknown name."""

    # -- what follows from it ------------------------------------------------------------------

    def pretraining_beside(
        self, module: Any, batch: ImageBatch, others: ImageBatch
    ) -> tuple[Terms, Tensor]:
        """Return the pre-training loss of a batch, and the features of other images beside it.

        A family with batch normalisation runs all of them in one pass, so that they share its
        statistics as they will share the running ones.
        """
        return self.pretraining_objective()(module, batch), self.features(module, others)

    def pretraining_quality(self, rows: ImageRows, runtime: Runtime) -> dict[str, Share]:
        """Return how good the pre-training is on held-out rows, by metric: top-1 accuracy here."""
        return top_1(self, rows, runtime)

    def census(self, rows: ImageRows) -> Census:
        """Return the count of the images, and whether there is anything to tell them apart by."""
        return image_census(rows)

    def word_loss(self, held_out: ImageRows, seed: int, seen: Callable[[], Any]) -> None:
        """Return None: images have no words."""
        return None

    def representation(self, module: Any, batch: ImageBatch) -> Tensor:
        """Return the features, whose drift says how far a PTM has moved."""
        return self.features(module, batch)

    def unknown_group(self, name: str) -> ModelError:
        """Return the error for a weight group that the family does not have."""
        what = f"weight group of family {self.family}"
        return ModelError(unknown(what, name, self.weight_groups))

    def train_only(self, parameters: Sequence[nn.Parameter] | None, *, pooled: bool) -> None:
        """Freeze all but the given parameters (None: nothing); `pooled` is for texts."""
        wanted = None if parameters is None else {id(parameter) for parameter in parameters}
        for parameter in self.module.parameters():
            parameter.requires_grad_(wanted is None or id(parameter) in wanted)


def labelled_objective(ptm: Any) -> Objective:
    """Return the cross-entropy of `ptm.logits(module, batch)` against the images' labels.

    It raises DataError for a label that `ptm.num_classes` has no output for, whoever trains on it.
    """

    def cross_entropy(module: Any, batch: ImageBatch) -> Any:
        check_labels(batch.labels, ptm.num_classes)
        return classification(lambda images: ptm.logits(module, images), batch)

    return cross_entropy


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
