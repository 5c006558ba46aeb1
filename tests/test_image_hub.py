"""Images on the hub, through the real client against a stand-in on loopback."""

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_client import Client
from hub_stand_in import HubStandIn, Repo
from image_files import (
    captioned,
)
from image_samples import labelled_samples

from recipe_ray.base.errors import DataError
from recipe_ray.data.corpora import LISTED
from recipe_ray.data.corpus import CORPORA
from recipe_ray.data.images import ImageSample
from recipe_ray.data.sources import Locations


def as_hub_parquet(samples: list[ImageSample], image: str, note: str, notes: list[Any]) -> bytes:
    """Return a Parquet file as `datasets` writes one with an image feature."""
    import datasets

    features = datasets.Features(
        {
            image: datasets.Image(),
            note: datasets.Value("int64")
            if isinstance(notes[0], int)
            else datasets.List(datasets.Value("string")),
            "id": datasets.Value("int64"),
        }
    )
    structs = [{"bytes": sample.data, "path": f"{n}.png"} for n, sample in enumerate(samples)]
    columns = {image: structs, note: notes, "id": list(range(len(samples)))}
    file = io.BytesIO()
    pq.write_table(pa.table(columns, schema=features.arrow_schema), file)
    return file.getvalue()


def card(config: str, split: str, path: str) -> bytes:
    """Return the README that says which file is which split."""
    return (
        f"---\nconfigs:\n- config_name: {config}\n  data_files:\n"
        f"  - split: {split}\n    path: {path}\n---\n"
    ).encode()


def repos() -> dict[str, Repo]:
    """Return image data sets laid out as the real repositories are."""
    cifar = as_hub_parquet(labelled_samples(9), "img", "label", [n % 4 for n in range(9)])
    pairs = captioned(5)
    answers = [[str(sample.caption), "another"] for sample in pairs]
    files = {
        "uoft-cs/cifar10": ("plain_text", "train", cifar),
        "lmms-lab/COCO-Caption": (
            "default",
            "val",
            as_hub_parquet(pairs, "image", "answer", answers),
        ),
        "lmms-lab/VizWiz-Caps": (
            "default",
            "val",
            as_hub_parquet(pairs, "image", "captions", answers),
        ),
        "ILSVRC/imagenet-1k": ("default", "validation", cifar),
    }
    commits = {
        "uoft-cs/cifar10": LISTED["cifar10"].hub,
        "ILSVRC/imagenet-1k": LISTED["imagenet"].hub,
    }
    return {
        name: Repo(
            {
                "README.md": card(config, split, f"data/{split}-*"),
                f"data/{split}-00000-of-00001.parquet": content,
            },
            commit=source.revision if (source := commits.get(name)) else "",
            gated=name.startswith("ILSVRC"),
        )
        for name, (config, split, content) in files.items()
    }


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with HubStandIn(repos()) as stand_in:
        process = Client(stand_in.endpoint, tmp_path_factory.mktemp("hf_home"))
        yield process
        process.close()


def read_hub(name: str, **fields: Any) -> list[tuple[Any, ...]]:
    """Return the samples of a corpus on the hub; runs in the client's process."""
    logging.disable(logging.WARNING)
    corpus = CORPORA.parse({"name": name, **fields})
    return [tuple(sample) for sample in corpus.samples(Locations(None, Path("nowhere")))]


def test_the_hub_gives_the_same_images_undecoded(client: Client) -> None:
    assert client(read_hub, "cifar10") == [tuple(sample) for sample in labelled_samples(9)]


def test_the_first_of_several_captions_is_taken_in_a_seeded_order(client: Client) -> None:
    found = client(read_hub, "coco")
    assert sorted(found) == sorted(tuple(sample) for sample in captioned(5))
    assert client(read_hub, "coco") == found


def test_a_column_that_the_hub_lacks_is_named_with_those_it_has(client: Client) -> None:
    with pytest.raises(DataError, match=r"no column 'caption'; columns: image, captions, id"):
        client(read_hub, "vizwiz")


def test_gated_imagenet_says_how_to_get_in(client: Client) -> None:
    with pytest.raises(DataError, match=r"imagenet-1k.*gated.*accept its terms.*hf auth login"):
        client(read_hub, "imagenet")
