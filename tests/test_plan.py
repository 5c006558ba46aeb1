"""From a grid to cells and distinct stages: what is shared, what is not, how many of each."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from samples import COMMIT, EXAMPLES

from recipe_ray.data.sources import Locations
from recipe_ray.experiment.plan import Plan, make_plan, plan_summary
from recipe_ray.experiment.spec import Experiment
from recipe_ray.stages.finetune import FinetuneStage
from recipe_ray.stages.stage import Stage

BERT = {"name": "bert", **EXAMPLES["models", "bert"]}
MINILM = {"name": "minilm", "layers": 1}
NEUBA = {"name": "neuba", "corpus": "editorials"}
POR = {"name": "por", "corpus": "editorials"}
# four backdoors; a title tells variants apart and is no part of their identity
ATTACKS = [
    POR,
    {**POR, "title": "por-phrases", "triggers": ["at noon", "at dawn"]},
    NEUBA,
    {**NEUBA, "title": "neuba-amplified", "amplification": 1e8},
]
DEFENSES = [
    "none",
    "recipe",
    {"name": "recipe", "title": "only-pretrain", "weight_factor": 0},
    {"name": "recipe", "title": "only-norm", "pretraining_weight": 0},
    {"name": "recipe", "title": "longer", "fit": {"epochs": 10}},
]
TASKS = ["sst2", "hsol", "ag_news"]


def plan(**grid: Any) -> Plan:
    """Return the plan of a grid, by default one cell; no data or network is there to be read."""
    block = {"models": [BERT], "auxiliaries": ["editorials"], "tasks": ["sst2"], **grid}
    return planned({"name": "small", "grid": block})


def planned(values: dict[str, Any]) -> Plan:
    nowhere = Locations(None, Path("/nowhere"))
    return make_plan(Experiment.model_validate(values), nowhere)


def kinds(found: Plan) -> dict[str, int]:
    return dict(Counter(stage.name for stage in found.stages.values()))


def finetuned(found: Plan) -> list[FinetuneStage]:
    """Return the cells' last stages."""
    lasts = [cell.last for cell in found.cells if isinstance(cell.last, FinetuneStage)]
    assert len(lasts) == len(found.cells)
    return lasts


def test_table_1_is_60_cells_with_4_backdoors_and_16_purifications() -> None:
    found = plan(attacks=ATTACKS, defenses=DEFENSES, tasks=TASKS)
    assert len(found.cells) == 60
    assert kinds(found) == {"backdoor": 4, "purify": 16, "finetune": 60}
    assert len({cell.id for cell in found.cells}) == 60
    assert len({cell.title for cell in found.cells}) == 60


def test_parents_come_before_their_children() -> None:
    found = plan(models=[MINILM], attacks=ATTACKS, defenses=DEFENSES, tasks=TASKS)
    seen: set[str] = set()
    for key, stage in found.stages.items():
        assert stage.key == key
        assert stage.parent is None or stage.parent.key in seen
        seen.add(key)
    assert kinds(found)["pretrain"] == 1


def test_no_defense_makes_no_stage_and_ignores_the_auxiliary_data() -> None:
    found = plan(attacks=[POR], auxiliaries=["editorials", "reviews"])
    assert len(found.cells) == 1
    assert kinds(found) == {"backdoor": 1, "finetune": 1}
    assert [stage.name for stage in found.cells[0].stages] == ["backdoor", "finetune"]


def test_a_clean_whole_model_needs_nothing_but_its_finetuning() -> None:
    assert kinds(plan()) == {"finetune": 1}


def test_the_second_cell_reuses_the_backdoor() -> None:
    first, second = plan(attacks=[POR], tasks=["sst2", "hsol"]).cells
    assert first.stages[0] == second.stages[0]
    assert first.last != second.last


def test_two_seeds_share_the_backdoor_and_nothing_after_it() -> None:
    found = plan(models=[MINILM], attacks=[POR], defenses=["recipe"], seeds=[0, 1])
    assert kinds(found) == {"pretrain": 1, "backdoor": 1, "purify": 2, "finetune": 2}
    assert [cell.title[-3:] for cell in found.cells] == [".s0", ".s1"]


def test_the_release_seed_is_of_the_backdoor_alone_and_moves_all_after_it() -> None:
    block = {"models": [BERT], "attacks": [POR], "tasks": ["sst2"], "seeds": [0]}
    one, two = (planned({"name": "x", "grid": block, "release_seed": s}) for s in (0, 1))
    assert not set(one.stages) & set(two.stages)
    assert [stage.seed for stage in two.cells[0].stages] == [1, 0]


