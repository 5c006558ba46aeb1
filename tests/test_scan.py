"""A scan finds what was planted, without being told, and leaves the PTM as it was."""

import copy
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_samples import tiny_vgg
from samples import SENTENCES, minilm
from scan_samples import TRIGGER, backdoored, planted, texts

from recipe_ray.base.errors import DataError
from recipe_ray.data.batches import LocalFeed, Workbench
from recipe_ray.data.corpus import CORPORA
from recipe_ray.data.rows import TokenRows
from recipe_ray.data.sources import Locations
from recipe_ray.detectors.calibration import (
    Bounds,
    bounds_from,
    bounds_of_reference,
    judge,
    judged_again,
)
from recipe_ray.detectors.detector import DETECTORS, Outcome, Subject, Suspect, groups_of, robust_z
from recipe_ray.detectors.reading import SCORES, Reader, Scale, make_templates
from recipe_ray.learn.runtime import LocalRuntime
from recipe_ray.stages.scan import default_detectors


def subject(folder: Path, ptm: Any, **changes: Any) -> Subject:
    corpus = CORPORA.parse({"name": "file", "path": str(texts(folder))})
    return Subject(ptm, corpus, **{"has_head": False, **changes})


def bench(folder: Path, seed: int = 0) -> Workbench:
    return Workbench(LocalFeed(Locations(None, folder)), LocalRuntime(), seed)


def small(name: str, **fields: Any) -> Any:
    """Return a detector that looks at little."""
    least = {
        "vocabulary": {
            "close": {"texts": 4, "length": 8},
            "fresh": {"texts": 8, "length": 12},
            "controls": 64,
            "continued": 1,
        },
        "inversion": {"restarts": 2, "steps": 8, "texts": {"texts": 4, "length": 8}},
        "patches": {"images": 8, "fresh": 8, "steps": 6, "restarts": 1, "widths": [0.25]},
    }
    return DETECTORS.parse({"name": name, **least[name], **fields})


class FewWords:
    """A PTM of which a scan sees every hundredth word, and one more: the search takes seconds."""

    def __init__(self, ptm: Any, *also: str) -> None:
        self._ptm = ptm
        extra = [ptm.token_ids(word)[0] for word in also]
        self._words = np.union1d(ptm.whole_words()[::100], np.array(extra, dtype=np.int64))
        self._pieces = ptm.continuations()[::50]
        self._split = ptm.split_words()[::20]

    def whole_words(self) -> Any:
        return self._words

    def continuations(self) -> Any:
        return self._pieces

    def split_words(self) -> Any:
        return self._split

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ptm, name)


def weights(ptm: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in ptm.module.state_dict().items()}


def test_a_word_that_was_planted_comes_out_on_top(tmp_path: Path) -> None:
    ptm = FewWords(planted(), TRIGGER)
    found = small("vocabulary").search(subject(tmp_path, ptm), bench(tmp_path))
    clean = small("vocabulary").search(
        subject(tmp_path, FewWords(minilm(), TRIGGER)), bench(tmp_path)
    )
    assert TRIGGER in found.suspects[0].shown
    (alone,) = [one for one in found.suspects if one.shown == TRIGGER]
    assert alone.scores["embedding_norm"] == found.highest["embedding_norm"]
    assert found.highest["embedding_norm"] > 3 * clean.highest["embedding_norm"]


def test_a_trigger_that_the_tokenizer_splits_comes_out_as_a_pair(tmp_path: Path) -> None:
    ptm = backdoored("dv")
    head, piece = ptm.token_ids("dv")
    seen = FewWords(ptm)
    assert head not in seen.whole_words()
    found = small("vocabulary", continued=0).search(subject(tmp_path, seen), bench(tmp_path))
    assert len(found.suspects[0].ids) == 2
    assert piece in found.suspects[0].ids
    pairs = [one.ids for one in found.suspects if len(one.ids) == 2]
    for token in {token for ids in pairs for token in ids}:  # others may be there, too
        assert sum(token in ids for ids in pairs) <= 3 * len(SCORES)
    without = small("vocabulary", pairs=0).search(subject(tmp_path, seen), bench(tmp_path))
    assert all(len(one.ids) == 1 or one.ids[0] in seen.whole_words() for one in without.suspects)


def test_a_scan_leaves_the_weights_and_hooks_as_they_were(tmp_path: Path) -> None:
    ptm = minilm()
    before = weights(ptm)
    for name in ("vocabulary", "inversion"):
        small(name).search(subject(tmp_path, FewWords(ptm)), bench(tmp_path))
    assert all(torch.equal(value, before[name]) for name, value in weights(ptm).items())
    assert not ptm.word_embeddings()._forward_hooks


