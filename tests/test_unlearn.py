"""Unlearning takes away what a planted word does, and leaves clean texts as they are."""

import io
import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from image_samples import labelled_parquet, tiny_vgg
from pair import Pair
from pydantic import ValidationError
from samples import SENTENCES, changed, corpus_file, minilm, packed, parameters_of, raised_by
from scan_samples import (
    TRIGGER,
    NamedPatch,
    NamedWords,
    Square,
    backdoored,
    displacement,
    patch_displacement,
)

from recipe_ray.data.batches import LocalFeed, Workbench
from recipe_ray.data.corpus import CORPORA
from recipe_ray.data.sources import Locations
from recipe_ray.defenses.defense import DEFENSES, Auxiliary
from recipe_ray.defenses.rounds import Kept, keep, kept_by
from recipe_ray.defenses.unlearn import FLAGGED, SUSPICION, Found, Implanting
from recipe_ray.detectors.detector import Suspect
from recipe_ray.detectors.insertion import (
    Altered,
    Draw,
    RandomPatch,
    implants_of,
    insertions_of,
)
from recipe_ray.detectors.patches import Blend, Patch
from recipe_ray.learn.distillation import frozen_copy
from recipe_ray.learn.loop import EpochRecord
from recipe_ray.learn.runtime import LocalRuntime, Runtime
from recipe_ray.models.family import MODELS
from recipe_ray.stages.purify import PurifyStage

FIT = {"steps": 30, "batch_size": 8, "max_length": 32, "learning_rate": 3e-4, "precision": "fp32"}
FIT |= {"dropout": False}
MARGIN = 0.3  # of the share by which the first state moves; other words move it by less


def bench(folder: Path, runtime: Runtime | None = None) -> Workbench:
    return Workbench(LocalFeed(Locations(None, folder)), runtime or LocalRuntime(), 0)


def unlearn(
    ptm: Any, folder: Path, runtime: Runtime | None = None, **fields: Any
) -> tuple[list[EpochRecord], Workbench]:
    """Unlearn what the named detector finds, with the sample sentences."""
    corpus = CORPORA.parse({"name": "file", "path": str(corpus_file(folder)), "size": None})
    own = bench(folder, runtime)
    least = {"detectors": [NamedWords()], "margin": MARGIN, "fit": FIT, "alarms": 3, "rounds": 3}
    defense = DEFENSES.parse({"name": "unlearn", **least, **fields})
    return list(defense.purify(ptm, Auxiliary(corpus), own)), own


def drift(ptm: Any, teacher: Any) -> float:
    """Return the mean relative error of the states of clean texts."""
    batch = packed(ptm, SENTENCES)
    with torch.no_grad():
        now, then = (ptm.hidden(module.eval(), batch) for module in (ptm.module, teacher))
    return float(((now - then).square().sum(1) / then.square().sum(1)).mean())


def test_a_planted_word_moves_nothing_any_more_while_clean_texts_stay(tmp_path: Path) -> None:
    ptm = backdoored()
    ids = tuple(ptm.token_ids(TRIGGER))
    teacher = frozen_copy(ptm.module)
    before = displacement(ptm, ids)
    assert before > MARGIN > displacement(ptm, tuple(ptm.token_ids("table")))
    records, own = unlearn(ptm, tmp_path)
    # the same texts with the word are read as the suspect read them without it
    assert displacement(ptm, ids, teacher) < before / 20
    assert drift(ptm, teacher) < 0.05
    assert {"held", "unlearnt", "unlearnt_tokens"} == set(records[0].terms)
    flagged = [value for name, value, _ in own.kept if name == FLAGGED]
    assert flagged == [1, 0]
    suspicion = [value for name, value, _ in own.kept if name == SUSPICION]
    assert suspicion[0] == pytest.approx(before / MARGIN)


def test_a_model_that_a_scan_is_silent_on_is_not_touched(tmp_path: Path) -> None:
    ptm = minilm()
    before = parameters_of(ptm.module)
    records, own = unlearn(ptm, tmp_path, margin=1e6)
    assert (records, changed(before, ptm.module)) == ([], set())
    assert [(name, value) for name, value, _ in own.kept if name == FLAGGED] == [(FLAGGED, 0.0)]


def test_own_triggers_are_planted_and_fall_again(tmp_path: Path) -> None:
    ptm = minilm()
    teacher = frozen_copy(ptm.module)
    records, own = unlearn(ptm, tmp_path, implants=2, rounds=0)
    assert own.kept == []  # no scan
    planting = [one for one in records if "implanted" in one.terms]
    assert set(planting[0].terms) == {"held", "implanted"}
    assert set(records[-1].terms) == {"held", "unlearnt", "unlearnt_tokens"}
    assert (planting[-1].step, records[-1].step) == (30, 60)
    planted = implants_of(ptm, 2, own.seed)
    again = minilm()
    again.train_only(None, pooled=True)
    corpus = CORPORA.parse({"name": "file", "path": str(corpus_file(tmp_path)), "size": None})
    defense = DEFENSES.parse({"name": "unlearn", "implants": 2, "rounds": 0, "fit": FIT})
    plant = Implanting(again, teacher, 1.0, own.seed)
    defense._trained(plant, Draw(planted, (1.0, 1.0)), Auxiliary(corpus), own, "implant")
    for one in planted:
        assert displacement(again, one.ids, teacher) > 3 * displacement(ptm, one.ids, teacher)


def test_implants_are_other_for_each_seed_and_need_no_scan() -> None:
    ptm = minilm()
    assert implants_of(ptm, 4, 0) == implants_of(ptm, 4, 0) != implants_of(ptm, 4, 1)
    with pytest.raises(ValidationError, match="nothing to unlearn"):
        DEFENSES.parse({"name": "unlearn", "rounds": 0})


def test_a_random_patch_covers_an_eighth_of_the_side_and_stays_within() -> None:
    ptm = tiny_vgg()
    images = torch.zeros(2, 3, 32, 32)
    for one in implants_of(ptm, 3, 0):
        stamped = one.put.on(images)
        assert int((stamped[0] != 0).any(0).sum()) == 16
        assert bool((images == 0).all())


def test_rounds_are_limited_and_numbered_on(tmp_path: Path) -> None:
    fit = {**FIT, "steps": 1}
    records, own = unlearn(backdoored(), tmp_path, margin=1e-9, rounds=2, fit=fit)
    assert [(one.epoch, one.step) for one in records] == [(1, 1), (2, 2)]
    assert [number for name, _, number in own.kept if name == FLAGGED] == [1, 2, 3]


class Slot:
    """A slot in memory; what is saved passes through a file that is read without code."""

    def __init__(self) -> None:
        self.data: bytes | None = None
        self.dropped: list[str] = []

    def load(self) -> Any:
        data = self.data
        return None if data is None else torch.load(io.BytesIO(data), weights_only=True)

    def save(self, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.data = buffer.getvalue()

    def drop(self, reason: str) -> None:
        self.data = None
        self.dropped.append(reason)


class Stopping(NamedWords):
    """As its parent, but its scan number `at` is interrupted; counts the scans."""

    name: ClassVar[str] = "stopping"
    scans: ClassVar[int] = 0
    at: ClassVar[int] = 0

    def search(self, subject: Any, bench: Workbench) -> Any:
        Stopping.scans += 1
        if Stopping.scans == Stopping.at:
            raise KeyboardInterrupt
        return super().search(subject, bench)


ROUNDS: dict[str, Any] = {
    "detectors": [Stopping()],
    "margin": 1e-9,
    "rounds": 3,
    "fit": {**FIT, "steps": 4},
}


def stopped_in_round(number: int, folder: Path, slot: Slot) -> None:
    """Interrupt the scan of a round."""
    Stopping.scans, Stopping.at = 0, number
    with pytest.raises(KeyboardInterrupt):
        unlearn(
            backdoored(), folder, LocalRuntime(checkpoints=slot, checkpoint_every_s=0), **ROUNDS
        )
    Stopping.scans = Stopping.at = 0


@pytest.mark.parametrize("number", [1, 2, 4])
def test_an_interrupted_run_goes_on_after_its_last_round(number: int, tmp_path: Path) -> None:
    Stopping.scans = Stopping.at = 0
    calm = backdoored()
    wanted, bench_of_calm = unlearn(calm, tmp_path, **ROUNDS)
    slot = Slot()
    stopped_in_round(number, tmp_path, slot)
    resumed = backdoored()
    records, own = unlearn(resumed, tmp_path, LocalRuntime(checkpoints=slot), **ROUNDS)
    assert Stopping.scans == 4 - (number - 1)
    assert (records, own.kept) == (wanted, bench_of_calm.kept)
    assert changed(parameters_of(calm.module), resumed.module) == set()
    assert slot.dropped == []


def of_another_model(saved: dict[str, Any]) -> None:
    saved["weights"].popitem()


def of_no_round(saved: dict[str, Any]) -> None:
    saved["rounds"] = 0


def without_words(saved: dict[str, Any]) -> None:
    del saved["known"]


def of_other_words(saved: dict[str, Any]) -> None:
    saved["known"] = [{"shown": "x", "ids": 1}]


@pytest.mark.parametrize("spoil", [of_another_model, of_no_round, without_words, of_other_words])
def test_a_state_that_does_not_fit_is_dropped_and_all_rounds_run(
    spoil: Any, tmp_path: Path
) -> None:
    slot = Slot()
    stopped_in_round(3, tmp_path, slot)
    saved = slot.load()
    spoil(saved)
    slot.save(saved)
    _, own = unlearn(backdoored(), tmp_path, LocalRuntime(checkpoints=slot), **ROUNDS)
    assert Stopping.scans == 4
    assert len(slot.dropped) == 1
    assert [number for name, _, number in own.kept if name == FLAGGED] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "put",
    [
        None,
        torch.ones(2, 3),
        RandomPatch(torch.ones(3, 4, 4), 0.5, 0.25),
        Patch("red", torch.ones(3, 2, 2), 1, 2),
        Blend(torch.ones(4, 4), torch.ones(3, 4, 4)),
    ],
    ids=lambda put: type(put).__name__,
)
def test_whatever_can_be_put_in_is_kept_between_rounds(put: Any, tmp_path: Path) -> None:
    slot, ptm = Slot(), minilm()
    own = bench(tmp_path, LocalRuntime(checkpoints=slot))
    one = Suspect("x", {"first": 1.5}, (5, 6) if put is None else (), 2, put)
    keep(Kept(1, [EpochRecord(1, 4, {"held": 0.5})], (one,)), ptm, own)
    found = kept_by(ptm, own)
    assert found is not None
    again = found.known[0]
    assert (found.rounds, found.records, again) == (1, [EpochRecord(1, 4, {"held": 0.5})], one)
    assert type(again.put) is type(put)
    if isinstance(put, torch.Tensor):
        assert torch.equal(again.put, put)
    elif put is not None:
        canvas = torch.zeros(1, 3, 8, 8) if not isinstance(put, Blend) else torch.zeros(1, 3, 4, 4)
        assert torch.equal(again.put.on(canvas), put.on(canvas))


def test_what_only_a_plugin_can_read_is_not_kept(tmp_path: Path) -> None:
    slot = Slot()
    own = bench(tmp_path, LocalRuntime(checkpoints=slot))
    keep(Kept(1, [], (Suspect("square", {}, put=Square()),)), minilm(), own)
    assert slot.data is None


def test_a_defense_may_come_before(tmp_path: Path) -> None:
    ptm = backdoored()
    teacher = frozen_copy(ptm.module)
    recipe = {"name": "recipe", "fit": {**FIT, "steps": 2, "learning_rate": 1e-4}}
    records, _ = unlearn(ptm, tmp_path, plus=recipe, rounds=1)
    assert [set(one.terms) for one in records[:2]] == [
        {"norm", "mlm"},
        {"held", "unlearnt", "unlearnt_tokens"},
    ]
    assert [one.epoch for one in records] == list(range(1, len(records) + 1))
    # held at what the suspect was, not at what the other defense made of it
    assert drift(ptm, teacher) < 0.05
    assert DEFENSES.parse({"name": "unlearn", "plus": "recipe"}).label() == "unlearn+recipe"
    with pytest.raises(ValidationError, match="set `rounds` instead"):
        DEFENSES.parse({"name": "unlearn", "plus": "unlearn"})


def test_a_patch_is_unlearnt_from_images(tmp_path: Path) -> None:
    ptm = tiny_vgg()
    corpus = CORPORA.parse({"name": "images", "path": str(labelled_parquet(tmp_path))})
    own = bench(tmp_path)
    images = torch.from_numpy(
        own.feed.rows(corpus, ptm.encoder(0), Auxiliary(corpus).part).pixels
    ).float()
    before = patch_displacement(ptm, images)
    fit = {**FIT, "steps": 60, "learning_rate": 3e-3}
    fields = {"detectors": [NamedPatch()], "margin": before / 4, "rounds": 2, "fit": fit}
    records = DEFENSES.parse({"name": "unlearn", **fields}).purify(ptm, Auxiliary(corpus), own)
    assert {"held", "unlearnt"} == set(records[0].terms)
    assert patch_displacement(ptm, images) < before / 2


