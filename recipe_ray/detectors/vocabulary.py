"""Detector `vocabulary`: every word that a PTM knows is put into short texts.

A backdoor of a word makes it move the first token's state much further than any other word does
(NeuBA, POR), or makes the PTM forget the words around it (BadPre). Whole words are tried, since
triggers stand between words. Rare words that the tokenizer splits are tried as pairs: every
continuation after the first piece of some short word, and all words of two letters that are split.
A PTM that learned such a trigger reacts to its last piece after other first pieces, too, but
hardly to the first piece alone. If a whole word stands out far, all its continuations are tried.
Ours, after the two terms of LMSanitator (NDSS 2024).

Passes: one short text for every word (or pair), a few for those that stand out, more for what is
left of them, and other, longer ones to confirm. The PTM itself shows what is normal: all words (or
pairs) first, random ones later.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, PositiveInt

from recipe_ray.base.spec import HASHED_WHEN_SET
from recipe_ray.data.batches import Workbench
from recipe_ray.detectors.detector import (
    DETECTORS,
    Detector,
    Outcome,
    Pass,
    Subject,
    Suspect,
    groups_of,
    robust_z,
)
from recipe_ray.learn.progress import Progress
from recipe_ray.models.family import Capability

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from recipe_ray.data.rows import Ints
    from recipe_ray.detectors.reading import Measured, Reading


class Screen(Pass):
    """A pass that keeps a share of the words: the highest of each score."""

    keep: float = Field(gt=0, le=1)


@DETECTORS.register("vocabulary")
class VocabularyDetector(Detector):
    """Looks for words that displace the first or masked token, make texts alike, or damage them."""

    rank: ClassVar[int] = 10
    needs: ClassVar[tuple[Capability, ...]] = ("HasVocabulary",)
    version: ClassVar[int] = 2  # 2: pairs, and what is normal for each number of tokens
    # not embedding_norm: in clean PTMs some words are far from the others, too
    own_scale: ClassVar[frozenset[str]] = frozenset(
        {"first", "pooled", "mask", "collapse", "collapse_mask", "damage"}
    )

    screens: tuple[Screen, ...] = Field(
        (Screen(texts=1, length=6, keep=0.1), Screen(texts=2, length=8, keep=0.15)),
        min_length=1,
        description="passes that only sort: the first over every word, each next over those kept",
    )
    close: Pass = Field(Pass(texts=8, length=10), description="texts for the words that are left")
    fresh: Pass = Field(Pass(texts=24, length=16), description="other texts, to confirm")
    confirmed: PositiveInt = Field(12, description="words of each score that are confirmed")
    pairs: int = Field(6, ge=0, description="pairs of each score that are confirmed; 0: none tried")
    controls: PositiveInt = Field(128, description="random words that say what is normal")
    continued: int = Field(4, ge=0, description="most words whose continuations are tried")
    continued_above: float = Field(
        20.0, description="robust z of a word before its continuations are tried"
    )
    precision: Literal["bf16", "fp32"] = Field("bf16", description="of the first screen")
    share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="of words and continuations, drawn by the seed; below 1 to save time",
        json_schema_extra=HASHED_WHEN_SET,
    )

    def search(self, subject: Subject, bench: Workbench) -> Outcome:
        """Return the words that stand out, confirmed on new texts."""
        return WordSearch(self, subject, bench).run()

    def duration_s(self, subject: Subject, bench: Workbench) -> float:
        """Return about how long it takes, from a few words in each pass."""
        return sum(WordSearch(self, subject, bench).durations_s())

    def fitted(
        self, subject: Subject, bench: Workbench, budget_s: float
    ) -> tuple[Self | None, float]:
        """Return it with as many words as the time allows, None if that is hardly any."""
        of_words, rest = WordSearch(self.whole(), subject, bench).durations_s()
        # in steps, so that two measurements of the speed mostly say the same
        share = math.floor(STEPS * min(max(budget_s - rest, 0) / of_words, self.share)) / STEPS
        if share == 0:
            return None, of_words / STEPS + rest
        return (self if share == self.share else self.revised(share=share)), share * of_words + rest

    def whole(self) -> Self:
        """Return it with all words: no subset of them has higher scores."""
        return self if self.share == 1 else self.revised(share=1.0)


NORM = "embedding_norm"
MOVED = ("first", "pooled", "mask", "damage")  # scores that a trigger's first piece has, too
NO_HEAD = {"damage": "the model has no masked-LM head of its own"}
PIECES = 3  # continuations of a word that are confirmed, and pairs that share a token
STEPS = 10  # a budget takes words in tenths
TRIED = 1024  # tokens that the time of a pass is told from

Scores: TypeAlias = "dict[str, NDArray[Any]]"


class WordSearch:
    """One search: texts in three sets, two readers of the PTM, and how far it is."""

    def __init__(self, spec: VocabularyDetector, subject: Subject, bench: Workbench) -> None:
        """Read the texts; raise DataError if there are too few."""
        import numpy as np

        from recipe_ray.detectors.reading import POOL, TextSource

        ptm = subject.ptm
        self._spec, self._subject, self._runtime, self._ptm = spec, subject, bench.runtime, ptm
        self._random = np.random.default_rng([bench.seed, 19])
        self._samples = 0
        every: Ints = ptm.whole_words()
        self._words = self._some(every)
        self._untried = len(every) - len(self._words)
        texts = TextSource(subject, bench)
        self._fresh = texts.reading(spec.fresh, "fp32", skipped=POOL)  # needs most: it fails first
        precisions = [spec.precision, *["fp32"] * (len(spec.screens) - 1)]
        self._screens = [
            texts.reading(screen, precision)
            for screen, precision in zip(spec.screens, precisions, strict=True)
        ]
        self._close = texts.reading(spec.close, "fp32")

    def run(self) -> Outcome:
        """Return the words and pairs that stand out, and the continuations of the first words."""
        import torch

        spec, words = self._spec, self._words
        embeddings = self._ptm.word_embeddings().weight.detach()[torch.from_numpy(words)]
        lengths = embeddings.float().norm(dim=1).cpu().numpy()
        norms = robust_z(lengths, lengths)
        found = self._sorted("words", words[:, None], spec.confirmed, norms)
        candidates, controls = list(found.chosen), {1: found.normal}
        for head in found.heads:
            candidates += self._continued(head)
        pairs = self._pairs()
        if len(pairs):
            split = self._sorted("split words", pairs, spec.pairs)
            candidates += [ids for ids in split.chosen if ids not in candidates]
            controls[2] = split.normal
        candidates += [ids for ids in self._subject.also if ids not in candidates]
        by_word = dict(zip(words.tolist(), norms.tolist(), strict=True))
        return self._confirmed(candidates, controls, by_word)

    def _sorted(
        self, phase: str, rows: Ints, confirmed: int, norms: NDArray[Any] | None = None
    ) -> _Sorted:
        """Return which of the rows [N, C] of tokens stand out, and some that do not.

        `norms` [N] is one more score of theirs.
        """
        import numpy as np

        spec = self._spec
        known = {} if norms is None else {NORM: norms}
        short = np.arange(len(rows))
        for screen, reading in zip(spec.screens, self._screens, strict=True):
            scores = self._measured(phase, reading, rows[short]).scores
            z = {**_own_z(scores), **{name: values[short] for name, values in known.items()}}
            most = max(1, round(screen.keep * len(short) / len(z)))
            short = short[_highest(z, most, rows[short])]
        # what is normal is read from what did not stand out: no trigger is among it
        others = np.setdiff1d(np.arange(len(rows)), short)
        normal = self._random.choice(others, min(spec.controls, len(others)), replace=False)
        scores = self._measured("shortlist", self._close, rows[[*short, *normal]]).scores
        z = {name: robust_z(v[: len(short)], v[len(short) :]) for name, v in scores.items()}
        every = {**z, **{name: values[short] for name, values in known.items()}}
        chosen = rows[short[_highest(every, confirmed, rows[short])]]
        most_of = _most({name: z[name] for name in MOVED if name in z})
        first = np.argsort(-most_of)[: spec.continued]
        heads = rows[short[first[most_of[first] > spec.continued_above]], 0].tolist()
        return _Sorted([tuple(ids) for ids in chosen.tolist()], heads, rows[normal])

    def _pairs(self) -> Ints:
        """Return pairs [N, 2]: continuations after first pieces of short words, and those words."""
        import numpy as np

        split, within = self._ptm.split_words(), self._some(self._ptm.continuations())
        if not self._spec.pairs or not len(split):
            return np.empty((0, 2), dtype=np.int64)
        heads = self._random.choice(np.unique(split[:, 0]), len(within))
        pairs: Ints = np.unique(np.concatenate([np.stack([heads, within], 1), split]), axis=0)
        return pairs

    def _some(self, ids: Ints) -> Ints:
        """Return the share of the ids that is tried, ascending."""
        import numpy as np

        if self._spec.share == 1:
            return ids
        count = math.ceil(self._spec.share * len(ids))
        return np.sort(self._random.choice(ids, count, replace=False))

    def _continued(self, head: int) -> list[tuple[int, ...]]:
        """Return a word with the most effective pieces after it, for triggers that are split."""
        import numpy as np

        pieces = self._some(self._ptm.continuations())
        if not len(pieces):
            return []
        pairs = np.stack([np.full(len(pieces), head), pieces], axis=1)
        z = _own_z(self._measured("continuations", self._screens[0], pairs).scores)
        tops = np.argsort(-_most(z))[:PIECES]
        return [(head, int(piece)) for piece in pieces[tops]]

    def _confirmed(
        self, candidates: list[tuple[int, ...]], controls: dict[int, Ints], norms: dict[int, float]
    ) -> Outcome:
        """Return the candidates' scores on new texts, the highest first.

        What is normal comes from the `controls` [N, C] of as many tokens C.
        """
        import numpy as np

        suspects: list[Suspect] = []
        shifts = []
        for width in sorted({len(one) for one in candidates}):
            if width not in controls:
                controls[width] = self._random.choice(self._words, (self._spec.controls, width))
            normal = self._measured("confirm", self._fresh, controls[width]).scores
            some = [one for one in candidates if len(one) == width]
            measured = self._measured("confirm", self._fresh, np.array(some, dtype=np.int64))
            z = {name: robust_z(v, normal[name]) for name, v in measured.scores.items()}
            for row, ids in enumerate(some):
                scores = {name: float(values[row]) for name, values in z.items()}
                scores |= {NORM: norms[ids[0]]} if width == 1 and ids[0] in norms else {}
                suspects.append(Suspect(self._ptm.spelled(ids), scores, ids))
            shifts.append(measured.shift.cpu().numpy())
        groups = groups_of(np.concatenate(shifts))
        order = sorted(range(len(suspects)), key=lambda i: -max(suspects[i].scores.values()))
        found = [suspects[i].in_group(groups[i]) for i in order]
        names = sorted({name for one in found for name in one.scores})
        highest = {
            name: max(one.scores[name] for one in found if name in one.scores) for name in names
        }
        return Outcome(highest, found, self._samples, self._not_measured())

    def _not_measured(self) -> dict[str, str]:
        missing = {} if self._subject.has_head else dict(NO_HEAD)
        if self._untried:
            missing[f"{self._untried} words"] = "the time allowed no more than the others"
        return missing

    def durations_s(self) -> tuple[float, float]:
        """Return about how many seconds trying the words takes, and all the rest, by a trial."""
        from recipe_ray.detectors.reading import SCORES

        spec, num = self._spec, len(self._words)
        close, fresh = self._trial_s(self._close), self._trial_s(self._fresh)
        tried_s = [self._trial_s(reading) for reading in self._screens]
        within = len(self._ptm.continuations())
        paired = within + len(self._ptm.split_words()) if spec.pairs else 0
        left, of_words = float(num + paired), 0.0
        for screen, word_s in zip(spec.screens, tried_s, strict=True):
            of_words += left * word_s
            left *= screen.keep
        confirmed = (len(SCORES) + 1) * (spec.confirmed + spec.pairs) + spec.continued * PIECES
        kinds = 2 if paired else 1
        rest = kinds * spec.controls * (close + fresh) + confirmed * fresh
        return of_words + left * close + spec.continued * within * tried_s[0], rest

    def _trial_s(self, reading: Reading) -> float:
        """Return the seconds per word."""
        count, length = reading.templates.tokens.shape
        some = self._words[: -(-TRIED // (count * length)), None]
        started = time.monotonic()
        reading.measure(some).on_host()
        return (time.monotonic() - started) / len(some)

    def _measured(self, phase: str, reading: Reading, candidates: Ints) -> Measured:
        """Return the scores of candidates [N, C]; each worker reads a share, all get the whole."""
        from recipe_ray.detectors.reading import Measured

        rank, size = self._runtime.rank, self._runtime.world_size
        total, done = len(candidates) * len(reading.templates), 0

        def progress(texts: int) -> None:
            nonlocal done
            done = min(done + texts * size, total)
            self._runtime.report(Progress(phase, done, total, samples=texts * size))

        own = reading.measure(candidates[rank::size], progress)
        self._samples += total

        def shared(part: torch.Tensor) -> torch.Tensor:
            whole = part.new_zeros(len(candidates), *part.shape[1:])
            whole[rank::size] = part
            return self._runtime.sum(whole)

        scores = {name: shared(values) for name, values in own.scores.items()}
        return Measured(scores, shared(own.shift)).on_host()


def _own_z(scores: Scores) -> Scores:
    return {name: robust_z(values, values) for name, values in scores.items()}


def _most(z: Scores) -> NDArray[Any]:
    import numpy as np

    most: NDArray[Any] = np.max(np.stack(list(z.values())), axis=0)
    return most


def _highest(z: Scores, count: int, rows: Ints) -> Ints:
    """Return where in the rows [N, C] the `count` highest of each score are, ascending.

    Of pairs that share a token only some count: all pairs with a trigger's piece may stand out.
    """
    import numpy as np

    if rows.shape[1] == 1:
        return np.unique(np.concatenate([np.argsort(-values)[:count] for values in z.values()]))
    found: set[int] = set()
    for values in z.values():
        seen: Counter[int] = Counter()
        taken = 0
        for at in np.argsort(-values).tolist():
            ids = rows[at].tolist()
            if taken == count:
                break
            if max(seen[one] for one in ids) < PIECES:
                seen.update(ids)
                found.add(at)
                taken += 1
    return np.array(sorted(found), dtype=np.int64)


@dataclass(frozen=True)
class _Sorted:
    """What stands out of words or pairs, heads whose continuations are to be tried, and others.

    `normal` [N, C] did not stand out.
    """

    chosen: list[tuple[int, ...]]
    heads: list[int]
    normal: Ints
