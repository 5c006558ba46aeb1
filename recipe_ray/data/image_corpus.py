"""Corpora of images, with labels or captions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from recipe_ray.base.errors import DataError
from recipe_ray.base.spec import NOT_HASHED
from recipe_ray.data.corpus import Corpus
from recipe_ray.data.formats import label_number
from recipe_ray.data.image_sources import open_images
from recipe_ray.data.sources import Source, batch_images, column_of
from recipe_ray.data.tar_shards import Note

if TYPE_CHECKING:
    import pyarrow as pa

    from recipe_ray.data.images import ImageSample


class _ImagesWith(Corpus):
    """Images, each with something known of it, in the column `note_column`."""

    note: ClassVar[Note]

    path: str | None = Field(
        default=None,
        description=".parquet or .tar (WebDataset) shards, or a folder of class folders; it wins",
        json_schema_extra=NOT_HASHED,
    )
    size: int | None = Field(default=None, ge=1, description="number of images; None: all")
    image_column: str = Field(default="image", description="the column of encoded images")

    @property
    @abstractmethod
    def note_column(self) -> str:
        """Return the column of what is known."""

    @abstractmethod
    def noted(self, data: bytes, note: Any, where: str) -> ImageSample:
        """Return the sample; raise DataError, naming `where`, for a note that is not valid."""

    def opened(self, path: str) -> Source:
        """Return the source of the user's own Parquet, tar shards or class folders."""
        return open_images(path, f"corpus {self.name!r}", self.note)

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

    They are not the labels of a downstream task. A sample is an `ImageSample` with `label`.
    """

    holds: ClassVar[frozenset[str]] = frozenset({"image", "label"})
    unit: ClassVar[str] = "image"
    note: ClassVar[Note] = "label"

    label_column: str = Field(default="label", description="the column of labels, from 0")

    @property
    def note_column(self) -> str:
        """Return the column of labels."""
        return self.label_column

    def noted(self, data: bytes, note: Any, where: str) -> ImageSample:
        """Return an image with its label."""
        from recipe_ray.data.images import ImageSample

        last = "" if self.num_classes is None else f" to {self.num_classes - 1}"
        number = label_number(note)
        if number is None or (last and number >= (self.num_classes or 0)):
            raise DataError(f"{where}: the label {str(note)[:20]!r} is not a number from 0{last}")
        return ImageSample(data, number)

    def to_columns(self, samples: Sequence[ImageSample]) -> dict[str, pa.Array]:
        """Return the columns `image` and `label`."""
        import pyarrow as pa

        return {
            "image": pa.array([sample.data for sample in samples], pa.binary()),
            "label": pa.array([sample.label for sample in samples], pa.int64()),
        }

    def from_columns(self, columns: Mapping[str, Sequence[Any]]) -> list[ImageSample]:
        """Return the samples."""
        from recipe_ray.data.images import ImageSample

        pairs = zip(columns["image"], columns["label"], strict=True)
        return [ImageSample(data, int(label)) for data, label in pairs]


class PairCorpus(_ImagesWith):
    """Images with one caption each, on which CLIP is pre-trained."""

    holds: ClassVar[frozenset[str]] = frozenset({"image", "caption"})
    unit: ClassVar[str] = "pair"
    note: ClassVar[Note] = "caption"

    caption_column: str = Field(default="caption", description="the column of captions")

    @property
    def note_column(self) -> str:
        """Return the column of captions."""
        return self.caption_column

    def noted(self, data: bytes, note: Any, where: str) -> ImageSample:
        """Return an image with its caption, the first if there is a list."""
        from recipe_ray.data.images import ImageSample

        if isinstance(note, list) and note:
            note = note[0]
        if not isinstance(note, str) or not note.strip():
            raise DataError(f"{where} has no caption")
        return ImageSample(data, caption=note.strip())

    def to_columns(self, samples: Sequence[ImageSample]) -> dict[str, pa.Array]:
        """Return the columns `image` and `caption`."""
        import pyarrow as pa

        return {
            "image": pa.array([sample.data for sample in samples], pa.binary()),
            "caption": pa.array([sample.caption for sample in samples], pa.string()),
        }

    def from_columns(self, columns: Mapping[str, Sequence[Any]]) -> list[ImageSample]:
        """Return the samples."""
        from recipe_ray.data.images import ImageSample

        pairs = zip(columns["image"], columns["caption"], strict=True)
        return [ImageSample(data, caption=str(caption)) for data, caption in pairs]
