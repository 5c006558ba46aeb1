"""Corpora of images, with labels or captions."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field

from recipe_ray.base.errors import DataError
from recipe_ray.data.corpus import Corpus
from recipe_ray.data.images import ImageSample
from recipe_ray.data.sources import Source, batch_images, column_of


class _ImagesWith(Corpus):
    """Images, each with something known of it: `note_column` says where it stands."""

    size: int | None = Field(default=None, ge=1, description="images; None for all there are")
    image_column: str = Field(default="image", description="the column of encoded images")

    @property
    @abstractmethod
    def note_column(self) -> str:
        """Return the column of what is known."""

    @abstractmethod
    def noted(self, data: bytes, note: Any, where: str) -> ImageSample:
        """Return the sample; raise DataError, naming `where`, for a note that is none."""

    def read(self, source: Source) -> Iterator[ImageSample]:
        """Stream every image with what is known of it."""
        owner, row = f"corpus {self.name!r}", 0
        for batch in source.batches():
            notes = column_of(batch, self.note_column, owner).to_pylist()
            images = batch_images(batch, self.image_column, owner, row)
            for number, (data, note) in enumerate(zip(images, notes, strict=True), row + 1):
                yield self.noted(data, note, f"{owner}: row {number}")
            row += batch.num_rows


class ImageCorpus(_ImagesWith):
    """Images with the labels of their own collection, on which vision PTMs are pre-trained.

    Not the labels of a downstream task. A sample is an `ImageSample` with `label`.
    """

    holds: ClassVar[frozenset[str]] = frozenset({"image", "label"})
    unit: ClassVar[str] = "image"

    label_column: str = Field(default="label", description="the column of labels, from 0")

    @property
    def note_column(self) -> str:
        """Return the column of labels."""
        return self.label_column

    def noted(self, data: bytes, note: Any, where: str) -> ImageSample:
        """Return an image with its label."""
        if not isinstance(note, int) or note < 0:
            raise DataError(f"{where}: the label {note!r} is no number from 0")
        return ImageSample(data, note)

    def to_columns(self, samples: Sequence[ImageSample]) -> dict[str, pa.Array]:
        """Return the columns `image` and `label`."""
        return {
            "image": pa.array([sample.data for sample in samples], pa.binary()),
            "label": pa.array([sample.label for sample in samples], pa.int64()),
        }

    def from_columns(self, columns: Mapping[str, Sequence[Any]]) -> list[ImageSample]:
        """Return the samples."""
        pairs = zip(columns["image"], columns["label"], strict=True)
        return [ImageSample(data, int(label)) for data, label in pairs]


class PairCorpus(_ImagesWith):
    """Images with a caption each, on which CLIP is pre-trained."""

    holds: ClassVar[frozenset[str]] = frozenset({"image", "caption"})
    unit: ClassVar[str] = "pair"

    caption_column: str = Field(default="caption", description="the column of captions")

    @property
    def note_column(self) -> str:
        """Return the column of captions."""
        return self.caption_column

    def noted(self, data: bytes, note: Any, where: str) -> ImageSample:
        """Return an image with its caption."""
        if not isinstance(note, str) or not note.strip():
            raise DataError(f"{where} has no caption")
        return ImageSample(data, caption=note.strip())

    def to_columns(self, samples: Sequence[ImageSample]) -> dict[str, pa.Array]:
        """Return the columns `image` and `caption`."""
        return {
            "image": pa.array([sample.data for sample in samples], pa.binary()),
            "caption": pa.array([sample.caption for sample in samples], pa.string()),
        }

    def from_columns(self, columns: Mapping[str, Sequence[Any]]) -> list[ImageSample]:
        """Return the samples."""
        pairs = zip(columns["image"], columns["caption"], strict=True)
        return [ImageSample(data, caption=str(caption)) for data, caption in pairs]
