"""Refusing data that a PTM can learn nothing from, in every stage that trains on a corpus.

Rows in memory are counted before the training. A stream is counted while its first epoch is read.
If nothing at all could be learnt from it, the loop finds that (`learn/loop.py`).
"""

import logging
from dataclasses import dataclass, field, replace
from typing import Any

from recipe_ray.base.errors import DataError
from recipe_ray.data.batches import Feed, MemoryBatches, Part, Wanted
from recipe_ray.data.census import Census
from recipe_ray.data.corpus import Corpus
from recipe_ray.data.rows import Encode
from recipe_ray.learn.loop import Batches
from recipe_ray.learn.objective import Batch
from recipe_ray.models.family import PTM
from recipe_ray.store.rows import Measurement

# below it an error: of a text of 64 tokens 15 % of six are masked, which is one. Nothing is then
# left that would hold the weights against a norm
LEAST_USABLE = 0.1
# below it a warning: of the corpora of the studies 99.98 % and more are usable by BERT's
# vocabulary, so a tenth that is not says that these texts are not in the model's language
FEW_USABLE = 0.9
# one token that is half of a text or more: in English the commonest is one in sixteen
HALF = 0.5
USABLE_SHARE = "usable_share"  # metric: of the stage's corpora, the smallest share

logger = logging.getLogger("recipe_ray")


@dataclass
class LearnableFeed(Feed):
    """Around a stage's feed: raises DataError for a corpus that teaches the PTM nothing."""

    inner: Feed
    ptm: PTM
    _counted: list[tuple[Corpus, Census]] = field(default_factory=list, init=False)
    _streams: list[tuple[Corpus, list[Census]]] = field(default_factory=list, init=False)

    def batches_of(self, wanted: Wanted) -> Batches:
        """Return the inner feed's batches; raise DataError if nothing can be learnt of them."""
        streamed: list[Census] = []

        def counting(rows: Any, epoch: int) -> Batch:
            if epoch == 0 and not in_memory:
                streamed.append(self.ptm.census(rows))
            return wanted.collate(rows, epoch)

        in_memory = False
        corpus = wanted.corpus
        batches = self.inner.batches_of(replace(wanted, collate=counting))
        if isinstance(batches, MemoryBatches):
            in_memory = True
            census = self.ptm.census(batches.rows)
            check_learnable(census, corpus)
            self._counted.append((corpus, census))
        else:
            self._streams.append((corpus, streamed))
        return batches

    def rows(self, corpus: Corpus, encode: Encode, part: Part) -> Any:
        """Return the inner feed's rows of a part; nothing is trained on them."""
        return self.inner.rows(corpus, encode, part)

    def measured(self) -> list[Measurement]:
        """Return the usable share of what was trained on, and log what is doubtful about it."""
        counted = [*self._counted]
        counted += [(corpus, _summed(parts)) for corpus, parts in self._streams if parts]
        counted = [(corpus, census) for corpus, census in counted if census.judged_each]
        if not counted:
            return []
        for corpus, census in counted:
            for doubt in doubts(census, corpus):
                logger.warning("%s", doubt)
        _, least = min(counted, key=lambda one: one[1].share)
        numbers = (float(least.usable), float(least.total))
        return [Measurement(USABLE_SHARE, least.share, None, None, None, *numbers)]


def check_usable(census: Census, corpus: Corpus, part: str = "") -> None:
    """Raise DataError if hardly anything of what was counted, a `part`, can be learnt from."""
    if census.share < LEAST_USABLE:
        raise DataError(f"corpus {corpus.label()!r}{part}: {_share_of(census)}; {_NOTHING}")


def check_learnable(census: Census, corpus: Corpus) -> None:
    """Raise DataError if a PTM can learn nothing from what was counted."""
    owner = f"corpus {corpus.label()!r}"
    check_usable(census, corpus)
    if census.sameness is not None:
        raise DataError(f"{owner}: {census.sameness}; {_NOTHING}")


def doubts(census: Census, corpus: Corpus) -> list[str]:
    """Return what to warn of if something, but little, can be learnt."""
    found = []
    if census.share < FEW_USABLE:
        found.append(
            f"corpus {corpus.label()!r}: {_share_of(census)}, fewer than {FEW_USABLE:.0%}; they "
            "may not be in the model's language"
        )
    if census.usable and census.commonest / census.usable >= HALF:
        share = census.commonest / census.usable
        found.append(
            f"corpus {corpus.label()!r}: {share:.0%} of its usable {census.unit} are the same, "
            "so there is little to learn"
        )
    return found


_NOTHING = (
    "nothing can be learned from it, and training on it only damages a model; give data that "
    "the model was made for"
)


def _share_of(census: Census) -> str:
    share = f"{census.usable:,} of {census.total:,} {census.unit} are usable ({census.share:.1%})"
    if census.samples_with_some < census.samples:
        share += f", and {census.samples_with_some:,} of {census.samples:,} texts have at least one"
    if census.unit == "tokens":
        share += "; the others are unknown to the model's tokenizer or special"
    return share


def _summed(parts: list[Census]) -> Census:
    return replace(
        parts[0],
        usable=sum(part.usable for part in parts),
        total=sum(part.total for part in parts),
        samples=sum(part.samples for part in parts),
        samples_with_some=sum(part.samples_with_some for part in parts),
        commonest=0,  # that token differs from part to part
    )
