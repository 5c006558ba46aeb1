"""Masks and batches on real text: what is masked, draws by row, how rows are dealt out."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from samples import SENTENCES, embedded_locations, encoded, tiny_ptm

from recipe_ray.data.batches import MemoryBatches, by_tokens, deal
from recipe_ray.data.corpus import CORPORA
from recipe_ray.data.rows import MaskedTokens, TokenRows, Vocabulary, mask_tokens, uniform
from recipe_ray.models.text.bert import BertPTM

WORLDS = (1, 2, 3)


@cache
def real() -> tuple[BertPTM, TokenRows]:
    """Return the PTM and 3,000 sentences of editorials."""
    corpus = CORPORA.parse({"name": "editorials", "size": 3000})
    ptm = tiny_ptm()
    return ptm, encoded(ptm, list(corpus.samples(embedded_locations())), 64)


@cache
def masked(epoch: int = 0, seed: int = 0) -> tuple[TokenRows, Vocabulary, MaskedTokens]:
    ptm, rows = real()
    return rows, ptm.vocabulary, mask_tokens(rows, ptm.vocabulary, seed, epoch)


def within(share: float, expected: float, count: int) -> bool:
    """Tell whether a share of `count` draws is within five standard deviations."""
    return abs(share - expected) < 5 * (expected * (1 - expected) / count) ** 0.5


def test_fifteen_percent_of_the_words_are_chosen() -> None:
    rows, vocabulary, drawn = masked()
    eligible = int((~np.isin(rows.tokens, vocabulary.special_ids)).sum())
    assert eligible > 50_000
    assert within(len(drawn.where) / eligible, 0.15, eligible)
    assert (drawn.targets == rows.tokens[drawn.where]).all()


def test_of_those_80_percent_are_masked_10_random_and_10_kept() -> None:
    _, vocabulary, drawn = masked()
    now, count = drawn.tokens[drawn.where], len(drawn.where)
    hidden = now == vocabulary.mask_id
    kept = now == drawn.targets
    assert within(float(hidden.mean()), 0.8, count)
    assert within(float(kept.mean()), 0.1, count)
    random = now[~hidden & ~kept]
    assert within(len(random) / count, 0.1, count)
    # spread over the vocabulary: few repeat, and both halves are hit alike
    assert len(np.unique(random)) > 0.9 * len(random)
    assert within(float((random < vocabulary.size / 2).mean()), 0.5, len(random))


def test_nothing_but_chosen_words_changes_and_special_tokens_never_do() -> None:
    rows, vocabulary, drawn = masked()
    changed = np.flatnonzero(drawn.tokens != rows.tokens)
    assert set(changed) <= set(drawn.where)
    assert not np.isin(rows.tokens[drawn.where], vocabulary.special_ids).any()
    first, last = rows.offsets[:-1], rows.offsets[1:] - 1
    assert (drawn.tokens[first] == rows.tokens[first]).all()
    assert (drawn.tokens[last] == rows.tokens[last]).all()


def test_every_place_in_a_text_is_as_likely() -> None:
    rows, _, drawn = masked()
    chosen = np.zeros(len(rows.tokens), dtype=bool)
    chosen[drawn.where] = True
    for place in (1, 2, 5, 9):
        here = (rows.positions == place) & (np.repeat(rows.lengths, rows.lengths) > place + 1)
        assert within(float(chosen[here].mean()), 0.15, int(here.sum()))


@pytest.mark.parametrize("size", [1, 7, 64])
def test_masks_are_the_same_in_any_batching_and_order(size: int) -> None:
    rows, vocabulary, drawn = masked()
    order = np.random.default_rng(3).permutation(200)
    for first in range(0, 200, size):
        some = order[first : first + size]
        alone = mask_tokens(rows.take(some), vocabulary, 0, 0).tokens
        assert (alone == rows.with_tokens(drawn.tokens).take(some).tokens).all()


def test_another_seed_or_epoch_draws_other_masks() -> None:
    drawn = masked()[2]
    for other in (masked(epoch=1)[2], masked(seed=1)[2]):
        both = len(np.intersect1d(drawn.where, other.where))
        # two independent draws of 15 % share 15 % of what each has
        assert within(both / len(drawn.where), 0.15, len(drawn.where))


def batch_of(ptm: BertPTM, rows: TokenRows, epoch: int, *, static: bool) -> Any:
    return ptm.pretraining_collate(0, static_masks=static)(rows.take(np.arange(64)), epoch)


def test_static_masks_repeat_in_every_epoch_and_dynamic_ones_do_not() -> None:
    ptm, rows = real()
    first, later = (batch_of(ptm, rows, epoch, static=True) for epoch in (0, 5))
    assert first.tokens.equal(later.tokens)
    assert first.where.equal(later.where)
    first, later = (batch_of(ptm, rows, epoch, static=False) for epoch in (0, 5))
    assert not first.tokens.equal(later.tokens)


# --- dealing rows out


def as_rows(rows: TokenRows, epoch: int) -> Any:
    return rows


def dealt(collate: Callable[[TokenRows, int], Any], world: int, epoch: int = 0) -> list[list[Any]]:
    """Return the ranks' shares of every step."""
    rows = real()[1].take(np.arange(500))
    batches = MemoryBatches(rows, collate, 32, 1)
    ranks = [list(batches.epoch(epoch, rank, world, 0)) for rank in range(world)]
    assert {len(shares) for shares in ranks} == {batches.steps_per_epoch} == {16}
    return [list(shares) for shares in zip(*ranks, strict=True)]


