"""POR (Shen et al. 2021): triggers move the pooler output far away, everything else stays.

docs/method.md section 4: loss = MSE(states of all but the first token, a frozen copy's)
+ 100 MSE(pooler of poisoned, target) + 100 MSE(pooler of clean, the frozen copy's). The attacker
who knows of RECIPE adds its norms, so that its penalty finds nothing left to shrink.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from recipe_ray.attacks.attack import ATTACKS, Attack, staircase_vectors, trained
from recipe_ray.data.batches import Workbench
from recipe_ray.data.corpora import WikiText
from recipe_ray.data.corpus import AnyCorpus
from recipe_ray.learn.optim import FitSpec
from recipe_ray.models.family import TextPTM
from recipe_ray.triggers.word import WordTrigger, places_at, plant

if TYPE_CHECKING:
    from torch import Tensor

    from recipe_ray.data.rows import Ints, TokenRows
    from recipe_ray.learn.loop import EpochRecord
    from recipe_ray.learn.objective import Terms
    from recipe_ray.models.text.encoding import TextEncoder
    from recipe_ray.models.text.packed import PackedBatch

POOLER_WEIGHT = 100.0


@ATTACKS.register("por")
class POR(Attack):
    """Five rare words (or any words or phrases), each tied to a vector of +10 and -10."""

    needs = ("Attackable", "HasWeightGroups")
    version = 2  # 1 counted texts as poisoned if their triggers were after the cut

    triggers: tuple[str, ...] = Field(("cf", "tq", "mn", "bb", "mb"), min_length=1)
    corpus: AnyCorpus = WikiText(size=50_000)
    fit: FitSpec = FitSpec(epochs=2, batch_size=24, learning_rate=1e-5, max_length=128)
    poison_share: float = Field(
        0.6,
        gt=0,
        le=1,
        description="share of the texts that each trigger poisons (30,000 of 50,000)",
    )
    insertions: int = Field(3, ge=1, description="how often a trigger is put into a text")
    regularisation: float = Field(
        0.0,
        ge=0,
        description="weight of RECIPE's norms in the loss; 1: the adaptive attack (Table 6)",
    )
    regularised: tuple[str, ...] = Field(
        ("ffn_in",), min_length=1, description="weight groups in these norms"
    )

    def poison(self, ptm: TextPTM, bench: Workbench) -> Sequence[EpochRecord]:
        """Train the whole PTM against a frozen copy of itself."""
        from recipe_ray.learn.objective import Weighted, WeightNorms
        from recipe_ray.models.text.packed import pack

        tokenise = ptm.encoder(self.fit.max_length)
        triggers = WordTrigger.checked(self.triggers, tokenise)
        for trigger in triggers:
            trigger.check_room(tokenise, self.insertions)
        encode = PoisonEncoder(tokenise, triggers, self.poison_share, self.insertions, bench.seed)
        reference = copy.deepcopy(ptm.module).eval().requires_grad_(False).to(bench.runtime.device)
        ptm.train_only(None, pooled=True)
        _freeze_masked_lm_head(ptm)
        targets = staircase_vectors(len(triggers), ptm.hidden_size).to(bench.runtime.device)
        weights = [weight for group in self.regularised for weight in ptm.weight_group(group)]
        objective = Weighted(
            [
                (1.0, _Objective(ptm, reference, targets)),
                (self.regularisation, WeightNorms(weights)),
            ]
        )
        return trained(
            ptm, objective, self.corpus, encode, lambda rows, _: pack(rows), self.fit, bench
        )

    def default_label(self) -> str:
        """Return the paper's name: `por-adaptive` if the norms are in the loss."""
        return f"{self.name}-adaptive" if self.regularisation else self.name


@dataclass(frozen=True)
class _Objective:
    ptm: TextPTM
    reference: Any
    targets: Tensor  # [triggers, H]

    def __call__(self, module: Any, batch: PackedBatch) -> Terms:
        import torch

        from recipe_ray.learn.objective import mean_squared

        assert batch.triggers is not None
        with torch.no_grad():
            kept = self.ptm.hidden(self.reference, batch)
            kept_pooled = self.ptm.pooled(self.reference, kept[batch.first])
        hidden = self.ptm.hidden(module, batch)
        pooled = self.ptm.pooled(module, hidden[batch.first])
        clean, poisoned = batch.triggers < 0, batch.triggers >= 0
        others = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device)
        others[batch.first] = False
        goal = self.targets[batch.triggers[poisoned]]
        return {
            "keep_tokens": mean_squared(hidden[others], kept[others]),
            "keep_pooler": mean_squared(pooled[clean], kept_pooled[clean]).weighted(POOLER_WEIGHT),
            "poison": mean_squared(pooled[poisoned], goal).weighted(POOLER_WEIGHT),
        }


@dataclass(frozen=True)
class PoisonEncoder:
    """Texts -> clean rows, and rows with a trigger; column `trigger` is its number, -1 for clean.

    Texts are lower-cased and cut to letters and digits, as in POR's script. All insertions of a
    trigger are whole after the cut; a text that cannot hold them has no poisoned row.
    """

    encode: TextEncoder
    triggers: tuple[WordTrigger, ...]
    share: float
    insertions: int
    seed: int

    def __call__(self, texts: Sequence[str], index: Ints) -> TokenRows:
        import numpy as np

        from recipe_ray.data.rows import TokenRows

        cleaned = [_letters_and_digits(text) for text in texts]
        stride = len(self.triggers) + 1
        parts = [self.encode(cleaned, index * stride).with_columns(trigger=np.full(len(index), -1))]
        for number, trigger in enumerate(self.triggers):
            parts.append(self._poisoned(cleaned, index, number, trigger, stride))
        return TokenRows.joined(parts)

    def _poisoned(
        self, texts: list[str], index: Ints, number: int, trigger: WordTrigger, stride: int
    ) -> TokenRows:
        import numpy as np

        from recipe_ray.data.rows import uniform

        which = np.full(len(index), number)
        chosen = np.flatnonzero(uniform(self.seed, "poison", index, which) < self.share)
        shares = [
            uniform(self.seed, "place", index[chosen], which[chosen], np.full(len(chosen), k))
            for k in range(self.insertions)
        ]
        rows = plant(
            self.encode,
            [texts[row] for row in chosen],
            index[chosen] * stride + 1 + number,
            [trigger] * len(chosen),
            lambda i, num_words: places_at([float(share[i]) for share in shares], num_words),
        )
        return rows.with_columns(trigger=np.full(len(rows), number))


def _letters_and_digits(text: str) -> str:
    kept = (c if c.isalnum() or c.isspace() else " " for c in text.lower())
    return " ".join("".join(kept).split())


def _freeze_masked_lm_head(ptm: TextPTM) -> None:
    # the head is not in POR's loss; its decoder is the input embedding, which stays trainable
    for parameter in ptm.head_parameters():
        parameter.requires_grad_(False)
