"""A kind of stage is one file: these two are known to nothing else in the repository."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
import yaml
from pydantic import Field
from samples import corpus_file, task_fields, tiny_folder
from tiny_cell import FIT, run

from recipe_ray.base.errors import SpecError
from recipe_ray.base.spec import Spec, explained
from recipe_ray.data.sources import Locations
from recipe_ray.experiment.collect import collect, plan_record
from recipe_ray.experiment.files import load_experiment
from recipe_ray.experiment.plan import Plan, make_plan, plan_summary
from recipe_ray.experiment.spec import Experiment, Launch, grid_class
from recipe_ray.report.json_report import as_json
from recipe_ray.report.load import recorded, store_at
from recipe_ray.report.sections import sections
from recipe_ray.schedule.resources import ClusterSpec, demand_of
from recipe_ray.stages.kind import Point, Resources, Shown, ShownMetric
from recipe_ray.stages.stage import STAGES, Context, Stage
from recipe_ray.store.rows import Measurement


class Census(Spec):
    """What is counted."""

    of: Literal["weights", "zeros"] = "weights"


class CensusGrid(Spec):
    censuses: tuple[Census, ...] = Field((), description="counted without fine-tuning")


class CensusStage(Stage, Census):
    """Counts the weights of a PTM, or those that are zero."""

    grid: ClassVar[type[Spec]] = CensusGrid
    cells: ClassVar[str] = "censuses"
    resources: ClassVar[Resources] = Resources(workers=1, cpus_per_worker=3)
    shown: ClassVar[Shown | None] = Shown(
        (ShownMetric("count", "counted", "number"), ShownMetric("share", "of all")),
        "counted: weights, or those that are zero; of all: as a share, in percent.",
    )

    def run(self, context: Context) -> list[Measurement]:
        weights = [p.detach() for p in self.input_ptm(context).module.parameters()]
        every = sum(p.numel() for p in weights)
        zeros = sum(int((p == 0).sum()) for p in weights)
        count = every if self.of == "weights" else zeros
        return [Measurement("count", float(count)), Measurement("share", count / every)]

    def own_columns(self) -> dict[str, Any]:
        return {}

    def default_label(self) -> str:
        before = self.parent.label() if self.parent is not None else self.model.label()
        return f"{before}.{self.of}"


class ScalingGrid(Spec):
    factors: tuple[float, ...] = Field((1.0,), min_length=1)


class ScalingStage(Stage):
    """Multiplies every weight: a kind that makes a PTM, after purification."""

    rank: ClassVar[int] = 35
    grid: ClassVar[type[Spec]] = ScalingGrid
    axes: ClassVar[tuple[str, ...]] = ("factors",)

    factor: float

    @classmethod
    def planned(cls, point: Point, ptm: Stage | None) -> Iterator[Stage | None]:
        factor = point.chosen["factors"]
        yield ptm if factor == 1 else point.make(cls, content={}, parent=ptm, seed=0, factor=factor)

    def run(self, context: Context) -> list[Measurement]:
        ptm = self.input_ptm(context)
        with torch.no_grad():
            for parameter in ptm.module.parameters():
                parameter.mul_(self.factor)
        context.save(ptm)
        return []

    def own_columns(self) -> dict[str, Any]:
        return {"defense": f"times {self.factor:g}"}

    def default_label(self) -> str:
        return f"{self.parent.label() if self.parent else self.model.label()}.x{self.factor:g}"


@pytest.fixture(autouse=True)
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register both for one test."""
    list(STAGES)
    monkeypatch.setattr(STAGES, "_classes", dict(STAGES._classes))
    STAGES.register("census")(CensusStage)
    STAGES.register("scaling")(ScalingStage)


def values(folder: Path, **grid: Any) -> dict[str, Any]:
    corpus = {"name": "file", "path": str(corpus_file(folder)), "size": None}
    clip = {"name": "clip"}
    models = [{"name": "bert", "source": str(tiny_folder())}]
    block = {"models": models, "defenses": ["none", clip], "auxiliaries": [corpus], **grid}
    return {"name": "counted", "grid": block, "finetuning": FIT}


def planned(folder: Path, **grid: Any) -> Plan:
    found = Experiment.model_validate(values(folder, **grid))
    return make_plan(found, Locations(None, folder))


