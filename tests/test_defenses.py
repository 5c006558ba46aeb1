"""Baselines and ablations: what exactly each one does to the weights of a real PTM."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pair import Pair
from pydantic import ValidationError
from samples import SENTENCES, changed, corpus_file, minilm, parameters_of, raised_by
from torch import Tensor

from recipe_ray.attacks.attack import NoAttack
from recipe_ray.data.batches import LocalFeed, Workbench
from recipe_ray.data.corpora import OwnText, WikiText
from recipe_ray.data.sources import Locations
from recipe_ray.defenses.defense import DEFENSES, Auxiliary
from recipe_ray.experiment.plan import make_plan
from recipe_ray.experiment.spec import Experiment
from recipe_ray.learn.loop import EpochRecord
from recipe_ray.learn.progress import Progress
from recipe_ray.learn.runtime import LocalRuntime, Runtime
from recipe_ray.models.text.bert import BertPTM
from recipe_ray.models.text.packed import pack

NEURONS = 1536  # of a layer of MiniLM
FIT = {"steps": 3, "batch_size": 8, "max_length": 24, "learning_rate": 1e-3, "precision": "fp32"}
# 65 texts: with two workers the last one is dealt out to both
REAL = WikiText(size=65)


def purify(
    ptm: BertPTM, folder: Path, fields: Any, runtime: Runtime | None = None, seed: int = 0
) -> list[EpochRecord]:
    """Apply a defense with the sample sentences as auxiliary data."""
    corpus = OwnText(path=str(corpus_file(folder, times=1)), size=None)
    bench = Workbench(LocalFeed(Locations(None, folder)), runtime or LocalRuntime(), seed)
    return list(DEFENSES.parse(fields).purify(ptm, Auxiliary(corpus), bench))


def zero_neurons(ptm: BertPTM) -> list[set[int]]:
    """Return the neurons of each layer whose weights and bias are all zero."""
    return [
        set(torch.nonzero((layer.weight == 0).all(1) & (layer.bias == 0))[:, 0].tolist())
        for layer in ptm.neuron_layers()
    ]


@torch.no_grad()
def means_of(ptm: BertPTM, texts: list[str]) -> list[Tensor]:
    """Return each layer's mean activations, computed from all texts at once."""
    ptm.module.eval()
    rows = ptm.encoder(64)(texts, np.arange(len(texts)))
    return [layer.mean(0) for layer in ptm.neuron_activations(ptm.module, pack(rows))]


@pytest.mark.parametrize("share", [0.001, 1 / 3, 0.5])
def test_global_fine_pruning_removes_exactly_the_share_that_is_least_active(
    share: float, tmp_path: Path
) -> None:
    ptm = minilm(2)
    means = torch.cat(means_of(ptm, SENTENCES))
    purify(ptm, tmp_path, {"name": "fine-pruning", "share": share, "precision": "fp32"})
    gone = [number for number, layer in enumerate(zero_neurons(ptm)) for _ in layer]
    assert len(gone) == round(share * 2 * NEURONS)
    numbers = [n + i * NEURONS for i, layer in enumerate(zero_neurons(ptm)) for n in layer]
    kept = sorted(set(range(2 * NEURONS)) - set(numbers))
    assert means[numbers].max() <= means[kept].min() + 1e-6


def test_fine_pruning_of_the_last_layer_leaves_all_else_as_it_was(tmp_path: Path) -> None:
    ptm = minilm(3)
    before = parameters_of(ptm.module)
    purify(ptm, tmp_path, {"name": "fine-pruning", "scope": "last", "share": 1.0})
    assert [len(layer) for layer in zero_neurons(ptm)] == [0, 0, NEURONS]
    dense = "bert.encoder.layer.2.intermediate.dense"
    assert changed(before, ptm.module) == {f"{dense}.weight", f"{dense}.bias"}


def test_fine_pruning_chooses_by_the_data_and_not_by_the_seed(tmp_path: Path) -> None:
    pruned = []
    for seed in (0, 7):
        ptm = minilm(1)
        purify(ptm, tmp_path, {"name": "fine-pruning", "precision": "fp32"}, seed=seed)
        pruned.append(zero_neurons(ptm))
    assert pruned[0] == pruned[1]
    other = minilm(1)
    means = means_of(other, SENTENCES[:1])[0]
    wanted = set(torch.argsort(means)[: round(NEURONS / 3)].tolist())
    assert wanted != pruned[0][0]


def test_neurons_that_are_equally_active_go_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    ptm = minilm(1)
    (layer,) = ptm.neuron_layers()
    with torch.no_grad():
        layer.weight[:] = 0
        layer.bias[:] = 1
    purify(ptm, tmp_path, {"name": "fine-pruning", "share": 10 / NEURONS})
    assert torch.nonzero(layer.bias == 0)[:, 0].tolist() == list(range(10))


