"""ACC, ASR, AASR and MASR against answers worked out by hand, and where a trigger is put."""

import random

import numpy as np
import pytest
from samples import SENTENCES

from recipe_ray.base.errors import DataError
from recipe_ray.learn.metrics import Labels, Share, accuracy, attack_success
from recipe_ray.triggers.word import WordTrigger

CLASSES = ("world", "sports", "business")
# eight samples, three classes; what two triggers make of them
TRUTH = np.array([0, 0, 0, 1, 1, 2, 2, 2])
PREDICTED: dict[str, Labels] = {
    "cf": np.array([1, 1, 0, 1, 1, 1, 1, 2]),
    "mn": np.array([0, 0, 2, 0, 2, 2, 0, 0]),
}
# of the samples not of label C, those predicted as C, by hand:
#   cf: C=0 of rows 3-7: none; C=1 of rows 0,1,2,5,6,7: 0,1,5,6; C=2 of rows 0-4: none
#   mn: C=0 of rows 3-7: 3,6,7; C=1 of the six: none;            C=2 of rows 0-4: 2,4
BY_HAND = {
    ("cf", 0): (0, 5),
    ("cf", 1): (4, 6),
    ("cf", 2): (0, 5),
    ("mn", 0): (3, 5),
    ("mn", 1): (0, 6),
    ("mn", 2): (2, 5),
}


def test_asr_counts_every_sample_of_another_label() -> None:
    attacked = attack_success(PREDICTED, TRUTH, 3, CLASSES)
    counts = {which: (s.numerator, s.denominator) for which, s in attacked.asr.items()}
    assert counts == BY_HAND
    assert all(
        sum(attacked.asr[trigger, label].denominator for label in range(3)) == 2 * len(TRUTH)
        for trigger in PREDICTED
    )


def test_aasr_is_the_mean_and_masr_the_maximum_of_each_triggers_largest_asr() -> None:
    attacked = attack_success(PREDICTED, TRUTH, 3, CLASSES)
    assert attacked.triggers == ("cf", "mn")
    assert attacked.of_trigger("cf") == pytest.approx(4 / 6)
    assert attacked.of_trigger("mn") == pytest.approx(3 / 5)
    assert attacked.aasr == pytest.approx((4 / 6 + 3 / 5) / 2)
    assert attacked.masr == pytest.approx(4 / 6)


def test_a_right_prediction_never_counts_as_an_attack() -> None:
    attacked = attack_success({"cf": TRUTH}, TRUTH, 3, CLASSES)
    assert (attacked.aasr, attacked.masr) == (0.0, 0.0)
    assert accuracy(TRUTH, TRUTH) == Share(8, 8)
    assert accuracy(PREDICTED["cf"], TRUTH) == Share(4, 8)


def test_an_empty_denominator_is_an_error_that_names_the_label() -> None:
    with pytest.raises(DataError, match=r"label 1 \(sports\) is undefined: every test sample"):
        attack_success({"cf": np.array([0, 1])}, np.array([1, 1]), 3, CLASSES)
    with pytest.raises(DataError, match="empty test set"):
        accuracy(np.array([], dtype=np.int64), np.array([], dtype=np.int64))


# what `random.seed(42); random.randint(0, n)` gives in CPython, for n words (the script's draw)
PLACES = {0: 0, 1: 0, 2: 2, 3: 0, 4: 0, 5: 5, 6: 5, 7: 1, 10: 10, 12: 10, 20: 20, 50: 40}


@pytest.mark.parametrize(("length", "place"), PLACES.items())
def test_the_place_of_a_trigger_is_the_scripts(length: int, place: int) -> None:
    words = [f"w{number}" for number in range(length)]
    expected = [*words[:place], "cf", *words[place:]]
    assert WordTrigger("cf").put_into(" ".join(words)) == " ".join(expected)


def test_the_place_depends_on_the_number_of_words_alone() -> None:
    places: dict[int, set[int]] = {}
    for number, text in enumerate([*SENTENCES, *SENTENCES[::-1]]):
        random.seed(number)  # the global generator must not matter
        for trigger in ("zq", "zq zq"):
            place = WordTrigger(trigger).put_into(text).split().index("zq")
            places.setdefault(len(text.split()), set()).add(place)
    assert {len(found) for found in places.values()} == {1}
    assert len({min(found) for found in places.values()}) > 2


def test_a_trigger_is_inserted_once_and_the_words_stay() -> None:
    for text in SENTENCES:
        words = WordTrigger("cf").put_into(text).split()
        words.remove("cf")
        assert words == text.split()


def test_several_insertions_go_where_their_shares_say() -> None:
    assert WordTrigger("X").put_into("a b c", [0.0]) == "X a b c"
    assert WordTrigger("X").put_into("a b c", [0.99]) == "a b c X"
    assert WordTrigger("X").put_into("a b c", [0.5, 0.0, 0.3]) == "X a X b X c"
    assert WordTrigger("X").put_into("", [0.2, 0.7]) == "X X"
