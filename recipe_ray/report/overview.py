"""What ran, where, for how long, at what cost, and what failed: read from rows, plans and a store.

Rows say how long a stage took and when it ended. The number of cores, the device and failures are
known to a store only, not to what `--export` kept: what is unknown is None and never guessed.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from recipe_ray.base.errors import StoreError
from recipe_ray.report.load import Recorded
from recipe_ray.store.manifest import parse_json
from recipe_ray.store.store import Store

_COLUMNS = ("stage", "kind", "model", "attack", "defense", "task", "seed", "wall_s", "world_size")
_LONGEST_S, _FIRST_YEAR = 1e9, 2000  # of a stage, and of any run
_READERS = 16  # manifests that are read at the same time
_SHOWN_LIBRARIES = ("recipe-ray", "python", "torch", "transformers", "ray")


@dataclass(frozen=True)
class StageRun:
    """One finished stage; `cores` are those of all its workers, None if only rows were kept."""

    key: str
    kind: str
    label: str
    wall_s: float
    workers: int
    ended: datetime
    versions: str
    commit: str | None
    cores: int | None = None
    device: str | None = None

    @property
    def began(self) -> datetime:
        """When it began."""
        return self.ended - timedelta(seconds=self.wall_s)


@dataclass(frozen=True)
class Failure:
    """A stage that failed and was not done since."""

    kind: str
    label: str
    error: str
    message: str
    time: str


@dataclass(frozen=True)
class Overview:
    """One experiment; `planned` and `cells` are None if its plan was not kept.

    `runs` are the stages that are `done` and whose rows say when. `failures` is None if they are
    not known, as for what `--export` kept.
    """

    experiment: str
    done: int
    runs: tuple[StageRun, ...]
    planned: int | None
    cells: int | None
    failures: tuple[Failure, ...] | None


def overviews(found: Sequence[Recorded], store: Store | None) -> list[Overview]:
    """Return what became of each experiment; `store` is where they were read from, if it is one."""
    manifests = _manifests(found, store) if store is not None else {}
    failed = store.failures() if store is not None else None
    return [_overview(one, manifests, failed) for one in found]


def core_hours(runs: Iterable[StageRun]) -> float | None:
    """Return the cores times hours of these stages, each counted once; None if not known."""
    distinct = {run.key: run for run in runs}.values()
    if not distinct or any(run.cores is None for run in distinct):
        return None
    return sum(run.wall_s * (run.cores or 0) for run in distinct) / 3600


def worker_hours(runs: Iterable[StageRun]) -> float:
    """Return the workers times hours of these stages, each counted once."""
    distinct = {run.key: run for run in runs}.values()
    return sum(run.wall_s * run.workers for run in distinct) / 3600


def made_with(runs: Iterable[StageRun]) -> list[str]:
    """Return the versions that stages were made with, one text per combination."""
    found: dict[str, None] = {}
    for run in runs:
        try:
            known = parse_json(run.versions.encode(), "versions") if run.versions else {}
        except StoreError:  # rows of a stranger
            known = {}
        listed = (f"{name} {known[name]}" for name in _SHOWN_LIBRARIES if name in known)
        found[", ".join(listed)] = None
    return sorted(filter(None, found))


def _manifests(found: Iterable[Recorded], store: Store) -> dict[str, dict[str, Any]]:
    wanted = {key for one in found for key in one.rows["stage"].unique().to_pylist()}
    artifacts = [one for key, one in store.committed().items() if key in wanted]
    with ThreadPoolExecutor(_READERS) as pool:
        read = pool.map(store.manifest, artifacts)
        return {one.key: manifest for one, manifest in zip(artifacts, read, strict=True)}


def _overview(
    one: Recorded,
    manifests: Mapping[str, Mapping[str, Any]],
    failed: Mapping[str, Mapping[str, Any]] | None,
) -> Overview:
    plan = one.plan
    runs = _runs(one, manifests)
    done = set(one.rows["stage"].unique().to_pylist())
    planned = None if plan is None else [key for key in plan["stages"] if key not in done]
    failures = None
    if failed is not None and planned is not None:
        failures = tuple(_failure(failed[key]) for key in planned if key in failed)
    return Overview(
        one.experiment,
        len(done),
        tuple(runs),
        None if planned is None else len(planned) + len(done),
        None if plan is None else len(plan["cells"]),
        failures,
    )


def _runs(one: Recorded, manifests: Mapping[str, Mapping[str, Any]]) -> list[StageRun]:
    columns = one.rows.select([*_COLUMNS, "versions", "git_commit", "time"])
    by_stage = {row["stage"]: row for row in columns.to_pylist()}
    timed = [row for row in by_stage.values() if _is_timed(row)]
    runs = []
    for row in timed:
        manifest = manifests.get(row["stage"], {})
        workers = row["world_size"] or 1
        threads = manifest.get("threads")
        names = (row[name] for name in ("model", "attack", "defense", "task"))
        runs.append(
            StageRun(
                key=row["stage"],
                kind=row["kind"],
                label=", ".join(name for name in names if name not in (None, "none")),
                wall_s=row["wall_s"],
                workers=workers,
                ended=row["time"],
                versions=row["versions"] or "",
                commit=row["git_commit"],
                cores=None if threads is None else threads * workers,
                device=manifest.get("device"),
            )
        )
    return sorted(runs, key=lambda run: (run.began, run.key))


def _is_timed(row: Mapping[str, Any]) -> bool:
    """Tell whether a row says when; rows of a stranger may hold any number, also none."""
    wall_s, ended = row["wall_s"], row["time"]
    return None not in (wall_s, ended) and 0 <= wall_s < _LONGEST_S and ended.year >= _FIRST_YEAR


def _failure(note: Mapping[str, Any]) -> Failure:
    said = str(note["message"]).strip().splitlines()
    first = said[0] if said else "(no message)"
    kind, label, error, time = (str(note[name]) for name in ("kind", "label", "error", "time"))
    return Failure(kind, label, error, first, time)