def test_fine_pruning_tells_how_far_it_is_and_records_no_loss(tmp_path: Path) -> None:
    seen: list[Progress] = []
    records = purify(minilm(1), tmp_path, "fine-pruning", LocalRuntime(on_progress=seen.append))
    assert records == []
    assert [(p.step, p.num_steps) for p in seen] == [(1, 1)]


def test_two_workers_prune_what_one_prunes(locations: Locations, pair: Pair) -> None:
    alone = pruned_with_real_texts(LocalRuntime(), locations)
    assert pair(pruned_with_real_texts, locations) == [alone, alone]


def pruned_with_real_texts(runtime: Runtime, locations: Locations) -> list[set[int]]:
    ptm, fields = minilm(2), {"name": "fine-pruning", "share": 0.5, "precision": "fp32"}
    bench = Workbench(LocalFeed(locations), runtime, 0)
    DEFENSES.parse(fields).purify(ptm, Auxiliary(REAL), bench)
    return zero_neurons(ptm)


def test_activations_that_are_no_numbers_are_an_error(tmp_path: Path) -> None:
    ptm = minilm(1)
    with torch.no_grad():
        ptm.neuron_layers()[0].bias[3] = float("nan")
    said = raised_by(lambda: purify(ptm, tmp_path, "fine-pruning"))
    assert "not finite" in said


def test_a_share_that_comes_to_no_neuron_is_an_error(tmp_path: Path) -> None:
    said = raised_by(lambda: purify(minilm(1), tmp_path, {"name": "fine-pruning", "share": 0.0001}))
    assert "share 0.0001 of 1536 neurons" in said


@pytest.mark.parametrize("limit", [1.0, 0.05])
def test_clipping_bounds_every_parameter_and_changes_no_other(limit: float, tmp_path: Path) -> None:
    ptm = minilm(1)
    with torch.no_grad():
        ptm.word_embeddings().weight[7, 3] = -1e8
    before = parameters_of(ptm.module)
    purify(ptm, tmp_path, {"name": "clip", "limit": limit})
    after = parameters_of(ptm.module)
    for name, value in before.items():
        inside = value.abs() <= limit
        assert torch.equal(after[name][inside], value[inside])
        assert (after[name][~inside] == value[~inside].sign() * limit).all()
    assert after["bert.embeddings.word_embeddings.weight"][7, 3] == -limit


def test_only_regularisation_takes_the_same_steps_without_a_forward_pass(tmp_path: Path) -> None:
    ptm = minilm(1)
    before = parameters_of(ptm.module)
    calls: list[int] = []
    ptm.module.bert.encoder.register_forward_hook(lambda *_: calls.append(1))
    seen: list[Progress] = []
    runtime = LocalRuntime(on_progress=seen.append)
    fields = {"name": "recipe", "pretraining_weight": 0, "trainable": "all", "fit": FIT}
    (record,) = purify(ptm, tmp_path, fields, runtime)
    assert (set(record.terms), len(seen), calls) == ({"norm"}, 3, [])
    assert changed(before, ptm.module) == {"bert.encoder.layer.0.intermediate.dense.weight"}
    after = dict(ptm.module.named_parameters())
    (name,) = changed(before, ptm.module)
    assert after[name].norm() < before[name].norm()


def test_only_pretraining_has_the_masked_lm_loss_alone(tmp_path: Path) -> None:
    seen: list[Progress] = []
    fields = {"name": "recipe", "weight_factor": 0, "fit": FIT}
    (record,) = purify(minilm(1), tmp_path, fields, LocalRuntime(on_progress=seen.append))
    assert (set(record.terms), len(seen)) == ({"mlm"}, 3)


def test_recipe_without_any_loss_is_an_error() -> None:
    with pytest.raises(ValidationError, match="weight_factor and pretraining_weight are both 0"):
        DEFENSES.parse({"name": "recipe", "weight_factor": 0, "pretraining_weight": 0})


def test_ablations_are_told_apart_in_results(tmp_path: Path) -> None:
    corpus = {"name": "file", "path": str(corpus_file(tmp_path))}
    ablations = [{"weight_factor": 0}, {"pretraining_weight": 0}, {}]
    values = {
        "name": "ablations",
        "grid": {
            "models": [{"name": "minilm", "layers": 1}],
            "attacks": [NoAttack()],
            "defenses": [{"name": "recipe", **fields} for fields in ablations],
            "auxiliaries": [corpus],
            "tasks": ["snippets"],
        },
        "pretraining": {"corpus": corpus},
    }
    plan = make_plan(Experiment.model_validate(values), Locations(None, tmp_path))
    columns = [cell.last.columns() for cell in plan.cells]
    told = [(row["defense"], row["weight_factor"]) for row in columns]
    assert told == [("only-pretrain", 0.0), ("only-regularization", 1.0), ("recipe", 1.0)]
