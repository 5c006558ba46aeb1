"""Auxiliary corpora: those of `catalog.yaml`, and the few with rules or fields of their own.

A new entry of the file is a new corpus. So is a new entry of a user's own catalogue.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from recipe_ray.base.catalog import NAME, Catalog, Entry, Kind
from recipe_ray.base.spec import NOT_HASHED
from recipe_ray.data.content import BATCH_ROWS
from recipe_ray.data.corpus import CORPORA, Corpus, EmbeddedCorpus, TextCorpus
from recipe_ray.data.hub import IMAGE_ROWS, HubPlace, HubSource
from recipe_ray.data.image_corpus import ImageCorpus, PairCorpus

MIN_WORDS = 5
_HEADING = re.compile(r"=.*=")
_JOINED = re.compile(r" @([-,.])@ ")
_SENTENCE_END = re.compile(r'(?<= [.!?]) (?=[A-Z0-9"(])')


class HubSplit(HubPlace):
    """One split of a data set on the hub."""

    split: str = "train"


class CorpusEntry(Entry):
    """What a catalogue may say of a corpus."""

    hub: HubSplit | None = Field(None, description="where it is on the hub")
    file_name: str | None = Field(
        None,
        pattern=f"^{NAME}$",
        description="its file in the data folder, without .parquet; None: its name",
    )
    num_classes: PositiveInt | None = Field(
        None, description="number of classes; a label beyond them is an error"
    )
    member: Literal["movieReviewSnippets", "nytEditorialSnippets", "amazonReviewSnippets", None] = (
        Field(None, description="its file in the Python package")
    )

    def constants(self, kind: Kind[Any]) -> dict[str, Any]:
        """Return the class variables by name."""
        constants = {
            "hub": self.hub and self.hub.source(self.hub.split, kind.rows_at_once),
            "file_name": self.file_name,
            "num_classes": self.num_classes,
        }
        return constants if self.member is None else {**constants, "member": self.member}

    def decides(self) -> dict[str, Any]:
        """Return what a sample of a stream depends on besides its source's identity."""
        rows = self.hub.rows_at_once if self.hub else None
        return {} if rows is None else {"rows_at_once": rows}


CATALOG: Catalog[Corpus] = Catalog(
    "corpora",
    __name__,
    CorpusEntry,
    {
        "text": Kind(TextCorpus, ("hub", "file_name"), BATCH_ROWS),
        "images": Kind(ImageCorpus, ("hub", "file_name", "num_classes"), IMAGE_ROWS),
        "pairs": Kind(PairCorpus, ("hub", "file_name"), IMAGE_ROWS),
        "embedded": Kind(EmbeddedCorpus, ("member",), BATCH_ROWS),
    },
)
LISTED = CATALOG.of_package(Path(__file__).with_name("catalog.yaml"))
for _name, _corpus in LISTED.items():
    CORPORA.register(_name)(_corpus)
CORPORA.look_also_in(CATALOG.of_user)


@CORPORA.register("webtext")
class WebText(TextCorpus):
    """The part of a web page before its first line break (paper, Table 5).

    Data folder: pages of OpenAI's WebText. Hub: OpenWebText, the open rebuild of it.
    """

    hub: ClassVar[HubSource | None] = HubSource(
        "Skylion007/openwebtext", "79d93d786212f7344586290adb811d4ae6a1762c", "plain_text"
    )

    def prepare(self, text: str) -> Iterable[str]:
        """Return the first line."""
        return (text.split("\n", 1)[0].strip(),)


@CORPORA.register("wikitext")
class WikiText(TextCorpus):
    """Sentences of good Wikipedia articles: no headings, at least five words.

    Data folder: WikiText-2 raw test articles. Hub: WikiText-103 raw, training part, where a row is
    a paragraph.
    """

    hub: ClassVar[HubSource | None] = HubSource(
        "Salesforce/wikitext", "b08601e04326c79dfdd32d625aee71d232d685c3", "wikitext-103-raw-v1"
    )

    def prepare(self, text: str) -> Iterable[str]:
        """Return the sentences of a paragraph, with ` @-@ ` and similar signs joined again."""
        if _HEADING.fullmatch(text):
            return ()
        sentences = _SENTENCE_END.split(_JOINED.sub(r"\1", text))
        return [part.strip() for part in sentences if len(part.split()) >= MIN_WORDS]


@CORPORA.register("file")
class OwnText(TextCorpus):
    """A table or .txt file with one text per row or line, or a folder of shards."""

    path: str = Field(description="the file or folder", json_schema_extra=NOT_HASHED)


@CORPORA.register("images")
class OwnImages(ImageCorpus):
    """A folder with one folder of images per class, or .parquet or .tar (WebDataset) shards.

    Class folders are numbered from 0 in the order of their names (numbers by value).
    """

    version: ClassVar[int] = 2  # 1 clipped 16 bits to white and did not turn images upright

    path: str = Field(description="the file or folder", json_schema_extra=NOT_HASHED)


@CORPORA.register("pairs")
class OwnPairs(PairCorpus):
    """Images with one caption each, in .parquet or .tar (WebDataset: .jpg and .txt) shards."""

    version: ClassVar[int] = 2  # 1 clipped 16 bits to white and did not turn images upright

    path: str = Field(description="the file or folder", json_schema_extra=NOT_HASHED)
