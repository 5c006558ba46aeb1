"""Where the parts of timm's networks are, whatever their architecture: weights and neurons.

Groups of weights go by the kind of a layer and the names that timm gives to linear layers. Neurons
are found by following one pass, in shapes alone: a layer, then perhaps a normalisation, then an
activation function, each of which is given the very output of the one before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recipe_ray.base.errors import ModelError
from recipe_ray.learn.neuron_stats import NeuronLayer
from recipe_ray.learn.objective import Weight, WeightPart
from recipe_ray.models.config_fields import explained_by, outline
from recipe_ray.models.vision.timm_network import TimmArchitecture
from recipe_ray.models.vision.vit_network import PROJECTIONS

# linear layers by the ends of their names
_LINEAR = {
    "fc1": "fc1",
    "fc2": "fc2",
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "proj": "attention_out",
    "out_proj": "attention_out",
}
_FUSED = "qkv"
_PATCHES = "patch_embed"
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
_UNCHANGED = (nn.Identity, nn.Dropout)
_ACTIVATIONS = ("torch.nn.modules.activation", "timm.layers.activations")
_GATES = ("Sigmoid", "Softmax", "Attention")  # parts of names: they weigh, and put out no neurons
_BATCH = 2  # images of a pass that is followed


def groups_of(module: Any) -> dict[str, list[Weight]]:
    """Return the weights by group, each from the input to the output; only groups with members."""
    groups: dict[str, list[Weight]] = {}
    for name, part in module.named_modules():
        owner, _, last = name.rpartition(".")
        weight: Any = getattr(part, "weight", None)
        if isinstance(part, nn.Conv2d):
            groups.setdefault(_convolution(name, part), []).append(weight)
        elif isinstance(part, nn.Linear) and last == _FUSED:
            for group, rows in _projections(module.get_submodule(owner), weight):
                groups.setdefault(group, []).append(rows)
        elif isinstance(part, nn.Linear) and last in _LINEAR:
            groups.setdefault(_LINEAR[last], []).append(weight)
    return groups


def _convolution(name: str, part: nn.Conv2d) -> str:
    if _PATCHES in name:
        return "patches"
    return "depthwise" if 1 < part.groups == part.in_channels else "conv"


def _projections(attention: Any, fused: nn.Parameter) -> Iterator[tuple[str, Weight]]:
    # if the heads come first, rows of query, key and value alternate
    thirds, rest = divmod(len(fused), len(PROJECTIONS))
    if rest or getattr(attention, "head_first", False):
        yield _FUSED, fused
        return
    for place, name in enumerate(PROJECTIONS):
        yield name, WeightPart(fused, place * thirds, (place + 1) * thirds, PROJECTIONS)


class Neurons(NamedTuple):
    """A layer whose outputs are neurons, by the names of modules."""

    layer: str
    norm: str | None
    activation: str  # what puts them out
    is_map: bool  # neurons are channels, in the second dimension; else they are the last one

    def fed_by(self, module: nn.Module) -> NeuronLayer:
        """Return the parameters that feed them."""
        layer: Any = module.get_submodule(self.layer)
        norm: Any = module.get_submodule(self.norm) if self.norm is not None else None
        pair = (getattr(norm, "weight", None), getattr(norm, "bias", None))
        return NeuronLayer(layer.weight, layer.bias, tuple(p for p in pair if p is not None))


class Survey(NamedTuple):
    """What one pass shows of an architecture."""

    neurons: tuple[Neurons, ...]
    feature_size: int
    layers: tuple[str, ...]  # what timm itself counts as layers


@cache
def survey(architecture: TimmArchitecture) -> Survey:
    """Return what a pass of an architecture shows; raise ModelError if it cannot be used.

    It must read images of its size, pool them to one vector, and have one linear layer after that.
    """
    where = f"timm's {architecture.arch}"
    module = outline(lambda: architecture.build(0), where).eval()
    names: Any = dict(module.named_modules())
    size = architecture.image_size
    found: list[Neurons] = []
    follower = _Follower(found)
    for name, part in names.items():
        follower.watch(name, part)
    cannot = f"it cannot read images of {size} pixels (image_size)"
    with explained_by(where, cannot), torch.no_grad():
        pixels = torch.zeros(_BATCH, 3, size, size, device="meta")
        features = features_of(module, pixels)
    head = module.get_classifier()
    if not isinstance(head, nn.Linear) or features.shape != (_BATCH, head.in_features):
        raise ModelError(
            f"{where}: its classifier is not one linear layer on one vector per image; give "
            "another architecture"
        )
    declared: Any = getattr(module, "feature_info", None) or []
    told = declared if isinstance(declared, list) else declared.get_dicts()
    layers = tuple(one["module"] for one in told if one.get("module") in names)
    return Survey(tuple(found), head.in_features, layers)


def features_of(module: Any, pixels: Tensor) -> Tensor:
    """Return the pooled vectors that the classifier reads [B, H]."""
    features: Tensor = module.forward_head(module.forward_features(pixels), pre_logits=True)
    return features


class _Output(NamedTuple):
    """An output that no other computation has changed since: what it is of."""

    tensor: Tensor  # held, so that no other gets its `id`
    version: int
    layer: str
    is_map: bool
    norm: str | None


class _Follower:
    """Follows outputs from layer to activation function by the tensors themselves."""

    def __init__(self, found: list[Neurons]) -> None:
        self._found = found
        self._open: dict[int, _Output] = {}

    def watch(self, name: str, part: nn.Module) -> None:
        """Follow what a part is given and puts out, if it is of a kind that matters."""
        kind = type(part)
        activates = kind.__module__.startswith(_ACTIVATIONS) and not any(
            gate in kind.__name__ for gate in _GATES
        )
        is_norm = isinstance(part, _NORMS)
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            is_map = isinstance(part, nn.Conv2d)
            part.register_forward_hook(
                lambda part, given, output: self._keep(output, name, is_map, None)
            )
        elif is_norm or activates or isinstance(part, _UNCHANGED):
            # timm has normalisations with the activation function inside
            inside = is_norm and not isinstance(getattr(part, "act", nn.Identity()), nn.Identity)
            self._continue(part, name, is_norm, activates or inside)

    def _keep(self, output: Tensor, layer: str, is_map: bool, norm: str | None) -> None:
        self._open[id(output)] = _Output(output, output._version, layer, is_map, norm)

    def _continue(self, part: nn.Module, name: str, is_norm: bool, ends: bool) -> None:
        given: list[_Output | None] = []

        def before(part: nn.Module, inputs: Any) -> None:
            known = self._open.get(id(inputs[0])) if inputs else None
            same = known is not None and known.version == known.tensor._version
            given.append(known if same else None)

        def after(part: nn.Module, inputs: Any, output: Tensor) -> None:
            known = given.pop()
            if known is None:
                return
            norm = name if is_norm else known.norm
            if not ends:
                self._keep(output, known.layer, known.is_map, norm)
            elif output.shape[0] == _BATCH:  # not windows of images
                self._found.append(Neurons(known.layer, norm, name, known.is_map))

        part.register_forward_pre_hook(before)
        part.register_forward_hook(after)
