"""RECIPE: continual pre-training with a penalty on weight norms (Zhu et al. 2023, section 2).

Loss = weight_factor x sum of ||W_i|| over the chosen layers + the PTM's own pre-training loss. The
norms are Frobenius and unsquared, and biases are left out, as in the authors' script. A third term
is ours, and off unless it is asked for: self-distillation (`learn/distillation.py`), which holds a
PTM whose own pre-training loss is missing or says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from recipe_ray.base.errors import SpecError
from recipe_ray.base.spec import HASHED_WHEN_SET
from recipe_ray.data.batches import Workbench
from recipe_ray.defenses.defense import DEFENSES, Auxiliary, Defense
from recipe_ray.learn.optim import FitSpec
from recipe_ray.models.family import PTM, Capability, Scope

if TYPE_CHECKING:
    from recipe_ray.learn.loop import EpochRecord


@DEFENSES.register("recipe")
class Recipe(Defense):
    """Regularised continual pre-training."""

    needs = ("Pretrains", "HasWeightGroups")

    weight_factor: float = Field(
        1.0, ge=0, description="weight of the norms; 0: only pre-train (Table 8)"
    )
    pretraining_weight: float = Field(
        1.0, ge=0, description="weight of the pre-training loss; 0: only regularisation (Table 8)"
    )
    layers: tuple[str, ...] = Field(
        ("ffn_in",), min_length=1, description="weight groups whose norms are penalised (set A)"
    )
    trainable: Scope = Field(
        "weights", description="weights: only the penalised matrices change; all: every parameter"
    )
    distillation: float = Field(
        0.0,
        ge=0,
        description="ours: of the term that holds the states of clean samples where they are",
        json_schema_extra=HASHED_WHEN_SET,
    )
    distilled: Literal["last", "all"] = Field(
        "last",
        description="layers whose states it holds",
        json_schema_extra=HASHED_WHEN_SET,
    )
    static_masks: bool = Field(True, description="draw the masks once (the script) or every epoch")
    fit: FitSpec = FitSpec(epochs=4, learning_rate=2e-5)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.weight_factor == self.pretraining_weight == self.distillation == 0:
            raise SpecError(
                "weight_factor and pretraining_weight are both 0, and so is distillation: no loss "
                "is left"
            )
        twice = next((group for group in self.layers if self.layers.count(group) > 1), None)
        if twice is not None:
            raise SpecError(f"layers: {twice!r} is given twice and would count twice; keep one")
        return self

    def purify(self, ptm: PTM, auxiliary: Auxiliary, bench: Workbench) -> Sequence[EpochRecord]:
        """Train on all terms; the records hold each term's mean per epoch."""
        from recipe_ray.learn.distillation import reached_by_states
        from recipe_ray.learn.loop import fit
        from recipe_ray.learn.objective import Weighted, WeightNorms, whole_parameters

        weights = [weight for group in self.layers for weight in ptm.weight_group(group)]
        held = self.pretraining_weight > 0 or self.distillation > 0
        if self.trainable == "weights" or not held:
            ptm.train_only(whole_parameters(weights), pooled=False)
        else:
            # DDP waits for every gradient, so what no term of the loss reaches is frozen
            ptm.train_only(
                None if self.pretraining_weight else reached_by_states(ptm), pooled=False
            )
        objective = Weighted(
            [
                (self.weight_factor, WeightNorms(weights)),
                (self.pretraining_weight, ptm.pretraining_objective()),
                *self._distilling(ptm, bench),
            ]
        )
        batches = bench.feed.batches(
            auxiliary.corpus,
            ptm.encoder(self.fit.max_length),
            ptm.pretraining_collate(bench.seed, static_masks=self.static_masks),
            self.fit.batch_size,
            bench.seed,
            auxiliary.part,
        )
        return fit(
            ptm.module,
            objective,
            batches,
            self.fit,
            bench.runtime,
            seed=bench.seed,
            phase="purify",
        )

    def _distilling(self, ptm: PTM, bench: Workbench) -> list[tuple[float, Any]]:
        from recipe_ray.learn.distillation import SelfDistillation, frozen_copy

        if not self.distillation:
            return []
        teacher = frozen_copy(ptm.module.to(bench.runtime.device))
        return [(self.distillation, SelfDistillation(ptm, teacher, self.distilled))]

    def needed(self, reads: str) -> tuple[Capability, ...]:
        """Return what it needs of a family; the states only if it holds them."""
        return (*self.needs, "HasStates") if self.distillation else self.needs

    def default_label(self) -> str:
        """Return the paper's name of the ablation (Table 8), or RECIPE's; `-distilled` is ours."""
        if self.distillation:
            return f"{self.name}-distilled"
        if self.weight_factor == 0:
            return "only-pretrain"
        return "only-regularization" if self.pretraining_weight == 0 else self.name

    @property
    def held_by_head(self) -> bool:
        """Whether only the PTM's own pre-training head holds it, and nothing else does."""
        return self.distillation == 0

    @property
    def num_epochs(self) -> float | None:
        """The epochs, unless steps are given."""
        return None if self.fit.steps is not None else self.fit.epochs

    @property
    def weight_factor_column(self) -> float:
        """The weight factor."""
        return self.weight_factor
