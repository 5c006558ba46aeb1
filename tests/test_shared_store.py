"""A store that others write to: stray files, added files, plans and rows of another shape."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from report_samples import por
from shell import Shell, shell
from store_samples import POR, committed, driven, filled, leave_lease, some_rows

from recipe_ray.base.errors import DamagedError, StoreError
from recipe_ray.store.rows import sealed_json
from recipe_ray.store.store import Store

__all__ = ["shell"]  # a fixture


@pytest.mark.parametrize("name", ["NOTES", "README", "x.json", "Thumbs_db", ".DS_Store", "core"])
def test_a_stray_file_in_the_root_stops_no_command(shell: Shell, name: str) -> None:
    store = Store.open(shell.folder / "store")
    committed(store)
    store.write_results("small", POR.key, por())
    (shell.folder / "store" / name).write_text("what I did on Tuesday")
    assert list(store.committed()) == [POR.key]
    for words in (["status", "--store", "store"], ["report", "store"]):
        assert shell(*words).code == 0


@pytest.mark.parametrize(
    "name", ["tokenizer/added_tokens.json", "pytorch_model.bin", "adapter_config.json", "new/x"]
)
def test_a_file_that_was_added_to_an_artifact_is_named_and_the_artifact_not_read(
    tmp_path: Path, name: str
) -> None:
    store = Store.open(tmp_path)
    folder = store.fetch(committed(store))
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}")
    for again in (store, Store.open(tmp_path)):
        with pytest.raises(StoreError, match=f"{name}: not a part of what was committed"):
            again.fetch(POR)
    (folder / name).unlink()
    assert Store.open(tmp_path).fetch(POR) == folder


def test_so_is_a_link_but_not_a_hidden_file(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    folder = store.fetch(committed(store))
    (folder / "tokenizer" / ".nfs0001").write_text("of a server")
    assert store.fetch(POR) == folder
    (folder / "more").symlink_to("/", target_is_directory=True)
    with pytest.raises(StoreError, match="more: not a part"):
        store.fetch(POR)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_what_is_committed_may_be_read_by_whom_the_umask_says(
    tmp_path: Path, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        store = Store.open(tmp_path)
        folder = filled(store.local_scratch())
        (folder / "model.safetensors").chmod(0o600)  # as safetensors writes it
        store.commit(POR, folder, {}, some_rows())
        found = [path for path in store.fetch(POR).rglob("*") if path.is_file()]
    finally:
        os.umask(before)
    assert len(found) == 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {mode}


CELL = {"id": "c", "title": "c", "stages": ["k1"]}
WRONG_PLANS: dict[str, Any] = {
    "no stages": {"cells": [CELL]},
    "stages that are a list": {"cells": [CELL], "stages": ["k1"]},
    "cells that are none": {"cells": {"a": 1}, "stages": {}},
    "a cell that is text": {"cells": ["k1"], "stages": {}},
    "a cell without stages": {"cells": [{"id": "c"}], "stages": {}},
    "numbers for keys": {"cells": [{"stages": [1]}], "stages": {}},
    "a paper that is a list": {"cells": [], "stages": {}, "paper": [1]},
    "a search that is text": {"cells": [], "stages": {}, "search": "asha"},
    "a candidate without settings": {"stages": {}, "search": {"candidates": [{"epochs": 1}]}},
    "settings of another kind": {
        "stages": {},
        "search": {"candidates": [{"epochs": 1, "ended": None, "settings": {"evil": 1}}]},
    },
}


@pytest.mark.parametrize("plan", WRONG_PLANS.values(), ids=WRONG_PLANS)
def test_a_plan_of_another_shape_is_named_and_the_rest_is_shown(
    plan: dict[str, Any], shell: Shell, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store.open(shell.folder / "store")
    store.write_plan("whole", {"cells": [CELL], "stages": {"k1": {}}})
    (shell.folder / "store" / "plans" / "bad.json").write_bytes(
        sealed_json({"experiment": "bad", **plan})
    )
    with pytest.raises(DamagedError, match=r"bad\.json: "):
        store.plan("bad")
    ended = shell("status", "--store", "store")
    assert ended.code == 0
    assert "whole: 0 of 1 cells" in ended.out
    assert any("bad.json" in line for line in caplog.messages)
    assert "bad.json" in shell.fails("report", "store")


def test_a_plan_may_name_a_paper_that_there_is_none_of(shell: Shell) -> None:
    store = Store.open(shell.folder / "store")
    store.write_results("mine", "p0", por())
    store.write_plan("mine", {"stages": {"p0": {}}, "paper": {"table": [1], "x": {}}})
    assert "mine" in shell.fails("report", "store")


@pytest.mark.parametrize("name", ["stage", "kind", "metric", "value"])
def test_rows_without_what_every_row_has_are_damaged(name: str, shell: Shell) -> None:
    rows = por()
    place = rows.schema.get_field_index(name)
    import pyarrow as pa

    kind = rows.schema.field(place).type
    store = Store.open(shell.folder / "store")
    store.write_results("mine", "p0", rows.set_column(place, name, pa.nulls(len(rows), kind)))
    assert f"rows without {name}" in shell.fails("report", "store")


def test_rows_of_other_columns_are_no_results(shell: Shell) -> None:
    store = Store.open(shell.folder / "store")
    store.write_results("mine", "p0", por())
    from recipe_ray.store.rows import encode_rows

    (shell.folder / "store/results/mine/other.parquet").write_bytes(encode_rows(some_rows()))
    assert "other.parquet: not result rows" in shell.fails("report", "store")


def test_people_are_told_the_process_and_host_of_another_driver(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    leave_lease(store, "m-1-1-a", driven("x", host="node-7", pid=4242))
    with store.claims(60) as claims:
        assert claims.who("m-1-1-a") == "another driver, process 4242 on node-7"
        assert claims.who("m-2-2-b") == "another driver"
        (tmp_path / "drivers" / "m-3-3-c.json").write_text(json.dumps({"time": 5}))
        assert claims.who("m-3-3-c") == "another driver"
