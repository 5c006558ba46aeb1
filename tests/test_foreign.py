"""Files of foreign folders: a regular file inside is opened, and nothing else is touched."""

import contextlib
import hashlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from recipe_ray.base.errors import DataError, ModelError, UserError
from recipe_ray.base.foreign import foreign_checksum, is_there, open_foreign, read_foreign

SECRET = b"aws_secret_access_key"
LIMIT = 1000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with one file, beside one that holds a secret and has a similar name."""
    inside, evil = tmp_path / "model", tmp_path / "model-evil"
    (inside / "deeper").mkdir(parents=True)
    evil.mkdir()
    (evil / "secret").write_bytes(SECRET)
    (inside / "real").write_bytes(b"content")
    return inside


def test_a_regular_file_inside_is_read(folder: Path) -> None:
    assert read_foreign(folder / "real", LIMIT, within=folder) == b"content"
    with open_foreign(folder / "real", LIMIT, within=folder) as file:
        assert file.read(3) == b"con"
    known = hashlib.sha256(b"content").hexdigest()
    assert foreign_checksum(folder / "real", LIMIT, within=folder) == known


def _absolute(folder: Path) -> Path:
    (folder / "x").symlink_to(folder.parent / "model-evil" / "secret")
    return folder / "x"


def _relative(folder: Path) -> Path:
    (folder / "x").symlink_to("../model-evil/secret")
    return folder / "x"


def _link_to_a_link(folder: Path) -> Path:
    (folder / "deeper" / "hop").symlink_to("../../model-evil/secret")
    (folder / "x").symlink_to("deeper/hop")
    return folder / "x"


def _by_a_linked_folder(folder: Path) -> Path:
    (folder / "sub").symlink_to("../model-evil")
    return folder / "sub" / "secret"


def _by_dots(folder: Path) -> Path:
    return folder / ".." / "model-evil" / "secret"


def _elsewhere(folder: Path) -> Path:
    return folder.parent / "model-evil" / "secret"


def _to_a_process(folder: Path) -> Path:
    (folder / "x").symlink_to("/proc/self/environ")
    return folder / "x"


OUTSIDE: list[Callable[[Path], Path]] = [
    _absolute,
    _relative,
    _link_to_a_link,
    _by_a_linked_folder,
    _by_dots,
    _elsewhere,
    _to_a_process,
]


@pytest.mark.parametrize("make", OUTSIDE)
def test_what_leads_out_of_the_folder_is_refused_and_not_shown(
    folder: Path, make: Callable[[Path], Path]
) -> None:
    path = make(folder)
    for use in (open_foreign, read_foreign, foreign_checksum):
        with pytest.raises(ModelError, match=r"out of its folder|outside of") as caught:
            use(path, LIMIT, within=folder, error=ModelError)
        assert str(path) in str(caught.value)
        assert SECRET.decode() not in str(caught.value)


def test_links_that_stay_inside_are_followed(folder: Path) -> None:
    (folder / "x").symlink_to("real")
    (folder / "deeper" / "y").symlink_to("../x")
    assert read_foreign(folder / "deeper" / "y", LIMIT, within=folder) == b"content"


def test_the_folder_itself_may_be_a_link(folder: Path) -> None:
    (folder.parent / "alias").symlink_to("model")
    alias = folder.parent / "alias"
    assert read_foreign(alias / "real", LIMIT, within=alias) == b"content"


def test_a_hard_link_is_a_file_like_others(folder: Path) -> None:
    (folder / "x").hardlink_to(folder / "real")
    assert read_foreign(folder / "x", LIMIT, within=folder) == b"content"


def test_a_file_that_the_user_named_may_be_a_link(folder: Path) -> None:
    path = _absolute(folder)
    assert read_foreign(path, LIMIT) == SECRET


# --- the hub's cache


def _snapshot(tmp_path: Path) -> Path:
    repo = tmp_path / "models--a--b"
    snapshot = repo / "snapshots" / ("0" * 40)
    (snapshot / "sub").mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "blobs" / "abc").write_bytes(b"content")
    (snapshot / "x").symlink_to("../../blobs/abc")
    (snapshot / "sub" / "x").symlink_to("../../../blobs/abc")
    return snapshot


def test_the_hubs_cache_links_to_its_blobs(tmp_path: Path) -> None:
    snapshot = _snapshot(tmp_path)
    assert read_foreign(snapshot / "x", LIMIT, within=snapshot) == b"content"
    assert read_foreign(snapshot / "sub" / "x", LIMIT, within=snapshot / "sub") == b"content"


def test_nothing_else_of_the_hubs_cache_is_inside(tmp_path: Path) -> None:
    snapshot = _snapshot(tmp_path)
    (tmp_path / "token").write_bytes(SECRET)
    (tmp_path / "models--c--d" / "blobs").mkdir(parents=True)
    (tmp_path / "models--c--d" / "blobs" / "own").write_bytes(SECRET)
    (snapshot.parent.parent / "blobs" / "out").symlink_to(tmp_path / "token")
    for number, target in enumerate(
        ["../../../token", "../../../models--c--d/blobs/own", "../../blobs/out"]
    ):
        (snapshot / f"bad{number}").symlink_to(target)
        with pytest.raises(UserError, match="out of its folder"):
            open_foreign(snapshot / f"bad{number}", LIMIT, within=snapshot)


def test_blobs_count_for_snapshots_only(folder: Path) -> None:
    blobs = folder.parent.parent / "blobs"
    blobs.mkdir()
    (blobs / "abc").write_bytes(SECRET)
    (folder / "x").symlink_to("../../blobs/abc")
    with pytest.raises(UserError, match="out of its folder"):
        open_foreign(folder / "x", LIMIT, within=folder)


# --- kinds


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "x")
    return folder / "x"


def _link_to_a_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    (folder / "x").symlink_to("pipe")
    return folder / "x"


def _folder(folder: Path) -> Path:
    return folder / "deeper"


def _socket(folder: Path) -> Path:
    # the path of a socket has to be short
    with contextlib.chdir(folder), socket.socket(socket.AF_UNIX) as listening:
        listening.bind("x")
    return folder / "x"


def _zeros(folder: Path) -> Path:
    (folder / "x").symlink_to("/dev/zero")
    return folder / "x"


KINDS: list[tuple[Callable[[Path], Path], str]] = [
    (_pipe, "a named pipe"),
    (_link_to_a_pipe, "a named pipe"),
    (_folder, "a folder"),
    (_socket, "a socket"),
    (_zeros, "a device"),
]


@pytest.mark.timeout(10)
@pytest.mark.parametrize(("make", "kind"), KINDS)
def test_only_regular_files_are_opened(
    folder: Path, make: Callable[[Path], Path], kind: str
) -> None:
    path = make(folder)
    with pytest.raises(DataError, match=f"cannot be read: it is {kind}; expected a regular file"):
        read_foreign(path, LIMIT, error=DataError)


def test_a_device_inside_of_no_folder_is_refused_for_its_place(folder: Path) -> None:
    with pytest.raises(UserError, match="out of its folder, at /dev/zero"):
        open_foreign(_zeros(folder), LIMIT, within=folder)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (None, "it does not exist"),
        ("nowhere", "a link to nowhere, which does not exist"),
        ("x", "cannot be read"),
    ],
)
def test_missing_files_broken_links_and_loops_are_named(
    folder: Path, target: str | None, said: str
) -> None:
    if target is not None:
        (folder / "x").symlink_to(target)
    with pytest.raises(UserError, match=f"x: {said}"):
        open_foreign(folder / "x", LIMIT, within=folder)
    assert is_there(folder / "x") is (target is not None)


def test_a_name_with_a_zero_is_no_traceback(folder: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        open_foreign(folder / "a\0b", LIMIT, within=folder)


def test_a_path_through_a_file_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match="x: cannot be read: Not a directory"):
        open_foreign(folder / "real" / "x", LIMIT, within=folder)


# --- sizes


def test_a_file_of_many_terabytes_is_refused_before_it_is_read(folder: Path) -> None:
    with (folder / "x").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match=r"1,099,511,627,776 bytes; allowed here: at most 1,000"):
        read_foreign(folder / "x", LIMIT, within=folder)


def test_the_limit_is_still_allowed(folder: Path) -> None:
    (folder / "x").write_bytes(b"a" * LIMIT)
    assert len(read_foreign(folder / "x", LIMIT)) == LIMIT
    (folder / "x").write_bytes(b"a" * (LIMIT + 1))
    with pytest.raises(UserError, match="at most 1,000"):
        read_foreign(folder / "x", LIMIT)


def test_a_file_that_says_it_is_empty_is_read_no_further_than_the_limit() -> None:
    # files of /proc have a size of 0 and contents all the same
    with pytest.raises(UserError, match="at most 10"):
        read_foreign(Path("/proc/self/status"), 10)
    assert read_foreign(Path("/proc/self/status"), 10**6)


def test_no_file_stays_open(folder: Path) -> None:
    with (folder / "x").open("wb") as file:
        file.truncate(2**40)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for name in ("x", "deeper", "real"):
        try:
            foreign_checksum(folder / name, LIMIT, within=folder)
        except UserError:
            continue
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# --- what is not the file itself


def test_a_pointer_of_git_lfs_is_called_that(folder: Path) -> None:
    oid = "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
    text = f"version https://git-lfs.github.com/spec/v1\n{oid}\nsize 12345\n"
    (folder / "x").write_text(text)
    with pytest.raises(DataError, match=r"x: a pointer of Git LFS.*`git lfs pull`"):
        read_foreign(folder / "x", LIMIT, within=folder, error=DataError)
