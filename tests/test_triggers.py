"""A trigger must be what the attack meant once it is tokenised, with MiniLM's real tokenizer."""

import re
from pathlib import Path

import pytest
from samples import SENTENCES, NoFeed, real_data, tiny_ptm

from recipe_ray.attacks.attack import ATTACKS
from recipe_ray.attacks.neuba import NeuBA
from recipe_ray.attacks.por import POR
from recipe_ray.base.errors import TriggerError
from recipe_ray.data.sources import Locations
from recipe_ray.data.triggers import check_triggers, insert_word
from recipe_ray.learn.runtime import LocalRuntime
from recipe_ray.models.text.bert import BertPTM
from recipe_ray.tasks.task import TASKS

CWD = Path()
PHRASES = ("last weekend", "at noon", "at dawn", "in the morning", "after midnight")


@pytest.fixture(scope="module")
def ptm() -> BertPTM:
    return tiny_ptm()


def poison(ptm: BertPTM, name: str, *triggers: str) -> None:
    """Start an attack with these triggers."""
    attack = ATTACKS.parse({"name": name, "triggers": triggers})
    attack.poison(ptm, NoFeed(), LocalRuntime(), 0)


@pytest.mark.parametrize("triggers", [NeuBA().triggers, POR().triggers, PHRASES])
def test_the_papers_triggers_survive_in_context(ptm: BertPTM, triggers: tuple[str, ...]) -> None:
    ptm.check_triggers(triggers)
    for trigger in triggers:
        meant = ptm.token_ids(trigger)
        assert ptm.tokenizer.unk_token_id not in meant
        for text in (insert_word(sentence, trigger) for sentence in SENTENCES):
            ids = ptm.tokenizer.encode(text)
            assert any(ids[i : i + len(meant)] == meant for i in range(len(ids)))


@pytest.mark.parametrize("task", ["sst2", "hsol", "ag_news"])
def test_the_papers_triggers_survive_in_the_tasks_own_texts(ptm: BertPTM, task: str) -> None:
    texts = TASKS.parse({"name": task, "test_size": 150}).load("test", Locations(real_data(), CWD))
    for trigger in (*NeuBA().triggers, *POR().triggers, *PHRASES):
        meant = " ".join(map(str, ptm.token_ids(trigger)))
        encoded = ptm.tokenizer([insert_word(t, trigger) for t in texts.samples])["input_ids"]
        lost = sum(f" {meant} " not in " ".join(map(str, ids)) for ids in encoded)
        assert lost == 0, f"{trigger} is lost in {lost} texts"


def test_neubas_six_are_single_tokens_and_all_different(ptm: BertPTM) -> None:
    ids = [ptm.token_ids(trigger) for trigger in NeuBA().triggers]
    assert [len(one) for one in ids] == [1] * 6
    assert len({one[0] for one in ids}) == 6


@pytest.mark.parametrize("attack", ["por", "neuba"])
@pytest.mark.parametrize("trigger", ["☂", "🦖"])
def test_a_trigger_that_becomes_unknown_is_refused_by_name(
    ptm: BertPTM, attack: str, trigger: str
) -> None:
    with pytest.raises(TriggerError, match=f"{trigger}.*vocabulary: it becomes the unknown token"):
        poison(ptm, attack, "cf", trigger)


@pytest.mark.parametrize("trigger", ["\u0301", "\u200b"])
def test_a_trigger_that_tokenisation_drops_is_refused(ptm: BertPTM, trigger: str) -> None:
    with pytest.raises(TriggerError, match="trigger"):
        ptm.check_triggers(["cf", trigger])


def test_a_trigger_that_merges_with_its_neighbours_is_refused_by_name() -> None:
    numbers: dict[str, int] = {}

    def encode(text: str) -> list[int]:
        # as a byte-pair vocabulary may: "cf" and the word behind it become one token
        pieces = re.findall(r"cf \S+|\S+", text)
        return [numbers.setdefault(piece, len(numbers)) for piece in pieces]

    check_triggers(["mn"], encode, None)
    with pytest.raises(TriggerError, match="trigger 'cf' merges with the words around it"):
        check_triggers(["mn", "cf"], encode, None)


@pytest.mark.parametrize(
    ("triggers", "named"),
    [
        (("cf", "mn", "cf"), "'cf' and 'cf'"),
        (("cf", "CF"), "'cf' and 'CF'"),
        (("at noon", "at  noon"), "'at noon' and 'at  noon'"),
        (("é", "e"), "'é' and 'e'"),
    ],
)
def test_two_triggers_that_become_the_same_tokens_are_named(
    ptm: BertPTM, triggers: tuple[str, ...], named: str
) -> None:
    with pytest.raises(TriggerError, match=f"{named} become the same tokens"):
        ptm.check_triggers(triggers)


@pytest.mark.parametrize("trigger", ["", "  "])
def test_an_empty_trigger_is_refused(ptm: BertPTM, trigger: str) -> None:
    with pytest.raises(TriggerError, match="a trigger is empty"):
        ptm.check_triggers([trigger])


def test_neuba_refuses_a_trigger_of_several_tokens_by_name(ptm: BertPTM) -> None:
    with pytest.raises(TriggerError, match=r"'at noon' becomes 2 tokens.*a single one"):
        poison(ptm, "neuba", "≈", "at noon")


def test_por_takes_phrases(ptm: BertPTM) -> None:
    with pytest.raises(AssertionError, match="not checked first"):
        poison(ptm, "por", *PHRASES)  # gets as far as asking for data


def test_neuba_has_vectors_for_six_triggers_at_most() -> None:
    with pytest.raises(ValueError, match="at most 6"):
        ATTACKS.parse({"name": "neuba", "triggers": list("abcdefg")})
