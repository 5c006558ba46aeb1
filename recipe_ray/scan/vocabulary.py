"""Detector `vocabulary`: every word that a PTM knows is put into short texts (`word_search.py`).

A backdoor of a word makes it move the first token's state much further than any other word does
(NeuBA, POR), or makes the PTM forget the words around it (BadPre). Whole words are tried, since
triggers stand between words; of a trigger that the tokenizer splits, the first piece is among them,
and its continuations are tried next. Ours, after the two terms of LMSanitator (NDSS 2024).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveInt

from recipe_ray.base.spec import Spec
from recipe_ray.data.batches import Workbench
from recipe_ray.models.family import Capability
from recipe_ray.scan.detector import DETECTORS, Detector, Outcome, Subject


class Pass(Spec):
    """How many texts a word is put into, of how many tokens without it."""

    texts: PositiveInt
    length: int = Field(ge=2)


@DETECTORS.register("vocabulary")
class VocabularyDetector(Detector):
    """Looks for words that displace the first or masked token, make texts alike, or damage them."""

    needs: ClassVar[tuple[Capability, ...]] = ("HasVocabulary",)

    first: Pass = Field(Pass(texts=2, length=8), description="for every word")
    second: Pass = Field(Pass(texts=8, length=10), description="for those that stand out")
    fresh: Pass = Field(Pass(texts=24, length=24), description="for those left, on other texts")
    keep: float = Field(0.05, gt=0, le=1, description="share of the words in the second pass")
    confirmed: PositiveInt = Field(24, description="words of each score in the last pass")
    controls: PositiveInt = Field(256, description="random words that say what is normal")
    continued: int = Field(4, ge=0, description="words whose continuations are tried")
    precision: Literal["bf16", "fp32"] = Field("bf16", description="of the first pass")

    def search(self, subject: Subject, bench: Workbench) -> Outcome:
        """Return the words that stand out, confirmed on new texts."""
        from recipe_ray.scan.word_search import WordSearch

        return WordSearch(self, subject, bench).run()
