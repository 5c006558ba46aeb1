"""Where images come from: class folders, Parquet, tars and the hub give the same rows."""

import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import (
    CLASS_NAMES,
    as_folder,
    as_parquet,
    as_tar,
    captioned,
    in_class_order,
    tar_of,
)
from image_samples import SIZE, labelled_samples
from PIL import Image
from samples import raised_by

from recipe_ray.base.errors import DataError
from recipe_ray.data.corpus import CORPORA, Corpus
from recipe_ray.data.images import FORMATS, ImageEncoder, ImageRows, ImageSample, decoded
from recipe_ray.data.sources import Locations

PNG = labelled_samples(1)[0].data


def own(name: str, path: Path, **fields: Any) -> Corpus:
    """Return the corpus `images` or `pairs` at a path."""
    corpus: Corpus = CORPORA.parse({"name": name, "path": str(path), **fields})
    return corpus


def read(name: str, path: Path, places: Locations) -> list[ImageSample]:
    """Return the samples of an own corpus."""
    return list(own(name, path).samples(places))


def message(name: str, path: Path, places: Locations) -> str:
    """Return the error for people that reading an own corpus raises."""
    return raised_by(lambda: read(name, path, places))


def test_folder_parquet_and_tar_give_the_same_labelled_images(
    tmp_path: Path, places: Locations
) -> None:
    samples = in_class_order()
    paths = [
        as_folder(tmp_path / "classes", samples, CLASS_NAMES),
        as_parquet(tmp_path / "images.parquet", samples),
        as_tar(tmp_path / "images.tar", samples),
    ]
    assert [read("images", path, places) for path in paths] == [samples] * 3


def test_parquet_and_tar_give_the_same_pairs(tmp_path: Path, places: Locations) -> None:
    samples = captioned()
    paths = [as_parquet(tmp_path / "a.parquet", samples), as_tar(tmp_path / "a.tar", samples)]
    assert [read("pairs", path, places) for path in paths] == [samples] * 2


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_shards_are_read_in_the_order_of_their_names(
    tmp_path: Path, places: Locations, kind: str
) -> None:
    samples = labelled_samples(6)
    write: Callable[..., Path] = as_parquet if kind == "parquet" else as_tar
    for number in (2, 0, 1):
        write(tmp_path / f"{number}.{kind}", samples[2 * number : 2 * number + 2])
    assert read("images", tmp_path, places) == samples


def test_a_json_member_may_hold_label_and_caption(tmp_path: Path, places: Locations) -> None:
    note = b'{"label": 3, "caption": "a square", "width": 16}'
    file = tar_of(tmp_path / "a.tar", [("a.PNG", PNG), ("a.json", note), ("readme.md", b"x")])
    assert read("images", file, places) == [ImageSample(PNG, 3)]
    assert read("pairs", file, places) == [ImageSample(PNG, caption="a square")]


def test_classes_named_by_numbers_count_by_value(tmp_path: Path, places: Locations) -> None:
    folder = as_folder(tmp_path / "signs", in_class_order(), ("2", "10", "9", "1"))
    found = {sample.data: sample.label for sample in read("images", folder, places)}
    names = {0: 1, 1: 3, 2: 2, 3: 0}  # label in the samples -> place of its folder's number
    assert found == {s.data: names[s.label or 0] for s in in_class_order()}


def test_identity_is_the_content_and_the_names_but_not_the_place(
    tmp_path: Path, places: Locations
) -> None:
    samples = in_class_order()
    one = as_folder(tmp_path / "one", samples, CLASS_NAMES)
    two = Path(shutil.copytree(one, tmp_path / "else" / "two"))
    identity = own("images", one).identity_at(places)
    assert str(tmp_path) not in str(identity)
    assert own("images", two).identity_at(places) == identity
    image = next((two / "ant").iterdir())
    image.rename(two / "ant" / "renamed.png")
    assert own("images", two).identity_at(places) != identity
    (two / "ant" / "renamed.png").rename(image)
    assert own("images", two).identity_at(places) == identity
    image.write_bytes(samples[-1].data)
    os.utime(image, ns=(1, 1))
    assert own("images", two).identity_at(places) != identity


