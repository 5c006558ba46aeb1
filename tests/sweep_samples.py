"""Experiments and plans of sweeps, the queue of a plan's stages, a clock that a test moves."""

from collections.abc import Callable
from pathlib import Path

from recipe_ray.data.sources import Locations
from recipe_ray.experiment.plan import Plan, make_plan
from recipe_ray.experiment.spec import Experiment, Launch
from recipe_ray.schedule.resources import Capacity, demand_of
from recipe_ray.schedule.stage_queue import StageQueue
from recipe_ray.stages.stage import Stage

FIT = {"steps": 2, "batch_size": 8, "max_length": 32}
TOO_FAST = {"name": "recipe", "fit": {**FIT, "steps": 3, "learning_rate": 1e30}}
EXPERIMENT = {
    "name": "tiny",
    "pretraining": {"corpus": {"name": "wikitext", "size": 64}, "fit": FIT},
    "finetuning": FIT,
    "grid": {
        "models": [{"name": "minilm", "layers": 1}],
        "attacks": [{"name": "por", "corpus": {"name": "wikitext", "size": 64}, "fit": FIT}],
        "defenses": ["none", {"name": "recipe", "fit": FIT}, TOO_FAST],
        "auxiliaries": [{"name": "bookcorpus", "size": 64}],
        "tasks": [{"name": "sst2", "train_size": 32, "test_size": 16}],
    },
}
TEXTS = {"name": "editorials"}
LAUNCH = Launch(workers={"purify": 2})


class Clock:
    """A clock that a test moves, in seconds."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def plan_of(seeds: list[int]) -> Plan:
    """Return a plan of one backdoor, one purify a seed and two fine-tunes a seed."""
    grid = {
        "models": [
            {"name": "bert", "source": "google-bert/bert-base-uncased", "revision": "0" * 40}
        ],
        "attacks": [{"name": "por", "corpus": TEXTS}],
        "defenses": ["none", "recipe"],
        "auxiliaries": [TEXTS],
        "tasks": ["snippets"],
        "seeds": seeds,
    }
    return make_plan(
        Experiment.model_validate({"name": "small", "grid": grid}), Locations(None, Path("/no"))
    )


def kinds(plan: Plan, kind: str) -> list[Stage]:
    return [stage for stage in plan.stages.values() if stage.name == kind]


def plan() -> Plan:
    return wide_plan(1)


def wide_plan(seeds: int) -> Plan:
    """Return a plan of two PTMs, as they are and purified, each fine-tuned with so many seeds."""
    grid = {
        "models": ["minilm"],
        "attacks": ["none", {"name": "por", "corpus": TEXTS}],
        "defenses": ["none", "recipe"],
        "auxiliaries": [TEXTS],
        "tasks": ["snippets"],
        "seeds": list(range(seeds)),
    }
    values = {"name": "small", "pretraining": {"corpus": TEXTS}, "grid": grid}
    return make_plan(Experiment.model_validate(values), Locations(None, Path("/nowhere")))


def agenda_of(stages: dict[str, Stage], done: Callable[[Stage], bool], cpus: int) -> StageQueue:
    committed = [key for key, stage in stages.items() if done(stage)]
    return StageQueue(
        stages, committed, lambda s: demand_of(s, LAUNCH), lambda: Capacity(cpus, 0, cpus, 0)
    )