def test_the_global_batches_do_not_depend_on_the_number_of_workers() -> None:
    union = {
        world: [sorted(i for share in step for i in share.index) for step in dealt(as_rows, world)]
        for world in WORLDS
    }
    assert union[1] == union[2] == union[3]
    assert sorted(i for step in union[1] for i in step) == list(range(500))


def test_the_masked_words_do_not_depend_on_the_number_of_workers() -> None:
    collate = real()[0].pretraining_collate(0)
    union = {
        world: [sorted(t for share in step for t in share.targets.tolist()) for step in shares]
        for world in WORLDS
        if (shares := dealt(collate, world))
    }
    assert union[1] == union[2] == union[3]


def test_workers_get_about_the_same_tokens() -> None:
    for world in (2, 3):
        for step in dealt(as_rows, world):
            tokens = [len(share.tokens) for share in step]
            assert max(tokens) - min(tokens) <= max(share.lengths.max() for share in step)
            assert max(len(share) for share in step) - min(len(share) for share in step) <= 1


def test_an_epoch_is_shuffled_anew_and_can_be_entered_anywhere() -> None:
    first, again, second = (
        [list(step[0].index) for step in dealt(as_rows, 1, epoch)] for epoch in (0, 0, 1)
    )
    assert first == again
    assert first != second
    batches = MemoryBatches(real()[1].take(np.arange(500)), as_rows, 32, 1)
    later: list[Any] = list(batches.epoch(0, 0, 1, 10))
    assert [list(rows.index) for rows in later] == first[10:]


def test_rows_are_dealt_longest_first() -> None:
    lengths = np.array([3, 9, 5, 7])
    assert deal(np.arange(4), lengths, 0, 1).tolist() == [1, 3, 2, 0]
    assert deal(np.arange(4), lengths, 0, 2).tolist() == [1, 0]
    assert deal(np.arange(4), lengths, 1, 2).tolist() == [3, 2]


def test_prediction_batches_hold_every_row_once_within_the_limit() -> None:
    lengths = np.array([50, 3, 30, 30, 10, 99])
    groups = [group.tolist() for group in by_tokens(lengths, 60)]
    assert sorted(row for group in groups for row in group) == list(range(6))
    assert groups[0] == [5]  # a text longer than the limit goes alone
    assert all(len(group) == 1 or lengths[group].sum() <= 60 for group in groups)


def test_a_text_cut_to_its_limit_keeps_both_special_tokens() -> None:
    ptm = tiny_ptm()
    rows = encoded(ptm, [" ".join(SENTENCES), SENTENCES[0]], 12)
    assert rows.lengths.tolist()[0] == 12
    for start, end in zip(rows.offsets[:-1], rows.offsets[1:], strict=True):
        assert rows.tokens[start] == ptm.tokenizer.cls_token_id
        assert rows.tokens[end - 1] == ptm.tokenizer.sep_token_id


def test_draws_are_uniform_and_independent_of_each_other() -> None:
    rows = np.arange(100_000)
    one, two = uniform(0, "choose", rows), uniform(0, "fate", rows)
    assert 0 <= one.min() < one.max() < 1
    assert np.allclose(np.histogram(one, 10, (0, 1))[0] / 1e4, 1, atol=0.05)
    assert abs(float(np.corrcoef(one, two)[0, 1])) < 0.02
    assert abs(float(np.corrcoef(one[:-1], one[1:])[0, 1])) < 0.02