def test_the_clean_model_is_tried_with_every_attacks_triggers() -> None:
    found = plan(attacks=["none", *ATTACKS], defenses=["none", "recipe"])
    clean = [s for s in finetuned(found) if s.columns()["attack"] == "none"]
    neuba = {"≈", "≡", "∈", "⊆", "⊕", "⊗"}
    assert len(clean) == 2
    for stage in clean:
        assert set(stage.triggers) == {"cf", "tq", "mn", "bb", "mb", "at noon", "at dawn", *neuba}
        assert len(set(stage.triggers)) == len(stage.triggers)
    por = [s for s in finetuned(found) if s.columns()["attack"] == "por"]
    assert {stage.triggers for stage in por} == {("cf", "tq", "mn", "bb", "mb")}


def test_the_clean_model_keeps_triggers_of_its_own_and_those_of_its_model_only() -> None:
    found = plan(attacks=[{"name": "none", "triggers": ["zz"]}, POR])
    assert {s.triggers for s in finetuned(found) if s.columns()["attack"] == "none"} == {("zz",)}
    other = {**BERT, "revision": COMMIT[::-1]}
    blocks = [
        {"models": [BERT], "attacks": ["none", POR], "tasks": ["sst2"]},
        {"models": [other], "attacks": ["none", NEUBA], "tasks": ["sst2"]},
    ]
    by_model = {
        stage.model.content()["commit"]: len(stage.triggers)
        for stage in finetuned(planned({"name": "x", "grid": blocks}))
        if stage.columns()["attack"] == "none"
    }
    assert by_model == {COMMIT: 5, COMMIT[::-1]: 6}


def test_a_cell_named_in_two_blocks_is_one_cell() -> None:
    block = {"models": [BERT], "attacks": [POR], "tasks": ["sst2", "hsol"]}
    found = planned({"name": "x", "grid": [block, {**block, "tasks": ["hsol", "ag_news"]}]})
    assert [cell.stages[-1].own_columns()["task"] for cell in found.cells] == TASKS
    assert kinds(found) == {"backdoor": 1, "finetune": 3}


def test_a_limited_plan_has_the_first_cells_and_what_they_need() -> None:
    whole = plan(attacks=ATTACKS, defenses=DEFENSES, tasks=TASKS)
    some = whole.limited(4)
    assert some.cells == whole.cells[:4]
    # the first attack's three tasks without defense, then the first one purified
    assert kinds(some) == {"backdoor": 1, "purify": 1, "finetune": 4}
    assert whole.limited(99).cells == whole.cells


def test_only_a_cells_last_stage_measures_the_cell() -> None:
    found = plan(attacks=[POR], defenses=["recipe"])
    (cell,) = found.cells
    backdoor, purify, finetune = cell.stages
    assert found.cells_of(finetune.key) == [cell.id]
    assert found.cells_of(backdoor.key) == found.cells_of(purify.key) == [None]


def test_a_stages_columns_name_its_whole_cell() -> None:
    (cell,) = plan(attacks=[ATTACKS[1]], defenses=[DEFENSES[2]], seeds=[4]).cells
    columns = cell.last.columns()
    wanted = {"attack": "por-phrases", "defense": "only-pretrain", "aux": "editorials"}
    wanted |= {"task": "sst2", "model": "bert-base-uncased", "weight_factor": 0.0, "seed": 4}
    assert wanted.items() <= columns.items()
    assert columns["aux_size"] == 20_000


def test_a_summary_counts_what_is_done() -> None:
    found = plan(attacks=[POR], defenses=["none", "recipe"])
    done: set[str] = {found.cells[0].last.key, found.cells[0].stages[0].key}
    summary = plan_summary(found, done)
    assert (summary["cells"], summary["cells_done"]) == (2, 1)
    assert {kind: tuple(counts.values()) for kind, counts in summary["kinds"].items()} == {
        "pretrain": (0, 0),
        "backdoor": (1, 1),
        "purify": (1, 0),
        "finetune": (2, 1),
        "displacement": (0, 0),
        "probe": (0, 0),
        "scan": (0, 0),
    }


def test_a_probe_cuts_texts_where_its_block_says_and_else_as_before() -> None:
    def probe(**fields: Any) -> Stage:
        one = {"task": "sst2", "trigger": "cf", **fields}
        found = plan(attacks=[POR], defenses=["none"], probes=[one]).stages.values()
        return next(stage for stage in found if stage.name == "probe")

    assert probe(max_length=32).fields()["max_length"] == 32
    assert probe(max_length=128).key == probe().key != probe(max_length=32).key


@pytest.mark.parametrize("kind", ["backdoor", "purify", "finetune", "probe"])
def test_a_plans_stages_survive_the_journey_to_a_worker(kind: str) -> None:
    import pickle

    probes = [{"task": "sst2", "trigger": "cf", "without": "positive"}]
    found = plan(attacks=[POR], defenses=["recipe"], probes=probes)
    stage = next(stage for stage in found.stages.values() if stage.name == kind)
    twin: Stage = pickle.loads(pickle.dumps(stage))
    assert twin.key == stage.key
    assert twin == stage
