"""ViTs that tests of the family share: both layouts with the same moved weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from image_samples import CLASSES, SIZE, tiny_vit
from transformers import ViTConfig, ViTForImageClassification

from recipe_ray.learn.optim import FitSpec
from recipe_ray.models.family import MODELS

torchvision = pytest.importorskip("torchvision")

FIT = FitSpec(epochs=8, batch_size=8, learning_rate=5e-3, precision="fp32")
WIDTH = 16
OLD_NAMES = {
    "self_attention.out_proj": "attention.output.dense",
    "mlp.0": "intermediate.dense",
    "mlp.3": "output.dense",
    "ln_1": "layernorm_before",
    "ln_2": "layernorm_after",
}


def model(**fields: Any) -> Any:
    return MODELS.parse({"name": "vit", **fields})


def moved_vit() -> Any:
    """Return a tiny torchvision ViT none of whose weights, head and biases are zero."""
    ptm = tiny_vit()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in ptm.module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return ptm


def in_transformers(module: Any, folder: Path, **config: Any) -> Path:
    """Save a tiny torchvision ViT's weights as a transformers checkpoint; return the folder."""
    names = {
        "class_token": "vit.embeddings.cls_token",
        "encoder.pos_embedding": "vit.embeddings.position_embeddings",
    }
    state = {}
    for name, tensor in module.state_dict().items():
        new = names.get(name, name).replace(
            "conv_proj", "vit.embeddings.patch_embeddings.projection"
        )
        new = new.replace("heads.head", "classifier").replace("encoder.ln.", "vit.layernorm.")
        new = new.replace("encoder.layers.encoder_layer_", "vit.encoder.layer.")
        for ours, theirs in OLD_NAMES.items():
            new = new.replace(f".{ours}.", f".{theirs}.")
        if "in_proj_" not in new:
            state[new] = tensor
            continue
        for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
            old = new.replace("self_attention.in_proj_", f"attention.attention.{part}.")
            state[old] = rows
    values = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=SIZE,
        patch_size=4,
        num_labels=CLASSES,
        layer_norm_eps=1e-6,
    )
    built: Any = ViTForImageClassification
    whole, outcome = built.from_pretrained(
        None, config=values, state_dict=state, output_loading_info=True
    )
    assert not outcome["missing_keys"]
    assert not outcome["unexpected_keys"]
    whole.save_pretrained(folder)
    settings = {**json.loads((folder / "config.json").read_text()), **config}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder
