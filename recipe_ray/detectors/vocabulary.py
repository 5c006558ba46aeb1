"""Detector `vocabulary`: every word that a PTM knows is put into short texts.

A backdoor of a word makes it move the first token's state much further than any other word does
(NeuBA, POR), or makes the PTM forget the words around it (BadPre). Whole words are tried, since
triggers stand between words. Of a trigger that the tokenizer splits, the first piece is among them,
and its continuations are tried next. Ours, after the two terms of LMSanitator (NDSS 2024).

Passes: one short text for every word, a few for words that stand out, more for what is left of
them, and other, longer ones to confirm. The PTM itself shows what is normal: all words first,
random ones later.
"""

from __future__ import annotations

import math
import time
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
PIECES = 3  # continuations of a word that are confirmed
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
        """Return the words that stand out, and the continuations of the first of them."""
        import numpy as np
        import torch

        spec, words = self._spec, self._words
        embeddings = self._ptm.word_embeddings().weight.detach()[torch.from_numpy(words)]
        lengths = embeddings.float().norm(dim=1).cpu().numpy()
        norms = robust_z(lengths, lengths)
        short = np.arange(len(words))
        for screen, reading in zip(spec.screens, self._screens, strict=True):
            scores = self._measured("words", reading, words[short][:, None]).scores
            z = {**_own_z(scores), NORM: norms[short]}
            short = short[_highest(z, max(1, round(screen.keep * len(short) / len(z))))]
        # what is normal is read from words that did not stand out: no trigger is among them
        others = np.setdiff1d(np.arange(len(words)), short)
        normal = self._random.choice(others, min(spec.controls, len(others)), replace=False)
        scores = self._measured("shortlist", self._close, words[[*short, *normal]][:, None]).scores
        z = {name: robust_z(v[: len(short)], v[len(short) :]) for name, v in scores.items()}
        chosen = _highest({**z, NORM: norms[short]}, spec.confirmed)
        candidates: list[tuple[int, ...]] = [(int(word),) for word in words[short[chosen]]]
        most = _most({name: z[name] for name in MOVED if name in z})
        heads = np.argsort(-most)[: spec.continued]
        for head in words[short[heads[most[heads] > spec.continued_above]]].tolist():
            candidates += self._continued(head)
        candidates += [ids for ids in self._subject.also if ids not in candidates]
        by_word = dict(zip(words.tolist(), norms.tolist(), strict=True))
        return self._confirmed(candidates, words[normal], by_word)

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
        self, candidates: list[tuple[int, ...]], controls: Ints, norms: dict[int, float]
    ) -> Outcome:
        """Return the candidates' scores on new texts, the highest first."""
        import numpy as np

        normal = self._measured("confirm", self._fresh, controls[:, None]).scores
        suspects: list[Suspect] = []
        shifts = []
        for width in sorted({len(one) for one in candidates}):
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
        left, of_words = float(num), 0.0
        for screen, word_s in zip(spec.screens, tried_s, strict=True):
            of_words += left * word_s
            left *= screen.keep
        pieces = spec.continued * len(self._ptm.continuations())
        confirmed = (len(SCORES) + 1) * spec.confirmed + spec.continued * PIECES
        rest = spec.controls * (close + fresh) + confirmed * fresh
        return of_words + left * close + pieces * tried_s[0], rest

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


def _highest(z: Scores, count: int) -> Ints:
    import numpy as np

    return np.unique(np.concatenate([np.argsort(-values)[:count] for values in z.values()]))
