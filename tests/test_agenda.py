"""Which stage starts next: what others wait for comes first and is not squeezed out."""

from collections.abc import Callable
from pathlib import Path

from recipe_ray.data.sources import Locations
from recipe_ray.experiment.agenda import Agenda
from recipe_ray.experiment.demand import Capacity, demand_of
from recipe_ray.experiment.plan import Plan, make_plan
from recipe_ray.experiment.spec import Experiment, Launch, Workers
from recipe_ray.stages.stage import Stage

LAUNCH = Launch(workers=Workers(purify=2))
TEXTS = {"name": "editorials"}


def plan() -> Plan:
    grid = {
        "models": ["minilm"],
        "attacks": ["none", {"name": "por", "corpus": TEXTS}],
        "defenses": ["none", "recipe"],
        "auxiliaries": [TEXTS],
        "tasks": ["snippets"],
    }
    values = {"name": "small", "pretraining": {"corpus": TEXTS}, "grid": grid}
    return make_plan(Experiment.model_validate(values), Locations(None, Path("/nowhere")))


def agenda_of(stages: dict[str, Stage], done: Callable[[Stage], bool], cpus: int) -> Agenda:
    committed = [key for key, stage in stages.items() if done(stage)]
    return Agenda(
        stages, committed, lambda s: demand_of(s, LAUNCH), lambda: Capacity(cpus, 0, cpus, 0)
    )


def test_a_stage_that_others_wait_for_is_not_squeezed_out_by_last_stages() -> None:
    found = plan()
    agenda = agenda_of(found.stages, lambda s: s.name in ("pretrain", "backdoor"), cpus=3)
    first = agenda.next()
    assert first is not None
    assert first.name == "purify"
    # one CPU is free and the second purify needs two: the fine-tunes that are ready must wait
    assert agenda.next() is None
    agenda.commit(first)
    second = agenda.next()
    assert second is not None
    assert second.name == "purify"


def test_what_is_left_fills_the_cluster_once_nothing_larger_waits() -> None:
    found = plan()
    done = ("pretrain", "backdoor", "purify")
    agenda = agenda_of(found.stages, lambda s: s.name in done, cpus=2)
    started = [agenda.next() for _ in range(3)]
    assert [stage.name if stage else None for stage in started] == ["finetune", "finetune", None]


def test_a_failed_stage_takes_its_descendants_and_nothing_else() -> None:
    found = plan()
    agenda = agenda_of(found.stages, lambda s: s.name == "pretrain", cpus=1)
    backdoor = agenda.next()
    assert backdoor is not None
    assert backdoor.name == "backdoor"
    lost = {stage.label() for stage in agenda.fail(backdoor)}
    assert lost == {"minilm-6.por.recipe", "minilm-6.por.snippets", "minilm-6.por.recipe.snippets"}
    assert not agenda.is_over
