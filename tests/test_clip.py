"""Family `clip`: captions, weight groups, neurons, the classifier, pre-training and its quality."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from clip_samples import (
    EMBED,
    LENGTH,
    RUNTIME,
    SIZE,
    TINY,
    batch,
    embeddings,
    rows_of,
    samples,
    text_tower,
    tiny,
)
from pydantic import ValidationError
from samples import changed, parameters_of, raised_by, real_data

pytest.importorskip("open_clip", reason="needs recipe-ray[vision]")

import open_clip

from recipe_ray.base.errors import SpecError
from recipe_ray.data.batches import MemoryBatches
from recipe_ray.data.corpora import LISTED
from recipe_ray.data.corpus import CORPORA
from recipe_ray.data.images import ImageSample, batch_of
from recipe_ray.data.sources import Locations
from recipe_ray.experiment.collect import run_inline
from recipe_ray.learn.loop import fit
from recipe_ray.learn.neuron_stats import prune
from recipe_ray.learn.objective import WeightNorms, classification, tensor_of
from recipe_ray.learn.optim import FitSpec
from recipe_ray.models.vision.clip import Clip
from recipe_ray.models.vision.heads import recall_at_1, retrieval
from recipe_ray.stages.pretrain import PretrainStage
from recipe_ray.store.store import Store

# -- captions --------------------------------------------------------------------------------------


def test_captions_become_ids_of_the_towers_own_length() -> None:
    encode = pickle.loads(pickle.dumps(tiny().encoder(64)))
    assert encode == Clip.model_validate(TINY).sample_encoder()
    long = ImageSample(samples(1)[0].data, caption="so many words that they do not fit in here")
    rows = encode([*samples(2), long], np.arange(3))
    caption = rows.columns["caption"]
    assert caption.shape == (3, LENGTH)
    assert rows.pixels.shape == (3, 3, SIZE, SIZE)
    assert (caption[:, 0] == 49406).all()
    assert (caption == 49407).any(1).all()  # cut off, a caption still ends
    short = encode([ImageSample(long.data, caption="a red wall")], np.arange(1))
    known = open_clip.tokenize(["a red wall"], context_length=LENGTH)
    assert short.columns["caption"].tolist() == known.tolist()


def test_images_without_captions_have_no_such_column() -> None:
    ptm = tiny()
    plain = [ImageSample(sample.data, label=1) for sample in samples(2)]
    rows = rows_of(ptm, plain)
    assert set(rows.columns) == {"label"}
    objective = ptm.pretraining_objective()
    assert "no captions" in raised_by(lambda: objective(ptm.module, batch_of(rows)))
    assert "1 of these images" in raised_by(lambda: rows_of(ptm, [*samples(1), plain[0]]))


# -- weights and neurons ---------------------------------------------------------------------------


def test_weight_groups_are_of_the_vision_encoder_a_matrix_a_block() -> None:
    ptm = tiny()
    shapes = {"fc1": (64, 16), "fc2": (16, 64)}
    for group in ptm.weight_groups:
        members = ptm.weight_group(group)
        assert len(members) == 2
        for weight in members:
            assert tuple(tensor_of(weight).shape) == shapes.get(group, (16, 16))
    layers, trainable = ptm.purification_scope
    assert layers == ("fc1", "fc2", "query", "key", "value")
    assert trainable == "all"
    assert "did you mean 'query'?" in raised_by(lambda: ptm.weight_group("qeury"))


def test_the_norm_is_over_each_part_of_a_fused_matrix_and_spares_the_text_tower() -> None:
    ptm = tiny()
    weights = [weight for group in ptm.purification_scope[0] for weight in ptm.weight_group(group)]
    norm = WeightNorms(weights)(ptm.module, None)["norm"].total
    expected = 0.0
    for block in ptm.module.visual.transformer.resblocks:
        parts = [
            *block.attn.in_proj_weight.chunk(3),
            block.mlp.c_fc.weight,
            block.mlp.c_proj.weight,
        ]
        expected += sum(float(part.norm()) for part in parts)
    assert float(norm) == pytest.approx(expected, rel=1e-6)
    norm.backward()
    assert all(parameter.grad is None for parameter in text_tower(ptm.module))
    assert ptm.module.visual.transformer.resblocks[0].attn.in_proj_weight.grad.abs().min() > 0


@torch.no_grad()
def test_neurons_are_fc1_after_its_activation_at_the_class_token() -> None:
    ptm = tiny()
    some = batch(ptm, 3)
    found = ptm.neuron_activations(ptm.module, some)
    assert [tuple(layer.shape) for layer in found] == [(3, 64), (3, 64)]
    visual = ptm.module.visual
    states = visual._embeds(ptm.normalised(some.pixels))
    block = visual.transformer.resblocks[0]
    states = states + block.attention(block.ln_1(states))
    expected = torch.nn.functional.gelu(block.mlp.c_fc(block.ln_2(states)))[:, 0]
    torch.testing.assert_close(found[0], expected)
    prune(ptm.neuron_layers(), torch.tensor([2, 64 + 5]))
    pruned = ptm.neuron_activations(ptm.module, some)
    assert not pruned[0][:, 2].any()
    assert not pruned[1][:, 5].any()
    assert pruned[0][:, 3].all()


def test_features_are_the_image_embedding_before_it_is_normalised() -> None:
    ptm = tiny()
    found = embeddings(ptm)[0]
    assert found.shape == (8, ptm.feature_size) == (8, EMBED)
    normalised = ptm.module.encode_image(ptm.normalised(batch(ptm).pixels), normalize=True)
    assert not torch.allclose(found.norm(dim=1), torch.ones(8))
    torch.testing.assert_close(torch.nn.functional.normalize(found, dim=1), normalised)


# -- training --------------------------------------------------------------------------------------


def test_a_classifier_trains_the_vision_encoder_and_leaves_the_text_tower_alone() -> None:
    ptm = tiny()
    before = parameters_of(ptm.module)
    classifier = ptm.classifier(4, 0, [])
    classifier.requires_grad_(True)  # as fine-tuning does
    rows = rows_of(ptm, samples()).with_columns(label=np.arange(8) % 4)
    batches = MemoryBatches(rows, ptm.classifier_collate(), 8, 0)
    spec = FitSpec(steps=1, batch_size=8, learning_rate=1e-2, precision="fp32")
    fit(classifier, classification, batches, spec, RUNTIME, seed=0)
    # DDP would wait for a parameter without a gradient
    assert [n for n, p in classifier.named_parameters() if p.grad is None] == []
    assert changed(before, ptm.module) == {name for name in before if name.startswith("visual.")}
    assert all(parameter.grad is None for parameter in text_tower(ptm.module))
    assert not [name for name in classifier.whole_state() if "token_embedding" in name]


def test_the_head_is_all_but_the_vision_encoder() -> None:
    ptm = tiny()
    ptm.train_only(ptm.head_parameters(), pooled=False)
    trained = {name for name, value in ptm.module.named_parameters() if value.requires_grad}
    assert {"logit_scale", "token_embedding.weight"} <= trained
    assert not [name for name in trained if name.startswith("visual.")]


def test_pretraining_on_real_pairs_lowers_the_loss(tmp_path: Path) -> None:
    corpus = CORPORA.parse({"name": "flickr8k", "size": 32})
    pairs = list(corpus.samples(Locations(real_data(), tmp_path)))
    ptm = tiny()
    rows = rows_of(ptm, pairs)
    assert rows.columns["caption"].shape == (32, LENGTH)
    batches = MemoryBatches(rows, ptm.pretraining_collate(0), 16, 0)
    spec = FitSpec(epochs=12, batch_size=16, learning_rate=5e-3, precision="fp32")
    records = fit(ptm.module, ptm.pretraining_objective(), batches, spec, RUNTIME, seed=0)
    losses = [record.terms["contrastive"] for record in records]
    assert losses[-1] < 0.7 * losses[0]
    assert retrieval(ptm, rows, RUNTIME)["retrieval_image_to_text"].numerator > 3


# -- quality ---------------------------------------------------------------------------------------


def test_recall_counts_the_pairs_that_are_nearest_to_each_other() -> None:
    answers = torch.eye(300)
    queries = answers.clone()
    queries[[0, 1, 200]] = answers[[1, 0, 7]]
    share = recall_at_1(queries, answers)
    assert (share.numerator, share.denominator) == (297, 300)
    # one that tells nothing apart gets one right
    assert recall_at_1(torch.ones(300, 4), torch.ones(300, 4)).numerator == 1


def pair_file(folder: Path, count: int = 20) -> str:
    columns = {
        "image": pa.array([sample.data for sample in samples(count)], pa.binary()),
        "caption": pa.array([sample.caption for sample in samples(count)]),
    }
    pq.write_table(pa.table(columns), folder / "pairs.parquet")
    return str(folder / "pairs.parquet")


def pretrain(folder: Path, **fields: Any) -> PretrainStage:
    corpus = {"name": "pairs", "path": pair_file(folder)}
    spec = FitSpec(steps=2, batch_size=8, precision="fp32")
    model = Clip.model_validate(TINY)
    return PretrainStage(model=model, corpus=corpus, trainable="all", fit=spec, seed=0, **fields)


def test_pretraining_writes_down_retrieval_on_pairs_it_did_not_see(tmp_path: Path) -> None:
    stage = pretrain(tmp_path, held_out=0.25)
    ((_, part),) = stage.corpora()
    assert (part.start, part.stop) == (0.0, 0.75)
    store = Store.open(tmp_path / "store")
    run_inline([stage], store, Locations(None, tmp_path))
    rows = {row["metric"]: row for row in store.rows(stage.artifact).to_pylist()}
    ptm = Clip().reload(store.fetch(stage.artifact) / "model")
    held_out = ptm.encoder(64)(samples(20)[15:], np.arange(15, 20))
    for metric, share in retrieval(ptm, held_out, RUNTIME).items():
        row = rows[metric]
        assert (row["numerator"], row["denominator"]) == (share.numerator, 5)
        assert row["value"] == share.value
    assert 0 < rows["held_out_loss"]["value"] < 3 * np.log(5)


def test_nothing_held_out_keeps_the_key_and_measures_nothing(tmp_path: Path) -> None:
    plain = pretrain(tmp_path)
    assert "held_out" not in plain.identity()
    assert plain.key == pretrain(tmp_path, held_out=0.0).key
    assert plain.key != pretrain(tmp_path, held_out=0.25).key
    assert pretrain(tmp_path, held_out=0.1).key != pretrain(tmp_path, held_out=0.25).key
    store = Store.open(tmp_path / "store")
    run_inline([plain], store, Locations(None, tmp_path))
    assert {row["metric"] for row in store.rows(plain.artifact).to_pylist()} == {"loss.contrastive"}


def test_a_corpus_without_captions_is_refused_before_anything_runs() -> None:
    with pytest.raises((SpecError, ValidationError), match="learns from caption and image"):
        PretrainStage(model=Clip.model_validate(TINY), corpus=LISTED["bookcorpus"](), seed=0)
