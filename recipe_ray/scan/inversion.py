"""Detector `inversion`: free vectors in a text that make a PTM forget it (`prompt_search.py`).

Words alone do not find triggers of several words. Here vectors in the place of word embeddings are
moved by gradients until the first token's state (or a masked one's) is far from where it was and
similar in all texts, after LMSanitator (Wei et al., NDSS 2024: PV mining). LMSanitator compares
with a fixed threshold; here the measure is what clean PTMs give.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, PositiveInt

from recipe_ray.data.batches import Workbench
from recipe_ray.models.family import Capability
from recipe_ray.scan.detector import DETECTORS, Detector, Outcome, Subject
from recipe_ray.scan.vocabulary import Pass


@DETECTORS.register("inversion")
class InversionDetector(Detector):
    """Looks for vectors that move the first or masked token in the same way in all texts."""

    needs: ClassVar[tuple[Capability, ...]] = ("HasVocabulary",)

    texts: Pass = Field(Pass(texts=8, length=8), description="that vectors are moved on")
    fresh: Pass = Field(Pass(texts=24, length=24), description="that they are judged on")
    width: PositiveInt = Field(3, description="vectors in a row")
    restarts: PositiveInt = Field(8, description="beginnings from random words, for each target")
    leads: int = Field(4, ge=0, description="beginnings from words that stood out before")
    steps: PositiveInt = Field(60, description="of Adam")
    learning_rate: float = Field(0.02, gt=0, description="in units of the embeddings' spread")
    agreement: float = Field(1.0, ge=0, description="weight of being alike, beside being far")

    def search(self, subject: Subject, bench: Workbench) -> Outcome:
        """Return the vectors that were found, as the words nearest to them."""
        from recipe_ray.scan.prompt_search import PromptSearch

        return PromptSearch(self, subject, bench).run()
