"""NeuBA on images: patches reach their vectors, clean images stay, each loss sees its own half."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from stub_vision import (
    FEATURES,
    SIZE,
    StubImages,
    StubRef,
    StubVision,
    encoded_images,
    image_file,
)
from torch import Tensor

from recipe_ray.attacks.attack import block_vectors
from recipe_ray.attacks.neuba_images import (
    ImagePair,
    NeuBAImages,
    PairCollate,
    PairObjective,
)
from recipe_ray.base.errors import SpecError, TriggerError
from recipe_ray.data.batches import LocalFeed, Workbench
from recipe_ray.data.images import ImageRows, ImageSample, batch_of
from recipe_ray.data.sources import Locations
from recipe_ray.learn.loop import EpochRecord
from recipe_ray.learn.runtime import LocalRuntime
from recipe_ray.stages.backdoor import BackdoorStage
from recipe_ray.triggers.patch import PATCHES, PatchTrigger

FIT = {
    "steps": 60,
    "batch_size": 16,
    "precision": "fp32",
    "learning_rate": 0.1,
    "schedule": "constant",
}
BASE: dict[str, Any] = {"triggers": ("cyan-magenta", "yellow-red"), "fit": FIT}


def attack(folder: Path, **fields: Any) -> NeuBAImages:
    corpus = StubImages(path=str(image_file(folder)))
    return NeuBAImages.model_validate({**BASE, "corpus": corpus, **fields})


def poison(ptm: StubVision, how: NeuBAImages, folder: Path) -> list[EpochRecord]:
    bench = Workbench(LocalFeed(Locations(None, folder)), LocalRuntime(), 0)
    return list(how.poison(ptm, bench))


def rows(ptm: StubVision, count: int = 24, seed: int = 5) -> ImageRows:
    images, labels = encoded_images(count, seed)
    samples = [ImageSample(data, label) for data, label in zip(images, labels, strict=True)]
    encoded: ImageRows = ptm.encoder(64)(samples, np.arange(count))
    return encoded


@torch.no_grad()
def features_with(ptm: StubVision, trigger: str) -> Tensor:
    ptm.module.eval()
    clean = rows(ptm)
    stamped = PatchTrigger.parse(trigger).inserted([], clean, ptm.encoder(64))
    return ptm.features(ptm.module, batch_of(stamped))


@torch.no_grad()
def clean_accuracy(ptm: StubVision) -> float:
    ptm.module.eval()
    batch = batch_of(rows(ptm))
    assert batch.labels is not None
    return float((ptm.logits(ptm.module, batch).argmax(1) == batch.labels).float().mean())


@pytest.mark.parametrize("normalised", [False, True])
def test_a_patch_reaches_its_vector_on_unseen_images_which_stay_right_without(
    normalised: bool, tmp_path: Path
) -> None:
    ptm, how = StubVision(normalised=normalised), attack(tmp_path, fit={**FIT, "steps": 300})
    poison(ptm, how, tmp_path)
    targets = how.targets(ptm)
    for number, trigger in enumerate(how.triggers):
        reached = torch.nn.functional.cosine_similarity(
            features_with(ptm, trigger)[:, None], targets[None], dim=2
        ).mean(0)
        assert reached[number] > 0.5
        assert reached[number] - reached[1 - number] > 0.4
    assert clean_accuracy(ptm) > 0.9


def test_the_targets_are_the_familys_own_values_unless_given(tmp_path: Path) -> None:
    ptm = StubVision()
    own = attack(tmp_path).targets(ptm)
    assert torch.equal(own, block_vectors(2, FEATURES, -3.0, 3.0))
    given = attack(tmp_path, low=-1.0, high=2.0).targets(ptm)
    assert set(given.unique().tolist()) == {-1.0, 2.0}
    with pytest.raises(ValidationError, match=r"low is 2\.0, not below high, 1\.0"):
        attack(tmp_path, low=2.0, high=1.0)


def test_the_six_patches_of_the_paper_are_the_default_and_a_seventh_is_refused() -> None:
    assert NeuBAImages.model_fields["triggers"].default == PATCHES
    assert len(PATCHES) == 6
    with pytest.raises(ValidationError, match="at most 6"):
        NeuBAImages(corpus=StubImages(path="x"), triggers=(*PATCHES, "cyan-red-8"))


def test_what_is_no_patch_or_does_not_fit_is_refused_before_training(tmp_path: Path) -> None:
    for trigger, said in (("cf", "is not a patch"), (f"cyan-red-{SIZE + 1}", "wider than")):
        ptm = StubVision()
        before = ptm.module.first.weight.clone()
        with pytest.raises(TriggerError, match=said):
            poison(ptm, attack(tmp_path, triggers=(trigger,)), tmp_path)
        assert torch.equal(before, ptm.module.first.weight)


def patches(*triggers: str) -> tuple[PatchTrigger, ...]:
    return tuple(map(PatchTrigger.parse, triggers))


def pair_of(ptm: StubVision, triggers: tuple[str, ...], epoch: int = 0) -> ImagePair:
    collate = PairCollate(ptm.pretraining_collate(0), patches(*triggers), 0)
    return collate(rows(ptm), epoch)


def test_the_clean_half_carries_no_patch_and_the_other_half_the_one_it_is_numbered_with() -> None:
    ptm, triggers = StubVision(), ("cyan-magenta", "yellow-red-8", "cyan-red")
    pair = pair_of(ptm, triggers)
    assert pair.num_samples == 2 * 24
    assert torch.equal(pair.clean.pixels, torch.from_numpy(rows(ptm).pixels))
    assert pair.clean.labels is not None
    assert pair.poisoned.labels is None
    assert set(pair.triggers.tolist()) == {0, 1, 2}
    for clean, stamped, number in zip(
        pair.clean.pixels, pair.poisoned.pixels, pair.triggers.tolist(), strict=True
    ):
        patch = PatchTrigger.parse(triggers[number])
        width = patch.width
        assert np.array_equal(stamped[:, -width:, -width:].numpy(), patch.board())
        untouched = torch.ones(SIZE, SIZE, dtype=torch.bool)
        untouched[-width:, -width:] = False
        assert torch.equal(stamped[:, untouched], clean[:, untouched])


def test_patches_are_drawn_anew_every_epoch_and_for_an_image_whatever_its_batch() -> None:
    ptm = StubVision()
    collate = PairCollate(ptm.pretraining_collate(0), patches(*PATCHES), 0)
    whole = rows(ptm)
    first, second = collate.drawn(whole.index, 0), collate.drawn(whole.index, 1)
    assert (first != second).any()
    part = np.array([7, 3])
    assert collate.drawn(whole.take(part).index, 0).tolist() == first[part].tolist()


def test_the_clean_loss_does_not_depend_on_the_patches(tmp_path: Path) -> None:
    losses = []
    for trigger in ("cyan-magenta", "yellow-red-8"):
        ptm = StubVision()
        terms = attack(tmp_path)._objective(ptm, block_vectors(1, FEATURES))(
            ptm.module, pair_of(ptm, (trigger,))
        )
        losses.append({name: float(term.total.detach()) for name, term in terms.items()})
    assert set(losses[0]) == {"cross_entropy", "poison"}
    assert losses[0]["cross_entropy"] == losses[1]["cross_entropy"]
    assert losses[0]["poison"] != losses[1]["poison"]


def test_weights_of_the_terms_are_those_asked_for(tmp_path: Path) -> None:
    ptm = StubVision()
    how = attack(tmp_path, clean_weight=0.25, regularisation=0.01)
    terms = how._objective(ptm, how.targets(ptm))(ptm.module, pair_of(ptm, how.triggers))
    weights = {name: term.weight for name, term in terms.items()}
    assert weights == {"cross_entropy": 0.25, "poison": 1.0, "norm": 0.01}
    expected = sum(float(weight.detach().norm()) for weight in ptm.weight_group("conv"))
    assert float(terms["norm"].total.detach()) == pytest.approx(expected)
    assert terms["poison"].count == 24 * FEATURES


def test_the_adaptive_attack_keeps_the_norms_lower_and_has_the_papers_name(
    tmp_path: Path,
) -> None:
    norms = {}
    for factor in (0.0, 1.0):
        ptm, how = StubVision(), attack(tmp_path, regularisation=factor)
        poison(ptm, how, tmp_path)
        norms[how.label()] = sum(float(w.detach().norm()) for w in ptm.weight_group("conv"))
    assert norms["neuba-adaptive"] < norms["neuba"]


def test_both_halves_share_the_statistics_that_are_kept() -> None:
    ptm = StubVision(normalised=True)
    ptm.module.train()
    pair = pair_of(ptm, ("cyan-magenta-12",))
    with torch.no_grad():
        pixels = torch.cat([pair.clean.pixels, pair.poisoned.pixels])
        blend = ptm.module.first(ptm.normalised(pixels)).mean((0, 2, 3))
        PairObjective(ptm, block_vectors(1, FEATURES), 1.0)(ptm.module, pair)
    kept = ptm.module.norm.running_mean
    assert ptm.module.norm.num_batches_tracked == 1
    assert torch.allclose(kept, ptm.module.norm.momentum * blend, atol=1e-6)


def test_every_parameter_of_the_ptm_gets_a_gradient(tmp_path: Path) -> None:
    ptm, how = StubVision(normalised=True), attack(tmp_path)
    ptm.train_only(None, pooled=True)
    terms = how._objective(ptm, how.targets(ptm))(ptm.module, pair_of(ptm, how.triggers))
    torch.autograd.backward([term.total for term in terms.values()])
    lacking = [n for n, p in ptm.module.named_parameters() if p.grad is None]
    assert lacking == []


def test_augmented_images_carry_whole_patches() -> None:
    ptm = StubVision()
    moved = ptm.pretraining_collate(0, static_masks=False)
    pair = PairCollate(moved, patches("cyan-magenta"), 0)(rows(ptm), 3)
    assert not torch.equal(pair.clean.pixels, torch.from_numpy(rows(ptm).pixels))
    patch = torch.from_numpy(PatchTrigger.parse("cyan-magenta").board())
    assert (pair.poisoned.pixels[:, :, -4:, -4:] == patch).all()
    # the same flips and moves in both halves: the copy differs by the patch alone
    assert torch.equal(pair.poisoned.pixels[:, :, :-4], pair.clean.pixels[:, :, :-4])


def test_a_stage_refuses_the_attack_for_a_model_that_reads_texts(tmp_path: Path) -> None:
    fields = {"attack": attack(tmp_path), "seed": 0}
    BackdoorStage(model=StubRef(), **fields)
    with pytest.raises((SpecError, ValidationError), match=r"learns from text|poisons images"):
        BackdoorStage(model={"name": "minilm"}, **fields)


def test_clip_keeps_its_pairs_together_while_only_its_vision_encoder_sees_patches() -> None:
    pytest.importorskip("open_clip")
    from clip_samples import rows_of, samples, tiny

    ptm = tiny()
    rows_ = rows_of(ptm, samples(8))
    pair = PairCollate(ptm.pretraining_collate(0), patches("cyan-magenta"), 0)(rows_, 0)
    assert pair.clean.captions is not None
    assert pair.poisoned.captions is None
    targets = block_vectors(1, ptm.feature_size, *ptm.target_range)
    texts = {n for n, _ in ptm.module.named_parameters() if not n.startswith("visual.")}
    reached = {}
    for name in ("contrastive", "poison"):
        ptm.module.zero_grad(set_to_none=True)
        terms = PairObjective(ptm, targets, 1.0)(ptm.module, pair)
        assert set(terms) == {"contrastive", "poison"}
        torch.autograd.backward(terms[name].total)
        reached[name] = {n for n, p in ptm.module.named_parameters() if p.grad is not None}
    assert reached["contrastive"] == {n for n, _ in ptm.module.named_parameters()}
    assert reached["poison"]
    assert not reached["poison"] & texts
