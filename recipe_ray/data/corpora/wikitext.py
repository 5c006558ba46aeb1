"""WikiText: what the POR attack is trained on; also a corpus for the defender."""

import re
from collections.abc import Iterable
from typing import ClassVar

from recipe_ray.data.corpus import CORPORA, TextCorpus
from recipe_ray.data.hub import HubSource

MIN_WORDS = 5
_HEADING = re.compile(r"=.*=")
_JOINED = re.compile(r" @([-,.])@ ")
_SENTENCE_END = re.compile(r'(?<= [.!?]) (?=[A-Z0-9"(])')


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
        """Return the sentences of a paragraph, with ` @-@ ` and the like joined again."""
        if _HEADING.fullmatch(text):
            return ()
        sentences = _SENTENCE_END.split(_JOINED.sub(r"\1", text))
        return [part.strip() for part in sentences if len(part.split()) >= MIN_WORDS]
