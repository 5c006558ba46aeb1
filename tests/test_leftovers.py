"""Scratch folders of killed stages are deleted; those of the living are not."""

import os
import subprocess
import sys
from pathlib import Path

from recipe_ray.store.leftovers import FOREIGN_AGE_S, clear_dead
from recipe_ray.store.store import Store

_WORKING = """
import sys, time
from recipe_ray.store.store import Store
folder = Store.open(sys.argv[1]).local_scratch()
(folder / "log.txt").write_text("half")
print(folder, flush=True)
sys.stdin.read()
"""


def test_a_killed_stage_s_folder_goes_and_a_living_one_s_stays(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    ours = store.local_scratch()
    with subprocess.Popen(
        [sys.executable, "-c", _WORKING, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as stage:
        assert stage.stdout is not None
        theirs = Path(stage.stdout.readline().strip())
        store.clear_scratch()
        assert (theirs / "log.txt").is_file()
        stage.kill()
    store.clear_scratch()
    assert list((tmp_path / "tmp").iterdir()) == [ours]


def test_of_another_machine_only_what_has_long_been_still_goes(tmp_path: Path) -> None:
    old, new = tmp_path / "feedfeedfeed-1-1.a", tmp_path / "feedfeedfeed-1-1.b"
    for folder in (old, new):
        folder.mkdir()
        (folder / "log.txt").write_text("half")
    long_ago = (new / "log.txt").stat().st_mtime - FOREIGN_AGE_S - 60
    for path in (old, old / "log.txt", new):
        os.utime(path, (long_ago, long_ago))
    assert clear_dead(tmp_path) == [old]  # the other's log has just grown
    assert new.is_dir()
