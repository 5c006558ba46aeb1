"""The user's own data by plain paths: which file is what, which columns, and which classes.

It makes the same components as a mapping with those fields would, and says what it found. A
well-known column name is taken only if it is the only one of its kind. Experiment files do not use
it: there every field is written down.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from recipe_ray.base.errors import DataError, SpecError, unknown
from recipe_ray.base.paths import existing_path, is_there
from recipe_ray.base.spec import Component
from recipe_ray.data.corpus import CORPORA, Corpus
from recipe_ray.data.formats import label_of
from recipe_ray.data.sources import HEADER, Source, column_of, has_first_line
from recipe_ray.models.family import ModelRef
from recipe_ray.tasks.own_data import OwnData
from recipe_ray.tasks.task import SPLITS, TASKS, Split

_TEXTS = (
    "text texts sentence sentences review reviews review_text reviewtext content contents tweet "
    "tweets comment comments comment_text body message messages document utterance description "
    "post passage paragraph sms"
)
_LABELS = (
    "label labels target targets class classes category sentiment polarity intent emotion "
    "gold_label label_id labelid class_id class_index class_label y"
)
_IMAGES = "image images img imgs picture photo jpg jpeg png webp"
_CAPTIONS = "caption captions alt alt_text title " + _TEXTS


# a field that names a column: what the column holds, its option, the names it often has
_KINDS: dict[str, tuple[str, str | None, str]] = {
    "column": ("texts", "--text-column", _TEXTS),
    "text_column": ("texts", "--text-column", _TEXTS),
    "image_column": ("images", None, _IMAGES),
    "label_column": ("labels", "--label-column", _LABELS),
    "caption_column": ("captions", None, _CAPTIONS),
}
OPTIONS = {"text": ("column", "text_column"), "label": ("label_column",)}


def asked_columns(kind: type[Component], asked: Mapping[str, str]) -> dict[str, str]:
    """Return the fields of a component that the options --text-column, --label-column set.

    `asked`: name of the option without its ending, and column. Raises SpecError for one that such a
    component does not have.
    """
    fields = {}
    for option, column in asked.items():
        field = next((name for name in OPTIONS[option] if name in kind.model_fields), None)
        if field is None:
            has = [name for name in _KINDS if name in kind.model_fields]
            raise SpecError(
                f"--{option}-column: {kind.name!r} has no column of {option}s; its columns: "
                + (", ".join(has) or "none")
            )
        if not column.strip():
            raise SpecError(f"--{option}-column: it is empty; give the name of a column")
        fields[field] = column
    return fields


def take_columns(
    kind: type[Component], sources: Mapping[Any, Source], asked: Mapping[str, str], where: str
) -> tuple[dict[str, str], str]:
    """Return the fields that name columns which all sources have, and a sentence that says which.

    Raises DataError that lists the columns and says what to type; also for an empty table.
    """
    wanted = asked_columns(kind, asked)
    tables = {}
    for split, source in sources.items():
        owner = f"{where} ({split})" if split else where
        first = next(iter(source.batches()), None)
        if first is None:
            raise DataError(f"{owner}: {source.describe()} has no rows")
        tables[owner] = first
    (_, first), *_ = tables.items()
    taken = {}
    for field in (name for name in _KINDS if name in kind.model_fields):
        default = str(kind.model_fields[field].default)
        known = _well_known(first.schema.names, default, field)
        taken[field] = wanted.get(field) or (known[0] if len(known) == 1 else default)
        _check(first, taken[field], known, field, next(iter(tables)))
        for owner, batch in tables.items():
            if taken[field] not in batch.schema.names:
                raise DataError(
                    f"{owner}: it has no column {taken[field]!r}, which the training data have; "
                    "all files need the same columns"
                )
    _check_apart(taken, where)
    said = ", ".join(f"{_KINDS[field][0]} from {column!r}" for field, column in taken.items())
    return taken, f"columns: {said}"


def _well_known(names: list[str], default: str, field: str) -> list[str]:
    if default in names:
        return [default]
    usual = _KINDS[field][2].split()
    return [name for name in names if _usual(name) in usual]


def _usual(name: str) -> str:
    return name.strip().lower().replace(" ", "_")


def _check(batch: Any, column: str, known: list[str], field: str, owner: str) -> None:
    try:
        column_of(batch, column, owner)
    except DataError as error:
        holds, option, _ = _KINDS[field]
        several = f" Several columns are possible: {', '.join(known)}." if len(known) > 1 else ""
        how = f"{option} NAME" if option else f"the mapping '{{name: ..., {field}: NAME}}'"
        usual = {name for _, _, names in _KINDS.values() for name in names.split()}
        unknown_names = usual.isdisjoint(map(_usual, batch.schema.names))
        headerless = has_first_line(batch) and unknown_names and HEADER not in str(error)
        header = f". If the file has no header line: {HEADER}" if headerless else ""
        raise DataError(
            f"{error}.{several} Say which column has the {holds}: {how}{header}"
        ) from None


def _check_apart(taken: Mapping[str, str], where: str) -> None:
    columns = list(taken.values())
    twice = [column for column in columns if columns.count(column) > 1]
    if twice:
        both = " and ".join(_KINDS[field][0] for field in taken if taken[field] == twice[0])
        raise SpecError(f"{where}: column {twice[0]!r} cannot hold {both}; name another for one")


TEST_SHARE = 0.2  # of each class, held out if only one table is given
MAX_CLASSES = 1000
FORMS = "TRAIN,TEST or train=FILE,dev=FILE,test=FILE, a folder with them, or one FILE to be split"
_NAMED = re.compile(r"(?:^|,)\s*([A-Za-z_]+)=")
# what people call a split, in the name of a file or folder
_SPLIT_NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "val", "valid", "validation"), "dev"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_SHOWN = 20  # classes, and characters of a label

C = TypeVar("C", bound=Corpus | OwnData)


@dataclass(frozen=True)
class Found:
    """A component made from plain paths, and what to say of it."""

    component: Any
    notes: tuple[str, ...]


def own_corpus(path: str, size: int | None, columns: Mapping[str, str], model: ModelRef) -> Found:
    """Return the corpus in the user's own file or folder; it holds what the model needs.

    Raises DataError for columns that are neither there nor clear from their names.
    """
    own = (name for name in CORPORA if CORPORA.get(name).model_fields["path"].is_required())
    name = next(name for name in own if CORPORA.get(name).holds >= model.learns_from)
    fields = {"name": name, "path": path, **({} if size is None else {"size": size})}
    corpus: Corpus = CORPORA.parse(fields)
    source = corpus.opened(path)
    chosen, note = take_columns(type(corpus), {"": source}, columns, "--aux")
    plain = list(chosen.values()) == ["text"] and not columns  # lines, or the usual column
    return Found(corpus.revised(**chosen), () if plain else (note,))


def own_task(text: str, columns: Mapping[str, str], model: ModelRef) -> Found:
    """Return the task in the user's own files, its classes those of the labels found.

    Raises SpecError for wrong paths, DataError for columns that are neither there nor clear
    from their names, and for labels that are not classes.
    """
    paths = given_paths(text)
    own = (name for name in TASKS if TASKS.get(name).model_fields["path_train"].is_required())
    name = next(name for name in own if TASKS.get(name).holds == model.reads)
    fields = {f"path_{split}": path for split, path in paths.items()}
    whole = {} if "test" in paths else {"test_share": TEST_SHARE}
    draft: OwnData = TASKS.parse({"name": name, "class_names": ["0", "1"], **fields, **whole})
    sources = draft.given()
    chosen, note = take_columns(type(draft), sources, columns, "--task")
    draft = draft.revised(**chosen)
    counts = {split: _labels(source, draft, split) for split, source in sources.items()}
    _check_labels(counts, draft.label_column)
    task = draft.revised(**_classes(counts["train"]))
    read = [f"{split}: {path}" for split, path in paths.items()]
    if whole:
        read.append(f"test: {task.held_out_of_train()}")
    return Found(task, ("; ".join(read), note, _said(task, counts["train"])))


def given_paths(text: str) -> dict[Split, str]:
    """Return the paths of train and test, and of dev if given; for a table to be split only train.

    Raises SpecError for a missing path, and if it is not clear which file is which.
    """
    wanted = f"your own data as {FORMS}"
    if _NAMED.search(text) and not is_there(text):
        paths = _named_paths(text)
    elif "," in text and not is_there(text):
        paths = _listed_paths(text)
    else:
        place = existing_path(text, "--task", wanted)
        paths = _paths_in(place) if place.is_dir() else {}
        return paths or {"train": text}
    twice = [path for path, count in Counter(paths.values()).items() if count > 1]
    if twice:
        raise SpecError(
            f"--task: {twice[0]} is given twice; give one file once, and a part of it is held out "
            "as test data"
        )
    for path in paths.values():
        existing_path(path, "--task", wanted)
    return paths


def _named_paths(text: str) -> dict[Split, str]:
    pieces = _NAMED.split(text)  # what is before the first name, then names and paths in turn
    names, values = pieces[1::2], pieces[2::2]
    if pieces[0].strip():
        raise SpecError(f"--task {text!r}: {pieces[0]!r} has no name before it; give {FORMS}")
    paths: dict[Split, str] = {}
    for name, value in zip(names, values, strict=True):
        split = _SPLIT_NAMES.get(name.lower())
        if split is None:
            raise SpecError(f"--task: {unknown('part', name, SPLITS)}")
        if split in paths:
            raise SpecError(f"--task: {split} is given twice; a folder may hold several files")
        paths[split] = value.strip()
    for split in ("train", "test"):
        if split not in paths and (split == "train" or "dev" in paths):
            raise SpecError(
                f"--task {text!r}: {split}= is missing; give {FORMS}. To measure on dev data, give "
                "them as test="
            )
    return {split: paths[split] for split in SPLITS if split in paths}


def _listed_paths(text: str) -> dict[Split, str]:
    parts = [part.strip() for part in text.split(",")]
    if all(part in TASKS for part in parts):
        raise SpecError(f"--task {text!r}: one task at a time; `sweep` does a grid of them")
    if len(parts) > 3 or not all(parts):
        raise SpecError(
            f"--task {text!r}: {len(parts)} paths by commas; give {FORMS}. If a path has a comma "
            "in it, name the parts: train=...,test=..."
        )
    order: tuple[Split, ...] = ("train", "test") if len(parts) == 2 else SPLITS
    said = [_split_of(Path(part)) for part in parts]
    swapped = (said[0] or "train") != "train" or "train" in said[1:]
    if swapped and len(set(parts)) == len(parts):
        raise SpecError(
            f"--task {text!r}: read as {', '.join(order)}, which the names contradict; give "
            "train=FILE,test=FILE"
        )
    return dict(zip(order, parts, strict=True))


def _paths_in(folder: Path) -> dict[Split, str]:
    found: dict[Split, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        split = None if entry.name.startswith(".") else _split_of(entry)
        if split is not None:
            found.setdefault(split, []).append(entry)
    if "train" not in found or len(found) == 1:
        return {}  # a folder of shards or of class folders: one table
    for split, entries in found.items():
        if len(entries) > 1:
            some = ", ".join(entry.name for entry in entries[:4])
            raise SpecError(
                f"--task: {folder} has {len(entries)} entries for {split}: {some}; name one of "
                f"each (train={folder}/...,test={folder}/...), or put shards into a folder {split}/"
            )
    if "test" not in found:
        train, dev = found["train"][0], found["dev"][0]
        raise SpecError(
            f"--task: {folder} has {train.name} and {dev.name} but nothing for test; to measure "
            f"on {dev.name} type --task train={train},test={dev}"
        )
    return {split: str(found[split][0]) for split in SPLITS if split in found}


def _split_of(entry: Path) -> Split | None:
    name = entry.name.lower()
    # a class folder may be called `test tubes`, a file sst2_train.parquet
    words = {name} if entry.is_dir() else set(re.split(r"[^a-z]+", name))
    named = {_SPLIT_NAMES[word] for word in words if word in _SPLIT_NAMES}
    return named.pop() if len(named) == 1 else None


def _labels(source: Source, task: OwnData, split: str) -> Counter[Any]:
    """Count the labels as `label_of` gives them; True and 1 are one."""
    owner, column, row = f"--task ({split})", task.label_column, 0
    counts: Counter[Any] = Counter()
    for batch in source.batches():
        for value in column_of(batch, column, owner).to_pylist():
            row += 1
            label = label_of(value)
            if _is_missing(value):
                raise DataError(f"{owner}: row {row} has no label in column {column!r}")
            if label is None or (isinstance(label, str) and _FRACTION.fullmatch(label)):
                raise DataError(
                    f"{owner}: row {row}: {str(value)[:_SHOWN]!r} in column {column!r} is not a "
                    "class; allowed: whole numbers and names"
                )
            counts[label] += 1
    return counts


_FRACTION = re.compile(r"[+-]?[0-9]*\.[0-9]+")


def _is_missing(value: Any) -> bool:
    written = str(value).strip().lower()
    return value is None or not written or (written == "nan" and not isinstance(value, bytes))


def _check_labels(counts: Mapping[Split, Counter[Any]], column: str) -> None:
    train, rows = counts["train"], counts["train"].total()
    if len(train) > min(MAX_CLASSES, rows // 2) and len(train) > 1:
        raise DataError(
            f"--task: column {column!r} has {len(train):,} different values in {rows:,} rows; are "
            "these labels? Name the column of labels: --label-column NAME"
        )
    if len(train) < 2:
        only = _quoted(train) or "none"
        raise DataError(
            f"--task: column {column!r} has one label in the training data ({only}); a task needs "
            "two classes or more"
        )
    names: dict[str, str] = {}
    for label in (label for label in train if isinstance(label, str)):
        other = names.setdefault(label.casefold(), label)
        if other != label:
            raise DataError(
                f"--task: {_quoted([other, label])} in column {column!r} differ in capitals only; "
                "write the labels of a class alike"
            )
    for split in ("dev", "test"):
        there = counts.get(split, train)
        for rest, here, lacking in (
            (there.keys() - train.keys(), split, "train"),
            (train.keys() - there.keys(), "train", split),
        ):
            if rest:
                raise DataError(
                    f"--task: label {_quoted(rest)} occurs in {here} but not in {lacking}; "
                    "every class needs rows in both, with labels written alike"
                )


def _classes(counts: Mapping[Any, int]) -> dict[str, Any]:
    """Return the fields that say which classes there are."""
    if any(isinstance(label, str) for label in counts):
        return {"class_names": tuple(sorted(map(str, counts)))}
    if all(isinstance(label, bool) for label in counts):
        return {"class_names": tuple(map(str, sorted(counts)))}
    values = sorted(map(int, counts))
    names = tuple(map(str, values))
    from_zero = values == list(range(len(values)))
    return {"class_names": names, "label_values": None if from_zero else tuple(values)}


def _said(task: OwnData, counts: Mapping[Any, int]) -> str:
    shown = [f"{name[:_SHOWN]} ({counts[label_of(name)]:,})" for name in task.classes[:_SHOWN]]
    more = f" and {task.num_labels - _SHOWN} more" if task.num_labels > _SHOWN else ""
    return f"{task.num_labels} classes found, with rows of train: {', '.join(shown)}{more}"


def _quoted(labels: Iterable[Any]) -> str:
    return ", ".join(sorted(repr(str(label)[:_SHOWN]) for label in labels)[:4])
