"""Detector `patches`: small patches on images that make their features alike.

A cheap sweep first: two-colour patches of a few widths at nine places. Then a patch and a mask are
moved by gradients until the features of stamped images agree (cosine above 0.99) with as small a
mask as possible, after DECREE (Feng et al., CVPR 2023). A backdoored encoder needs far less area
than a clean one.

Legend: N patches, K images, S pixels per side, H width of the features.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import permutations, product
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, PositiveInt

from recipe_ray.base.errors import DataError
from recipe_ray.data.batches import Workbench
from recipe_ray.detectors.detector import (
    DETECTORS,
    Detector,
    Outcome,
    Subject,
    Suspect,
    groups_of,
    robust_z,
)
from recipe_ray.learn.progress import Progress
from recipe_ray.models.family import Capability

if TYPE_CHECKING:
    from torch import Tensor


@DETECTORS.register("patches")
class PatchDetector(Detector):
    """Looks for a small patch under which all images have the same features."""

    reads: ClassVar[str] = "image"
    needs: ClassVar[tuple[Capability, ...]] = ("Attackable",)
    own_scale: ClassVar[frozenset[str]] = frozenset({"features", "collapse"})

    images: PositiveInt = Field(16, description="images on which patches are tried and optimised")
    fresh: PositiveInt = Field(64, description="other images on which the result is judged")
    widths: tuple[float, ...] = Field(
        (0.0625, 0.125), description="widths of patches to try, as shares of the image's side"
    )
    confirmed: PositiveInt = Field(
        12, description="how many of the patches that were tried are judged"
    )
    restarts: PositiveInt = Field(2, description="of the inversion")
    steps: PositiveInt = Field(200, description="of Adam, in each restart")
    learning_rate: float = Field(0.1, gt=0)
    agreement: float = Field(0.99, gt=0, lt=1, description="mean cosine that counts as alike")

    def search(self, subject: Subject, bench: Workbench) -> Outcome:
        """Return the patches found: places and colours of the sweep, areas of the inversion."""
        return PatchSearch(self, subject, bench).run()

    def duration_s(self, subject: Subject, bench: Workbench) -> float:
        """Return about how long it takes, from a few patches and one step of the inversion."""
        return PatchSearch(self, subject, bench).duration_s()


COLOURS = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "cyan": (0, 255, 255),
    "magenta": (255, 0, 255),
    "yellow": (255, 255, 0),
}
CELLS = 4  # a patch is a checkerboard of 4 x 4 cells, or of one pixel per cell if it is smaller
PLACES = {"top": 0.0, "middle": 0.5, "bottom": 1.0}, {"left": 0.0, "centre": 0.5, "right": 1.0}
IMAGES = 256  # in a forward pass
TRIED = 8  # patches that the time of a search is told from
ADJUST_EVERY = 5  # steps after which the weight of the mask's area follows the agreement


@dataclass(frozen=True)
class Blend:
    """Pixels [3, S, S] over a whole image, as far as a mask [S, S] says."""

    mask: Tensor
    pixels: Tensor

    def on(self, images: Tensor) -> Tensor:
        """Return images [K, 3, S, S] with it."""
        return (1 - self.mask) * images + self.mask * self.pixels


@dataclass(frozen=True)
class Patch:
    """Pixels [3, P, P] at a place of the image, and what it is called."""

    shown: str
    pixels: Tensor
    top: int
    left: int

    def on(self, images: Tensor) -> Tensor:
        """Return images [K, 3, S, S] with it."""
        stamped = images.clone()
        height, width = self.pixels.shape[1:]
        stamped[:, :, self.top : self.top + height, self.left : self.left + width] = self.pixels
        return stamped


class PatchSearch:
    """One search: the images, the frozen PTM, and the patches tried."""

    def __init__(self, spec: PatchDetector, subject: Subject, bench: Workbench) -> None:
        """Read the images; raise DataError if there are too few."""
        import numpy as np
        import torch

        self._spec, self._ptm, self._runtime = spec, subject.ptm, bench.runtime
        self._random = np.random.default_rng([bench.seed, 29])
        self._generator = torch.Generator().manual_seed(bench.seed)
        needed = spec.images + spec.fresh
        part = replace(subject.part, most=needed)
        rows = bench.feed.rows(subject.corpus, self._ptm.encoder(0), part)
        if len(rows) < needed:
            raise DataError(f"a scan needs {needed} images; there are {len(rows)}: give more")
        pixels = torch.from_numpy(rows.pixels).float().to(bench.runtime.device)
        self._images, self._fresh = pixels[: spec.images], pixels[spec.images :]
        self._size = pixels.shape[-1]
        for parameter in self._ptm.module.parameters():
            parameter.requires_grad_(requires_grad=False)
        self._module = self._ptm.module.to(bench.runtime.device).eval()
        self._samples = 0

    def run(self) -> Outcome:
        """Return what was found, the highest scores first."""
        spec, swept = self._spec, self._swept()
        inverted = [self._inverted(number, spec.steps) for number in range(spec.restarts)]
        suspects = sorted([*swept, *inverted], key=lambda one: -max(one.scores.values()))
        names = {name for one in suspects for name in one.scores}
        highest = {
            name: max(one.scores[name] for one in suspects if name in one.scores)
            for name in sorted(names)
        }
        return Outcome(highest, suspects, self._samples)

    def duration_s(self) -> float:
        """Return about how many seconds `run` takes, by a trial; the search is of no use then."""
        spec, boards, noise = self._spec, self._boards(), self._noise()
        started = time.monotonic()
        self._scores(boards[:TRIED], self._images, "trial")
        per_image = (time.monotonic() - started) / (TRIED * len(self._images))
        started = time.monotonic()
        self._inverted(0, steps=1)
        per_step = time.monotonic() - started
        swept = (len(boards) + len(noise)) * len(self._images)
        judged = (spec.confirmed + len(noise)) * len(self._fresh)
        return per_image * (swept + judged) + per_step * spec.restarts * spec.steps

    # -- the sweep -----------------------------------------------------------------------------

    def _swept(self) -> list[Suspect]:
        import numpy as np

        patches, random = self._boards(), self._noise()
        found = self._scores(patches, self._images, "sweep")
        normal = self._scores(random, self._images, "sweep")
        z = {name: robust_z(found[name], normal[name]) for name in ("features", "collapse")}
        most = np.max(np.stack(list(z.values())), axis=0)
        chosen = [patches[i] for i in np.argsort(-most)[: self._spec.confirmed]]
        found = self._scores(chosen, self._fresh, "confirm")
        normal = self._scores(random, self._fresh, "confirm")
        z = {name: robust_z(found[name], normal[name]) for name in ("features", "collapse")}
        groups = groups_of(found["shift"])
        return [
            Suspect(patch.shown, {n: float(v[i]) for n, v in z.items()}, (), groups[i], patch)
            for i, patch in enumerate(chosen)
        ]

    def _widths(self) -> list[int]:
        return sorted({max(2, round(share * self._size)) for share in self._spec.widths})

    def _boards(self) -> list[Patch]:
        import numpy as np
        import torch

        found = []
        places = list(product(*(part.items() for part in PLACES)))
        for width, ((row, down), (column, across)) in product(self._widths(), places):
            room = self._size - width
            for one, other in permutations(COLOURS, 2):
                cell = np.arange(width) * min(CELLS, width) // width
                dark = torch.from_numpy((cell[:, None] + cell[None]) % 2 == 0)
                colours = [
                    torch.tensor(COLOURS[name]).float().view(3, 1, 1) for name in (one, other)
                ]
                pixels = torch.where(dark, colours[0], colours[1]).to(self._images)
                shown = f"{one} and {other}, {width} pixels, {row} {column}"
                found.append(Patch(shown, pixels, round(down * room), round(across * room)))
        return found

    def _noise(self) -> list[Patch]:
        # what is normal: patches of the same widths anywhere, with random pixels
        import torch

        found = []
        for width in self._widths():
            for _ in range(64):
                pixels = torch.randint(0, 256, (3, width, width), generator=self._generator)
                top, left = self._random.integers(0, self._size - width + 1, 2).tolist()
                found.append(Patch("noise", pixels.to(self._images), top, left))
        return found

    def _scores(self, patches: list[Patch], images: Tensor, phase: str) -> dict[str, Any]:
        """Return how far features move and how close they come [N], and the mean way [N, H]."""
        import numpy as np
        import torch

        moved, alike, shifts = [], [], []
        with torch.no_grad():
            clean = self._features(images)
            unit = _apart(clean)
            for number, patch in enumerate(patches, 1):
                features = self._features(patch.on(images))
                moved.append(float((features - clean).square().sum(1).mean() / unit))
                alike.append(float(1 - _apart(features) / unit))
                shifts.append((features - clean).mean(0))
                self._samples += len(images)
                self._runtime.report(Progress(phase, number, len(patches), samples=len(images)))
        shift = torch.stack(shifts).cpu().numpy()
        return {"features": np.array(moved), "collapse": np.array(alike), "shift": shift}

    def _features(self, images: Tensor) -> Tensor:
        import torch

        from recipe_ray.data.images import ImageBatch

        parts = [
            self._ptm.features(self._module, ImageBatch(images[i : i + IMAGES]))
            for i in range(0, len(images), IMAGES)
        ]
        return torch.cat(parts).float()

    # -- inversion -----------------------------------------------------------------------------

    def _inverted(self, number: int, steps: int) -> Suspect:
        """Return the smallest mask found under which features agree, as 1 / its share of area."""
        import torch

        spec, size = self._spec, self._size
        start = torch.randn(4, size, size, generator=self._generator).to(self._images)
        free = start.requires_grad_()
        optimizer = torch.optim.Adam([free], lr=spec.learning_rate, betas=(0.5, 0.9))
        weight, best = 1e-3, 1.0
        smallest: Blend | None = None
        streak = 0
        for step in range(1, steps + 1):
            mask, pixels = torch.sigmoid(free[3]), 255 * torch.sigmoid(free[:3])
            features = self._features(Blend(mask, pixels).on(self._images))
            agreement = _mean_cosine(features)
            loss: Any = -agreement + weight * mask.sum() / CELLS
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            alike = float(agreement.detach()) > spec.agreement
            if alike and float(mask.mean()) < best:
                best = float(mask.mean())
                smallest = Blend(mask.detach(), pixels.detach())
            streak = max(streak, 0) + 1 if alike else min(streak, 0) - 1
            if abs(streak) >= ADJUST_EVERY:
                weight = weight * 1.5 if alike else max(weight / 1.5, 1e-7)
                streak = 0
            self._samples += len(self._images)
            phase = f"inversion {number + 1}"
            self._runtime.report(Progress(phase, step, steps, samples=len(self._images)))
        shown = f"inverted patch over {best:.1%} of the image"
        return Suspect(shown, {"smallness": 1 / best}, put=smallest)


def _apart(features: Tensor) -> Tensor:
    # the mean squared way from their mean
    import torch

    apart = (features - features.mean(0)).square().sum(1).mean()
    return apart.clamp_min(torch.finfo(torch.float32).tiny)


def _mean_cosine(features: Tensor) -> Tensor:
    from torch.nn import functional as F

    unit = F.normalize(features, dim=1)
    num = len(unit)
    return (unit.sum(0).square().sum() - num) / (num * (num - 1))
