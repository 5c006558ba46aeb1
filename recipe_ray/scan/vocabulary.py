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

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from recipe_ray.data.batches import Workbench
from recipe_ray.data.rows import Ints
from recipe_ray.learn.progress import Progress
from recipe_ray.models.family import Capability
from recipe_ray.scan.detector import (
    DETECTORS,
    Detector,
    Outcome,
    Pass,
    Subject,
    Suspect,
    groups_of,
    robust_z,
)

if TYPE_CHECKING:
    import torch

    from recipe_ray.scan.reading import Measured, Reading


class Screen(Pass):
    """A pass that keeps a share of the words: the highest of each score."""

    keep: float = Field(gt=0, le=1)


@DETECTORS.register("vocabulary")
class VocabularyDetector(Detector):
    """Looks for words that displace the first or masked token, make texts alike, or damage them."""

    needs: ClassVar[tuple[Capability, ...]] = ("HasVocabulary",)

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

    def search(self, subject: Subject, bench: Workbench) -> Outcome:
        """Return the words that stand out, confirmed on new texts."""
        return WordSearch(self, subject, bench).run()


NORM = "embedding_norm"
MOVED = ("first", "pooled", "mask", "damage")  # scores that a trigger's first piece has, too
NO_HEAD = {"damage": "the model has no masked-LM head of its own"}
PIECES = 3  # continuations of a word that are confirmed

Scores = dict[str, NDArray[Any]]


class WordSearch:
    """One search: texts in three sets, two readers of the PTM, and how far it is."""

    def __init__(self, spec: VocabularyDetector, subject: Subject, bench: Workbench) -> None:
        """Read the texts; raise DataError if there are too few."""
        from recipe_ray.scan.reading import POOL, TextSource

        ptm = subject.ptm
        self._spec, self._subject, self._runtime, self._ptm = spec, subject, bench.runtime, ptm
        self._random = np.random.default_rng([bench.seed, 19])
        self._samples = 0
        self._words: Ints = ptm.whole_words()
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
        by_word = dict(zip(words.tolist(), norms.tolist(), strict=True))
        return self._confirmed(candidates, words[normal], by_word)

    def _continued(self, head: int) -> list[tuple[int, ...]]:
        """Return a word with the most effective pieces after it, for triggers that are split."""
        pieces = self._ptm.continuations()
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
        normal = self._measured("confirm", self._fresh, controls[:, None]).scores
        suspects: list[Suspect] = []
        shifts = []
        for width in sorted({len(one) for one in candidates}):
            some = [one for one in candidates if len(one) == width]
            measured = self._measured("confirm", self._fresh, np.array(some, dtype=np.int64))
            z = {name: robust_z(v, normal[name]) for name, v in measured.scores.items()}
            for row, ids in enumerate(some):
                scores = {name: float(values[row]) for name, values in z.items()}
                scores |= {NORM: norms[ids[0]]} if width == 1 else {}
                suspects.append(Suspect(self._ptm.spelled(ids), scores, ids))
            shifts.append(measured.shift.cpu().numpy())
        groups = groups_of(np.concatenate(shifts))
        order = sorted(range(len(suspects)), key=lambda i: -max(suspects[i].scores.values()))
        found = [suspects[i].in_group(groups[i]) for i in order]
        names = sorted({name for one in found for name in one.scores})
        highest = {
            name: max(one.scores[name] for one in found if name in one.scores) for name in names
        }
        return Outcome(highest, found, self._samples, {} if self._subject.has_head else NO_HEAD)

    def _measured(self, phase: str, reading: Reading, candidates: Ints) -> Measured:
        """Return the scores of candidates [N, C]; each worker reads a share, all get the whole."""

        from recipe_ray.scan.reading import Measured

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
    most: NDArray[Any] = np.max(np.stack(list(z.values())), axis=0)
    return most


def _highest(z: Scores, count: int) -> Ints:
    return np.unique(np.concatenate([np.argsort(-values)[:count] for values in z.values()]))