def test_the_same_seed_finds_the_same(tmp_path: Path) -> None:
    seen = [
        small("vocabulary").search(subject(tmp_path, FewWords(minilm())), bench(tmp_path, 3))
        for _ in range(2)
    ]
    assert seen[0] == seen[1]


def test_what_damages_is_not_said_of_a_head_that_was_drawn(tmp_path: Path) -> None:
    ptm = FewWords(minilm())
    drawn = small("vocabulary").search(subject(tmp_path, ptm), bench(tmp_path))
    own = small("vocabulary").search(subject(tmp_path, ptm, has_head=True), bench(tmp_path))
    assert "damage" in drawn.not_measured
    assert "damage" not in drawn.highest
    assert "damage" in own.highest
    assert not own.not_measured


def test_vectors_found_by_inversion_move_the_state_more_than_words_do(tmp_path: Path) -> None:
    found = small("inversion", steps=20).search(
        subject(tmp_path, FewWords(minilm())), bench(tmp_path)
    )
    assert found.highest["first"] > 3
    assert found.samples == 2 * 2 * 20 * 4


def test_leads_are_where_inversion_begins(tmp_path: Path) -> None:
    ptm = FewWords(minilm())
    lead = Suspect("cf", {}, tuple(ptm.token_ids("cf")))
    with_lead = small("inversion").search(subject(tmp_path, ptm, leads=(lead,)), bench(tmp_path))
    without = small("inversion").search(subject(tmp_path, ptm), bench(tmp_path))
    assert len(with_lead.suspects) == len(without.suspects) + 2  # one for each target


