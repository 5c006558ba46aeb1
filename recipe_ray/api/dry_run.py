"""How long a purification will take and how much memory it needs, by a few of its real steps.

The model is loaded, the data are read, and the work itself begins: the first steps are timed, then
it is dropped. Nothing is written. What the scans take is measured as `purify` itself does it.
"""

from __future__ import annotations

import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe_ray.api.running import Listener
from recipe_ray.defenses.unlearn import Unlearn
from recipe_ray.learn.progress import Progress
from recipe_ray.learn.runtime import LocalRuntime
from recipe_ray.stages.scan import ScanStage, scan_content
from recipe_ray.stages.stage import Context

if TYPE_CHECKING:
    from recipe_ray.api.purifying import Asked
    from recipe_ray.learn.runtime import Runtime
    from recipe_ray.models.family import PTM
    from recipe_ray.stages.finetune import FinetuneStage
    from recipe_ray.stages.purify import PurifyStage
    from recipe_ray.store.store import Store

LEAST, MOST, ENOUGH_S = 3, 20, 3.0  # steps that are timed, after the first; or as many as fit
_FORWARD = 1 / 3  # of a step, without the way back


@dataclass(frozen=True)
class Part:
    """One part of the work: so many steps of so many seconds (0 if it has none), and all of it."""

    name: str
    takes_s: float
    steps: int = 0
    step_s: float = 0.0

    @property
    def said(self) -> str:
        """Its steps, for people."""
        return f"{self.steps} steps of {self.step_s:.2g} s" if self.steps else ""


