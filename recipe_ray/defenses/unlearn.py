"""Unlearning: what a label-free scan finds is put into samples, and its effect is trained away.

Ours, after LMSanitator (NDSS 2024) and Patronus. In every round the PTM is scanned. What stands out
is put into samples, with some more inputs that do not (a false alarm costs nothing). The states of
these samples are trained back to those that the PTM had, as it was given, on the same samples
without it. The states of the samples as they are stay where they were. Then it is scanned again,
until nothing stands out or the rounds are over. It knows no trigger that the scan did not find.
An interrupted run goes on after its last whole round.

With `implants` the defender first plants random triggers of their own, which lead to random
vectors, and unlearns these: the question is whether a backdoor that no scan finds falls with them.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from recipe_ray.base.errors import SpecError
from recipe_ray.base.spec import HASHED_WHEN_SET
from recipe_ray.data.batches import Workbench
from recipe_ray.defenses.defense import DEFENSES, AnyDefense, Auxiliary, Defense, NoDefense
from recipe_ray.defenses.rounds import Kept, keep, kept_by
from recipe_ray.detectors.calibration import Bounds, judge, known_bounds, normal_by
from recipe_ray.detectors.detector import DETECTORS, AnyDetector, Detector, Subject, Suspect
from recipe_ray.learn.optim import FitSpec
from recipe_ray.models.family import PTM, Capability

if TYPE_CHECKING:
    from torch import Tensor

    from recipe_ray.detectors.insertion import Draw
    from recipe_ray.learn.loop import EpochRecord
    from recipe_ray.learn.objective import Terms

FLAGGED, SUSPICION = "unlearn.flagged", "unlearn.suspicion"  # metrics of a round's scan
NEW = 0.5  # share of the samples that get what stands out now; the others get the rest

logger = logging.getLogger("recipe_ray")


@dataclass(frozen=True)
class Found:
    """What stands out in a scan, what else was looked at closely, and the largest share of a bound.

    A share above 1 stands out.
    """

    flagged: tuple[Suspect, ...]
    others: tuple[Suspect, ...]
    suspicion: float


@DEFENSES.register("unlearn")
class Unlearn(Defense):
    """Scans, and trains away what it finds, until the scan is silent."""

    version: ClassVar[int] = 2  # 2: pairs are varied, too
    scans: ClassVar[bool] = True
    needs = ("HasStates",)

    detectors: tuple[AnyDetector, ...] = Field(
        (), description="that scan; none named: all that read what the model reads"
    )
    margin: float = Field(
        10.0,
        gt=0,
        description="robust z above which an input stands out in a model that is not calibrated",
    )
    alarms: int = Field(
        16, ge=0, description="inputs put in at least: of what does not stand out, the highest"
    )
    rounds: int = Field(
        4, ge=0, description="at most: a scan and a training each; 0: only `implants`, no scan"
    )
    implants: int = Field(
        0,
        ge=0,
        description="own random triggers that are planted first and unlearnt with what is found",
        json_schema_extra=HASHED_WHEN_SET,
    )
    hold: float = Field(1.0, gt=0, description="weight of the states of samples as they are")
    fit: FitSpec = FitSpec(steps=220, batch_size=20, learning_rate=1e-4, dropout=False)
    plus: AnyDefense = Field(
        NoDefense(), description="a defense that acts before, such as recipe; none: only unlearn"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.plus, Unlearn):
            raise SpecError("plus: unlearn cannot come before itself; set `rounds` instead")
        if not self.rounds and not self.implants:
            raise SpecError("rounds and implants are both 0: there is nothing to unlearn")
        return self

    def purify(self, ptm: PTM, auxiliary: Auxiliary, bench: Workbench) -> Sequence[EpochRecord]:
        """Return the losses of `plus`, then of every round; what was found goes to `bench.kept`.

        Raises DataError if the data are too few to scan with, or too short to put anything in.
        """
        from recipe_ray.detectors.insertion import Draw, implants_of
        from recipe_ray.learn.distillation import frozen_copy

        ptm.train_only(None, pooled=True)  # so that nothing is shared with what will train
        teacher = frozen_copy(ptm.module.to(bench.runtime.device))
        objective = Unlearning(ptm, teacher, self.hold)
        done = kept_by(ptm, bench) or Kept(0, [], ())
        records, known = list(done.records), done.known
        if not done.rounds:
            records += self.plus.purify(ptm, auxiliary, bench)
        if not done.rounds and self.implants:
            known = implants_of(ptm, self.implants, bench.seed)
            draw = Draw(known, (1.0,) * len(known))
            for what, phase in (
                (Implanting(ptm, teacher, self.hold, bench.seed), "implant"),
                (objective, "unlearn, implants"),
            ):
                records += _after(records, self._trained(what, draw, auxiliary, bench, phase))
        for number in range(done.rounds + 1, self.rounds + 2) if self.rounds else ():
            own = replace(bench, seed=bench.seed + number)
            found = self.scanned(ptm, auxiliary, own, known)
            bench.kept.append((FLAGGED, float(len(found.flagged)), number))
            bench.kept.append((SUSPICION, found.suspicion, number))
            logger.info("unlearn, round %d: %s", number, _shown(found))
            if not found.flagged or number > self.rounds:
                break
            draw = self.drawn(found, known)
            new = self._trained(objective, draw, auxiliary, own, f"unlearn, round {number}")
            records += _after(records, new)
            known = (*_without(known, found.flagged), *found.flagged)
            keep(Kept(number, records, known), ptm, bench)
        return records

    def scanned(
        self,
        ptm: PTM,
        auxiliary: Auxiliary,
        bench: Workbench,
        known: Sequence[Suspect] = (),
    ) -> Found:
        """Return what the detectors find, judged by clean PTMs or else by the margin.

        What is `known` from earlier rounds is measured again, whether it stands out or not.
        """
        also = tuple(dict.fromkeys(one.ids for one in known if one.ids))
        head, part = auxiliary.own_head, auxiliary.part
        subject = Subject(ptm, auxiliary.corpus, head, part=part, also=also)
        flagged: list[Suspect] = []
        others: list[list[Suspect]] = []
        most = 0.0
        for detector in self._chosen(ptm.reads):
            outcome = detector.search(subject, bench)
            subject = replace(subject, leads=(*subject.leads, *outcome.suspects))
            margins = Bounds(dict.fromkeys(detector.own_scale, self.margin), "the model itself")
            verdict = judge(outcome, known_bounds(ptm.make, detector.whole()) or margins)
            flagged += verdict.flagged
            named = {id(one) for one in verdict.flagged}
            others.append([one for one in outcome.suspects if id(one) not in named])
            most = max(most, verdict.suspicion or 0.0)
        # scores of two detectors cannot be compared: their highest take turns
        turns = chain.from_iterable(zip_longest(*others))
        return Found(tuple(flagged), tuple(one for one in turns if one is not None), most)

    def _chosen(self, reads: str) -> list[Detector]:
        every = [kind() for kind in map(DETECTORS.get, DETECTORS) if kind.reads == reads]
        return list(self.detectors) or sorted(every, key=lambda one: (one.rank, one.name))

    def _trained(
        self, objective: _Holding, draw: Draw, auxiliary: Auxiliary, bench: Workbench, phase: str
    ) -> Sequence[EpochRecord]:
        from recipe_ray.detectors.insertion import insertions_of
        from recipe_ray.learn.distillation import reached_by_states
        from recipe_ray.learn.loop import fit

        ptm = objective.ptm
        insertions = insertions_of(ptm, draw, bench.seed)
        ptm.train_only(reached_by_states(ptm), pooled=False)
        batches = bench.feed.batches(
            auxiliary.corpus,
            insertions.encoder(self.fit.max_length),
            insertions.altered,
            self.fit.batch_size,
            bench.seed,
            auxiliary.part,
        )
        # what is kept between rounds must not be replaced by a training's own resume points
        runtime, seed = bench.runtime.without_checkpoints(), bench.seed
        return fit(ptm.module, objective, batches, self.fit, runtime, seed=seed, phase=phase)

    def drawn(self, found: Found, known: Sequence[Suspect]) -> Draw:
        """Return what is put in and how often: half of it stands out now, the rest did or may.

        Raises SpecError if a detector does not say what stands out so that it can be put in.
        """
        from recipe_ray.detectors.insertion import Draw, can_be_put_in

        new = [one for one in found.flagged if can_be_put_in(one)]
        if not new:
            raise SpecError(
                f"detectors: {found.flagged[0].shown!r} stands out, but its detector gives neither "
                "token ids nor what it put in, so that it cannot be unlearnt; name other detectors"
            )
        before = _without([one for one in known if can_be_put_in(one)], new)
        alarms = _without(filter(can_be_put_in, found.others), [*new, *before])
        rest = [*before, *alarms[: max(0, self.alarms - len(new) - len(before))]]
        shares = [NEW / max(len(new), 1)] * len(new) + [(1 - NEW) / max(len(rest), 1)] * len(rest)
        return Draw((*new, *rest), tuple(shares))

    def needed(self, reads: str) -> tuple[Capability, ...]:
        """Return what it needs, and what its detectors and the defense before it need."""
        own = [need for detector in self._chosen(reads) for need in detector.needs]
        return tuple(dict.fromkeys([*self.needs, *own, *self.plus.needed(reads)]))

    def settled(self, reads: str) -> Self:
        """Return it with its detectors named, and the defense before it settled."""
        chosen = tuple(self._chosen(reads))
        return self.revised(detectors=chosen, plus=self.plus.settled(reads))

    def identity(self) -> dict[str, Any]:
        """Return its identity; what is known to be normal decides what stands out."""
        normal = normal_by(self.detectors)
        return {**super().identity(), **({"normal": normal} if normal else {})}

    def reads(self) -> list[tuple[str, str]]:
        """Return what the named detectors read."""
        named = [(f"detector {d.label()!r} reads {d.reads}s", d.reads) for d in self.detectors]
        return [*named, *self.plus.reads()]

    @property
    def held_by_head(self) -> bool:
        """Whether the defense before it is; its own term holds the states."""
        return self.plus.held_by_head

    def default_label(self) -> str:
        """Return its name, and that of the defense before it."""
        own = f"{self.name}-implants" if self.implants else self.name
        return f"{own}+{self.plus.label()}" if self.plus.acts else own


@dataclass(frozen=True)
class _Holding(ABC):
    """Relative errors of states; `held` is that of the samples as they are against the teacher's.

    Legend: R rows of the states of the samples, B samples, H width.
    """

    ptm: Any
    teacher: Any
    hold: float

    def __call__(self, module: Any, batch: Any) -> Terms:
        import torch

        from recipe_ray.learn.distillation import relative_error

        with torch.no_grad():
            wanted = self.ptm.states(self.teacher, batch.clean, "last")[-1]
        states = batch.states(self.ptm, module)
        held = relative_error([states[batch.kept]], [wanted]).weighted(self.hold)
        return {"held": held, **self.of_copies(states[batch.same], wanted, batch)}

    @abstractmethod
    def of_copies(self, states: Tensor, wanted: Tensor, batch: Any) -> Terms:
        """Return the terms of the copies' states [R, H], given the teacher's of the samples."""


class Unlearning(_Holding):
    """The copies with something put in are led back to the samples as they are.

    `unlearnt` is the error of their first tokens (or images), `unlearnt_tokens` of the others.
    """

    def of_copies(self, states: Tensor, wanted: Tensor, batch: Any) -> Terms:
        """Return the errors against the same rows without what was put in."""
        from recipe_ray.learn.distillation import relative_error

        terms = {"unlearnt": relative_error([states[batch.first]], [wanted[batch.first]])}
        if batch.others is not None:
            error = relative_error([states[batch.others]], [wanted[batch.others]])
            terms["unlearnt_tokens"] = error
        return terms


@dataclass(frozen=True)
class Implanting(_Holding):
    """The first states of the copies are led to a random vector for each thing put in."""

    seed: int

    def of_copies(self, states: Tensor, wanted: Tensor, batch: Any) -> Terms:
        """Return the error against those vectors, each as long as the sample's state."""
        import torch
        from torch.nn import functional as F

        from recipe_ray.learn.distillation import relative_error

        own = wanted[batch.first]
        drawn = [
            torch.randn(own.shape[1], generator=torch.Generator().manual_seed(self.seed + number))
            for number in batch.what.tolist()
        ]
        targets = F.normalize(torch.stack(drawn), dim=1).to(own) * own.norm(dim=1, keepdim=True)
        return {"implanted": relative_error([states[batch.first]], [targets])}


def _without(some: Iterable[Suspect], taken: Iterable[Suspect]) -> list[Suspect]:
    """Return the suspects that are not the same words as one that is taken."""
    words = {one.ids for one in taken if one.ids}
    return [one for one in some if one.ids not in words]


def _after(before: Sequence[EpochRecord], new: Sequence[EpochRecord]) -> list[EpochRecord]:
    """Return records numbered on from those before."""
    if not before:
        return list(new)
    last = before[-1]
    return [replace(one, epoch=one.epoch + last.epoch, step=one.step + last.step) for one in new]


def _shown(found: Found) -> str:
    if not found.flagged:
        return "nothing stands out"
    names = ", ".join(one.shown for one in found.flagged[:8])
    more = f" and {len(found.flagged) - 8} more" if len(found.flagged) > 8 else ""
    return f"{len(found.flagged)} inputs stand out, by up to {found.suspicion:.1f}: {names}{more}"
