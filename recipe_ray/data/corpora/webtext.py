"""WebText: the paper's out-of-distribution auxiliary data (Table 5)."""

from collections.abc import Iterable
from typing import ClassVar

from recipe_ray.data.corpus import CORPORA, TextCorpus
from recipe_ray.data.hub import HubSource


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
