"""TensorBoard's event files: losses and speed of a stage while it runs, its results at its end.

They are at `tensorboard/<experiment>/<label>.s<seed>-<key>/` of the store and are not part of an
artifact: nothing checks them, and they may be deleted. The one process that reports (rank 0) writes
them. In a local store a file grows while the stage runs. An object store has no growing files, so
there the whole file is uploaded again once per minute and at the end.
"""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from recipe_ray.base.paths import path_part
from recipe_ray.learn.progress import Sometimes, Throughput
from recipe_ray.stages.stage import Stage
from recipe_ray.store.remote import is_remote, reopen_files
from recipe_ray.store.rows import Measurement
from recipe_ray.store.store import Store

FOLDER = "tensorboard"
_POINT_EVERY_S = 1.0
_SYNC_EVERY_S, _UPLOAD_EVERY_S = 5.0, 60.0
logger = logging.getLogger("recipe_ray")


class Board:
    """The event file of one try at a stage, begun with its first progress; a context manager.

    A try that continues from a checkpoint begins a file of its own in the same folder, which says
    from which step on TensorBoard forgets what earlier files hold. If events cannot be
    written, the rest of them is dropped with a warning, and the stage continues.
    """

    def __init__(self, store: Store, stage: Stage, experiment: str) -> None:
        self._open: Callable[[], _EventFile] = partial(
            _EventFile, store, _folder(stage, experiment)
        )
        self._file: _EventFile | None = None
        self._given_up = False
        self._points = Sometimes(_POINT_EVERY_S)
        self._step = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._guarded(self._file.close)

    def on_advance(self, advance: Throughput) -> None:
        """Write the loss terms and the speed at this step, about once a second."""
        progress = advance.progress
        self._step = progress.step
        if not self._points.due(progress):
            return
        values = {f"loss/{name}": value for name, value in progress.values.items()}
        if advance.samples_per_s is not None:
            values["samples_per_s"] = advance.samples_per_s
        self._write(values)

    def on_measured(self, measured: Iterable[Measurement]) -> None:
        """Write the results of the whole stage (acc, aasr, masr ...), at its last step."""
        self._write(
            {
                f"result/{m.metric}": m.value
                for m in measured
                if m.trigger is None and m.label is None and m.epoch is None
            }
        )

    def _write(self, values: Mapping[str, float]) -> None:
        def action() -> None:
            if self._file is None:
                self._file = self._open()
                self._file.forget_from(self._step)
            self._file.add(values, self._step)

        if values:
            self._guarded(action)

    def _guarded(self, action: Callable[[], None]) -> None:
        if self._given_up:
            return
        try:
            action()
        except Exception as error:  # whatever the error is, the stage matters more than its curves
            self._given_up = True
            logger.warning("no more event files of this stage: %s: %s", type(error).__name__, error)


class _EventFile:
    """One event file in a folder of the store, kept on this machine if the store is remote."""

    def __init__(self, store: Store, folder: str) -> None:
        # with torch loaded 0.1 s; and not its SummaryWriter: that writes in a thread, and if
        # the disk is full the thread dies and the next value waits for it for ever
        from tensorboardX.event_file_writer import EventsWriter

        self._folder = folder
        self._files = reopen_files(store.uri) if is_remote(store.uri) else None
        self._place = self._local(store)
        self._writer: Any = EventsWriter(str(self._place / "events"), f".{os.getpid()}")
        self._synced = time.monotonic()

    def forget_from(self, step: int) -> None:
        """Let TensorBoard forget what earlier files of the folder have from `step` on."""
        from tensorboardX.proto.event_pb2 import SessionLog

        self._put(step, session_log=SessionLog(status=SessionLog.START))

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Add values by tag."""
        from tensorboardX.proto.summary_pb2 import Summary

        points = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._put(step, summary=Summary(value=points))
        if time.monotonic() - self._synced >= (_UPLOAD_EVERY_S if self._files else _SYNC_EVERY_S):
            self._sync()

    def close(self) -> None:
        """Write what is not written yet and close the file."""
        try:
            self._sync()
            self._writer.close()
        finally:
            if self._files is not None:
                shutil.rmtree(self._place, ignore_errors=True)

    def _put(self, step: int, **what: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write_event(Event(wall_time=time.time(), step=step, **what))

    def _sync(self) -> None:
        self._writer.flush()
        self._synced = time.monotonic()
        if self._files is not None:
            for path in self._place.iterdir():
                self._files.write(f"{self._folder}/{path.name}", path.read_bytes())

    def _local(self, store: Store) -> Path:
        if self._files is not None:
            return Path(tempfile.mkdtemp(prefix="recipe-ray-events-"))
        place = Path(store.uri) / self._folder
        place.mkdir(parents=True, exist_ok=True)
        return place


def _folder(stage: Stage, experiment: str) -> str:
    artifact = stage.artifact
    plain = path_part(experiment, "experiment name")
    return f"{FOLDER}/{plain}/{artifact.label}.s{stage.seed}-{artifact.key}"
