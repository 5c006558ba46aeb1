"""What lies in a data folder: the shards of a table, in one of the layouts that programs write.

The layouts: shards of one format, a hive layout (`label=0/part-0.parquet`), or what `datasets`
saves with `save_to_disk`. Files that file managers, notebooks and Spark leave next to data are
skipped.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from recipe_ray.base.errors import DataError
from recipe_ray.base.foreign import is_there, read_foreign
from recipe_ray.data.formats import ALLOWED, READERS, ending, reader_of

_LITTER = {
    *("thumbs.db:encryptable", "zbthumbnail.info", "icon\r", "$recycle.bin", "lost+found"),
    *("__macosx", "__pycache__", "@eadir", "system volume information"),
}
# Hadoop's checksums, an editor's backups, what Windows keeps of a folder (Thumbs.db, desktop.ini)
_LITTER_ENDINGS = (".crc", ".md5", ".sha256", "~", ".bak", ".swp", ".db", ".ini", ".lnk", ".url")
_VERSIONED = {"_delta_log": "Delta", ".hoodie": "Hudi", "_versions": "Lance"}  # by their folder
_STATE, _SPLITS = "state.json", "dataset_dict.json"  # of `datasets`
_STATE_LIMIT = 16 * 2**20
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_DEPTH = 8  # of partitions
_INTEGER = re.compile(r"-?[0-9]{1,18}")


class TableFiles(NamedTuple):
    """The files of a table in order and, in a hive layout, the columns of each folder."""

    files: tuple[Path, ...]
    partitions: tuple[Mapping[str, str | int | None], ...] = ()


def visible(folder: Path, owner: str) -> list[Path]:
    """Return what lies in a folder, by name, without hidden files and litter.

    Litter is what programs leave there: Thumbs.db, desktop.ini, checksums, and files of Spark
    such as `_SUCCESS` (an underscore and no ending). Raises DataError for a folder that cannot be
    read.
    """
    try:
        return sorted(entry for entry in folder.iterdir() if not _is_litter(entry))
    except OSError as error:
        raise DataError(f"{owner}: {folder} cannot be read: {error.strerror}") from error


def _is_litter(entry: Path) -> bool:
    name = entry.name.lower()
    if name.startswith(".") or name in _LITTER:
        return True
    is_note = name.startswith("_") and not entry.suffix
    return (name.endswith(_LITTER_ENDINGS) or is_note) and not entry.is_dir()


def table_files(folder: Path, owner: str) -> TableFiles:
    """Return the files of the table in a folder.

    Raises DataError for a folder without any, of several formats, or of several tables.
    """
    if is_there(folder / _SPLITS) or is_there(folder / _STATE):
        return TableFiles(_saved(folder, owner))
    check_not_versioned(folder, owner)
    entries = visible(folder, owner)
    shards = [entry for entry in entries if reader_of(entry)]
    if len({ending(shard) for shard in shards}) > 1:  # then a .json describes the others
        shards = [shard for shard in shards if ending(shard) != ".json"]
    if shards:
        return TableFiles(_of_one_format(shards, folder, owner))
    folders = [entry for entry in entries if entry.is_dir()]
    if is_hive(folders):
        return _partitioned(folder, owner)
    few = ", ".join(entry.name for entry in folders[:5])
    hint = f"; it has the folders {few}: give one of them" if few else ""
    raise DataError(f"{owner}: the folder {folder} has no file ending in {ALLOWED}{hint}")


def check_not_versioned(folder: Path, owner: str) -> None:
    """Raise DataError for a table that keeps files which no longer belong to it."""
    kind = next((kind for name, kind in _VERSIONED.items() if (folder / name).is_dir()), None)
    if kind is None and any((folder / "metadata").glob("*.metadata.json")):
        kind = "Iceberg"
    if kind is not None:
        raise DataError(
            f"{owner}: {folder} is a table of {kind}, and some of its files may no longer "
            "belong to it; save it as plain Parquet"
        )


def _of_one_format(shards: list[Path], folder: Path, owner: str) -> tuple[Path, ...]:
    endings = sorted({ending(shard) for shard in shards})
    if len(endings) > 1:
        raise DataError(
            f"{owner}: the folder {folder} mixes formats ({', '.join(endings)}); keep one of "
            f"{', '.join(READERS)}"
        )
    return tuple(shards)


def _saved(folder: Path, owner: str) -> tuple[Path, ...]:
    """Return the files of a data set that `datasets` saved, in its own order."""
    where = f"{owner}: {folder}"
    if is_there(folder / _SPLITS):
        splits = _json(folder / _SPLITS, where).get("splits")
        named = [str(name)[:40] for name in splits] if isinstance(splits, list) else []
        example = f", such as {folder / named[0]}" if named else ""
        raise DataError(
            f"{where} holds several splits ({', '.join(named[:10])}); give one of them{example}"
        )
    listed = _json(folder / _STATE, where).get("_data_files")
    files = listed if isinstance(listed, list) else []
    names = [file.get("filename") if isinstance(file, dict) else None for file in files]
    if not names or any(not isinstance(n, str) or not n or Path(n).name != n for n in names):
        raise DataError(f"{where}: {_STATE} lists no files of this folder under _data_files")
    return tuple(folder / str(name) for name in names)


def _json(file: Path, where: str) -> dict[str, Any]:
    content = read_foreign(file, _STATE_LIMIT, within=file.parent, error=DataError)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: {file.name} is not JSON") from error
    return found if isinstance(found, dict) else {}


def is_hive(folders: list[Path]) -> bool:
    """Tell whether folders are partitions, each named `column=value`."""
    names = [folder.name.partition("=") for folder in folders]
    return bool(names) and all(column and value for column, _, value in names)


def _partitioned(root: Path, owner: str) -> TableFiles:
    found: list[tuple[Path, dict[str, str | None]]] = []
    _descend(root, {}, root, owner, found)
    if not found:
        raise DataError(f"{owner}: the partitions of {root} have no file ending in {ALLOWED}")
    files = _of_one_format([file for file, _ in found], root, owner)
    names = list(found[0][1])
    if any(list(values) != names for _, values in found):
        raise DataError(f"{owner}: the partitions of {root} are not all by {', '.join(names)}")
    whole = {name for name in names if _are_integers([values[name] for _, values in found])}
    return TableFiles(
        files,
        tuple(
            {name: int(v) if v is not None and name in whole else v for name, v in values.items()}
            for _, values in found
        ),
    )


def _are_integers(values: list[str | None]) -> bool:
    return all(value is None or _INTEGER.fullmatch(value) for value in values)


def _descend(
    folder: Path,
    values: dict[str, str | None],
    root: Path,
    owner: str,
    found: list[tuple[Path, dict[str, str | None]]],
) -> None:
    entries = visible(folder, owner)
    folders = [entry for entry in entries if entry.is_dir()]
    shards = [entry for entry in entries if reader_of(entry) and entry not in folders]
    if folders and (shards or not is_hive(folders) or len(values) == _DEPTH):
        raise DataError(
            f"{owner}: the partitions of {root} are folders named column=value, and only the "
            f"innermost hold files; {folder} breaks this"
        )
    found += [(shard, values) for shard in shards]
    for entry in folders:
        name, _, value = entry.name.partition("=")
        said = None if value == _NO_VALUE else unquote(value)
        _descend(entry, {**values, unquote(name): said}, root, owner, found)
