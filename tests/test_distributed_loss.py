"""One process, two gloo processes and Ray Train compute the same losses and the same model."""

from pathlib import Path

import pytest
import torch
from pair import Pair
from safetensors.torch import load_file

from recipe_ray.data.batches import LocalFeed
from recipe_ray.data.corpora import WikiText
from recipe_ray.data.sources import Locations
from recipe_ray.experiment.collect import run_inline
from recipe_ray.experiment.spec import Launch
from recipe_ray.learn.optim import FitSpec
from recipe_ray.learn.runtime import Runtime
from recipe_ray.models.text.minilm import MiniLM
from recipe_ray.stages.pretrain import PretrainStage
from recipe_ray.stages.run import run_stage, scratch
from recipe_ray.stages.stage import MODEL_FOLDER, Context
from recipe_ray.store.store import Store

# 66 texts in batches of 16: the last batch of an epoch has one text a worker
STAGE = PretrainStage(
    model=MiniLM(layers=1),
    corpus=WikiText(size=66),
    trainable="all",
    fit=FitSpec(steps=6, batch_size=16, learning_rate=1e-4, precision="fp32", dropout=False),
    seed=3,
)


@pytest.fixture(scope="module")
def inline(few_texts: Locations, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Return a store with the stage done in this process."""
    store = Store.open(tmp_path_factory.mktemp("inline"))
    run_inline([STAGE], store, few_texts)
    return store


def test_two_gloo_processes_agree_with_one(
    inline: Store, few_texts: Locations, tmp_path: Path, pair: Pair
) -> None:
    store = Store.open(tmp_path / "store")
    pair(_gloo_worker, store, few_texts)
    _assert_same(store, inline)


@pytest.mark.usefixtures("ray_session")
def test_ray_train_agrees_with_one_process(
    inline: Store, few_texts: Locations, tmp_path: Path
) -> None:
    from recipe_ray.distributed.train import SweepContext, run_nested

    store = Store.open(tmp_path)
    launch = Launch(workers={"pretrain": 2}, max_failures=0)
    run_nested(STAGE, SweepContext({}, store, few_texts, launch))
    assert store.manifest(STAGE.artifact)["world_size"] == 2
    _assert_same(store, inline)


def _gloo_worker(runtime: Runtime, store: Store, places: Locations) -> None:
    with scratch(store) as folder:
        run_stage(STAGE, Context(store, LocalFeed(places), places, runtime, folder))


def _losses(store: Store) -> dict[tuple[str, int], float]:
    rows = store.rows(STAGE.artifact).to_pylist()
    losses = (row for row in rows if row["metric"].startswith("loss."))
    return {(row["metric"], row["epoch"]): row["value"] for row in losses}


def _assert_same(store: Store, reference: Store) -> None:
    assert _losses(store) == pytest.approx(_losses(reference), rel=1e-4)
    assert len(_losses(store)) == 2  # 6 steps, 5 an epoch
    ours, theirs = (
        load_file(s.fetch(STAGE.artifact) / MODEL_FOLDER / "model.safetensors")
        for s in (store, reference)
    )
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=2e-5, msg=name)
