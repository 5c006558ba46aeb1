"""A PTM that is held by its own states stays where it was, in every family and way of running."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contract_kits import KITS
from pair import Pair
from samples import SENTENCES, changed, corpus_file, minilm, packed, parameters_of
from stub_model import Slot

from recipe_ray.data.batches import LocalFeed, Workbench
from recipe_ray.data.corpus import CORPORA
from recipe_ray.data.sources import Locations
from recipe_ray.defenses.defense import DEFENSES, Auxiliary
from recipe_ray.defenses.recipe import Recipe
from recipe_ray.defenses.rule import DISTILLATION, held_by_states
from recipe_ray.learn.distillation import frozen_copy, relative_error
from recipe_ray.learn.loop import EpochRecord
from recipe_ray.learn.progress import Progress
from recipe_ray.learn.runtime import LocalRuntime, Runtime

FIT = {"steps": 12, "batch_size": 8, "max_length": 24, "learning_rate": 1e-3, "precision": "fp32"}


def purify(
    ptm: Any, folder: Path, runtime: Runtime | None = None, **fields: Any
) -> list[EpochRecord]:
    """Purify with RECIPE's norms and, unless told otherwise, no pre-training loss."""
    corpus = CORPORA.parse({"name": "file", "path": str(corpus_file(folder)), "size": None})
    own = Workbench(LocalFeed(Locations(None, folder)), runtime or LocalRuntime(), 0)
    defense = DEFENSES.parse({"name": "recipe", "pretraining_weight": 0, "fit": FIT, **fields})
    return list(defense.purify(ptm, Auxiliary(corpus), own))


def drift(ptm: Any, teacher: Any) -> float:
    batch = packed(ptm, SENTENCES)
    with torch.no_grad():
        states = [ptm.states(module.eval(), batch, "last") for module in (ptm.module, teacher)]
    term = relative_error(*states)
    return float(term.total) / (term.count or 1)


def test_distillation_holds_clean_states_better_than_nothing(tmp_path: Path) -> None:
    moved = {}
    for weight in (0, 100):
        ptm = minilm()
        teacher = frozen_copy(ptm.module)
        fit = {**FIT, "dropout": False}
        purify(ptm, tmp_path, distillation=weight, fit=fit)
        moved[weight] = drift(ptm, teacher)
    assert moved[100] < moved[0] / 5


def test_it_goes_with_the_masked_lm_or_alone(tmp_path: Path) -> None:
    (alone,) = purify(minilm(), tmp_path, distillation=10, fit={**FIT, "steps": 2})
    both = {"distillation": 10, "pretraining_weight": 1, "fit": {**FIT, "steps": 2}}
    (together,) = purify(minilm(), tmp_path, **both)
    assert set(alone.terms) == {"norm", "distillation"}
    assert set(together.terms) == {"norm", "distillation", "mlm"}


@pytest.mark.parametrize("layers", ["last", "all"])
def test_states_are_those_of_texts_without_masks(layers: Any) -> None:
    ptm = minilm(2)
    ptm.module.eval()
    rows = ptm.encoder(24)(SENTENCES, np.arange(len(SENTENCES)))
    masked = ptm.pretraining_collate(0)(rows, 0)
    plain = ptm.classifier_collate()(rows, 0)
    assert not torch.equal(masked.tokens, plain.tokens)
    with torch.no_grad():
        seen = [ptm.states(ptm.module, batch, layers) for batch in (masked, plain)]
        last = ptm.hidden(ptm.module, plain)
    assert len(seen[0]) == (2 if layers == "all" else 1)
    assert all(torch.equal(one, other) for one, other in zip(*seen, strict=True))
    assert torch.equal(seen[0][-1], last)


def test_the_teacher_costs_the_memory_of_what_trains_alone() -> None:
    ptm = minilm(2)
    ptm.train_only(ptm.weight_group("ffn_in"), pooled=False)
    teacher = dict(frozen_copy(ptm.module).named_parameters())
    for name, parameter in ptm.module.named_parameters():
        assert (teacher[name].data_ptr() == parameter.data_ptr()) != parameter.requires_grad
        assert not teacher[name].requires_grad


