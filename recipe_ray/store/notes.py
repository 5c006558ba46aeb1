"""JSON notes in a store, one per stage (why it failed, how far it is), each replacing the last.

Notes are for people and for other drivers; no result depends on them. So a damaged note is named in
the log once and then skipped, and the next note of its name replaces it.
"""

import json
import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, FiniteFloat, ValidationError

from recipe_ray.base.errors import DamagedError, StoreError
from recipe_ray.base.paths import path_part
from recipe_ray.base.printable import printable
from recipe_ray.store.files import Files
from recipe_ray.store.manifest import ArtifactId

_READERS = 16  # requests at a time; an object store answers each in tens of milliseconds
_UNREADABLE = (IsADirectoryError, PermissionError)  # of one file, while the store is there
logger = logging.getLogger("recipe_ray")
_named: set[str] = set()  # what was logged before: a sweep reads its notes every second


def _zoned(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("a time without its zone")
    return text


class Note(BaseModel):
    """What every note says; fields that are not named are kept as they are."""

    model_config = ConfigDict(extra="allow", strict=True, defer_build=True)
    time: Annotated[str, AfterValidator(_zoned)]  # of writing; ISO 8601


class FailureNote(Note):
    """Why a stage failed last."""

    kind: str
    label: str
    error: str
    message: str


class ProgressNote(Note):
    """How far a stage is; a rate is None if it is not known."""

    kind: str
    label: str
    seed: int | None = None  # older versions do not say it
    phase: str
    step: int
    num_steps: int
    samples: int = 0
    resumed_at: int = 0
    values: dict[str, float] = {}
    elapsed_s: FiniteFloat = 0.0
    samples_per_s: FiniteFloat | None = None
    left_s: FiniteFloat | None = None


class _Cell(BaseModel):
    model_config = ConfigDict(strict=True)
    stages: list[str]


class _Settings(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    weight_factor: FiniteFloat
    learning_rate: FiniteFloat | None = None
    layers: str | None = None


class _Candidate(BaseModel):
    model_config = ConfigDict(strict=True)
    settings: _Settings
    epochs: int
    ended: str | None


class _Search(BaseModel):
    model_config = ConfigDict(strict=True)
    key: str = ""
    trials: int = 0
    rungs: list[int] = []
    score: dict[str, Any] = {}
    candidates: list[_Candidate] = []


class PlanShape(BaseModel):
    """What every plan in a store says (`experiment/collect.py: plan_record`), and a search's."""

    model_config = ConfigDict(strict=True)
    cells: list[_Cell] = []
    stages: dict[str, Any]
    paper: dict[str, Any] | None = None
    search: _Search = _Search()


def checked_plan(plan: dict[str, Any], shown: str) -> dict[str, Any]:
    """Return a plan; raise DamagedError, naming file and field, for one of another shape."""
    try:
        PlanShape.model_validate(plan)
    except ValidationError as error:
        raise _misshapen(error, shown) from error
    return plan


def json_path(folder: str, name: str) -> str:
    """Return the place of a folder's JSON called `name`; raise StoreError for a bad name."""
    return f"{folder}/{path_part(name, f'{folder}: the name')}.json"


def write_note(files: Files, folder: str, artifact: ArtifactId, note: dict[str, Any]) -> None:
    """Write or replace a stage's note; kind, label and time of writing are added."""
    added = {"kind": artifact.kind, "label": artifact.label}
    whole = {"time": datetime.now(UTC).isoformat(), **note, **added}
    files.write(json_path(folder, artifact.key), json.dumps(whole).encode())


def read_note(files: Files, folder: str, key: str, shape: type[Note]) -> dict[str, Any] | None:
    """Return a stage's note, None if there is none or it is damaged."""
    return _read(files, json_path(folder, key), shape)


def read_notes(files: Files, folder: str, shape: type[Note]) -> dict[str, dict[str, Any]]:
    """Return every note of a folder by key, without the damaged ones."""
    names = [name for name in files.names(folder) if name.endswith(".json")]
    with ThreadPoolExecutor(_READERS) as pool:
        read = pool.map(lambda name: _read(files, f"{folder}/{name}", shape), names)
    # a note that another process deleted since the listing cannot be reported
    return {
        name.removesuffix(".json"): note
        for name, note in zip(names, read, strict=True)
        if note is not None
    }


def damaged_notes(files: Files, folder: str, shape: type[Note]) -> list[StoreError]:
    """Return what is wrong with each note of a folder that `read_notes` leaves out."""
    found: list[StoreError] = []
    for name in [name for name in files.names(folder) if name.endswith(".json")]:
        path = f"{folder}/{name}"
        try:
            data = files.read(path)
            if data is not None:
                _checked(data, files.shown(path), shape)
        except StoreError as error:
            if not (isinstance(error, DamagedError) or isinstance(error.__cause__, _UNREADABLE)):
                raise
            found.append(error)
    return found


def read_all(files: Files, paths: Iterable[str]) -> list[tuple[str, bytes]]:
    """Return the content of many files, read at the same time."""
    listed = list(paths)
    with ThreadPoolExecutor(_READERS) as pool:
        read = list(pool.map(files.read, listed))
    # a note that another process deleted since the listing cannot be reported
    return [(path, data) for path, data in zip(listed, read, strict=True) if data is not None]


def pass_over(what: str, error: StoreError) -> None:
    """Name a damaged file in the log, once per process, and say that it is left out."""
    said = f"{what} is ignored: {error}"
    if said not in _named:
        _named.add(said)
        logger.warning("%s", said)


def _read(files: Files, path: str, shape: type[Note]) -> dict[str, Any] | None:
    try:
        data = files.read(path)
        return None if data is None else _checked(data, files.shown(path), shape)
    except DamagedError as error:
        pass_over("a damaged note", error)
    except StoreError as error:
        if not isinstance(error.__cause__, _UNREADABLE):
            raise
        pass_over("a note that cannot be read", error)
    return None


def _checked(data: bytes, shown: str, shape: type[Note]) -> dict[str, Any]:
    try:
        shape.model_validate_json(data)
    except ValidationError as error:
        raise _misshapen(error, shown) from error
    note: dict[str, Any] = _printable(json.loads(data))
    return note


def _misshapen(error: ValidationError, shown: str) -> DamagedError:
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"])) or "the whole file"
    return DamagedError(f"{shown}: {place}: {first['msg']}; delete it")


def _printable(value: Any) -> Any:
    """Return a note's value with every text as it may be shown: others wrote it."""
    if isinstance(value, dict):
        return {printable(key): _printable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_printable(one) for one in value]
    return printable(value) if isinstance(value, str) else value