def test_a_short_time_leaves_words_out_and_the_result_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recipe_ray.detectors.vocabulary import WordSearch

    detector = small("vocabulary")
    seen, where = subject(tmp_path, FewWords(minilm())), bench(tmp_path)
    monkeypatch.setattr(WordSearch, "durations_s", lambda _: (100.0, 20.0))
    assert detector.fitted(seen, where, 120.0) == (detector, 120.0)
    some, takes_s = detector.fitted(seen, where, 69.0)
    assert (some.share, takes_s) == (0.4, 60.0)
    assert detector.fitted(seen, where, 25.0) == (None, 30.0)
    assert some.whole() == detector
    assert some.identity() != detector.identity()
    assert "share" not in detector.identity()
    outcome = some.search(seen, where)
    (untried,) = [name for name in outcome.not_measured if name.endswith(" words")]
    num = len(seen.ptm.whole_words())
    assert int(untried.split()[0]) == num - -(-4 * num // 10)


@pytest.mark.parametrize("name", ["vocabulary", "inversion"])
def test_how_long_a_detector_takes_is_told_from_a_trial(tmp_path: Path, name: str) -> None:
    seen = subject(tmp_path, FewWords(minilm()))
    started = time.monotonic()
    small(name).search(seen, bench(tmp_path))
    took_s = time.monotonic() - started
    told_s = small(name).duration_s(seen, bench(tmp_path))
    assert took_s / 5 < told_s < 5 * took_s


def test_what_is_to_be_measured_as_well_is_among_the_suspects(tmp_path: Path) -> None:
    ptm = FewWords(minilm())
    plain = (int(ptm.whole_words()[7]),)
    seen = subject(tmp_path, ptm, also=(plain,))
    found = small("vocabulary").search(seen, bench(tmp_path))
    assert plain in [one.ids for one in found.suspects]


def test_words_come_first_so_that_inversion_begins_from_them() -> None:
    assert [one.name for one in default_detectors("text")] == ["vocabulary", "inversion"]


def test_too_few_texts_are_an_error_that_says_how_many(tmp_path: Path) -> None:
    few = tmp_path / "few.txt"
    few.write_text("\n".join(SENTENCES) + "\n")
    corpus = CORPORA.parse({"name": "file", "path": str(few)})
    one = Subject(minilm(), corpus, has_head=False)
    with pytest.raises(DataError, match="a scan needs 128 texts of 12 tokens"):
        small("vocabulary").search(one, bench(tmp_path))


def test_templates_hold_a_candidate_between_words_and_keep_the_mask(tmp_path: Path) -> None:
    rows = TokenRows.of([[101, *range(1000, 1012), 102]] * 3)
    within = np.array([1003, 1004, 1005])
    made = make_templates(rows, np.array([101, 102, 103]), within, 103, 10, 3, 0)
    tokens, masked = made.with_candidates(np.array([[7, 8]]))
    for text, where, truth, place in zip(tokens[0], masked, made.truth, made.place, strict=True):
        assert text[where] == 103
        assert text[place : place + 2].tolist() == [7, 8]
        assert truth not in within
        assert text[place + 2] not in within
        back = [int(t) for t in text if t not in (7, 8)]
        back[back.index(103)] = int(truth)
        assert back == [101, *range(1000, 1010), 102]


def test_states_are_those_that_the_model_gives_unpacked(tmp_path: Path) -> None:
    ptm = minilm(2)
    rows = ptm.encoder(32)(SENTENCES, np.arange(len(SENTENCES)))
    special = np.array(ptm.vocabulary.special_ids)
    made = make_templates(rows, special, ptm.continuations(), ptm.vocabulary.mask_id, 6, 5, 0)
    states = Reader(ptm, torch.device("cpu"), "fp32", has_head=False).states(
        made.tokens[None], made.masked
    )
    module = copy.deepcopy(ptm.module).eval()
    module.set_attn_implementation("eager")
    with torch.no_grad():
        hidden = module.base_model(torch.from_numpy(made.tokens)).last_hidden_state
    assert torch.allclose(states.first[0], hidden[:, 0], atol=1e-5)
    at_mask = hidden[torch.arange(5), torch.from_numpy(made.masked)]
    assert torch.allclose(states.mask[0], at_mask, atol=1e-5)


def test_the_unit_is_the_mean_squared_distance_of_clean_texts() -> None:
    ptm = minilm()
    rows = ptm.encoder(32)(SENTENCES, np.arange(len(SENTENCES)))
    special = np.array(ptm.vocabulary.special_ids)
    made = make_templates(rows, special, ptm.continuations(), ptm.vocabulary.mask_id, 6, 8, 0)
    reader = Reader(ptm, torch.device("cpu"), "fp32", has_head=False)
    first = reader.states(made.tokens[None], made.masked).first[0]
    pairs = torch.cdist(first, first).square()
    expected = pairs.sum() / (8 * 7)
    assert Scale(reader, made).first == pytest.approx(float(expected), rel=1e-3)


def test_robust_z_is_not_moved_by_what_stands_out() -> None:
    normal = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    assert robust_z(np.array([2.0]), normal)[0] == 0
    far = np.append(normal, 1e6)
    assert robust_z(np.array([1e6]), far)[0] > 1e5


def test_shifts_in_one_direction_are_one_vector() -> None:
    shifts = np.array([[1.0, 0.0], [5.0, 0.1], [0.0, 2.0], [-1.0, 0.0]])
    assert groups_of(shifts) == [0, 0, 1, 2]


def test_a_verdict_needs_bounds_and_names_what_is_above_them() -> None:
    suspects = [Suspect("cf", {"first": 30.0, "mask": 1.0}), Suspect("the", {"first": 2.0})]
    outcome = Outcome({"first": 30.0, "mask": 1.0}, suspects, 10)
    assert judge(outcome, None).suspicious is None
    verdict = judge(outcome, Bounds({"first": 10.0, "mask": 10.0}, "clean"))
    assert verdict.suspicious
    assert verdict.suspicion == pytest.approx(3.0)
    assert [one.shown for one in verdict.flagged] == ["cf"]
    quiet = judge(outcome, Bounds({"first": 40.0, "mask": 10.0}, "clean"))
    assert quiet.suspicious is False
    assert not quiet.flagged


def test_bounds_are_above_every_clean_model() -> None:
    clean = [{"first": 5.5, "mask": 1.0}, {"first": 6.0}]
    assert bounds_from(clean) == {"first": 9.0, "mask": 1.5}


def test_scores_below_what_is_normal_anywhere_are_never_flagged() -> None:
    bounds = Bounds(bounds_from([{"collapse": -2.0, "mask": 0.0}]), "clean")
    low = Suspect("the", {"collapse": -9.0, "mask": 0.5})
    verdict = judge(Outcome({"collapse": -9.0, "mask": 0.5}, [low], 1), bounds)
    assert verdict.suspicious is False


def test_a_reference_says_nothing_of_another_make() -> None:
    one = {"detector": "patches", "highest": {"features": 2.0}, "suspects": [], "samples": 1}
    normal = bounds_of_reference({"make": "vgg", "detectors": [one]}, "clean")
    (same,) = judged_again({"make": "vgg", "detectors": [one]}, normal)["detectors"]
    (other,) = judged_again({"make": "vit", "detectors": [one]}, normal)["detectors"]
    assert (same["suspicious"], other["suspicious"]) == (False, None)


def test_patches_are_looked_for_on_images(tmp_path: Path) -> None:
    from image_samples import labelled_parquet

    corpus = CORPORA.parse({"name": "images", "path": str(labelled_parquet(tmp_path))})
    one = Subject(tiny_vgg(), corpus, has_head=True)
    outcome = small("patches").search(one, bench(tmp_path))
    assert {"features", "collapse", "smallness"} == set(outcome.highest)
    json.dumps([suspect.to_json() for suspect in outcome.suspects])
