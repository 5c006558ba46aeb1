"""torchvision, which is an optional dependency, and the weights that it releases by name."""

from dataclasses import dataclass
from typing import Any
from urllib.error import URLError

from torch import Tensor

from recipe_ray.base.errors import ModelError, UnsafeModelError, unknown

TORCHVISION = "torchvision"  # as the `source` of a model


def torchvision_models() -> Any:
    """Return `torchvision.models`; raise ModelError where torchvision is not installed."""
    try:
        from torchvision import models
    except ImportError as error:
        raise ModelError(
            f"this model needs torchvision ({error}): pip install 'recipe-ray[vision]'"
        ) from error
    return models


@dataclass(frozen=True)
class ReleasedWeights:
    """Weights that torchvision releases for `arch` under a name such as IMAGENET1K_V1.

    They are pickles: downloaded only with `allow_pickle`, checked against the hash in their name,
    and opened by the weights_only unpickler.
    """

    arch: str
    tag: str
    allow_pickle: bool

    def settings(self) -> dict[str, Any]:
        """Return the architecture, input size and normalisation they were trained with."""
        entry = self._entry()
        preset = entry.transforms()
        return {
            "arch": self.arch,
            "num_classes": len(entry.meta["categories"]),
            "image_size": preset.crop_size[0],
            "mean": tuple(preset.mean),
            "std": tuple(preset.std),
        }

    def content(self) -> dict[str, Any]:
        """Return the name of the file, which has the beginning of its hash in it."""
        return {TORCHVISION: self._entry().url.rpartition("/")[2]}

    def weights(self) -> dict[str, Tensor]:
        """Return the tensors, downloaded once into torch's own cache."""
        what = f"torchvision's {self.arch} {self.tag}"
        if not self.allow_pickle:
            raise UnsafeModelError(
                f"{what}: torchvision releases pickles, which can run code when they are opened; "
                "pass --allow-pickle to download it (its hash is checked) and read it with "
                "torch's weights_only unpickler"
            )
        try:
            state: dict[str, Tensor] = self._entry().get_state_dict(
                progress=False, check_hash=True, weights_only=True, map_location="cpu"
            )
        except (URLError, OSError, RuntimeError) as error:
            raise ModelError(f"{what} cannot be downloaded: {error}") from error
        return state

    def _entry(self) -> Any:
        known = torchvision_models().get_model_weights(self.arch).__members__
        # weights without categories have no classifier: there is nothing to pre-train with
        usable = [name for name, entry in known.items() if entry.meta["categories"] is not None]
        if self.tag not in usable:
            raise ModelError(unknown(f"weights of torchvision's {self.arch}", self.tag, usable))
        return known[self.tag]
