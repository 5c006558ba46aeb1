"""Fine-tuning without the embeddings of tokens that never occur: exact, and whole when saved."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from samples import SENTENCES, minilm

from recipe_ray.data.batches import MemoryBatches
from recipe_ray.data.rows import TokenRows
from recipe_ray.learn.loop import fit
from recipe_ray.learn.objective import classification
from recipe_ray.learn.optim import FitSpec
from recipe_ray.learn.runtime import LocalRuntime
from recipe_ray.models.text.packed import pack
from recipe_ray.models.text.packed_encoder import PooledClassifier

FIT = FitSpec(steps=6, batch_size=4, learning_rate=1e-3, precision="fp32")


def rows_of(ptm: Any) -> TokenRows:
    rows: TokenRows = ptm.encoder(24)(SENTENCES, np.arange(len(SENTENCES)))
    return rows.with_columns(label=np.arange(len(SENTENCES)) % 2)


def trained(classifier: Any, rows: TokenRows) -> dict[str, torch.Tensor]:
    classifier.requires_grad_(True)
    batches = MemoryBatches(rows, lambda taken, _: pack(taken), FIT.batch_size, 0)
    fit(classifier, classification, batches, FIT, LocalRuntime(), seed=0)
    state: dict[str, torch.Tensor] = classifier.whole_state()
    return state


def test_training_without_unused_embeddings_gives_the_same_model() -> None:
    ptm = minilm(layers=1)
    whole = PooledClassifier(copy.deepcopy(ptm.module.base_model), 2, 0, seed=3)
    before = ptm.word_embeddings().weight.detach().clone()
    rows = rows_of(ptm)
    expected = trained(whole, rows)
    found = trained(ptm.classifier(2, 3, [rows]), rows)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)
    words = found["encoder.embeddings.word_embeddings.weight"]
    changed = (words != before).any(1).nonzero()[:, 0].tolist()
    assert changed, "the embeddings of the texts' tokens train"
    assert set(changed) <= set(rows.tokens.tolist())


def test_only_tokens_that_occur_are_held_while_it_trains() -> None:
    ptm = minilm(layers=1)
    rows = rows_of(ptm)
    classifier: Any = ptm.classifier(2, 0, [rows])
    held = classifier.encoder.embeddings.word_embeddings.num_embeddings
    assert held == len(np.union1d(rows.tokens, [0]))


def test_a_token_that_was_not_announced_is_an_error_and_not_another_token() -> None:
    ptm = minilm(layers=1)
    rows = rows_of(ptm)
    classifier: Any = ptm.classifier(2, 0, [rows.take(np.array([0]))])
    with pytest.raises(IndexError):
        classifier(pack(rows))
