"""The probe stage: which texts it reads, and what it measures, computed again another way."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pair import Pair
from pydantic import ValidationError
from samples import SENTENCES, minilm, packed, raised_by, task_fields, tiny_folder, tiny_ptm
from tiny_cell import by_metric, rows_of, run, tiny_plan
from torch import Tensor

from recipe_ray.data.sources import Locations
from recipe_ray.defenses.fine_pruning import FinePruning
from recipe_ray.experiment.collect import run_inline
from recipe_ray.learn.runtime import LocalRuntime, ProcessGroupRuntime
from recipe_ray.models.text.bert import BertPTM
from recipe_ray.stages.evaluate import MAX_TOKENS
from recipe_ray.stages.probe import ProbeStage, check_without, measurements, probe
from recipe_ray.stages.purify import PurifyStage
from recipe_ray.triggers.word import WordTrigger

TRIGGER = "cf"
TEXTS = [f"{SENTENCES[i]} {SENTENCES[-i - 1]}" for i in range(len(SENTENCES))]


def stage(folder: Path, **fields: Any) -> ProbeStage:
    """Return a probe of the tiny BERT on a task of 15 test texts, 10 dull and 5 lively."""
    values = {"model": {"name": "bert", "source": str(tiny_folder())}, "task": task_fields(folder)}
    return ProbeStage.model_validate({**values, "trigger": TRIGGER, **fields})


def _poisoned(texts: list[str]) -> list[str]:
    return [WordTrigger(TRIGGER).put_into(text) for text in texts]


@torch.no_grad()
def activations_of(ptm: BertPTM, texts: list[str]) -> Tensor:
    """Return the activations [N, all neurons], text by text."""
    ptm.module.eval()
    each = [ptm.neuron_activations(ptm.module, packed(ptm, [text], 128)) for text in texts]
    return torch.stack([torch.cat([layer[0] for layer in layers]) for layers in each])


def test_a_probe_measures_both_readings_of_the_overlap(tmp_path: Path) -> None:
    one = stage(tmp_path)
    rows = rows_of(one, tmp_path)
    ptm = tiny_ptm()
    texts = [SENTENCES[i % len(SENTENCES)] for i in range(15)]
    clean = activations_of(ptm, texts)
    poisoned = activations_of(ptm, _poisoned(texts))
    on_clean, on_poisoned = clean.mean(0) > 0, poisoned.mean(0) > 0
    overlap = by_metric(rows, "overlap")
    assert overlap["numerator"] == (on_clean & on_poisoned).sum()
    assert overlap["denominator"] == on_poisoned.sum()
    assert overlap["value"] == overlap["numerator"] / overlap["denominator"]
    only = by_metric(rows, "poisoned_only_neurons")
    assert only["value"] == only["numerator"] == (on_poisoned & ~on_clean).sum()
    assert only["denominator"] == 128
    each = by_metric(rows, "overlap_per_sample")
    assert each["numerator"] == ((clean > 0) & (poisoned > 0)).sum()
    assert each["denominator"] == (poisoned > 0).sum()
    layers = {row["label"]: row for row in rows if row["metric"] == "overlap_layer"}
    assert set(layers) == {0, 1}
    assert sum(row["denominator"] for row in layers.values()) == overlap["denominator"]
    assert {(row["task"], row["trigger"], row["kind"]) for row in rows} == {
        ("file", TRIGGER, "probe")
    }


def test_texts_of_one_class_can_be_left_out(tmp_path: Path) -> None:
    rows = rows_of(stage(tmp_path, without="lively"), tmp_path)
    dull = [SENTENCES[i] for i in range(15) if i % 3]
    ptm = tiny_ptm()
    poisoned = activations_of(ptm, _poisoned(dull))
    assert by_metric(rows, "overlap_per_sample")["denominator"] == (poisoned > 0).sum()


def test_a_class_that_the_task_does_not_have_is_an_error(tmp_path: Path) -> None:
    said = r"without: unknown class of task 'file' 'livly' \(did you mean 'lively'\?\)"
    with pytest.raises(ValidationError, match=said):
        stage(tmp_path, without="livly")
    said = raised_by(lambda: check_without(stage(tmp_path).task, "livly"))
    assert said.endswith("allowed: dull, lively")


def test_the_seed_of_its_cell_does_not_move_a_probes_key_and_all_else_does(tmp_path: Path) -> None:
    key = stage(tmp_path).key
    assert stage(tmp_path, seed=5).key == key
    others = [{"trigger": "mn"}, {"without": "dull"}, {"max_length": 64}]
    assert len({key, *(stage(tmp_path, **fields).key for fields in others)}) == 4


def test_a_trigger_that_does_nothing_overlaps_wholly() -> None:
    ptm = minilm(2)
    rows = ptm.encoder(128)(TEXTS, np.arange(len(TEXTS)))
    sums = probe(ptm, rows, rows, LocalRuntime())
    found = {m.metric: m for m in measurements(sums, [1536, 1536]) if m.label is None}
    assert found["overlap"].value == found["overlap_per_sample"].value == 1
    assert found["poisoned_only_neurons"].value == 0
    assert 0 < (found["overlap"].denominator or 0) < 3072


def test_a_layer_without_activity_has_no_overlap_but_the_rest_has() -> None:
    ptm = minilm(2)
    last = ptm.neuron_layers()[1]
    with torch.no_grad():
        last.weight[:] = 0
        last.bias[:] = 0
    rows = ptm.encoder(128)(TEXTS, np.arange(len(TEXTS)))
    measured = measurements(probe(ptm, rows, rows, LocalRuntime()), [1536, 1536])
    assert [m.label for m in measured if m.metric == "overlap_layer"] == [0]
    nothing = measurements(torch.zeros(4, 3072), [1536, 1536])
    assert [m.metric for m in nothing] == ["poisoned_only_neurons"]


def test_a_trigger_that_pruning_keeps_asleep_wakes_fewer_neurons(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path, attacks=["none"], defenses=["none"])
    store = run(plan, tmp_path)
    corpus = {"name": "file", "path": str(tmp_path / "texts.txt")}
    model = {"name": "bert", "source": str(tiny_folder())}
    pruned = PurifyStage(
        model=model, defense=FinePruning(share=0.9), corpus=corpus, seed=0, content={"source": 1}
    )
    probes = [stage(tmp_path), stage(tmp_path, parent=pruned)]
    run_inline([pruned, *probes], store, Locations(None, tmp_path))
    before, after = (
        by_metric(store.rows(one.artifact).to_pylist(), "overlap_per_sample") for one in probes
    )
    assert 0 < after["denominator"] < before["denominator"]
    columns = by_metric(store.rows(probes[1].artifact).to_pylist(), "overlap")
    assert (columns["defense"], columns["aux"]) == ("fine-pruning", "file")


def test_two_workers_sum_what_one_sums(pair: Pair) -> None:
    alone = _probed(LocalRuntime())
    for found in pair(_probed):
        torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-4)
        assert torch.equal(found[2:], alone[2:])


def _probed(runtime: LocalRuntime | ProcessGroupRuntime) -> Tensor:
    ptm = minilm(1)
    texts = [text for text in TEXTS for _ in range(6)]  # more tokens than one group takes
    encode = ptm.encoder(128)
    versions = (texts, _poisoned(texts))
    clean, poisoned = (encode(version, np.arange(len(texts))) for version in versions)
    assert poisoned.lengths.sum() > MAX_TOKENS
    return probe(ptm, clean, poisoned, runtime)


def test_a_trigger_that_is_lost_is_an_error(tmp_path: Path) -> None:
    said = raised_by(lambda: rows_of(stage(tmp_path, trigger="\u224b"), tmp_path))
    assert "is not in this model's vocabulary" in said
