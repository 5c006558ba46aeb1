"""Data that are no regular files, or lie elsewhere: neither opened nor waited for."""

import os
import socket
from pathlib import Path

import pytest
from samples import raised_by
from table_samples import ROWS, put, rows, wrong

from recipe_ray.data.image_sources import open_images
from recipe_ray.data.sources import open_path
from recipe_ray.store.files import LocalFiles


def special(place: Path, kind: str) -> Path:
    """Put something that is no regular file at a path."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "zero":
        place.symlink_to("/dev/zero")
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(place))
    elif kind == "folder":
        place.mkdir()
        (place / "x").touch()
    elif kind == "loop":
        place.symlink_to(place.name)
    else:
        place.symlink_to("/etc/passwd")
    return place


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "zero", "socket"])
def test_a_special_file_given_as_data_neither_hangs_nor_fills_memory(
    kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("s")
    assert "expected a regular file" in wrong(special(folder / "a.csv", kind))
    for name in ("a.tar", "a.parquet"):
        place = special(folder / name, kind)
        said = raised_by(lambda place=place: open_images(place, "corpus", "label"))
        assert "expected a regular file" in said


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "zero", "socket", "folder", "loop", "outside"])
@pytest.mark.parametrize("name", ["b.csv", "b.jsonl", "b.parquet", "b.tar", "ant/b.png"])
def test_a_special_file_within_a_data_folder_is_refused(
    kind: str, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("s")
    special(folder / name, kind)

    def read() -> None:
        source = (
            open_images(folder, "corpus", "label")
            if name.endswith(("png", "tar"))
            else open_path(folder, "corpus")
        )
        source.identity()

    said = raised_by(read)
    assert Path(name).name in said or kind == "folder"


def test_a_named_file_may_be_a_link_and_a_folder_too(tmp_path: Path) -> None:
    real = put(tmp_path / "real", "a.csv")
    (tmp_path / "link.csv").symlink_to(real)
    (tmp_path / "folder").symlink_to(real.parent)
    assert rows(tmp_path / "link.csv") == rows(tmp_path / "folder") == ROWS
    (real.parent / "b.csv").symlink_to("a.csv")  # within the folder
    assert rows(tmp_path / "folder") == ROWS * 2


def test_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    repo = tmp_path / "datasets--a--b"
    blob = put(repo, "blobs/abc")
    place = repo / "snapshots" / "0" / "a.csv"
    place.parent.mkdir(parents=True)
    place.symlink_to(os.path.relpath(blob, place.parent))
    assert rows(place.parent) == ROWS


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "zero", "folder"])
def test_a_special_file_in_a_store_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    special(tmp_path / "manifest.json", kind)
    said = raised_by(lambda: LocalFiles(tmp_path).read("manifest.json"))
    assert "expected a regular file" in said


def test_a_file_that_a_disk_does_not_give_back_is_named(tmp_path: Path) -> None:
    # the kernel calls it a regular file, and answers EIO
    (tmp_path / "a.csv").symlink_to("/proc/self/mem")
    assert "a.csv: cannot be read: Input/output error" in wrong(tmp_path / "a.csv")