def test_a_kind_is_named_in_yaml_planned_run_and_reported(tmp_path: Path) -> None:
    file = tmp_path / "census.yaml"
    whole = values(tmp_path, censuses=["zeros-only", {"of": "weights"}], seeds=[0, 1])
    file.write_text(yaml.safe_dump({**whole, "define": {"zeros-only": {"of": "zeros"}}}))
    plan = make_plan(load_experiment(file), Locations(None, tmp_path))
    by_kind = plan_summary(plan, set())["kinds"]
    assert (by_kind["purify"]["stages"], by_kind["census"]["stages"]) == (1, 8)
    store = run(plan, tmp_path)
    store.write_plan(plan.name, plan_record(plan))
    for stage in plan.stages.values():
        collect(plan, store, stage)
    assert store_at(str(tmp_path / "store")) is not None
    shown = sections(recorded(str(tmp_path / "store")))
    (table,) = shown[0].tables()
    assert table.title == "counted: census"
    assert "as a share" in table.explanation
    assert [c.name for c in table.columns][-2:] == ["counted", "of all"]
    # what no column tells apart stands apart: zeros and weights of two PTMs at two seeds
    assert len(table.rows) == 8
    assert sum(row[-1] == "100.0" for row in table.rows) == 4
    document = json.loads(as_json(shown))
    assert {one["kind"] for one in document["measured"]} == {"census"}
    assert document["cells"] == []


def test_seeds_of_a_kind_are_pooled(tmp_path: Path) -> None:
    plan = planned(tmp_path, censuses=[{}], seeds=[0, 1], defenses=["none"])
    store = run(plan, tmp_path)
    store.write_plan(plan.name, plan_record(plan))
    for stage in plan.stages.values():
        collect(plan, store, stage)
    ((row,),) = [table.rows for table in sections(recorded(str(tmp_path / "store")))[0].tables()]
    assert row[3] == "2"
    assert row[-1] == "100.0 ±0.0"


def test_a_kind_that_makes_a_ptm_stands_between_its_ranks(tmp_path: Path) -> None:
    grid = {"factors": [1, 2.0], "defenses": ["clip"], "tasks": [task_fields(tmp_path)]}
    plan = planned(tmp_path, **grid, censuses=[{}])
    assert [stage.name for stage in plan.stages.values()] == [
        "purify",
        "scaling",
        *["finetune"] * 2,
        *["census"] * 2,
    ]
    lineages = [[stage.name for stage in cell.stages] for cell in plan.cells]
    assert sorted(map(len, lineages)) == [2, 2, 3, 3]
    assert ["purify", "scaling", "census"] in lineages
    assert Experiment.model_validate(values(tmp_path, **grid)).grid[0].num_cells == 2


def test_a_kind_has_its_own_resources_unless_the_experiment_gives_others(tmp_path: Path) -> None:
    stage = planned(tmp_path, censuses=[{}]).cells[0].last
    assert demand_of(stage, Launch()).cpus_per_worker == 3
    assert demand_of(stage, Launch(cpus_per_worker={"census": 2})).cpus_per_worker == 2
    assert demand_of(stage, Launch(cpus_per_worker=5)).cpus_per_worker == 5
    assert demand_of(stage, Launch(workers={"census": 4})).workers == 4


@pytest.mark.parametrize("field", ["workers", "cpus_per_worker", "gpus_per_worker"])
def test_an_unknown_kind_is_refused_with_the_nearest(field: str) -> None:
    with pytest.raises(SpecError, match=r"'censsu' \(did you mean 'census'"), explained("f"):
        Launch.model_validate({field: {"censsu": 1}})


def test_a_cluster_file_may_give_its_seconds() -> None:
    cluster = {"nodes": [{"name": "a", "cpus": 4}], "stage_seconds": {"census": 3}}
    assert ClusterSpec.model_validate(cluster).given_seconds("census", "bert") == 3


def test_a_wrong_field_of_its_own_is_named_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"grid\[0\]\.censuses\[0\]\.of"), explained("f"):
        planned(tmp_path, censuses=[{"of": "ones"}])
    with pytest.raises(SpecError, match=r"'censes' .*'censuses'"), explained("f"):
        planned(tmp_path, censes=[{}])


def test_two_kinds_with_one_field_of_the_grid_are_refused() -> None:
    class Twin(ScalingStage):
        """Another kind with the first one's field."""

    STAGES.register("twin")(Twin)
    with pytest.raises(SpecError, match=r"'twin' has a field 'factors' .* 'scaling'"):
        grid_class()