def test_an_error_is_the_same_however_samples_are_dealt_out() -> None:
    generator = torch.Generator().manual_seed(0)
    # a layer may have more rows of a sample than the last
    wanted = [torch.randn(12, 4, generator=generator), torch.randn(6, 5, generator=generator)]
    states = [part + 0.1 * torch.randn(part.shape, generator=generator) for part in wanted]
    whole = relative_error(states, wanted)
    cuts = [(slice(0, 4), slice(0, 2)), (slice(4, 12), slice(2, 6))]
    parts = [
        relative_error(
            [s[c] for s, c in zip(states, cut, strict=True)],
            [w[c] for w, c in zip(wanted, cut, strict=True)],
        )
        for cut in cuts
    ]
    assert sum(part.count or 0 for part in parts) == whole.count
    assert float(sum(part.total for part in parts)) == pytest.approx(float(whole.total), rel=1e-6)


@pytest.mark.parametrize("make", KITS)
@pytest.mark.parametrize("layers", ["last", "all"])
def test_every_family_is_held_without_its_head_changing(
    make: str, layers: str, tmp_path: Path
) -> None:
    kit = KITS[make]
    ptm = kit.ptm()
    before = parameters_of(ptm.module)
    corpus = CORPORA.parse(kit.corpus(tmp_path))
    fields = {"pretraining_weight": 0, "distillation": 5, "distilled": layers, "trainable": "all"}
    fields |= {"layers": ptm.purification_scope[0], "fit": {**FIT, "steps": 2}}
    own = Workbench(LocalFeed(Locations(None, tmp_path)), LocalRuntime(), 0)
    DEFENSES.parse({"name": "recipe", **fields}).purify(ptm, Auxiliary(corpus), own)
    moved = changed(before, ptm.module)
    head = {id(parameter) for parameter in ptm.head_parameters()}
    assert moved
    assert not any(id(p) in head for n, p in ptm.module.named_parameters() if n in moved)


class StoppedError(Exception):
    """Stands for a lost process."""


def test_a_stopped_training_goes_on_with_the_same_teacher(tmp_path: Path) -> None:
    fields = {"distillation": 50, "fit": {**FIT, "steps": 6}}
    whole = minilm()
    purify(whole, tmp_path, **fields)
    slot = Slot()

    def stop(progress: Progress) -> None:
        if progress.step == 4:
            raise StoppedError

    with pytest.raises(StoppedError):
        purify(minilm(), tmp_path, LocalRuntime(stop, slot, 0), **fields)
    assert slot.saves
    resumed = minilm()
    purify(resumed, tmp_path, LocalRuntime(None, slot, 0), **fields)
    assert changed(parameters_of(whole.module), resumed.module) == set()


def test_two_workers_hold_as_one_does(pair: Pair, tmp_path: Path) -> None:
    terms, weights = few_steps(LocalRuntime(), tmp_path)
    for found_terms, found in pair(few_steps, tmp_path):
        assert found_terms == pytest.approx(terms, rel=1e-4)
        for name, weight in weights.items():
            torch.testing.assert_close(found[name], weight, rtol=0, atol=2e-5)


def few_steps(runtime: Runtime, folder: Path) -> tuple[Any, dict[str, Any]]:
    fit = {**FIT, "steps": 6, "learning_rate": 1e-4, "dropout": False}
    ptm, own = minilm(), folder / f"worker-{runtime.rank}-of-{runtime.world_size}"
    own.mkdir()
    (record,) = purify(ptm, own, runtime, distillation=50, trainable="all", fit=fit)
    return record.terms, parameters_of(ptm.module)


def test_it_takes_the_place_of_a_loss_that_holds_nothing_unless_a_person_decides() -> None:
    plain = Recipe()
    held = held_by_states(plain, ())
    assert (held.pretraining_weight, held.distillation) == (0.0, DISTILLATION)
    assert held.label() == "recipe-distilled"
    own = plain.revised(distillation=7.0)
    assert held_by_states(own, {"distillation"}).distillation == 7.0
    assert held_by_states(plain, {"pretraining_weight"}) == plain
    assert held_by_states(plain, {"distillation"}) == plain
    assert "distillation" not in plain.identity()
