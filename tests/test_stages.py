"""A cell run in this process: what is stored and measured, and what a second run does."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock, patch

import pyarrow as pa
import pytest
from safetensors.torch import load_file
from samples import SENTENCES, embedded_locations
from tiny_cell import FIT, finished, measured, run, tiny_plan, value

from recipe_ray.data.sources import Locations
from recipe_ray.experiment import collect as collecting
from recipe_ray.experiment.collect import collect, collect_missing, run_inline
from recipe_ray.experiment.plan import Plan
from recipe_ray.learn.progress import Throughput
from recipe_ray.stages.finetune import FinetuneStage
from recipe_ray.stages.stage import Stage
from recipe_ray.store.rows import decode_rows
from recipe_ray.store.store import Store

__all__ = ["finished"]  # a fixture


def test_a_cell_from_the_embedded_ptm_and_texts_runs_end_to_end(tmp_path: Path) -> None:
    places = embedded_locations()
    corpus = {"name": "editorials", "size": 24}
    plan = tiny_plan(
        tmp_path,
        places,
        models=[{"name": "minilm", "layers": 1}],
        attacks=[{"name": "neuba", "corpus": corpus, "fit": {**FIT, "steps": 2}}],
        auxiliaries=[corpus],
        tasks=[{"name": "snippets", "train_size": 30, "test_size": 40}],
    )
    store = Store.open(tmp_path / "store")
    run_inline(plan.stages.values(), store, places)
    assert set(store.committed()) == set(plan.stages)
    assert [s.name for s in plan.cells[0].stages] == ["pretrain", "backdoor", "purify", "finetune"]
    last = plan.cells[0].last
    assert 0 <= value(store, last, "aasr") <= value(store, last, "masr") <= 1
    assert len([row for row in measured(store, last) if row["metric"] == "asr"]) == 6 * 2


def test_every_stage_leaves_its_artifact_with_a_manifest(finished: tuple[Plan, Store]) -> None:
    plan, store = finished
    assert store.failures() == store.progress() == {}
    for stage in plan.stages.values():
        manifest = store.manifest(stage.artifact)
        assert (manifest["key"], manifest["world_size"]) == (stage.key, 1)
        assert manifest["parent"] == (stage.parent.key if stage.parent else None)
        assert manifest["spec"] == json.loads(stage.model_dump_json())
        assert {"python", "torch", "transformers"} <= set(manifest["versions"])
        assert store.read_checkpoint(stage.key) is None
        weights = store.fetch(stage.artifact) / "model" / "model.safetensors"
        assert weights.exists() == (stage.name != "finetune")


def test_purifying_changes_only_the_weights_it_penalises(finished: tuple[Plan, Store]) -> None:
    plan, store = finished
    backdoor, purify, _ = plan.cells[0].stages
    before, after = (
        load_file(store.fetch(stage.artifact) / "model" / "model.safetensors")
        for stage in (backdoor, purify)
    )
    moved = {name for name in before if not before[name].equal(after[name])}
    dense = "bert.encoder.layer.{}.intermediate.dense.weight"
    assert moved == {dense.format(0), dense.format(1)}


def test_what_a_defender_can_see_is_measured_before_and_after(
    finished: tuple[Plan, Store],
) -> None:
    plan, store = finished
    purify = plan.cells[0].stages[1]
    values = {row["metric"]: row for row in measured(store, purify)}
    assert values["norm.ffn_in.after"]["value"] < values["norm.ffn_in.before"]["value"]
    assert values["norm.query.after"]["value"] == values["norm.query.before"]["value"]
    assert values["held_out_loss.before"]["value"] > 0
    assert 0 < values["drift"]["value"] < 0.5
    assert values["drift"]["denominator"] == 12  # a quarter of 48 texts
    assert not {"acc", "asr", "trigger"} & set(values)


def test_held_out_texts_are_measured_on_but_never_trained_on(tmp_path: Path) -> None:
    weights, losses = [], []
    for number, ending in enumerate((SENTENCES[12:], SENTENCES[11::-1])):
        folder = tmp_path / str(number)
        folder.mkdir()
        plan = tiny_plan(folder, attacks=["none"])
        # a quarter of 48 texts is held out: the last twelve
        (folder / "texts.txt").write_text("\n".join([*SENTENCES, *SENTENCES[:12], *ending]))
        store, stage = run(plan, folder), plan.cells[0].stages[0]
        weights.append(load_file(store.fetch(stage.artifact) / "model" / "model.safetensors"))
        losses.append(value(store, stage, "held_out_loss.before"))
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    assert losses[0] != losses[1]


def test_every_sample_of_another_label_is_counted(finished: tuple[Plan, Store]) -> None:
    plan, store = finished
    rows = measured(store, plan.cells[0].last)
    # of 15 test samples every third is of class 1
    tried = {(r["trigger"], r["label"]): r["denominator"] for r in rows if r["metric"] == "asr"}
    assert tried == {("cf", 0): 5, ("cf", 1): 10, ("mn", 0): 5, ("mn", 1): 10}
    (acc,) = [row for row in rows if row["metric"] == "acc"]
    assert (acc["denominator"], acc["numerator"] / 15) == (15, acc["value"])
    best = {
        t: max(r["value"] for r in rows if r["metric"] == "asr" and r["trigger"] == t)
        for t in ("cf", "mn")
    }
    last = plan.cells[0].last
    assert value(store, last, "aasr") == pytest.approx(sum(best.values()) / 2)
    assert value(store, last, "masr") == max(best.values())


def test_a_second_run_does_nothing(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path, defenses=["none"])
    store = run(plan, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*")}
    seen: list[Throughput] = []
    run(plan, tmp_path, on_progress=lambda stage, advance: seen.append(advance))
    assert seen == []
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*")} == before
    assert len(store.committed()) == 2


def test_the_same_cell_gives_the_same_numbers_again(
    finished: tuple[Plan, Store], tmp_path: Path
) -> None:
    plan, store = finished
    again = tiny_plan(tmp_path)
    assert list(again.stages) == list(plan.stages)
    other = run(again, tmp_path)
    for stage in plan.stages.values():
        assert measured(other, stage) == measured(store, stage)


def test_collected_rows_carry_experiment_and_cell(
    finished: tuple[Plan, Store], tmp_path: Path
) -> None:
    plan, store = finished
    for _ in range(2):  # twice is harmless
        for stage in plan.stages.values():
            collect(plan, store, stage)
    results: pa.Table = store.results("tiny")
    assert results.num_rows == sum(store.rows(s.artifact).num_rows for s in plan.stages.values())
    rows = results.to_pylist()
    assert {row["experiment"] for row in rows} == {"tiny"}
    cells = {row["kind"]: row["cell"] for row in rows}
    assert cells == {"backdoor": None, "purify": None, "finetune": plan.cells[0].id}
    last = next(row for row in rows if row["metric"] == "acc")
    assert (last["attack"], last["defense"], last["task"]) == ("por", "recipe", "file")


def test_collected_rows_have_the_experiments_own_titles(
    finished: tuple[Plan, Store], tmp_path: Path
) -> None:
    _, store = finished
    renamed = tiny_plan(tmp_path, defenses=[{"name": "recipe", "title": "mine", "fit": FIT}])
    collect(renamed, store, renamed.cells[0].last)
    assert set(store.results("tiny")["defense"].to_pylist()) >= {"mine"}


def test_a_sweep_collects_only_rows_that_are_missing_damaged_or_of_other_titles(
    finished: tuple[Plan, Store], tmp_path: Path
) -> None:
    plan, done = finished
    store = Store.open(shutil.copytree(done.uri, tmp_path / "store"))
    shutil.rmtree(tmp_path / "store" / "results", ignore_errors=True)
    stages = list(plan.stages.values())
    assert len(_written(store, plan, stages)) == len(stages) == 3
    assert _written(store, plan, stages) == set()
    rows = store.results(plan.name)
    files = {stage.key: store_file(store, plan, stage) for stage in stages}
    files[stages[0].key].unlink()
    files[stages[1].key].write_bytes(files[stages[1].key].read_bytes()[:-9])
    assert _written(store, plan, stages) == {stages[0].key, stages[1].key}
    assert store.results(plan.name).equals(rows)
    # rows of before there were marks are written once more
    last = plan.cells[0].last
    store.write_results(plan.name, last.key, decode_rows(files[last.key].read_bytes(), "rows"))
    assert _written(store, plan, stages) == {last.key}
    renamed = tiny_plan(tmp_path, defenses=[{"name": "recipe", "title": "mine", "fit": FIT}])
    assert last.key in _written(store, renamed, renamed.stages.values())
    assert set(store.results("tiny")["defense"].to_pylist()) >= {"mine"}
    shared = replace(plan, cells=())  # now it is no cell's own
    assert last.key in _written(store, shared, stages)
    assert set(store.results(plan.name)["cell"].to_pylist()) == {None}


def test_who_runs_a_stage_writes_no_results_and_the_driver_writes_them_once(
    finished: tuple[Plan, Store], tmp_path: Path
) -> None:
    plan, done = finished
    store = Store.open(shutil.copytree(done.uri, tmp_path / "store"))
    shutil.rmtree(tmp_path / "store" / "results", ignore_errors=True)
    # what a driver leaves that died between the commit and its own work
    last = plan.cells[0].last
    assert store.rows(last.artifact).num_rows
    assert store.results(plan.name).num_rows == 0
    wrote = Mock(wraps=store.write_results)
    with patch.object(store, "write_results", wrote):
        collect(plan, store, last)
        collect(plan, store, last)  # a second driver of the experiment, or the next start
    assert wrote.call_count == 1
    assert store.results(plan.name).num_rows == store.rows(last.artifact).num_rows


def test_one_function_writes_results() -> None:
    package = Path(collecting.__file__).parents[1]
    callers = [path for path in package.rglob("*.py") if ".write_results(" in path.read_text()]
    assert [path.name for path in callers] == ["collect.py"]


def _written(store: Store, plan: Plan, stages: Iterable[Stage]) -> set[str]:
    """Return the keys of the stages whose rows are written when a sweep begins."""
    wrote = Mock(wraps=store.write_results)
    with patch.object(store, "write_results", wrote):
        collect_missing(plan, store, stages)
    return {call.args[1] for call in wrote.call_args_list}


def store_file(store: Store, plan: Plan, stage: Stage) -> Path:
    return Path(store.uri) / "results" / plan.name / f"{stage.key}.parquet"


def test_the_finetuned_classifier_is_kept_only_on_request(
    finished: tuple[Plan, Store], tmp_path: Path
) -> None:
    plan, store = finished
    last = plan.cells[0].last
    assert isinstance(last, FinetuneStage)
    assert not (store.fetch(last.artifact) / "classifier.safetensors").exists()
    rootless = FinetuneStage(**{**last.fields(), "parent": None, "keep_model": True})
    own = Store.open(tmp_path / "store")
    run_inline([rootless], own, Locations(None, tmp_path))
    kept = load_file(own.fetch(rootless.artifact) / "classifier.safetensors")
    assert kept["linear.weight"].shape == (2, 32)