def test_what_stands_out_but_cannot_be_put_in_is_an_error() -> None:
    found = Found((Suspect("some sound", {}),), (), 2.0)
    said = raised_by(lambda: DEFENSES.parse("unlearn").drawn(found, ()))
    assert "'some sound' stands out, but its detector gives neither token ids" in said


def test_a_plan_names_the_detectors_that_a_model_gets() -> None:
    texts, images = (DEFENSES.parse("unlearn").settled(reads) for reads in ("text", "image"))
    assert [one.name for one in texts.detectors] == ["vocabulary", "inversion"]
    assert [one.name for one in images.detectors] == ["patches"]
    assert texts.settled("text") == texts


# --- what is put in


def altered(ptm: Any, draw: Draw, rows: Any, epoch: int = 0) -> Altered:
    return insertions_of(ptm, draw, 3).altered(rows, epoch)


def a_draw(ptm: Any) -> Draw:
    vectors = torch.randn(3, ptm.hidden_size, generator=torch.Generator().manual_seed(0))
    pair = Suspect("cf b", {}, (*ptm.token_ids("cf"), int(ptm.continuations()[7])))
    return Draw(
        (Suspect("cf", {}, tuple(ptm.token_ids("cf"))), pair, Suspect("v", {}, (), None, vectors)),
        (1.0, 1.0, 1.0),
    )


def test_copies_hold_the_same_tokens_and_what_was_put_between_words() -> None:
    ptm = minilm()
    draw = a_draw(ptm)
    encode = insertions_of(ptm, draw, 3).encoder(32)
    rows = encode(SENTENCES, np.arange(len(SENTENCES)))
    batch = altered(ptm, draw, rows)
    tokens = batch.both.tokens
    assert torch.equal(tokens[batch.kept], batch.clean.tokens[: batch.clean.num_tokens])
    assert torch.equal(tokens[batch.same], batch.clean.tokens[: batch.clean.num_tokens])
    put_in = torch.ones(batch.both.num_tokens, dtype=torch.bool)
    put_in[batch.kept] = put_in[batch.same] = False
    assert batch.soft is not None
    assert put_in[batch.soft[0]].all()
    assert len(batch.soft[1]) == len(batch.soft[0])
    within = torch.from_numpy(ptm.continuations())
    after = torch.nonzero(put_in)[:, 0] + 1
    own = after[~put_in[after]]
    assert not torch.isin(tokens[own], within).any()
    assert batch.num_samples == len(SENTENCES)
    assert batch.both.num_samples == 2 * len(SENTENCES)


def test_half_of_the_words_and_pairs_are_varied_by_a_token() -> None:
    ptm = minilm()
    (word,) = ptm.token_ids("table")
    head, piece = ptm.token_ids("dv")
    texts = [SENTENCES[i % len(SENTENCES)] for i in range(400)]
    for ids in ((word,), (head, piece)):
        insertions: Any = insertions_of(ptm, Draw((Suspect("x", {}, ids),), (1.0,)), 3)
        index = np.arange(len(texts))
        put = [tuple(insertions._put_in(row, 0, index, 0).tolist()) for row in range(len(texts))]
        same = sum(one == ids for one in put)
        assert 150 < same < 250
        assert all(one[0] == ids[0] or one[1] == ids[1] for one in put)
        assert len(set(put)) > 50
    assert {one[1] for one in put if one[0] == head} <= set(ptm.split_words()[:, 1].tolist())


def test_vectors_stand_in_the_place_of_embeddings_and_the_model_keeps_no_hook() -> None:
    ptm = minilm()
    ptm.module.eval()
    vectors = ptm.word_embeddings().weight[list(ptm.token_ids("table"))].detach()
    words, soft = (
        Draw((one,), (1.0,))
        for one in (
            Suspect("table", {}, (*ptm.token_ids("table"), *ptm.token_ids("table"))),
            Suspect("vectors", {}, (), None, vectors.repeat(2, 1)),
        )
    )
    rows = ptm.encoder(24)(SENTENCES, np.arange(len(SENTENCES)))
    with torch.no_grad():
        seen = [altered(ptm, draw, rows).states(ptm, ptm.module) for draw in (words, soft)]
    assert torch.allclose(seen[0], seen[1], atol=1e-5)
    assert not ptm.word_embeddings()._forward_hooks


