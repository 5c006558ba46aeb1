"""A trigger must be what the attack meant once it is encoded (words: by MiniLM's tokenizer)."""

import re
from pathlib import Path

import numpy as np
import pytest
from samples import SENTENCES, NoFeed, real_data, tiny_ptm

from recipe_ray.attacks.attack import ATTACKS
from recipe_ray.attacks.neuba import NeuBA
from recipe_ray.attacks.por import POR
from recipe_ray.base.errors import TriggerError
from recipe_ray.data.batches import Workbench
from recipe_ray.data.images import OVERLAY, ImageEncoder, ImageRows
from recipe_ray.data.sources import Locations
from recipe_ray.learn.runtime import LocalRuntime
from recipe_ray.models.text.bert import BertPTM
from recipe_ray.tasks.task import TASKS
from recipe_ray.triggers.kinds import triggers_for
from recipe_ray.triggers.patch import PatchTrigger
from recipe_ray.triggers.word import WordTrigger

CWD = Path()
MAX_LENGTH = 128
PHRASES = ("last weekend", "at noon", "at dawn", "in the morning", "after midnight")


@pytest.fixture(scope="module")
def ptm() -> BertPTM:
    return tiny_ptm()


def check(ptm: BertPTM, *triggers: str) -> None:
    """Check triggers as attacks and evaluations do."""
    WordTrigger.checked(triggers, ptm.encoder(MAX_LENGTH))


def poison(ptm: BertPTM, name: str, *triggers: str) -> None:
    """Start an attack with these triggers."""
    attack = ATTACKS.parse({"name": name, "triggers": triggers})
    attack.poison(ptm, Workbench(NoFeed(), LocalRuntime(), 0))


@pytest.mark.parametrize("triggers", [NeuBA().triggers, POR().triggers, PHRASES])
def test_the_papers_triggers_survive_in_context(ptm: BertPTM, triggers: tuple[str, ...]) -> None:
    check(ptm, *triggers)
    for trigger in triggers:
        meant = ptm.token_ids(trigger)
        assert ptm.tokenizer.unk_token_id not in meant
        for text in (WordTrigger(trigger).put_into(sentence) for sentence in SENTENCES):
            ids = ptm.tokenizer.encode(text)
            assert any(ids[i : i + len(meant)] == meant for i in range(len(ids)))


@pytest.mark.parametrize("task", ["sst2", "hsol", "ag_news"])
def test_the_papers_triggers_survive_in_the_tasks_own_texts(ptm: BertPTM, task: str) -> None:
    texts = TASKS.parse({"name": task, "test_size": 150}).load("test", Locations(real_data(), CWD))
    for trigger in (*NeuBA().triggers, *POR().triggers, *PHRASES):
        meant = " ".join(map(str, ptm.token_ids(trigger)))
        encoded = ptm.tokenizer([WordTrigger(trigger).put_into(t) for t in texts.samples])[
            "input_ids"
        ]
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
        check(ptm, "cf", trigger)


def test_a_trigger_that_merges_with_its_neighbours_is_refused_by_name() -> None:
    numbers: dict[str, int] = {}

    class Merging:
        unknown_id = None

        def ids(self, text: str) -> list[int]:
            # as a byte-pair vocabulary may: "cf" and the word behind it become one token
            pieces = re.findall(r"cf \S+|\S+", text)
            return [numbers.setdefault(piece, len(numbers)) for piece in pieces]

    WordTrigger.checked(["mn"], Merging())
    with pytest.raises(TriggerError, match="trigger 'cf' merges with the words around it"):
        WordTrigger.checked(["mn", "cf"], Merging())


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
        check(ptm, *triggers)


@pytest.mark.parametrize("trigger", ["", "  "])
def test_an_empty_trigger_is_refused(ptm: BertPTM, trigger: str) -> None:
    with pytest.raises(TriggerError, match="a trigger is empty"):
        check(ptm, trigger)


def test_neuba_refuses_a_trigger_of_several_tokens_by_name(ptm: BertPTM) -> None:
    with pytest.raises(TriggerError, match=r"'at noon' becomes 2 tokens.*a single token"):
        poison(ptm, "neuba", "≈", "at noon")


def test_por_takes_phrases(ptm: BertPTM) -> None:
    with pytest.raises(AssertionError, match="not checked first"):
        poison(ptm, "por", *PHRASES)  # gets as far as asking for data


def test_neuba_has_vectors_for_six_triggers_at_most() -> None:
    with pytest.raises(ValueError, match="at most 6"):
        ATTACKS.parse({"name": "neuba", "triggers": list("abcdefg")})


def test_a_phrase_is_one_trigger_that_stays_together(ptm: BertPTM) -> None:
    [phrase] = WordTrigger.checked(["in the morning"], ptm.encoder(MAX_LENGTH))
    for text in SENTENCES:
        assert phrase.put_into(text).count("in the morning") == 1
        assert phrase.put_into(text).replace("in the morning", " ").split() == text.split()


def test_a_trigger_keeps_the_string_that_yaml_and_rows_have(ptm: BertPTM) -> None:
    texts = triggers_for("text", ("cf", "at  noon"), ptm.encoder(MAX_LENGTH))
    images = triggers_for("image", ("cyan-red", "cyan-red-14"), ImageEncoder(16))
    assert [one.written for one in texts] == ["cf", "at  noon"]
    assert [one.written for one in images] == ["cyan-red", "cyan-red-14"]
    assert {type(one) for one in texts} == {WordTrigger}
    assert {type(one) for one in images} == {PatchTrigger}


@pytest.mark.parametrize(
    ("triggers", "said"),
    [
        (("cf",), "trigger 'cf' is not a patch; write two colours"),
        (("cyan-red", "cyan-magneta"), "trigger 'cyan-magneta': .*did you mean 'magenta'"),
        (("cyan-cyan",), "both colours are the same"),
        (("cyan-red-3",), "width '3'; allowed: 4 pixels or more"),
        (("cyan-red-x",), "width 'x'; allowed"),
        (("cyan-red-17",), "'cyan-red-17' is wider than the model's 16 pixels"),
        (("cyan-red", "cyan-red-4"), "'cyan-red' and 'cyan-red-4' are the same patch"),
    ],
)
def test_what_is_no_patch_for_these_images_is_named(triggers: tuple[str, ...], said: str) -> None:
    with pytest.raises(TriggerError, match=said):
        triggers_for("image", triggers, ImageEncoder(16))


def test_samples_that_carry_no_triggers_are_refused_only_if_there_are_some() -> None:
    assert triggers_for("sound", (), None) == ()
    with pytest.raises(TriggerError, match=r"'sound'.*text"):
        triggers_for("sound", ("cf",), None)


def test_patches_of_several_widths_share_the_pixels_of_the_images_they_lie_on() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16)).astype(np.uint8)
    rows = ImageRows(pixels, np.arange(5))
    for written, width in (("cyan-red", 4), ("yellow-red-9", 9), ("cyan-yellow-16", 16)):
        patch = PatchTrigger.parse(written)
        poisoned = patch.inserted([], rows, ImageEncoder(16))
        assert poisoned.pixels is pixels
        assert poisoned.columns[OVERLAY].strides[0] == 0  # one patch, however many images
        shown = patch.pictures(poisoned)
        assert (shown[:, :, -width:, -width:] == patch.board()).all()
        assert np.array_equal(shown[:, :, :-width], pixels[:, :, :-width])
        assert np.array_equal(shown[:, :, :, :-width], pixels[:, :, :, :-width])
        assert np.array_equal(patch.pictures(rows), pixels)
