"""What a component needs of a family is checked when the plan is made, before anything runs."""

from pathlib import Path
from typing import Any

import pytest
from contract_kits import KITS
from samples import corpus_file, task_fields

from recipe_ray.attacks.attack import ATTACKS
from recipe_ray.base.errors import SpecError
from recipe_ray.data.sources import Locations
from recipe_ray.defenses.defense import DEFENSES
from recipe_ray.experiment.plan import Plan, make_plan
from recipe_ray.experiment.spec import Experiment
from recipe_ray.models.family import CAPABILITIES, MODELS, PTM, ModelRef


class NoPooler(ModelRef):
    """A text family that has all but a pooler; it is never loaded."""

    def load(self) -> PTM:
        raise AssertionError("a plan loads nothing")

    def reload(self, folder: Path) -> PTM:
        raise AssertionError("a plan loads nothing")

    def content(self) -> dict[str, Any]:
        return {}


class BareEncoder(NoPooler):
    """One that has nothing but an encoder."""

    has = frozenset({"Encodes"})


@pytest.fixture(autouse=True)
def families(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register both for one test."""
    list(MODELS)
    monkeypatch.setattr(MODELS, "_classes", dict(MODELS._classes))
    MODELS.register("no-pooler")(NoPooler)
    MODELS.register("bare")(BareEncoder)


def plan(folder: Path, model: str, attack: str = "none", held_out: float = 0, **grid: Any) -> Plan:
    corpus = {"name": "file", "path": str(corpus_file(folder)), "size": None}
    attacked = attack if attack == "none" else {"name": attack, "corpus": corpus}
    block = {"models": [model], "attacks": [attacked], "auxiliaries": [corpus], **grid}
    if "probes" not in grid:
        block["tasks"] = [task_fields(folder)]
    values = {"name": "needs", "grid": block, "held_out": held_out}
    return make_plan(Experiment.model_validate(values), Locations(None, folder))


@pytest.mark.parametrize("attack", ["por", "neuba"])
def test_an_attack_on_the_pooler_is_refused_for_a_family_without_one(
    attack: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=rf"needs: .*attack '{attack}' needs.* 'no-pooler'"):
        plan(tmp_path, "no-pooler", attack)


def test_what_the_family_has_is_planned(tmp_path: Path) -> None:
    assert plan(tmp_path, "no-pooler", "badpre", defenses=["recipe", "fine-pruning"]).cells
    assert plan(tmp_path, "bare", defenses=["none", "clip"]).cells


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({"defenses": ["recipe"]}, "defense 'recipe' needs a pre-training loss and groups of"),
        ({"defenses": ["fine-pruning"]}, "defense 'fine-pruning' needs neurons"),
        ({"defenses": ["clip"], "held_out": 0.1}, "held_out > 0 needs a pre-training loss"),
        ({"attack": "badpre"}, "attack 'badpre' needs a pre-training loss, which"),
        ({"probes": [{"task": "sst2", "trigger": "cf"}]}, "a probe needs neurons"),
    ],
)
def test_each_component_says_what_a_bare_encoder_lacks(
    grid: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError) as caught:
        plan(tmp_path, "bare", **grid)
    assert said in str(caught.value)
    assert "'bare'" in str(caught.value)


@pytest.mark.parametrize("make", KITS)
def test_a_loaded_model_has_what_its_family_is_said_to_have_and_no_more(make: str) -> None:
    ptm, said = KITS[make].ptm(), KITS[make].model.has
    for capability, names in CAPABILITIES.items():
        present = [hasattr(ptm, name) for name in names]
        has = any(present) if capability == "Attackable" else all(present)
        assert has == (capability in said)


@pytest.mark.parametrize("registry", [ATTACKS, DEFENSES], ids=["attacks", "defenses"])
def test_every_need_is_a_known_capability(registry: Any) -> None:
    for name in registry:
        assert set(registry.get(name).needs) <= CAPABILITIES.keys()
