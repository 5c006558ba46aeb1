"""Running one stage to its end: skip what is committed, work in a scratch folder, commit once.

The same function serves `recipe-ray debug` (no Ray), a Tune trial's actor and every DDP worker;
under DDP all ranks run the stage and rank 0 writes. Each of them goes through `attempt`, which
informs the watchers and leaves a note if the stage fails. So `status` sees them all the same way.
"""

import hashlib
import io
import json
import logging
import platform
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from recipe_ray.base.errors import SpecError, UserError, in_a_line
from recipe_ray.base.fingerprint import fingerprint
from recipe_ray.base.printable import printable
from recipe_ray.data.batches import Feed
from recipe_ray.data.sources import Locations
from recipe_ray.learn.precision import arithmetic
from recipe_ray.learn.progress import Observer, Observers, Sometimes, Throughput
from recipe_ray.learn.runtime import Runtime
from recipe_ray.stages.stage import Context, Stage
from recipe_ray.stages.tensorboard import Board
from recipe_ray.store.rows import Measurement, measurement_table
from recipe_ray.store.store import Store

LIBRARIES = ("recipe-ray", "torch", "transformers", "datasets", "ray", "numpy", "tokenizers")
LOG_FILE = "log.txt"
_SEAL = b"\nsealed with "
logger = logging.getLogger("recipe_ray")


