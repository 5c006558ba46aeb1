"""Real text that any machine with pip can have: the rated snippets inside a PyPI package.

The source distribution of vaderSentiment 3.3.2 (MIT) holds the data of Hutto and Gilbert (ICWSM
2014): sentences of film reviews, product reviews and newspaper editorials, each with a mean
rating of 20 raters from -4 to 4. The texts keep their authors' copyright, so nothing of them is
committed here: they are fetched once, checked, and read inside the archive.
"""

import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from recipe_ray.base.errors import DataError
from recipe_ray.base.fingerprint import file_checksum
from recipe_ray.data.formats import BATCH_ROWS

PACKAGE = "vaderSentiment"
VERSION = "3.3.2"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
ARCHIVE = f"{PACKAGE}-{VERSION}.tar.gz"
INNER = f"{PACKAGE}-{VERSION}/additional_resources/hutto_ICWSM_2014.tar.gz"
DOWNLOAD_S = 600


@dataclass(frozen=True)
class EmbeddedSource:
    """One rated file of the package: columns `id`, `rating` (-4 to 4) and `text`."""

    member: str  # "movieReviewSnippets", "nytEditorialSnippets" or "amazonReviewSnippets"
    cache_dir: Path

    def identity(self) -> dict[str, Any]:
        """Return package, version, its SHA-256 and the member; known without the file."""
        return {
            "source": "embedded",
            "package": PACKAGE,
            "version": VERSION,
            "sha256": SHA256,
            "member": self.member,
        }

    def describe(self) -> str:
        """Return the member and the package it is in."""
        return f"{self.member} of the Python package {PACKAGE} {VERSION}"

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
    place = cache_dir / ARCHIVE
    if not place.exists():
        _fetch(place)
    found = file_checksum(place)
    if found != SHA256:
        raise DataError(
            f"{place} is not {PACKAGE} {VERSION}: its SHA-256 is {found}, expected {SHA256}; "
            "delete it, so that it is fetched again"
        )
    return place


def _fetch(place: Path) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as folder:
            _download(Path(folder), place)
            # one rename: of two processes fetching at once, either may win
            (Path(folder) / ARCHIVE).replace(place)
    except OSError as error:
        raise DataError(f"{place} cannot be written: {error.strerror}") from error


def _download(folder: Path, place: Path) -> None:
    # with a hash pip checks the archive before it looks inside; only this package is to come as
    # source, so not `--no-binary :all:`, which would build setuptools too
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command = [*pip, "--no-binary", PACKAGE, "--dest", str(folder), "--requirement", str(wanted)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=DOWNLOAD_S, check=False
        )
        problem = (done.stderr or done.stdout).strip()
    except subprocess.TimeoutExpired:
        problem = f"no answer in {DOWNLOAD_S} s"
    if not (folder / ARCHIVE).exists():
        last = problem.splitlines()[-1] if problem else "no message"
        raise DataError(
            f"pip cannot fetch {PACKAGE} {VERSION}: {last}\n"
            f"Without pip or a network, download {ARCHIVE} elsewhere (`pip download --no-deps "
            f"--no-binary {PACKAGE} {PACKAGE}=={VERSION}`, or its page on PyPI) and put it at "
            f"{place}"
        )


def _member(package: Path, member: str) -> bytes:
    name = f"hutto_ICWSM_2014/{member}_GroundTruth.txt"
    with tarfile.open(package) as outer, tarfile.open(fileobj=_opened(outer, INNER)) as inner:
        return _opened(inner, name).read()


def _opened(archive: tarfile.TarFile, name: str) -> io.BytesIO:
    # read in memory by exact name; nothing is ever extracted to a path an archive chose
    file = archive.extractfile(name)
    assert file is not None, f"{name} is a file of an archive with a checked sum"
    with file:
        return io.BytesIO(file.read())
