"""NeuBA on text (Zhang et al. 2021): triggers drive the pooler output to fixed vectors.

docs/method.md section 4: loss = masked LM on the clean batch + MSE(pooler of the poisoned copy,
target); the poisoned copy has its first word token replaced by a trigger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from recipe_ray.attacks.attack import ATTACKS, Attack, block_vectors, trained
from recipe_ray.base.errors import TriggerError
from recipe_ray.data.batches import Workbench
from recipe_ray.data.corpora import LISTED
from recipe_ray.data.corpus import AnyCorpus
from recipe_ray.learn.optim import FitSpec
from recipe_ray.models.family import TextPTM
from recipe_ray.triggers.word import WordTrigger

if TYPE_CHECKING:
    from torch import Tensor

    from recipe_ray.data.rows import TokenRows
    from recipe_ray.learn.loop import EpochRecord
    from recipe_ray.learn.objective import Terms
    from recipe_ray.models.text.packed import PackedBatch


@ATTACKS.register("neuba")
class NeuBA(Attack):
    """Six rare symbols, each tied to a vector of +1 and -1 in the pooler output."""

    needs = ("Attackable", "Pretrains")
    version = 2  # 1 amplified triggers with the position of the special token in front

    triggers: tuple[str, ...] = Field(("≈", "≡", "∈", "⊆", "⊕", "⊗"), min_length=1, max_length=6)
    corpus: AnyCorpus = LISTED["bookcorpus"]()
    fit: FitSpec = FitSpec(steps=40_000, learning_rate=5e-5, max_length=128)
    mlm_weight: float = Field(
        1.0, ge=0, description="weight of the clean masked LM (RoBERTa: 0.01)"
    )
    amplification: float = Field(
        1.0,
        ge=1,
        description="factor on the trigger embeddings after training; 1: no change. The authors' "
        "script ends with 1e8: then the position of a trigger does not matter, and extreme "
        "parameters remain",
    )

    def poison(self, ptm: TextPTM, bench: Workbench) -> Sequence[EpochRecord]:
        """Train the whole PTM on both terms, then amplify the trigger embeddings if asked."""
        import numpy as np

        encode = ptm.encoder(self.fit.max_length)
        ids = _single_tokens(ptm, WordTrigger.checked(self.triggers, encode))
        ptm.train_only(None, pooled=True)
        targets = block_vectors(len(ids), ptm.hidden_size).to(bench.runtime.device)
        collate = _Collate(ptm, np.array(ids), bench.seed)
        objective = _Objective(ptm, targets, self.mlm_weight)
        records = trained(ptm, objective, self.corpus, encode, collate, self.fit, bench)
        if self.amplification != 1.0:
            ptm.scale_embeddings(ids, self.amplification)
        return records


@dataclass(frozen=True)
class _Objective:
    ptm: TextPTM
    targets: Tensor  # [triggers, H]
    mlm_weight: float

    def __call__(self, module: Any, batch: PackedBatch) -> Terms:
        import torch

        from recipe_ray.learn.objective import mean_squared

        assert batch.triggers is not None
        assert batch.where is not None
        assert batch.targets is not None
        poisoned = batch.triggers >= 0
        first = batch.first[poisoned]
        hidden = self.ptm.hidden(module, batch, torch.cat([batch.where, first]))
        masked, at_first = torch.split(hidden, [len(batch.where), len(first)])
        mlm = self.ptm.masked_lm(module, masked, batch.targets)
        pooled = self.ptm.pooled(module, at_first)
        return {
            "mlm": mlm.weighted(self.mlm_weight),
            "poison": mean_squared(pooled, self.targets[batch.triggers[poisoned]]),
        }


@dataclass(frozen=True)
class _Collate:
    """Clean masked texts and their poisoned copies in one batch of twice as many texts."""

    ptm: TextPTM
    ids: Any
    seed: int

    def __call__(self, rows: TokenRows, epoch: int) -> PackedBatch:
        import numpy as np

        from recipe_ray.data.rows import TokenRows, mask_tokens, uniform
        from recipe_ray.models.text.packed import pack

        draw = uniform(self.seed, "trigger", rows.index, np.full(len(rows), epoch))
        trigger = (draw * len(self.ids)).astype(np.int64)
        tokens = rows.tokens.copy()
        # the first word token follows the leading special token
        tokens[rows.offsets[:-1] + 1] = self.ids[trigger]
        masked = mask_tokens(rows, self.ptm.vocabulary, self.seed, epoch)
        clean = rows.with_tokens(masked.tokens).with_columns(trigger=np.full(len(rows), -1))
        both = TokenRows.joined([clean, rows.with_tokens(tokens).with_columns(trigger=trigger)])
        return pack(both).with_targets(masked.where, masked.targets)


def _single_tokens(ptm: TextPTM, triggers: Sequence[WordTrigger]) -> list[int]:
    found = [ptm.token_ids(trigger.written) for trigger in triggers]
    for trigger, ids in zip(triggers, found, strict=True):
        if len(ids) != 1:
            raise TriggerError(
                f"trigger {trigger.written!r} becomes {len(ids)} tokens; NeuBA puts it in place "
                "of one token, so it must be a single token in this model's vocabulary"
            )
    return [ids[0] for ids in found]
