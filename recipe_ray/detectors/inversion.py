"""Detector `inversion`: free vectors in a text that make a PTM forget it.

Words alone do not find triggers of several words. Here vectors in the place of word embeddings are
moved by gradients until the first token's state (or a masked one's) is far from where it was and
alike in all texts, after LMSanitator (Wei et al., NDSS 2024: PV mining). There the result is
compared with a fixed threshold; here with random words, and with what clean PTMs give.

All restarts are moved at once, as one batch. In every dimension vectors stay within the range of
the word embeddings: without that any PTM can be moved arbitrarily far.

Legend: N restarts, C vectors each, K texts, H hidden width, V vocabulary.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, PositiveInt

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
    from torch import Tensor

    from recipe_ray.detectors.reading import States


@DETECTORS.register("inversion")
class InversionDetector(Detector):
    """Looks for vectors that move the first or masked token in the same way in all texts."""

    needs: ClassVar[tuple[Capability, ...]] = ("HasVocabulary",)

    texts: Pass = Field(Pass(texts=6, length=6), description="texts on which vectors are optimised")
    fresh: Pass = Field(Pass(texts=24, length=16), description="texts on which they are judged")
    width: PositiveInt = Field(3, description="vectors in a row")
    restarts: PositiveInt = Field(6, description="starts from random words, for each target")
    leads: int = Field(4, ge=0, description="starts from words that stood out before")
    steps: PositiveInt = Field(40, description="of Adam")
    learning_rate: float = Field(0.2, gt=0, description="in units of the embeddings' spread")
    agreement: float = Field(1.0, ge=0, description="weight of being alike, relative to being far")

    def search(self, subject: Subject, bench: Workbench) -> Outcome:
        """Return the vectors that were found, as the words nearest to them."""
        return PromptSearch(self, subject, bench).run()

    def duration_s(self, subject: Subject, bench: Workbench) -> float:
        """Return about how long it takes, from one step and a few of the random words."""
        return PromptSearch(self, subject, bench).duration_s()


TARGETS = ("first", "mask")  # the tokens whose state must move
CONTROLS = 128  # rows of random words that say what is normal
TRIED = 8  # of them that the time of a search is told from
JUDGED = ("first", "pooled", "mask", "collapse", "collapse_mask")


class PromptSearch:
    """One search: texts to move vectors on and others to judge them on."""

    def __init__(self, spec: InversionDetector, subject: Subject, bench: Workbench) -> None:
        """Read the texts; raise DataError if there are too few."""
        import numpy as np

        from recipe_ray.detectors.reading import TextSource

        self._spec, self._subject, self._runtime = spec, subject, bench.runtime
        self._random = np.random.default_rng([bench.seed, 23])
        texts = TextSource(subject, bench)
        self._texts = texts.reading(spec.texts, "fp32")
        self._fresh = texts.reading(spec.fresh, "fp32", skipped=spec.texts.texts)
        self._words = subject.ptm.whole_words()
        self._table: Tensor = subject.ptm.word_embeddings().weight.detach().float()

    def run(self) -> Outcome:
        """Return what was found, the highest scores first."""
        import torch

        spec = self._spec
        begin = self._beginnings()
        found = [self._moved(begin, target, spec.steps) for target in TARGETS]
        vectors = torch.cat(found)
        with torch.no_grad():
            filler = int(self._words[0])
            states = self._fresh.soft_states(vectors, filler)
            shift = self._fresh.shift(states)
            values = self._fresh.scores(states)
        random = self._random.choice(self._words, (CONTROLS, spec.width))
        normal = self._fresh.measure(random).on_host().scores
        z = {name: robust_z(values[name].double().cpu().numpy(), normal[name]) for name in JUDGED}
        groups = groups_of(shift.cpu().numpy())
        suspects = [
            Suspect(
                self._nearest(vectors[row]),
                {n: float(v[row]) for n, v in z.items()},
                (),
                groups[row],
                vectors[row],
            )
            for row in range(len(vectors))
        ]
        suspects.sort(key=lambda one: -max(one.scores.values()))
        highest = {name: float(v.max()) for name, v in z.items()}
        samples = len(begin) * len(TARGETS) * spec.steps * spec.texts.texts
        return Outcome(highest, suspects, samples)

    def duration_s(self) -> float:
        """Return about how many seconds `run` takes, by a trial."""
        import torch

        spec = self._spec
        rows = self._random.choice(self._words, (spec.restarts + spec.leads, spec.width))
        started = time.monotonic()
        self._moved(self._table[torch.from_numpy(rows)], TARGETS[0], steps=1)
        per_step = time.monotonic() - started
        started = time.monotonic()
        self._fresh.measure(rows[:TRIED]).on_host()
        per_row = (time.monotonic() - started) / len(rows[:TRIED])
        judged = CONTROLS + len(TARGETS) * len(rows)
        return per_step * spec.steps * len(TARGETS) + per_row * judged

    def _beginnings(self) -> Tensor:
        """Return [N, C, H]: random words, and words that stood out with random ones after them."""
        import torch

        spec = self._spec
        rows = self._random.choice(self._words, (spec.restarts + spec.leads, spec.width))
        leads = [one.ids[: spec.width] for one in self._subject.leads if one.ids][: spec.leads]
        for number, ids in enumerate(leads):
            rows[number, : len(ids)] = ids
        rows = rows[: spec.restarts + len(leads)]
        return self._table[torch.from_numpy(rows)]

    def _moved(self, begin: Tensor, target: str, steps: int) -> Tensor:
        """Return vectors [N, C, H] moved until the target's state is far and alike in all texts."""
        import torch

        spec = self._spec
        low, high = self._table[self._words].amin(0), self._table[self._words].amax(0)
        unit = float(self._table[self._words].std())
        vectors = begin.clone().requires_grad_()
        optimizer = torch.optim.Adam([vectors], lr=spec.learning_rate * unit)
        filler = int(self._words[0])
        for step in range(1, steps + 1):
            optimizer.zero_grad(set_to_none=True)
            loss: Any = -self._reached(self._texts.soft_states(vectors, filler), target).sum()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                vectors.clamp_(low, high)
            samples = len(begin) * spec.texts.texts
            phase = f"inversion, {target}"
            self._runtime.report(Progress(phase, step, steps, samples=samples))
        return vectors.detach()

    def _reached(self, states: States, target: str) -> Tensor:
        # [N]: far, on a scale that does not reward only the farthest, and similar
        import torch

        scores = self._texts.scores(states)
        alike = scores["collapse" if target == "first" else "collapse_mask"]
        return torch.log1p(scores[target]) + self._spec.agreement * alike

    def _nearest(self, vectors: Tensor) -> str:
        """Return the words whose embeddings are nearest to vectors [C, H] by cosine."""
        import torch

        table = torch.nn.functional.normalize(self._table[self._words], dim=1)
        near = (torch.nn.functional.normalize(vectors, dim=1) @ table.T).argmax(1)
        return str(self._subject.ptm.spelled([int(self._words[i]) for i in near.cpu()]))
