"""config.json of a VGG or ViT as an attacker writes it: sizes that its weights do not bear out."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest
from image_samples import TINY_VGG, TINY_VIT
from samples import raised_by

from recipe_ray.models.family import MODELS

pytest.importorskip("torchvision")

SIZES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "classes of a VGG": (TINY_VGG, {"num_classes": 10**10}, "says [10000000000"),
    "channels": (TINY_VGG, {"channels": [10**6, "M", 10**6, "M"]}, "says [4, 4000000]"),
    "layers of a VGG": (
        TINY_VGG,
        {"channels": [1] * 300},
        "channels: too many values: 256 at most, there are 300",
    ),
    "pixels of a VGG": (TINY_VGG, {"image_size": 10**6}, "image_size: Input should be less than"),
    "positions of its features": (TINY_VGG, {"grid": 10**5}, "classifier.0.weight has shape"),
    "classes of a ViT": (TINY_VIT, {"num_classes": 10**10}, "says [10000000000"),
    "width": (TINY_VIT, {"width": 10**7}, "says [1, 1, 10000000]"),
    "neurons": (TINY_VIT, {"mlp": 10**9}, "says [1000000000"),
    "blocks": (TINY_VIT, {"depth": 10**9}, "depth: Input should be less than or equal to 256"),
    "a block too many": (TINY_VIT, {"depth": 3}, "it lacks encoder.layers.encoder_layer_2"),
    "pixels": (TINY_VIT, {"image_size": 2048}, "encoder.pos_embedding has shape"),
}


@pytest.mark.parametrize("size", SIZES)
def test_a_config_that_its_weights_do_not_bear_out_is_refused_before_it_is_made(
    size: str, tmp_path: Path
) -> None:
    model, changes, said = SIZES[size]
    MODELS.parse(model).load().save(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = raised_by(MODELS.parse({"name": model["name"], "source": str(tmp_path)}).load)
    assert said in message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB: 256 MiB
