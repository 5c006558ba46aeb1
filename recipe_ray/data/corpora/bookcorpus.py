"""BookCorpus: the paper's auxiliary data, 20,000 sentences of novels."""

from typing import ClassVar

from recipe_ray.data.corpus import CORPORA, TextCorpus
from recipe_ray.data.hub import HubSource


@CORPORA.register("bookcorpus")
class BookCorpus(TextCorpus):
    """Sentences of unpublished novels, lower case, one a row.

    Data folder: the authors' own sample. Hub: another sample of the same corpus, two text files
    of 2 GB; `main` is a branch (commit 7600e0b in 2023, no full hash documented), so pin
    `revision` for a number that must last.
    """

    hub: ClassVar[HubSource | None] = HubSource("rojagtap/bookcorpus", "main")
