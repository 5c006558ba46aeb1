"""The commands for one model, on a local folder of an image PTM and the user's own images."""

import json
from pathlib import Path

import pytest
from image_samples import CLASSES, labelled_parquet, tiny_vgg
from shell import Shell, shell

from recipe_ray.models.vision.vgg import load_vgg

__all__ = ["shell"]  # a fixture

QUICK = ["--set", "fit.steps=2", "--set", "fit.precision=fp32", "--quiet"]


def saved(folder: Path) -> str:
    tiny_vgg().save(folder / "vgg")
    return str(folder / "vgg")


def test_a_local_vgg_is_purified_with_own_images_and_its_card_speaks_of_images(
    shell: Shell,
) -> None:
    aux = labelled_parquet(shell.folder, 40)
    done = shell("purify", saved(shell.folder), "--aux", aux, "--out", "clean", *QUICK)
    assert done.code == 0, done.err
    load_vgg(shell.folder / "clean")
    card = (shell.folder / "clean" / "README.md").read_text()
    assert "library_name: torchvision" in card
    assert "penalised weights: conv; trainable: all" in card
    assert "2 steps of 32 images" in card
    assert "on held-out auxiliary images" in card
    assert "pre-training loss (nats per image)" in card
    assert "nats per masked token" not in card


def test_a_backdoor_of_patches_is_put_in_and_measured(shell: Shell) -> None:
    corpus = f"corpus={{name: images, path: {labelled_parquet(shell.folder)}}}"
    words = ["--attack", "neuba-images", "--set", corpus, *QUICK]
    done = shell("backdoor", saved(shell.folder), "--out", "bad", *words)
    assert done.code == 0, done.err
    card = (shell.folder / "bad" / "README.md").read_text()
    assert "with a neuba-images backdoor" in card
    assert "Triggers: cyan-magenta, cyan-yellow" in card
    paths = {f"path_{split}": str(labelled_parquet(shell.folder)) for split in ("train", "test")}
    names = [f"colour {number}" for number in range(CLASSES)]
    task = json.dumps({"name": "images", "class_names": names, **paths})
    words = ["--task", task, "--triggers", "cyan-red, yellow-red-8", "--set", "steps=2"]
    measured = shell("evaluate", "bad", *words, "--json", "--quiet")
    assert measured.code == 0, measured.err
    tried = {row["trigger"] for row in json.loads(measured.out) if row["metric"] == "asr"}
    assert tried == {"cyan-red", "yellow-red-8"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["purify", "vgg", "--aux", "IMAGES", "--out", "o"], "'vgg-small' is untrained"),
        (["purify", "VGG", "--aux", "bookcorpus", "--out", "o"], "learns from image and label"),
        (["backdoor", "vgg", "--attack", "neuba-images", "--out", "o"], "is untrained"),
        (["backdoor", "VGG", "--attack", "neuba", "--out", "o"], "learns from image and label"),
        (["evaluate", "VGG", "--task", "sst2"], "reads images; task 'sst2' holds texts"),
        (["evaluate", "VGG", "--task", "cifar10", "--triggers", "cf"], "is not a patch"),
    ],
)
def test_what_does_not_fit_a_model_of_images_is_said(
    shell: Shell, words: list[str], said: str
) -> None:
    (shell.folder / "data").mkdir()
    for split in ("train", "test"):
        labelled_parquet(shell.folder / "data", 20, 10).rename(
            shell.folder / "data" / f"cifar10_{split}.parquet"
        )
    own = {"VGG": saved(shell.folder), "IMAGES": str(labelled_parquet(shell.folder))}
    message = shell.fails(*[own.get(word, word) for word in words], "--data", "data")
    assert said in message
    assert not (shell.folder / "o").exists()
