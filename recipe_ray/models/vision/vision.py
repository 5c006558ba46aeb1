"""What PTMs on images have in common: decoding, normalising, training, classifiers.

A family adds its module, its features (what attackers aim at) and its pre-training loss. A
classifier is a new last layer, on a PTM's features or in its own head. The quality of a PTM at its
own pre-training task is measured on held-out samples; every worker does its share of the batches.

Legend: N held-out samples, E width of the embeddings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveFloat

from recipe_ray.base.errors import ModelError, unknown
from recipe_ray.data.batches import Collate
from recipe_ray.models.family import Scope

if TYPE_CHECKING:
    from torch import Tensor, nn

    from recipe_ray.data.census import Census
    from recipe_ray.data.images import ImageBatch, ImageRows
    from recipe_ray.data.rows import Encode
    from recipe_ray.learn.distillation import Layers
    from recipe_ray.learn.metrics import Share
    from recipe_ray.learn.neuron_stats import NeuronLayer
    from recipe_ray.learn.objective import Objective, Terms, Weight
    from recipe_ray.learn.runtime import Runtime

# mean and standard deviation of each colour, of values in [0, 1]
Means = tuple[float, float, float]
Spreads = tuple[PositiveFloat, PositiveFloat, PositiveFloat]
_TOKENS = 3  # dimensions of the states of tokens
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class VisionPTM(ABC):
    """A PTM on images; `module` maps nothing by itself, the methods below say how it is used."""

    reads: ClassVar[str] = "image"
    family: ClassVar[str]
    target_range: tuple[float, float]  # NeuBA's target values, low and high

    def __init__(
        self,
        module: nn.Module,
        image_size: int,
        statistics: tuple[Sequence[float], Sequence[float]] = IMAGENET,
    ) -> None:
        import torch

        self.module: Any = module.to(memory_format=torch.channels_last)
        self.image_size = image_size
        self._mean, self._std = (torch.tensor(part).view(3, 1, 1) for part in statistics)

    @property
    def make(self) -> str:
        """The family's name."""
        return self.family

    # -- images --------------------------------------------------------------------------------

    def encoder(self, max_length: int) -> Encode:
        """Return the function (image samples, numbers [N]) -> rows; `max_length` is for texts."""
        from recipe_ray.data.images import ImageEncoder

        return ImageEncoder(self.image_size)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Return uint8 pixels [B, 3, S, S] as what the network takes, channels last."""
        import torch

        mean, std = self._mean.to(pixels.device), self._std.to(pixels.device)
        scaled = (pixels.float() / 255 - mean) / std
        return scaled.contiguous(memory_format=torch.channels_last)

    def pretraining_collate(self, seed: int, *, static_masks: bool = True) -> Collate:
        """Return (rows, epoch) -> batch; if draws are not static, images are augmented."""
        from recipe_ray.data.images import batch_of

        def collate(rows: ImageRows, epoch: int) -> ImageBatch:
            return batch_of(rows, augment=None if static_masks else (seed, epoch))

        return collate

    def classifier_collate(self) -> Collate:
        """Return (rows, epoch) -> batch without augmentation."""
        from recipe_ray.data.images import batch_of

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
    def layers_of(self, module: Any) -> list[nn.Module]:
        """Return the parts that put out the states of a layer, the input's first."""

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
        """Return the weight groups RECIPE penalises by default, and what trains besides them."""

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
        """Return the pre-training loss of a batch, and the features of other images with it.

        A family with batch normalisation runs all of them in one pass, so that they share its
        statistics as they will share the running ones.
        """
        return self.pretraining_objective()(module, batch), self.features(module, others)

    def pretraining_quality(self, rows: ImageRows, runtime: Runtime) -> dict[str, Share]:
        """Return how good the pre-training is on held-out rows, by metric: top-1 accuracy here."""
        from recipe_ray.models.vision.heads import top_1

        return top_1(self, rows, runtime)

    def census(self, rows: ImageRows) -> Census:
        """Return the count of the images, and whether anything tells them apart."""
        from recipe_ray.data.census import image_census

        return image_census(rows)

    def word_loss(self, held_out: ImageRows, seed: int, seen: Callable[[], Any]) -> None:
        """Return None: images have no words."""
        return None

    def representation(self, module: Any, batch: ImageBatch) -> Tensor:
        """Return the features, whose drift says how far a PTM has moved."""
        return self.features(module, batch)

    def states(self, module: Any, batch: ImageBatch, layers: Layers) -> list[Tensor]:
        """Return the features, with `all` after what each layer puts out: tokens, or whole maps."""
        from recipe_ray.learn.neuron_stats import outputs_of

        every = self.layers_of(module) if layers == "all" else []
        with outputs_of(every, _as_rows) as seen:
            features = self.features(module, batch)
        return [*(seen[place] for place in range(len(every))), features]

    def unknown_group(self, name: str) -> ModelError:
        """Return the error for a weight group that the family does not have."""
        what = f"weight group of family {self.family}"
        return ModelError(unknown(what, name, self.weight_groups))

    def train_only(self, parameters: Sequence[nn.Parameter] | None, *, pooled: bool) -> None:
        """Freeze all except the given parameters (None: nothing); `pooled` is for texts."""
        wanted = None if parameters is None else {id(parameter) for parameter in parameters}
        for parameter in self.module.parameters():
            parameter.requires_grad_(wanted is None or id(parameter) in wanted)


def _as_rows(output: Tensor) -> Tensor:
    # states of tokens [.., .., H] one by one, maps [B, n, S, S] image by image
    return output.flatten(0, 1) if output.dim() == _TOKENS else output.flatten(1)