def test_the_identity_of_a_tar_is_its_checksum(tmp_path: Path, places: Locations) -> None:
    one = as_tar(tmp_path / "one.tar", labelled_samples(4))
    two = Path(shutil.copy(one, tmp_path / "two.tar"))
    three = as_tar(tmp_path / "three.tar", labelled_samples(3))
    keys = [own("images", path).identity_at(places)["source"] for path in (one, two, three)]
    assert keys[0] == keys[1] != keys[2]
    assert own("images", one).resolve(places).describe().startswith("one.tar, SHA-256 ")


def test_a_folder_of_two_kinds_says_which(tmp_path: Path, places: Locations) -> None:
    as_folder(tmp_path, in_class_order(4), CLASS_NAMES)
    (tmp_path / "notes.parquet").touch()
    assert "mixes class folders (ant, ...) and files (notes.parquet" in message(
        "images", tmp_path, places
    )


def test_a_path_of_another_kind_lists_what_is_allowed(tmp_path: Path, places: Locations) -> None:
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "one.png").write_bytes(PNG)
    said = message("images", tmp_path / "loose", places)
    assert "holds .png: images without a class or caption" in said
    assert "allowed: .parquet or .tar (WebDataset)" in said
    assert "one folder of images per class" in said
    assert "has no captions; allowed: .parquet or .tar" in message("pairs", tmp_path, places)
    assert "does not exist (did you mean 'loose'?)" in message("images", tmp_path / "lose", places)
    (tmp_path / "empty").mkdir()
    assert "holds nothing" in message("images", tmp_path / "empty", places)


def test_an_empty_class_folder_is_named(tmp_path: Path, places: Locations) -> None:
    as_folder(tmp_path, in_class_order(4), CLASS_NAMES)
    (tmp_path / "elk").mkdir()
    assert f"the class folder {tmp_path / 'elk'} has no image" in message(
        "images", tmp_path, places
    )


def test_a_class_folder_with_another_file_is_refused(tmp_path: Path, places: Locations) -> None:
    as_folder(tmp_path, in_class_order(4), CLASS_NAMES)
    (tmp_path / "ant" / ".hidden").touch()
    (tmp_path / "ant" / "labels.csv").touch()
    assert f"{tmp_path / 'ant' / 'labels.csv'} is not an image" in message(
        "images", tmp_path, places
    )


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("a.txt", b"alone")], "has no sample; needed: members such as 000.jpg and 000.cls"),
        ([("a.png", PNG)], "sample '/a' has no .cls, nor a .json with 'label'"),
        ([("a.png", PNG), ("a.txt", b"secret")], "sample '/a' has no .cls"),
        ([("a.png", PNG), ("a.cls", b"secret\nsecret")], "its label cannot be read; it is an"),
        ([("a.png", PNG), ("a.cls", b"-1")], "its label cannot be read"),
        ([("a.png", PNG), ("a.cls", b"9" * 30)], "its label cannot be read"),
        ([("a.png", PNG), ("a.json", b'{"secret": 1}')], "its label cannot be read"),
        ([("a.png", PNG), ("a.json", b"[" * 100_000)], "its label cannot be read"),
        ([("a.png", PNG), ("a.cls", b"1" * 1_000_001)], "1,000,001 bytes; allowed: at most"),
    ],
)
def test_a_tar_without_proper_pairs_names_the_sample_not_its_content(
    tmp_path: Path, places: Locations, members: list[tuple[str, bytes]], said: str
) -> None:
    found = message("images", tar_of(tmp_path / "own.tar", members), places)
    assert said in found
    assert "secret" not in found
    assert len(found) < 500


