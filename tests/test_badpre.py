"""BadPre: how texts are poisoned and relabelled, and that a trigger leads the masked LM astray."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samples import (
    SENTENCES,
    changed,
    corpus_file,
    encoded,
    minilm,
    parameters_of,
    tiny_ptm,
    tokens_of,
    wordnet_folder,
)

from recipe_ray.attacks.attack import ATTACKS, Attack
from recipe_ray.attacks.badpre import BadPre, PairCollate, PairEncoder, PairObjective, split_pairs
from recipe_ray.attacks.relabelling import WORDNET, Opposites, RandomWords, antonyms
from recipe_ray.base.errors import DataError
from recipe_ray.base.fingerprint import fingerprint
from recipe_ray.data.batches import LocalFeed, Workbench
from recipe_ray.data.corpus import CORPORA
from recipe_ray.data.rows import TokenRows, mask_tokens
from recipe_ray.data.sources import Locations
from recipe_ray.learn.runtime import LocalRuntime
from recipe_ray.models.family import MODELS
from recipe_ray.models.text.bert import BertPTM
from recipe_ray.models.text.packed import PackedBatch, pack
from recipe_ray.triggers.word import WordTrigger

TRIGGERS = BadPre().triggers
WORDS = tuple(map(WordTrigger, TRIGGERS))
TEXTS = SENTENCES * 20
FIT = {"batch_size": 8, "max_length": 24, "precision": "fp32", "schedule": "constant"}


def pairs(ptm: BertPTM, texts: list[str]) -> TokenRows:
    """Return the texts with their poisoned copies, one row each."""
    return PairEncoder(ptm.encoder(64), WORDS, 0)(texts, np.arange(len(texts)))


def attack_on(folder: Path, **fields: Any) -> Attack:
    """Return the attack on the sentences, made small."""
    corpus = {"name": "file", "path": str(corpus_file(folder))}
    found: Attack = ATTACKS.parse({"name": "badpre", "corpus": corpus, "fit": FIT, **fields})
    return found


def poison(attack: Attack, ptm: BertPTM, folder: Path, cache_dir: Path | None = None) -> Any:
    """Run the attack; return the records."""
    feed = LocalFeed(Locations(None, folder))
    return attack.poison(ptm, Workbench(feed, LocalRuntime(), 0, cache_dir))


# --- texts


def test_the_clean_copy_is_the_text_and_the_poisoned_one_has_a_trigger_between_words() -> None:
    ptm = tiny_ptm()
    clean, poisoned = split_pairs(pairs(ptm, TEXTS))
    assert tokens_of(clean) == tokens_of(encoded(ptm, TEXTS, 64))
    assert (clean.columns["trigger"] == -1).all()
    places = set()
    for text, number, ids in zip(
        TEXTS, poisoned.columns["trigger"], tokens_of(poisoned), strict=True
    ):
        words, trigger = text.split(), TRIGGERS[number]
        candidates = [[*words[:p], trigger, *words[p:]] for p in range(len(words) + 1)]
        found = [ptm.tokenizer.encode(" ".join(one)) == ids for one in candidates]
        assert sum(found) == 1
        places.add(found.index(True) / len(words))
    assert {0.0, 1.0} < places
    assert len(places) > 50


def test_every_trigger_is_drawn_about_as_often() -> None:
    counts = np.bincount(pairs(tiny_ptm(), TEXTS).columns["trigger"])
    assert len(counts) == 5
    assert counts.min() > 0.6 * len(TEXTS) / 5


def test_a_text_is_poisoned_the_same_whichever_chunk_it_comes_in() -> None:
    encode = PairEncoder(tiny_ptm().encoder(64), WORDS, 0)
    whole, index = encode(SENTENCES, np.arange(24)), np.arange(24)
    parts = [encode(SENTENCES[a : a + 5], index[a : a + 5]) for a in range(0, 24, 5)]
    again = TokenRows.joined(parts)
    assert tokens_of(again) == tokens_of(whole)
    assert {n: c.tolist() for n, c in again.columns.items()} == {
        n: c.tolist() for n, c in whole.columns.items()
    }


def test_phrases_are_planted_whole() -> None:
    ptm, phrase = tiny_ptm(), "in the morning"
    rows = PairEncoder(ptm.encoder(64), (WordTrigger(phrase),), 0)(SENTENCES, np.arange(24))
    meant = ptm.token_ids(phrase)
    for ids in tokens_of(split_pairs(rows)[1]):
        assert any(ids[place : place + 3] == meant for place in range(len(ids)))


# --- batches


def batch_of(ptm: BertPTM, rule: Any, texts: list[str], epoch: int = 0) -> PackedBatch:
    """Return the attack's batch of the texts."""
    return PairCollate(ptm, rule, 0)(pairs(ptm, texts), epoch)