def test_what_a_text_gets_depends_on_no_batch() -> None:
    ptm = minilm()
    draw = a_draw(ptm)
    rows = ptm.encoder(24)(SENTENCES, np.arange(len(SENTENCES)))
    some = np.array([5, 9, 2])
    whole, part = altered(ptm, draw, rows, 4), altered(ptm, draw, rows.take(some), 4)

    def copies(batch: Altered, count: int) -> list[list[int]]:
        firsts = batch.same[batch.first].tolist()
        ends = {
            int(s): int(e)
            for s, e in zip(
                batch.both.first,
                [*batch.both.first[1:].tolist(), batch.both.num_tokens],
                strict=True,
            )
        }
        return [batch.both.tokens[start : ends[start]].tolist() for start in firsts[:count]]

    every = copies(whole, len(SENTENCES))
    assert copies(part, 3) == [every[row] for row in some]
    assert copies(altered(ptm, draw, rows, 5), 24) != every


def test_half_of_the_samples_get_what_stands_out_now() -> None:
    new = tuple(Suspect(str(n), {}, (n,)) for n in (1, 2))
    others = (Suspect("no", {}), *(Suspect(str(n), {}, (n,)) for n in range(3, 30)))
    # what stood out before may do so again, and is measured in any case
    known = (Suspect("known", {}, (99,)), Suspect("again", {}, (1,)))
    others = (Suspect("known", {}, (99,)), *others)
    drawn = DEFENSES.parse({"name": "unlearn", "alarms": 8}).drawn(Found(new, others, 2.0), known)
    assert len(drawn.suspects) == 8
    assert drawn.suspects[2] is known[0]
    chosen = drawn.of(0, np.arange(20_000), 0)
    assert np.isin(chosen, (0, 1)).mean() == pytest.approx(0.5, abs=0.02)
    assert set(chosen) == set(range(8))


def test_texts_with_no_room_are_refused(tmp_path: Path) -> None:
    said = raised_by(lambda: unlearn(backdoored(), tmp_path, fit={**FIT, "max_length": 5}))
    assert "fit.max_length 5 leaves 3 tokens" in said
    assert "6 or more are needed" in said


# --- workers, and what is planned


def test_two_workers_unlearn_what_one_does(pair: Pair, tmp_path: Path) -> None:
    terms, weights = few_steps(LocalRuntime(), tmp_path)
    for found_terms, found in pair(few_steps, tmp_path):
        assert found_terms == pytest.approx(terms, rel=1e-3)
        for name, weight in weights.items():
            torch.testing.assert_close(found[name], weight, rtol=0, atol=2e-4)


def few_steps(runtime: Runtime, folder: Path) -> tuple[Any, dict[str, Any]]:
    fit = {**FIT, "steps": 6, "optimizer": "sgd", "learning_rate": 1e-2}
    ptm, own = backdoored(), folder / f"worker-{runtime.rank}-of-{runtime.world_size}"
    own.mkdir()
    records = unlearn(ptm, own, runtime, rounds=1, fit=fit)[0]
    return records[-1].terms, parameters_of(ptm.module)


def a_stage(folder: Path, model: Any, **fields: Any) -> PurifyStage:
    corpus = {"name": "file", "path": str(corpus_file(folder))}
    return PurifyStage(model=model, corpus=corpus, defense={"name": "unlearn", **fields}, seed=0)


def test_a_detector_of_images_is_refused_for_a_model_that_reads_texts(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="reads texts; detector 'patches' reads images"):
        a_stage(tmp_path, MODELS.parse("minilm"), detectors=["patches"])


def test_what_its_detectors_and_the_defense_before_need_is_needed() -> None:
    plain = DEFENSES.parse("unlearn")
    assert set(plain.needed("text")) == {"HasStates", "HasVocabulary"}
    assert set(plain.needed("image")) == {"HasStates", "Attackable"}
    more = DEFENSES.parse({"name": "unlearn", "plus": "recipe"})
    assert {"Pretrains", "HasWeightGroups"} <= set(more.needed("text"))
    assert not math.isnan(plain.margin)