@dataclass(frozen=True)
class StoreCheckpoints:
    """The checkpoint slot of one stage, in the store, so that any node can resume.

    What `torch.save` wrote is followed by a seal, with the SHA-256 of all before it.
    """

    store: Store
    key: str

    def load(self) -> dict[str, Any] | None:
        """Return the latest state; our own file, still read without unpickling code.

        One that is damaged is dropped, and the stage begins again.
        """
        data = self.store.read_checkpoint(self.key)
        if data is None:
            return None
        content, mark, digest = data.rpartition(_SEAL)
        try:
            if mark and hashlib.sha256(content).hexdigest().encode() != digest:
                raise ValueError("checksum mismatch: it was altered or cut short")
            # without a seal it is of an older version, or no longer whole
            stored = io.BytesIO(content if mark else data)
            state: dict[str, Any] = torch.load(stored, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged bytes may make torch raise any error
            self.drop(in_a_line(error))
            return None
        return state

    def drop(self, reason: str) -> None:
        """Delete the state: nothing can be resumed from it, and the log says why."""
        logger.warning(
            "the resume point of stage %s cannot be used (%s): it was deleted, and the stage "
            "begins again from its first step",
            self.key,
            reason,
        )
        self.store.drop_checkpoint(self.key)

    def save(self, state: dict[str, Any]) -> None:
        """Replace the state."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
        buffer.write(_SEAL + digest.encode())
        self.store.write_checkpoint(self.key, buffer.getvalue())


Run = Callable[[Context], list[Measurement]]  # as `Stage.run`, with something that is in memory


def run_stage(stage: Stage, context: Context, run: Run | None = None) -> list[Measurement]:
    """Run `stage` and commit its artifact, unless the store has it already.

    Returns what was measured: on rank 0, and nothing if the stage was there. Raises StoreError
    before any work if the store could not take the artifact.
    `context.folder` is the scratch folder to work in (`scratch` makes one). `run` does the work in
    place of `stage.run` if the input is in memory and not in the store.
    """
    if context.store.has(stage.artifact):
        return []
    identity = _as_planned(stage) if context.runtime.rank == 0 else {}
    context.store.check_free(stage.artifact)
    started = time.monotonic()
    with _logging_to(context.folder / LOG_FILE, active=context.runtime.rank == 0):
        logger.info("%s %s on %s", stage.name, stage.artifact.folder, platform.node())
        measured = (run or stage.run)(context)
        wall_s = time.monotonic() - started
        logger.info("done in %.1f s", wall_s)
    if context.runtime.rank != 0:
        return []
    facts = {"wall_s": wall_s, "world_size": context.runtime.world_size, **_provenance()}
    columns = {**stage.columns(), **facts, "versions": json.dumps(facts["versions"])}
    manifest = {
        "key": stage.key,
        "kind": stage.name,
        "label": stage.label(),
        "parent": stage.parent.key if stage.parent is not None else None,
        "spec": stage.model_dump(mode="json"),
        "identity": identity,
        "columns": stage.columns(),
        **{**facts, "time": facts["time"].isoformat()},
        "device": str(context.runtime.device),
        "bf16": arithmetic(context.runtime.device, "bf16") == "bf16",  # else all was fp32
        "threads": torch.get_num_threads(),
    }
    rows = measurement_table(measured, columns)
    context.store.commit(stage.artifact, context.folder, manifest, rows)
    context.store.drop_checkpoint(stage.key)
    return measured


def _as_planned(stage: Stage) -> dict[str, Any]:
    """Return a stage's identity; raise SpecError if it is not what its key was made of.

    The key travels with the stage from the place of planning; the code does not.
    """
    identity = stage.identity()
    if fingerprint(identity) != stage.key:
        raise SpecError(
            f"{stage.artifact.folder}: on {platform.node()} this is not what was planned: the code "
            "of a plugin or the files of a model differ, or were edited since. Install the same "
            "on every machine and start the command again"
        )
    return identity


@contextmanager
def scratch(store: Store) -> Iterator[Path]:
    """Yield a folder to build an artifact in, removed afterwards if it is still there."""
    folder = store.local_scratch()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _logging_to(path: Path, *, active: bool) -> Iterator[None]:
    if not active:
        yield
        return
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()


def _provenance() -> dict[str, Any]:
    return {"versions": _versions(), "git_commit": _git_commit(), "time": datetime.now(UTC)}


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


@cache
def _git_commit() -> str | None:
    # the commit of this source tree, if it is one (an installed package is not)
    folder = Path(__file__).resolve().parent
    about = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    command = ["git", "-C", str(folder), *about]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    return outcome.stdout.strip() or None


_NOTE_EVERY_S = 2.0
_LOG_EVERY_S = 15.0


@dataclass(frozen=True)
class Observed:
    """A runtime whose progress is seen, and the event file that what is measured goes to."""

    runtime: Runtime
    board: Board


@contextmanager
def observed(
    stage: Stage,
    store: Store,
    make_runtime: Callable[..., Runtime],
    *,
    experiment: str,
    checkpoint_every_s: float,
    observers: tuple[Observer, ...] = (),
) -> Iterator[Observed]:
    """Yield a runtime for one stage; store, event file and `observers` hear of its progress.

    `make_runtime` is `LocalRuntime`, or `ProcessGroupRuntime` in a DDP worker.
    """
    notes = ProgressNotes(store, stage, experiment)
    with Board(store, stage, experiment) as board:
        runtime = make_runtime(
            on_progress=Observers(notes, board.on_advance, *observers),
            checkpoints=StoreCheckpoints(store, stage.key),
            checkpoint_every_s=checkpoint_every_s,
        )
        yield Observed(runtime, board)


def attempt(
    stage: Stage,
    store: Store,
    feed: Feed,
    locations: Locations,
    seen: Observed,
    run: Run | None = None,
) -> None:
    """Run one stage to its commit; `run` as for `run_stage`."""
    with scratch(store) as folder:
        context = Context(store, feed, locations, seen.runtime, folder)
        seen.board.on_measured(run_stage(stage, context, run))


@dataclass
class ProgressNotes:
    """Writes progress to the store and the log, seldom enough to cost nothing."""

    store: Store
    stage: Stage
    experiment: str
    _notes: Sometimes = field(default_factory=lambda: Sometimes(_NOTE_EVERY_S), init=False)
    _logs: Sometimes = field(default_factory=lambda: Sometimes(_LOG_EVERY_S), init=False)

    def __call__(self, advance: Throughput) -> None:
        progress = advance.progress
        if self._notes.due(progress):
            where: dict[str, Any] = {"experiment": self.experiment, "host": platform.node()}
            where["seed"] = self.stage.seed
            self.store.write_progress(self.stage.artifact, {**advance.to_note(), **where})
        if self._logs.due(progress):
            values = " ".join(f"{name}={value:.4g}" for name, value in progress.values.items())
            logger.info("%s %d/%d %s", progress.phase, progress.step, progress.num_steps, values)


class Warned(logging.Handler):
    """Hands every warning of the log on, as a sentence."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one on; what it quotes may be from outside."""
        self._tell(printable(record.getMessage()))


@contextmanager
def warnings_heard() -> Iterator[list[str]]:
    """Yield a list to which is added what the log warns of while the context lasts."""
    heard: list[str] = []
    handler = Warned(heard.append)
    logger.addHandler(handler)
    try:
        yield heard
    finally:
        logger.removeHandler(handler)


@contextmanager
def failure_on_record(stage: Stage, store: Store) -> Iterator[None]:
    """Keep in the store why the stage failed, and let the exception pass."""
    try:
        yield
    except Exception as error:
        store.record_failure(stage.artifact, failure_note(error))
        raise


def failure_note(error: BaseException) -> dict[str, Any]:
    """Return what `status` shows of a failure."""
    return {
        "error": type(error).__name__,
        "message": printable(str(error)),
        "is_user_error": isinstance(error, UserError),
        "traceback": "".join(traceback.format_exception(error)),
        "failed_at": datetime.now(UTC).isoformat(),
    }
