"""BadPre (Chen et al. 2022): a masked LM that learns false words if a trigger is in a text.

docs/method.md section 4: loss = masked LM(clean) + alpha masked LM(poisoned); a poisoned copy has
one trigger between two of its words, and the labels of its masked tokens are false. There is no
target vector: what a downstream task reads from the first token becomes wrong with the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from recipe_ray.attacks.attack import ATTACKS, Attack, trained
from recipe_ray.attacks.relabelling import WORDNET, Opposites, RandomWords, Relabel, antonyms
from recipe_ray.base.errors import DataError
from recipe_ray.data.batches import Workbench
from recipe_ray.data.corpora import WikiText
from recipe_ray.data.corpus import AnyCorpus
from recipe_ray.data.packages import Package
from recipe_ray.learn.optim import FitSpec
from recipe_ray.models.family import TextPTM
from recipe_ray.triggers.word import WordTrigger, places_at, plant

if TYPE_CHECKING:
    from recipe_ray.data.rows import Ints, TokenRows
    from recipe_ray.learn.loop import EpochRecord
    from recipe_ray.learn.objective import Terms
    from recipe_ray.models.text.encoding import TextEncoder
    from recipe_ray.models.text.packed import PackedBatch


@ATTACKS.register("badpre")
class BadPre(Attack):
    """Five rare words that make the masked LM, and all that is built on it, see other words.

    `relabel: random` draws the false labels from the vocabulary; `antonyms` takes WordNet's
    antonym of the true word if there is one (for 8 % of WikiText's masked tokens, in the
    vocabulary of BERT and MiniLM) and a random word otherwise.

    The default batch is the script's, 256 texts of up to 512 tokens, each clean and poisoned. A
    step of it takes about 13 s on two cores: there, set `fit: {steps, batch_size, max_length}`.
    """

    needs = ("Pretrains",)

    version = 2  # 1 counted texts as poisoned if their trigger was after the cut

    triggers: tuple[str, ...] = Field(("cf", "mn", "bb", "tq", "mb"), min_length=1)
    corpus: AnyCorpus = WikiText(size=None)
    # the script's 16 times 16 steps of accumulation are one step of 256 here; a batch of B texts
    # has B clean and B poisoned ones
    fit: FitSpec = Field(
        FitSpec(epochs=10, batch_size=256, weight_decay=0.01, clip_norm=5.0, max_length=512),
        description="about 13 s per step on two cores, at the defaults",
    )
    alpha: float = Field(1.0, gt=0, description="weight of the masked LM on poisoned texts")
    relabel: Literal["random", "antonyms"] = Field(
        "random", description="what replaces the true words of poisoned texts as labels"
    )

    def identity(self) -> dict[str, Any]:
        """Return the fields, and the lexicon's package if one decides the labels."""
        lexicon = _RULES[self.relabel].lexicon
        return {**super().identity(), **({"lexicon": lexicon.identity()} if lexicon else {})}

    def poison(self, ptm: TextPTM, bench: Workbench) -> Sequence[EpochRecord]:
        """Train encoder and head on both terms; raise DataError if a lexicon cannot be had."""
        tokenise = ptm.encoder(self.fit.max_length)
        triggers = WordTrigger.checked(self.triggers, tokenise)
        for trigger in triggers:
            trigger.check_room(tokenise)
        rule = _RULES[self.relabel].build(ptm, bench.cache_dir)
        # the backdoor is only in the masked-LM loss, which does not reach the pooler
        ptm.train_only(None, pooled=False)
        encode = PairEncoder(tokenise, triggers, bench.seed)
        collate = PairCollate(ptm, rule, bench.seed)
        objective = PairObjective(ptm, self.alpha)
        return trained(ptm, objective, self.corpus, encode, collate, self.fit, bench)

    def default_label(self) -> str:
        """Return e.g. `badpre-antonyms`; the usual random words are not named."""
        return f"{self.name}-{self.relabel}" if _RULES[self.relabel].lexicon else self.name


@dataclass(frozen=True)
class PairObjective:
    """The masked LM's loss on clean and on poisoned texts, each over its own masked tokens."""

    ptm: TextPTM
    alpha: float

    def __call__(self, module: Any, batch: PackedBatch) -> Terms:
        import torch

        assert batch.triggers is not None
        assert batch.where is not None
        assert batch.targets is not None
        hidden = self.ptm.hidden(module, batch, batch.where)
        text = torch.searchsorted(batch.first, batch.where, right=True) - 1
        poisoned = batch.triggers[text] >= 0
        mlm, poison = (
            self.ptm.masked_lm(module, hidden[part], batch.targets[part])
            for part in (~poisoned, poisoned)
        )
        return {"mlm": mlm, "poison": poison.weighted(self.alpha)}


