"""Detector `patches`: small patches on images that make their features alike (`patch_search.py`).

A cheap sweep first: two-colour patches of a few widths at nine places. Then a patch and a mask are
moved by gradients until the features of stamped images agree (cosine above 0.99) with as small a
mask as possible, after DECREE (Feng et al., CVPR 2023). A backdoored encoder needs far less area
than a clean one.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, PositiveInt

from recipe_ray.data.batches import Workbench
from recipe_ray.models.family import Capability
from recipe_ray.scan.detector import DETECTORS, Detector, Outcome, Subject


@DETECTORS.register("patches")
class PatchDetector(Detector):
    """Looks for a small patch under which all images have the same features."""

    reads: ClassVar[str] = "image"
    needs: ClassVar[tuple[Capability, ...]] = ("Attackable",)

    images: PositiveInt = Field(16, description="that patches are put on and moved on")
    fresh: PositiveInt = Field(64, description="other images that what was found is judged on")
    widths: tuple[float, ...] = Field(
        (0.0625, 0.125), description="of the patches of the sweep, in shares of the image's side"
    )
    confirmed: PositiveInt = Field(12, description="patches of the sweep that are judged")
    restarts: PositiveInt = Field(2, description="of the inversion")
    steps: PositiveInt = Field(200, description="of Adam, in each restart")
    learning_rate: float = Field(0.1, gt=0)
    agreement: float = Field(0.99, gt=0, lt=1, description="mean cosine that counts as alike")

    def search(self, subject: Subject, bench: Workbench) -> Outcome:
        """Return the patches found: places and colours of the sweep, areas of the inversion."""
        from recipe_ray.scan.patch_search import PatchSearch

        return PatchSearch(self, subject, bench).run()
