"""Tables of the user, written and read back."""

from pathlib import Path
from typing import Any

from samples import raised_by

from recipe_ray.data.sources import open_path

CSV = b"text,label\none,0\ntwo,1\n"
ROWS = [{"text": "one", "label": "0"}, {"text": "two", "label": "1"}]
LINES = b'{"text": "one", "label": "0"}\n{"text": "two", "label": "1"}\n'


def rows(path: Path) -> list[dict[str, Any]]:
    """Return all rows of a user's table."""
    return [row for batch in open_path(path, "corpus").batches() for row in batch.to_pylist()]


def wrong(path: Path) -> str:
    """Return what reading a user's table says is wrong, which never shows a text."""
    said = raised_by(lambda: rows(path))
    assert "secret" not in said
    return said


def put(folder: Path, name: str, content: bytes = CSV) -> Path:
    """Write a file; return it."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file