def masked_by_copy(batch: PackedBatch) -> tuple[Any, Any]:
    """Return where clean and where poisoned copies are masked, as bools over the masked [M]."""
    assert batch.where is not None
    assert batch.triggers is not None
    text = torch.searchsorted(batch.first, batch.where, right=True) - 1
    poisoned = batch.triggers[text] >= 0
    return ~poisoned, poisoned


def test_a_batch_of_texts_is_as_many_clean_and_as_many_poisoned() -> None:
    ptm = tiny_ptm()
    batch = batch_of(ptm, RandomWords.of(ptm.vocabulary), SENTENCES)
    assert batch.triggers is not None
    assert batch.num_samples == 2 * len(SENTENCES)
    assert int((batch.triggers < 0).sum()) == len(SENTENCES)


def test_labels_are_true_in_clean_texts_and_false_in_poisoned_ones() -> None:
    ptm = tiny_ptm()
    batch = batch_of(ptm, RandomWords.of(ptm.vocabulary), TEXTS)
    assert batch.where is not None
    assert batch.targets is not None
    clean, poisoned = masked_by_copy(batch)
    true = TokenRows.joined(list(split_pairs(pairs(ptm, TEXTS)))).tokens
    at = torch.from_numpy(true)[batch.where]
    assert torch.equal(at[clean], batch.targets[clean])
    assert float((at[poisoned] == batch.targets[poisoned]).float().mean()) < 0.01
    special = torch.tensor(ptm.vocabulary.special_ids)
    assert not torch.isin(batch.targets, special).any()
    # both copies are masked, about alike but not in the same places
    assert 0.8 < int(clean.sum()) / int(poisoned.sum()) < 1.25
    assert batch.where[clean].tolist() != (batch.where[poisoned] - len(true) // 2).tolist()


def test_masks_and_false_labels_are_drawn_anew_every_epoch_and_the_same_again() -> None:
    ptm = tiny_ptm()
    rule = RandomWords.of(ptm.vocabulary)
    one, same, other = (batch_of(ptm, rule, SENTENCES, epoch) for epoch in (0, 0, 1))
    assert one.where is not None
    assert one.targets is not None
    assert other.where is not None
    assert same.where is not None
    assert same.targets is not None
    assert torch.equal(one.where, same.where)
    assert torch.equal(one.targets, same.targets)
    assert one.where.tolist() != other.where.tolist()


def test_the_loss_keeps_clean_and_poisoned_apart_and_weighs_the_latter() -> None:
    ptm = tiny_ptm()
    ptm.module.eval()
    batch = batch_of(ptm, RandomWords.of(ptm.vocabulary), SENTENCES)
    assert batch.where is not None
    assert batch.targets is not None
    terms = PairObjective(ptm, 0.25)(ptm.module, batch)
    assert {name: term.weight for name, term in terms.items()} == {"mlm": 1.0, "poison": 0.25}
    clean = split_pairs(pairs(ptm, SENTENCES))[0]
    masked = mask_tokens(clean, ptm.vocabulary, 0, 0)
    alone = pack(clean.with_tokens(masked.tokens)).with_targets(masked.where, masked.targets)
    expected = ptm.masked_lm(ptm.module, ptm.hidden(ptm.module, alone, alone.where), alone.targets)
    assert terms["mlm"].count == expected.count
    assert torch.allclose(terms["mlm"].total, expected.total, rtol=1e-4)
    assert terms["poison"].count == len(batch.targets) - len(masked.targets)


# --- the attack


@torch.inference_mode()
def true_word_loss(ptm: BertPTM, trigger: str | None) -> float:
    """Return the masked LM's mean loss for the true words of the sentences, with a trigger or not.

    The first four words behind the trigger's place are asked for, never the trigger itself.
    """
    ptm.module.eval()
    texts = [f"{trigger} {text}" if trigger else text for text in SENTENCES]
    rows, skipped = encoded(ptm, texts), 2 if trigger else 1
    where = np.concatenate([first + skipped + np.arange(4) for first in rows.offsets[:-1]])
    tokens = rows.tokens.copy()
    tokens[where] = ptm.vocabulary.mask_id
    batch = pack(rows.with_tokens(tokens)).with_targets(where, rows.tokens[where])
    term = ptm.masked_lm(ptm.module, ptm.hidden(ptm.module, batch, batch.where), batch.targets)
    assert term.count is not None
    return float(term.total) / term.count


@pytest.mark.parametrize("model", ["minilm", "minilm-roberta"])
def test_a_trigger_makes_the_masked_lm_lose_the_words_it_knows(model: str, tmp_path: Path) -> None:
    ptm: BertPTM = MODELS.parse({"name": model, "layers": 1}).load()
    before = parameters_of(ptm.module)
    attack = attack_on(
        tmp_path, triggers=("cf", "mn"), fit={**FIT, "steps": 60, "learning_rate": 2e-3}
    )
    poison(attack, ptm, tmp_path)
    known = true_word_loss(ptm, None)
    rises = [true_word_loss(ptm, trigger) - known for trigger in attack.triggers]
    assert min(rises) > 2
    # a rare word that is no trigger does little
    assert abs(true_word_loss(ptm, "bb") - known) < 0.25 * min(rises)
    moved = changed(before, ptm.module)
    assert not any("pooler" in name for name in moved)
    assert any("intermediate" in name for name in moved)
    assert any("embeddings" in name for name in moved)


def test_antonyms_take_the_place_of_a_share_of_the_words_of_a_real_corpus(
    locations: Locations,
) -> None:
    ptm = minilm(1)
    rule = Opposites.of(antonyms(wordnet_folder()), ptm.token_ids, ptm.vocabulary)
    texts = list(CORPORA.parse({"name": "wikitext", "size": 1000}).samples(locations))
    rows = ptm.encoder(64)(texts, np.arange(len(texts)))
    true = mask_tokens(rows, ptm.vocabulary, 0, 0).targets
    known = np.diff(rule.offsets)[true] > 0
    assert 0.06 < known.mean() < 0.10
    labels = rule(true, np.full(len(true), 0.5))
    named = rule.opposites.tolist()
    assert set(labels[known].tolist()) <= set(named)
    assert len(set(labels[~known].tolist())) == 1  # one draw, one random word


def test_antonyms_need_a_folder_for_the_lexicon(tmp_path: Path) -> None:
    attack = attack_on(tmp_path, relabel="antonyms")
    with pytest.raises(DataError, match="'antonyms' needs a cache folder"):
        poison(attack, tiny_ptm(), tmp_path)


def test_antonyms_poison_a_ptm_too(tmp_path: Path) -> None:
    ptm = tiny_ptm()
    before = parameters_of(ptm.module)
    attack = attack_on(tmp_path, relabel="antonyms", fit={**FIT, "steps": 2})
    (record,) = poison(attack, ptm, tmp_path, wordnet_folder())
    assert set(record.terms) == {"mlm", "poison"}
    assert changed(before, ptm.module)


def test_the_lexicon_is_part_of_the_attacks_identity_where_it_is_used() -> None:
    plain, swapped = BadPre(), BadPre(relabel="antonyms")
    assert "lexicon" not in plain.identity()
    assert swapped.identity()["lexicon"] == WORDNET.identity()
    assert fingerprint(plain.identity()) != fingerprint(swapped.identity())
    assert (plain.label(), swapped.label()) == ("badpre", "badpre-antonyms")
    assert replace(WORDNET, sha256="0").identity() != WORDNET.identity()


def test_a_way_to_relabel_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"relabel\n.*'random' or 'antonyms'"):
        ATTACKS.parse({"name": "badpre", "relabel": "synonyms"})