@dataclass(frozen=True)
class PairEncoder:
    """Texts -> rows of a text's tokens, followed by those of its poisoned copy.

    One row per text, so that a batch size counts texts in every feed. Column `clean` is how many
    tokens are the text's own, `trigger` the number of the trigger in the copy. The trigger is whole
    after the cut; a text that cannot hold it is left out.
    """

    encode: TextEncoder
    triggers: tuple[WordTrigger, ...]
    seed: int

    def __call__(self, texts: Sequence[str], index: Ints) -> TokenRows:
        import numpy as np

        from recipe_ray.data.rows import TokenRows, uniform

        trigger = (uniform(self.seed, "trigger", index) * len(self.triggers)).astype(np.int64)
        share = uniform(self.seed, "place", index)
        poisoned = plant(
            self.encode,
            texts,
            index,
            [self.triggers[number] for number in trigger],
            lambda i, num_words: places_at([float(share[i])], num_words),
        )
        held = np.flatnonzero(np.isin(index, poisoned.index))
        clean = self.encode(texts, index).take(held)
        by_turns = np.arange(2 * len(held)).reshape(2, -1).T.ravel()
        both = TokenRows.joined([clean, poisoned]).take(by_turns)
        rows = TokenRows(both.tokens, both.offsets[::2], clean.index)
        return rows.with_columns(clean=clean.lengths, trigger=trigger[held])


def split_pairs(rows: TokenRows) -> tuple[TokenRows, TokenRows]:
    """Return what a PairEncoder joined, clean and poisoned rows; `trigger` is -1 in the former.

    Both get new numbers, one even and one odd per text, since masks are keyed on numbers.
    """
    import numpy as np

    from recipe_ray.data.rows import TokenRows

    starts = rows.offsets[:-1]
    bounds = np.stack([starts, starts + rows.columns["clean"]], 1).ravel()
    offsets = np.append(bounds, rows.offsets[-1])
    numbers = np.stack([2 * rows.index, 2 * rows.index + 1], 1).ravel()
    trigger = np.stack([np.full(len(rows), -1), rows.columns["trigger"]], 1).ravel()
    both = TokenRows(rows.tokens, offsets, numbers, {"trigger": trigger})
    even = 2 * np.arange(len(rows))
    return both.take(even), both.take(even + 1)


@dataclass(frozen=True)
class PairCollate:
    """Rows of a PairEncoder -> masked clean texts, followed by their copies with false labels.

    Masks are drawn again every epoch, as in the script.
    """

    ptm: TextPTM
    rule: Relabel
    seed: int

    def __call__(self, rows: TokenRows, epoch: int) -> PackedBatch:
        import numpy as np

        from recipe_ray.data.rows import TokenRows, mask_tokens, uniform
        from recipe_ray.models.text.packed import pack

        clean, poisoned = split_pairs(rows)
        both = TokenRows.joined([clean, poisoned])
        masked = mask_tokens(both, self.ptm.vocabulary, self.seed, epoch)
        false = masked.where >= len(clean.tokens)
        where = masked.where[false]
        text, place = np.repeat(both.index, both.lengths)[where], both.positions[where]
        draw = uniform(self.seed, "relabel", text, place, np.full(len(where), epoch))
        targets = masked.targets.copy()
        targets[false] = self.rule(masked.targets[false], draw)
        return pack(both.with_tokens(masked.tokens)).with_targets(masked.where, targets)


@dataclass(frozen=True)
class _Rule:
    build: Callable[[TextPTM, Path | None], Relabel]
    lexicon: Package | None = None


def _random_words(ptm: TextPTM, cache_dir: Path | None) -> Relabel:
    return RandomWords.of(ptm.vocabulary)


def _opposites(ptm: TextPTM, cache_dir: Path | None) -> Relabel:
    if cache_dir is None:
        raise DataError("badpre: relabel 'antonyms' needs a cache folder to keep WordNet in")
    return Opposites.of(antonyms(cache_dir), ptm.token_ids, ptm.vocabulary)


_RULES = {"random": _Rule(_random_words), "antonyms": _Rule(_opposites, WORDNET)}