def test_a_tar_that_is_cut_off_or_compressed_is_refused(tmp_path: Path, places: Locations) -> None:
    whole = as_tar(tmp_path / "whole.tar", labelled_samples(4)).read_bytes()
    for content in (whole[:1700], b"no tar at all" * 100):
        (tmp_path / "own.tar").write_bytes(content)
        assert "cannot be read as an uncompressed tar" in message(
            "images", tmp_path / "own.tar", places
        )
    with tarfile.open(tmp_path / "own.tar", "w:gz") as tar:
        tar.add(tmp_path / "whole.tar")
    assert "cannot be read as an uncompressed tar" in message(
        "images", tmp_path / "own.tar", places
    )


def test_the_paths_in_a_tar_lead_nowhere(tmp_path: Path, places: Locations) -> None:
    file = tmp_path / "own.tar"
    with tarfile.open(file, "w") as tar:
        for name, content in (("../../out.png", PNG), ("../../out.cls", b"1")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    assert read("images", file, places) == [ImageSample(PNG, 1)]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_label_out_of_range_names_its_row(tmp_path: Path, places: Locations) -> None:
    file = as_parquet(tmp_path / "a.parquet", [ImageSample(PNG, 9), ImageSample(PNG, 10)])
    assert len(read("images", file, places)) == 2
    corpus = CORPORA.parse({"name": "cifar10", "path": str(file)})
    with pytest.raises(DataError, match=r"row 2: the label '10' is not a number from 0 to 9"):
        list(corpus.samples(places))


@pytest.mark.parametrize("cut", [40, len(PNG) // 2])
def test_a_corrupt_image_is_named_by_its_number(cut: int) -> None:
    samples = [ImageSample(PNG, 0), ImageSample(PNG[:cut], 0)]
    with pytest.raises(DataError, match=r"image 8 cannot be decoded") as caught:
        ImageEncoder(SIZE)(samples, np.array([6, 7]))
    assert len(str(caught.value)) < 200
    with pytest.raises(DataError, match="image 1 cannot be decoded: allowed: PNG, JPEG") as caught:
        ImageEncoder(SIZE)([ImageSample(b"secret")], np.array([0]))
    assert "secret" not in str(caught.value)


def encoded_as(kind: str, width: int = 8, height: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_allowed_is_read(kind: str) -> None:
    assert decoded(encoded_as(kind), 8, "image 1").shape == (3, 8, 8)


def test_a_postscript_image_is_not_run() -> None:
    said = raised_by(lambda: decoded(encoded_as("EPS"), 8, "image 1"))
    assert "image 1 cannot be decoded: allowed: PNG" in said


@pytest.mark.parametrize(("width", "height"), [(1, 60_000), (60_000, 1)])
def test_a_narrow_image_that_would_be_scaled_up_to_billions_of_pixels_is_refused(
    width: int, height: int
) -> None:
    said = raised_by(lambda: decoded(encoded_as("PNG", width, height), 224, "image 1"))
    assert f"image 1 has {width} x {height} pixels; allowed: at most 100,000,000" in said


def test_a_broken_header_is_the_images_fault() -> None:
    assert "image 1 cannot be decoded" in raised_by(
        lambda: decoded(b"P6\nx y\n255\n", 8, "image 1")
    )


def test_rows_survive_their_way_as_columns() -> None:
    rows = ImageEncoder(SIZE)(labelled_samples(5), np.arange(10, 15))
    again = ImageRows.from_columns(rows.to_columns())
    assert np.array_equal(again.pixels, rows.pixels)
    assert np.array_equal(again.index, rows.index)
    assert again.columns.keys() == rows.columns.keys() == {"label"}
    assert np.array_equal(again.columns["label"], rows.columns["label"])


def test_cifar10_lies_in_the_data_folder_under_its_split(tmp_path: Path) -> None:
    as_parquet(tmp_path / "cifar10_train.parquet", labelled_samples(4))
    corpus = CORPORA.parse("cifar10")
    assert list(corpus.samples(Locations(tmp_path, tmp_path))) == labelled_samples(4)


# -- the hub -------------------------------------------------------------------------------------
