"""How the stages of one command or call are run, and who hears of it.

A `Listener` hears all that is said. This one shows nothing: sentences go to the log `recipe_ray`,
progress to a function. The commands have one that writes on the terminal (`cli/single.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from recipe_ray.base.errors import StageFailedError

if TYPE_CHECKING:
    from recipe_ray.data.batches import LocalFeed
    from recipe_ray.data.sources import Locations
    from recipe_ray.learn.progress import Throughput
    from recipe_ray.schedule.sweep_progress import SweepEvent
    from recipe_ray.stages.run import Run
    from recipe_ray.stages.stage import Stage
    from recipe_ray.store.store import Store

logger = logging.getLogger("recipe_ray")


@dataclass(frozen=True)
class Advance:
    """How far one stage is: `step` of `num_steps` in `phase`, the losses, seconds to its end.

    A phase called `started`, `finished`, `failed` or the like has no steps (0 of 0).
    """

    stage: str
    phase: str
    step: int = 0
    num_steps: int = 0
    values: dict[str, float] = field(default_factory=dict)
    left_s: float | None = None


class Watcher(Protocol):
    """Sees the stages of one run."""

    def on_progress(self, stage: Stage, advance: Throughput) -> None:
        """See how far one stage is."""

    def on_event(self, event: SweepEvent) -> None:
        """See what happened to one stage of a sweep."""

    def on_doing(self, what: str) -> None:
        """See what is done before the first stage starts."""


class Listener:
    """Hears sentences and progress; shows nothing."""

    def __init__(self, progress: Callable[[Advance], None] | None = None) -> None:
        """`progress` is called for every step that is reported, and as stages start and end."""
        self._progress = progress

    def say(self, sentence: str) -> None:
        """Hear a sentence about the work."""
        logger.info("%s", sentence)

    def warn(self, sentence: str) -> None:
        """Hear a warning; the result has it, too."""
        logger.warning("%s", sentence)

    def watching(self, num_stages: int) -> AbstractContextManager[Watcher]:
        """Return what sees the stages of one run, of which there are so many."""
        return nullcontext(self)

    def on_progress(self, stage: Stage, advance: Throughput) -> None:
        """See how far one stage is."""
        if self._progress is not None:
            one = advance.progress
            about = (stage.caption, one.phase, one.step, one.num_steps, dict(one.values))
            self._progress(Advance(*about, advance.left_s))

    def on_event(self, event: SweepEvent) -> None:
        """See what happened to one stage of a sweep."""
        if event.progress is not None:
            self.on_progress(event.stage, event.progress)
        elif self._progress is not None:
            self._progress(Advance(event.stage.caption, event.kind))

    def on_doing(self, what: str) -> None:
        """See what is done before the first stage starts."""
        self.say(what)


@dataclass(frozen=True)
class Workers:
    """Where stages run: in this process, or as `count` DDP workers on the Ray at `address`."""

    count: int = 1
    address: str | None = None

    @property
    def in_process(self) -> bool:
        """Whether it is this process."""
        return self.count == 1 and self.address is None

    @contextmanager
    def started(self) -> Iterator[None]:
        """Start or attach to one Ray for all stages of a command, unless they run here."""
        if self.in_process:
            yield
            return
        from recipe_ray.distributed.cluster import connected  # Ray is imported only if it is used
        from recipe_ray.experiment.spec import Launch

        with connected(self.address, Launch(), nested=True):
            yield


HERE = Workers()


def run_stages(
    command: str,
    leaves: Sequence[Stage],
    store: Store,
    locations: Locations,
    listener: Listener,
    workers: Workers = HERE,
    *,
    feed: LocalFeed | None = None,
    run: Run | None = None,
) -> None:
    """Run a command's stages and their ancestors, and leave its plan in the store.

    In this process `feed` and `run` (of the last stage) use what is in memory. Raises
    StageFailedError if one failed on workers, and here what the stage raised.
    """
    from recipe_ray.experiment.collect import run_planned
    from recipe_ray.experiment.plan import plan_of
    from recipe_ray.experiment.spec import Launch
    from recipe_ray.stages.stage import makers_of_ptms

    plan = plan_of(command, leaves, Launch(workers=dict.fromkeys(makers_of_ptms(), workers.count)))
    with listener.watching(len(plan.stages)) as watcher:
        if workers.in_process:
            how = {"on_progress": watcher.on_progress, "feed": feed, "run": run}
            run_planned(plan, plan.stages.values(), store, locations, **how)
            return
        from recipe_ray.distributed.sweep import sweep

        where = workers.address
        outcome = sweep(plan, store, locations, address=where, on_event=watcher.on_event)
    if outcome.failed:
        raise StageFailedError("\n".join(outcome.failed.values()))


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Let the libraries that load models draw no bars and print no advice meanwhile."""
    # untyped
    of_hub: Any = import_module("huggingface_hub.utils")
    of_transformers: Any = import_module("transformers.utils.logging")
    hub_drew = not of_hub.are_progress_bars_disabled()
    drew, level = of_transformers.is_progress_bar_enabled(), of_transformers.get_verbosity()
    of_transformers.disable_progress_bar()
    of_transformers.set_verbosity_error()
    if hub_drew:
        of_hub.disable_progress_bars()
    try:
        yield
    finally:
        of_transformers.set_verbosity(level)
        if drew:
            of_transformers.enable_progress_bar()
        if hub_drew:
            of_hub.enable_progress_bars()
