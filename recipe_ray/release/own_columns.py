"""Which column of the user's own table is which: asked for, the usual name, or a well-known one.

A well-known name is taken only if it is the only one of its kind, and what is taken is said.
"""

from collections.abc import Mapping
from typing import Any

from recipe_ray.base.errors import DataError, SpecError
from recipe_ray.base.spec import Component
from recipe_ray.data.sources import Source, column_of

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

    Raises DataError that lists the columns and says what to type, for an empty table, too.
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
    return [name for name in names if name.strip().lower().replace(" ", "_") in usual]


def _check(batch: Any, column: str, known: list[str], field: str, owner: str) -> None:
    try:
        column_of(batch, column, owner)
    except DataError as error:
        holds, option, _ = _KINDS[field]
        several = f" Several could be it: {', '.join(known)}." if len(known) > 1 else ""
        how = f"{option} NAME" if option else f"the mapping '{{name: ..., {field}: NAME}}'"
        raise DataError(f"{error}.{several} Say which has the {holds}: {how}") from None


def _check_apart(taken: Mapping[str, str], where: str) -> None:
    columns = list(taken.values())
    twice = [column for column in columns if columns.count(column) > 1]
    if twice:
        both = " and ".join(_KINDS[field][0] for field in taken if taken[field] == twice[0])
        raise SpecError(f"{where}: column {twice[0]!r} cannot hold {both}; name another for one")
