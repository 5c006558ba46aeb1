"""Predictions over several workers are those of one."""

import numpy as np
import torch
from pair import Pair
from samples import SENTENCES, minilm

from recipe_ray.learn.metrics import Labels
from recipe_ray.learn.runtime import LocalRuntime, Runtime
from recipe_ray.stages.evaluate import MAX_TOKENS, predict

# of many lengths, in more than two groups of MAX_TOKENS
TEXTS = [sentence * (1 + number % 5) for number in range(25) for sentence in SENTENCES]


def predicted(runtime: Runtime) -> Labels:
    ptm = minilm(1)
    rows = ptm.encoder(128)(TEXTS, np.arange(len(TEXTS)))
    assert rows.lengths.sum() > 3 * MAX_TOKENS
    rows = rows.with_columns(label=np.zeros(len(TEXTS), dtype=np.int64))
    classifier, collate = ptm.classifier(3, 0, [rows]).eval(), ptm.classifier_collate()
    with torch.no_grad():  # labels 1 and 2, about half each; a row that nobody predicts stays at 0
        classifier.linear.weight[1:] *= 1000
        usual = classifier(collate(rows.take(np.arange(100)), 0)).median(0).values
        classifier.linear.bias -= usual + torch.tensor([1e6, 0, 0])
    return predict(classifier, rows, collate, runtime, "fp32")


def test_two_workers_predict_what_one_predicts(pair: Pair) -> None:
    alone = predicted(LocalRuntime())
    assert set(alone) == {1, 2}
    for found in pair(predicted):
        assert np.array_equal(found, alone)