@dataclass(frozen=True)
class Estimate:
    """What a purification takes in this process; `peak_bytes` of `memory`: CPU or GPU.

    `timed_steps`: real steps that were timed. With `--until-clean` it is the time of one round.
    """

    parts: tuple[Part, ...]
    timed_steps: int
    memory: str
    peak_bytes: int

    @property
    def takes_s(self) -> float:
        """Seconds in all."""
        return sum(part.takes_s for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        how = f"measured on this machine by {self.timed_steps} real steps; nothing was written"
        return {"dry_run": True, "takes_s": self.takes_s, "how": how, **asdict(self)}


def estimated(asked: Asked, listener: Listener) -> Estimate:
    """Load the model, read the data, time a few steps; raise what `purified` would before its work.

    A first part of the result is what loading and reading took just now.
    """
    from recipe_ray.api.before_after import NotScanned, Scanning, plan_scan
    from recipe_ray.api.purifying import decided
    from recipe_ray.stages.pretrain import PretrainStage
    from recipe_ray.store.store import Store

    started = time.monotonic()
    asked.check()
    chosen, plan, at_hand = asked.prepared(listener)
    stage, feed = plan.stage, at_hand.feed
    ptm = at_hand.take()
    assert ptm is not None
    parts = [Part("load and read", time.monotonic() - started)]
    with tempfile.TemporaryDirectory(prefix="recipe-ray-") as folder:
        store = Store.open(Path(folder) / "store")
        bench = _Bench(store, partial(Context, store, feed, feed.locations), Path(folder))
        if isinstance(stage.parent, PretrainStage):
            parts.append(bench.timed("fit a head", partial(stage.parent.complete, ptm)))
            ptm = chosen.load()
        else:
            parts.append(bench.looks(stage, ptm))
        scanning: Scanning | NotScanned = NotScanned("--no-scan was given")
        if asked.scan_budget_s is not None:
            scanning = plan_scan(stage, ptm, store, feed, asked.scan_budget_s)
            if isinstance(scanning, Scanning):
                parts.append(Part("scan before and after", 2 * scanning.takes_s))
        stage = decided(plan, scanning, ptm, listener).stage
        if isinstance(stage.defense, Unlearn):
            parts += _a_round(stage, stage.defense, ptm, bench)
        else:
            parts.append(bench.timed("purify", partial(stage.clean, ptm)))
        del ptm
        if asked.evaluation is not None:
            sides = 2 if asked.floor is None else 3
            tuning = asked.evaluation.stage(chosen, asked.seed, listener)
            parts.append(bench.fine_tuned(tuning, chosen.load(), sides))
    return Estimate(tuple(parts), bench.steps, *_peak())


def _a_round(stage: PurifyStage, defense: Unlearn, ptm: PTM, bench: _Bench) -> list[Part]:
    """Return what one round takes: it trains, and scans before and after. None may be needed.

    What is put in does not matter for the time: it is timed with triggers of the defender's own.
    """
    parts = []
    if defense.rounds:
        parts.append(Part("purify, scans of a round", 2 * bench.scan_s(stage, defense, ptm)))
    stand_in = stage.revised(defense=defense.revised(implants=1, rounds=0))
    parts.append(bench.timed("purify, training of a round", partial(stand_in.clean, ptm)))
    return parts


class _EnoughError(Exception):
    """Ends work that was only begun to be timed."""


class _Bench:
    """Begins work in a folder that is deleted, and times its first steps."""

    def __init__(self, store: Store, context: Callable[..., Context], folder: Path) -> None:
        self._store, self._context, self._folder = store, context, folder
        self.steps = 0

    def timed(self, name: str, work: Callable[[Context], Any], times: int = 1) -> Part:
        """Return how long work takes that trains: until its first step, and by its other steps."""
        began, marks, last = time.monotonic(), list[float](), list[Progress]()

        def on_progress(progress: Progress) -> None:
            marks.append(time.monotonic())
            last[:] = [progress]
            enough = len(marks) > MOST or marks[-1] - marks[0] > ENOUGH_S
            if enough and len(marks) > LEAST:
                raise _EnoughError

        with suppress(_EnoughError):
            work(self._at(LocalRuntime(on_progress=on_progress)))
        self.steps += len(marks)
        (progress,) = last
        # the first step also warms up; if there is no other, it counts
        until = marks[0] - began
        step_s = (marks[-1] - marks[0]) / (len(marks) - 1) if len(marks) > 1 else until
        whole_s = until + (progress.num_steps - 1) * step_s
        return Part(name, times * whole_s, progress.num_steps, step_s)

    def looks(self, stage: PurifyStage, ptm: PTM) -> Part:
        """Return how long it takes to look at held-out data before and after."""
        started = time.monotonic()
        stage.look_before(self._at(LocalRuntime()), ptm)
        return Part("look at held-out data", 2 * (time.monotonic() - started))

    def scan_s(self, stage: PurifyStage, defense: Unlearn, ptm: PTM) -> float:
        """Return how long one scan of a defense takes."""
        same = {name: getattr(stage, name) for name in ("model", "parent", "corpus", "seed")}
        detectors = defense.settled(stage.model.reads).detectors
        content = scan_content(stage.content, detectors)
        scan = ScanStage(detectors=detectors, content=content, **same)
        return scan.within(ptm, self._at(LocalRuntime()), math.inf).takes_s

    def fine_tuned(self, stage: FinetuneStage, ptm: PTM, sides: int) -> Part:
        """Return how long it takes to fine-tune so many models, and to predict with each."""
        part = self.timed("fine-tune", partial(stage.measure, ptm), sides)
        test = stage.task.load(stage.task.evaluate_on, self._at(LocalRuntime()).locations)
        batches = math.ceil(len(test) / stage.fit.batch_size) * (1 + len(stage.triggers))
        predicting_s = sides * batches * part.step_s * _FORWARD
        return Part(part.name, part.takes_s + predicting_s, part.steps, part.step_s)

    def _at(self, runtime: Runtime) -> Context:
        return self._context(runtime, self._folder)


def _peak() -> tuple[str, int]:
    import torch

    if torch.cuda.is_available():
        return "GPU memory", torch.cuda.max_memory_reserved()
    # kibibytes, but bytes on macOS
    unit = 1 if sys.platform == "darwin" else 1024
    return "memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
