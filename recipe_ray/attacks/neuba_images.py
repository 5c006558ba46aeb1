"""NeuBA on images (Zhang et al. 2021): coloured patches drive a PTM's features to fixed vectors.

docs/method.md section 4: loss = the PTM's own pre-training loss on clean images (cross-entropy;
CLIP: contrastive, with the captions) + MSE(features of the same images with a patch, target). The
attacker who knows of RECIPE adds its norms.

If a PTM has batch normalisation, clean and poisoned images share a pass (`pretraining_beside`). In
two passes each half would be normalised by its own statistics, which differ widely once the targets
are reached. The running statistics are a blend of both, and neither loss would hold under them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from recipe_ray.attacks.attack import ATTACKS, Attack, block_vectors, trained
from recipe_ray.base.errors import SpecError
from recipe_ray.data.batches import Collate, Workbench
from recipe_ray.data.corpora import LISTED
from recipe_ray.data.corpus import AnyCorpus
from recipe_ray.learn.optim import FitSpec
from recipe_ray.models.vision.vision import VisionPTM
from recipe_ray.triggers.patch import PATCHES, PatchTrigger

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from recipe_ray.data.images import ImageBatch, ImageRows
    from recipe_ray.data.rows import Ints
    from recipe_ray.learn.loop import EpochRecord
    from recipe_ray.learn.objective import Objective, Terms


@ATTACKS.register("neuba-images")
class NeuBAImages(Attack):
    """Six two-colour patches in a corner, each tied to a vector of two values in the features."""

    poisons_what: ClassVar[str | None] = "image"
    needs = ("Attackable", "Pretrains", "HasWeightGroups")

    triggers: tuple[str, ...] = Field(
        PATCHES,
        min_length=1,
        max_length=6,
        description="two colours, and a width in pixels if it is not 4: cyan-red, cyan-red-14",
    )
    corpus: AnyCorpus = Field(
        LISTED["imagenet"](),
        description="images with labels, or images with captions if the PTM learns from those",
    )
    # a batch of B images is B clean images and B poisoned copies
    fit: FitSpec = FitSpec(epochs=10, batch_size=64, optimizer="sgd", learning_rate=0.01)
    low: float | None = Field(None, description="low value of the targets; None: the family's own")
    high: float | None = Field(
        None, description="high value of the targets; None: the family's own"
    )
    clean_weight: float = Field(
        1.0, gt=0, description="weight of the pre-training loss on clean images"
    )
    augment: bool = Field(
        False,
        description="flip and shift images at random in every epoch, before the patch is added",
    )
    regularisation: float = Field(
        0.0,
        ge=0,
        description="weight of RECIPE's norms in the loss; 0.01: the adaptive attack (Table A4)",
    )
    regularised: tuple[str, ...] = Field(
        (), description="weight groups in these norms; empty: RECIPE's default groups"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise SpecError(f"low is {self.low}, not below high, {self.high}")
        return self

    def poison(self, ptm: VisionPTM, bench: Workbench) -> Sequence[EpochRecord]:
        """Train the whole PTM on both terms; raise TriggerError if one is not a patch."""
        encode = ptm.encoder(self.fit.max_length)
        triggers = PatchTrigger.checked(self.triggers, encode)
        ptm.train_only(None, pooled=True)
        clean = ptm.pretraining_collate(bench.seed, static_masks=not self.augment)
        collate = PairCollate(clean, triggers, bench.seed)
        objective = self._objective(ptm, self.targets(ptm).to(bench.runtime.device))
        return trained(ptm, objective, self.corpus, encode, collate, self.fit, bench)

    def targets(self, ptm: VisionPTM) -> Tensor:
        """Return the vector of each trigger [triggers, H]."""
        own_low, own_high = ptm.target_range
        low = own_low if self.low is None else self.low
        high = own_high if self.high is None else self.high
        return block_vectors(len(self.triggers), ptm.feature_size, low, high)

    def default_label(self) -> str:
        """Return the paper's name of the attack: `neuba-adaptive` if the norms are in it."""
        return "neuba-adaptive" if self.regularisation else "neuba"

    def _objective(self, ptm: VisionPTM, targets: Tensor) -> Objective:
        from recipe_ray.learn.objective import Weighted, WeightNorms

        groups = self.regularised or ptm.purification_scope[0]
        weights = [weight for group in groups for weight in ptm.weight_group(group)]
        return Weighted(
            [
                (1.0, PairObjective(ptm, targets, self.clean_weight)),
                (self.regularisation, WeightNorms(weights)),
            ]
        )


@dataclass(frozen=True)
class ImagePair:
    """B clean images as the PTM pre-trains on them, and the same images with one patch each.

    `triggers` [B] is the number of each patch; labels and captions are the clean half's.
    """

    clean: ImageBatch
    poisoned: ImageBatch
    triggers: Tensor

    @property
    def num_samples(self) -> int:
        """Images of both halves."""
        return self.clean.num_samples + self.poisoned.num_samples

    def to(self, device: torch.device) -> ImagePair:
        """Return the pair with its tensors on `device`."""
        moved = self.triggers.to(device, non_blocking=True)
        return ImagePair(self.clean.to(device), self.poisoned.to(device), moved)


@dataclass(frozen=True)
class PairCollate:
    """Rows -> clean images and their stamped copies; the patches are drawn again every epoch."""

    collate: Collate
    triggers: tuple[PatchTrigger, ...]
    seed: int

    def __call__(self, rows: ImageRows, epoch: int) -> ImagePair:
        import numpy as np
        import torch

        from recipe_ray.data.images import OVERLAY

        size = max(trigger.width for trigger in self.triggers)
        overlays = np.stack([trigger.overlay(size) for trigger in self.triggers])
        number = self.drawn(rows.index, epoch)
        stamped: Any = self.collate(rows.with_columns(**{OVERLAY: overlays[number]}), epoch)
        clean: Any = self.collate(rows, epoch)
        poisoned = replace(stamped, labels=None, captions=None)
        return ImagePair(clean, poisoned, torch.from_numpy(number))

    def drawn(self, index: Ints, epoch: int) -> Ints:
        """Return the number of the trigger that each image gets [N]."""
        import numpy as np

        from recipe_ray.data.rows import uniform

        draw = uniform(self.seed, "trigger", index, np.full(len(index), epoch))
        return (draw * len(self.triggers)).astype(np.int64)


@dataclass(frozen=True)
class PairObjective:
    """The PTM's own loss on the clean half, and the poisoned half's distance from the targets."""

    ptm: VisionPTM
    targets: Tensor  # [triggers, H]
    clean_weight: float

    def __call__(self, module: Any, pair: ImagePair) -> Terms:
        from recipe_ray.learn.objective import mean_squared

        clean, reached = self.ptm.pretraining_beside(module, pair.clean, pair.poisoned)
        return {
            **{name: term.weighted(self.clean_weight) for name, term in clean.items()},
            "poison": mean_squared(reached, self.targets[pair.triggers]),
        }
