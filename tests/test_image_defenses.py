"""Defenses on a PTM of images: what each does to the weights, the held-out look, the rule."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samples import changed, parameters_of, raised_by
from stub_vision import CHANNELS, StubImages, StubRef, StubVision, encoded_images, image_file

from recipe_ray.data.batches import LocalFeed, Workbench
from recipe_ray.data.images import ImageRows, ImageSample, batch_of
from recipe_ray.data.sources import Locations
from recipe_ray.defenses.defense import DEFENSES, Auxiliary
from recipe_ray.defenses.rule import TRAVEL, choose, weight_rms
from recipe_ray.learn.loop import EpochRecord
from recipe_ray.learn.runtime import LocalRuntime
from recipe_ray.stages.purify import PurifyStage
from recipe_ray.stages.run import run_stage, scratch
from recipe_ray.stages.stage import Context
from recipe_ray.store.store import Store

FIT = {"steps": 4, "batch_size": 16, "learning_rate": 1e-2, "precision": "fp32"}
CONV = {"first.weight", "second.weight"}


def purify(ptm: StubVision, folder: Path, fields: Any, count: int = 40) -> list[EpochRecord]:
    corpus = StubImages(path=str(image_file(folder, count)))
    bench = Workbench(LocalFeed(Locations(None, folder)), LocalRuntime(), 0)
    return list(DEFENSES.parse(fields).purify(ptm, Auxiliary(corpus), bench))


def rows(ptm: StubVision, count: int) -> ImageRows:
    images, labels = encoded_images(count)
    samples = [ImageSample(data, label) for data, label in zip(images, labels, strict=True)]
    encoded: ImageRows = ptm.encoder(64)(samples, np.arange(count))
    return encoded


def zero_channels(ptm: StubVision) -> list[set[int]]:
    return [
        set(torch.nonzero((layer.weight == 0).flatten(1).all(1) & (layer.bias == 0))[:, 0].tolist())
        for layer in ptm.neuron_layers()
    ]


def test_fine_pruning_removes_the_channels_that_real_passes_activate_least(
    tmp_path: Path,
) -> None:
    ptm = StubVision()
    with torch.no_grad():
        ptm.module.eval()
        activations = ptm.neuron_activations(ptm.module, batch_of(rows(ptm, 40)))
    means = torch.cat([layer.mean(0) for layer in activations])
    fields = {"name": "fine-pruning", "share": 5 / (2 * CHANNELS), "precision": "fp32"}
    assert purify(ptm, tmp_path, fields) == []
    gone = [n + i * CHANNELS for i, layer in enumerate(zero_channels(ptm)) for n in layer]
    kept = sorted(set(range(2 * CHANNELS)) - set(gone))
    assert len(gone) == 5
    assert means[gone].max() <= means[kept].min() + 1e-6


def test_all_but_one_channel_of_the_last_convolution_can_go(tmp_path: Path) -> None:
    ptm = StubVision()
    share = (CHANNELS - 1) / CHANNELS  # the paper's 511 of 512
    purify(ptm, tmp_path, {"name": "fine-pruning", "scope": "last", "share": share})
    assert [len(layer) for layer in zero_channels(ptm)] == [0, CHANNELS - 1]


def test_clipping_reaches_the_weights_of_convolutions(tmp_path: Path) -> None:
    ptm = StubVision()
    with torch.no_grad():
        ptm.module.first.weight[2, 1, 0, 0] = -40.0
    purify(ptm, tmp_path, "clip")
    assert ptm.module.first.weight[2, 1, 0, 0] == -1.0


@pytest.mark.parametrize(
    ("fields", "terms", "moved"),
    [
        ({"trainable": "weights"}, {"norm", "cross_entropy"}, CONV),
        ({"weight_factor": 0, "trainable": "weights"}, {"cross_entropy"}, CONV),
        ({"pretraining_weight": 0, "trainable": "all"}, {"norm"}, CONV),
    ],
)
def test_recipe_and_its_ablations_train_what_they_should(
    fields: dict[str, Any], terms: set[str], moved: set[str], tmp_path: Path
) -> None:
    ptm = StubVision()
    before = parameters_of(ptm.module)
    how = {"name": "recipe", "layers": ["conv"], "fit": FIT, **fields}
    records = purify(ptm, tmp_path, how)
    assert all(set(record.terms) == terms for record in records)
    assert changed(before, ptm.module) == moved


def test_with_everything_trainable_recipe_moves_every_parameter(tmp_path: Path) -> None:
    ptm = StubVision(normalised=True)
    before = parameters_of(ptm.module)
    purify(ptm, tmp_path, {"name": "recipe", "layers": ["conv"], "trainable": "all", "fit": FIT})
    assert changed(before, ptm.module) == set(before)


def test_the_scale_of_the_norms_can_be_set_against_that_of_the_loss(tmp_path: Path) -> None:
    # docs/method.md section 3: under SGD the weight factor decides how far the norms pull
    left = {}
    for factor in (0.001, 1.0):
        ptm = StubVision()
        fit = {**FIT, "optimizer": "sgd", "momentum": 0.0, "clip_norm": None, "steps": 12}
        fields = {"name": "recipe", "layers": ["conv"], "trainable": "all", "fit": fit}
        purify(ptm, tmp_path, {**fields, "weight_factor": factor})
        left[factor] = weight_rms_of(ptm)
    assert left[1.0] < left[0.001]


def weight_rms_of(ptm: Any) -> float:
    return weight_rms(ptm, ("conv",))


def test_a_weight_group_of_texts_is_refused_with_the_familys_own(tmp_path: Path) -> None:
    said = raised_by(lambda: purify(StubVision(), tmp_path, {"name": "recipe", "fit": FIT}))
    assert "weight group of family stub 'ffn_in'" in said
    assert "allowed: conv" in said


def test_the_rule_follows_the_scale_of_an_image_ptms_weights() -> None:
    ptm: Any = StubVision()
    chosen = choose(ptm, 20_000)
    fit, size = chosen.recipe.fit, weight_rms_of(ptm)
    assert fit.steps is not None
    assert fit.learning_rate * fit.steps / 2 == pytest.approx(TRAVEL * size, rel=0.05)
    assert (chosen.recipe.layers, chosen.recipe.trainable) == (("conv",), "all")
    with torch.no_grad():
        for weight in ptm.weight_group("conv"):
            weight.mul_(0.01)
    smaller = choose(ptm, 20_000).recipe.fit
    assert smaller.steps is not None
    assert smaller.learning_rate * smaller.steps < fit.learning_rate * fit.steps / 50


def test_a_purify_stage_looks_at_held_out_images_before_and_after(tmp_path: Path) -> None:
    corpus = StubImages(path=str(image_file(tmp_path, 48)))
    stage = PurifyStage(
        model=StubRef(normalised=True),
        defense={"name": "recipe", "layers": ["conv"], "trainable": "all", "fit": FIT},
        corpus=corpus,
        held_out=0.25,
        seed=0,
    )
    store, places = Store.open(tmp_path / "store"), Locations(None, tmp_path)
    with scratch(store) as folder:
        run_stage(stage, Context(store, LocalFeed(places), places, LocalRuntime(), folder))
    measured = {row["metric"]: row for row in store.rows(stage.artifact).to_pylist()}
    assert measured["drift"]["denominator"] == 12
    assert measured["drift"]["value"] > 0
    assert measured["norm.conv.after"]["value"] != measured["norm.conv.before"]["value"]
    assert measured["held_out_loss.before"]["value"] == pytest.approx(np.log(3), rel=0.3)
    assert stage.model.reload(store.fetch(stage.artifact) / "model")
