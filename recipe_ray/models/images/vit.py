"""The family `vit`: vision transformers of torchvision and of transformers.

What differs between the two is a `Network`; `models/vit.py` says which ViT is loaded.
Legend: B images, H width, n neurons of an MLP.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from recipe_ray.data.images import ImageBatch, ImageRows
from recipe_ray.learn.objective import Objective
from recipe_ray.learn.weights import Weight
from recipe_ray.models.contents import check_readable
from recipe_ray.models.family import Scope
from recipe_ray.models.images.heads import HeadClassifier, fresh_linear
from recipe_ray.models.images.origins import LocalFolder
from recipe_ray.models.images.vision import VisionPTM, labelled_objective
from recipe_ray.models.images.vit_network import Block, Network, TorchvisionNetwork, VitArchitecture
from recipe_ray.models.images.vit_transformers import (
    Statistics,
    TransformersNetwork,
    is_transformers_folder,
    load_classifier,
    statistics_of,
)
from recipe_ray.models.neurons import NeuronLayer, outputs_of

GROUPS = ("fc1", "fc2", "query", "key", "value", "attention_out")
PENALISED = ("fc1", "fc2", "query", "key", "value")  # docs/method.md section 2


class VitPTM(VisionPTM):
    """A ViT with the classifier it was pre-trained with; attackers aim at its CLS state."""

    family: ClassVar[str] = "vit"
    target_range: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def __init__(
        self, module: nn.Module, network: Network, image_size: int, statistics: Statistics
    ) -> None:
        super().__init__(module, image_size, statistics)
        self._network = network

    @property
    def feature_size(self) -> int:
        """Return H."""
        width: int = self._blocks()[-1].fc2.out_features
        return width

    @property
    def num_classes(self) -> int:
        """Return how many labels its head knows."""
        return _last_linear(self._network.head(self.module)).out_features

    def features(self, module: Any, batch: ImageBatch) -> Tensor:
        """Return the CLS state after the last normalisation [B, H]."""
        return self._network.states(module, self.normalised(batch.pixels))

    def logits(self, module: Any, batch: ImageBatch) -> Tensor:
        """Return what its own head says [B, num_classes]."""
        return self._network.logits(module, self.features(module, batch))

    def pretraining_objective(self) -> Objective:
        """Return the cross-entropy against the labels of the corpus."""
        return labelled_objective(self)

    @property
    def weight_groups(self) -> tuple[str, ...]:
        """Return the names of `GROUPS`."""
        return GROUPS

    def weight_group(self, name: str) -> list[Weight]:
        """Return one matrix a block; of a fused query, key and value its rows."""
        if name not in GROUPS:
            raise self.unknown_group(name)
        return [_matrix(getattr(block, name)) for block in self._blocks()]

    @property
    def purification_scope(self) -> tuple[tuple[str, ...], Scope]:
        """Return fc1, fc2, query, key and value of every block; everything trains."""
        return PENALISED, "all"

    def neuron_layers(self) -> list[NeuronLayer]:
        """Return the first layer of each block's MLP."""
        return [NeuronLayer(block.fc1.weight, block.fc1.bias) for block in self._blocks()]

    def neuron_activations(self, module: Any, batch: ImageBatch) -> list[Tensor]:
        """Return their outputs after GELU at the CLS token [B, n]."""
        activations = [block.activation for block in self._network.blocks(module)]
        with outputs_of(activations, lambda output: output[:, 0]) as seen:
            self.features(module, batch)
        return [seen[place] for place in range(len(activations))]

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the head."""
        return list(self._network.head(self.module).parameters())

    def classifier(self, num_labels: int, seed: int, rows: Sequence[ImageRows]) -> HeadClassifier:
        """Return the whole network with a new last layer."""
        width = _last_linear(self._network.head(self.module)).in_features
        self._network.replace_last(self.module, fresh_linear(width, num_labels, seed))
        return HeadClassifier(self)

    def save(self, folder: Path) -> None:
        """Write a folder that torchvision or transformers loads, whichever the module is of."""
        self._network.save(self.module, folder)

    def _blocks(self) -> list[Block]:
        return self._network.blocks(self.module)


def torchvision_vit(module: nn.Module, architecture: VitArchitecture) -> VitPTM:
    """Return the PTM of a network in torchvision's layout."""
    network = TorchvisionNetwork(architecture)
    statistics = (architecture.mean, architecture.std)
    return VitPTM(module, network, architecture.image_size, statistics)


def load_vit(
    folder: Path,
    *,
    statistics: Statistics | None = None,
    allow_pickle: bool = False,
    ignore_adapter: bool = False,
) -> VitPTM:
    """Return the ViT in a folder of either layout; `statistics` replace those of a transformers'.

    Raises ModelError where it holds none, or an adapter without `ignore_adapter`; UnsafeModelError
    for pickles without `allow_pickle`.
    """
    check_readable(folder)
    if is_transformers_folder(folder):
        module = load_classifier(folder, allow_pickle=allow_pickle, ignore_adapter=ignore_adapter)
        used = statistics or statistics_of(folder)
        return VitPTM(module, TransformersNetwork(used), module.config.image_size, used)
    origin = LocalFolder(folder, VitPTM.family, allow_pickle, ignore_adapter)
    architecture = VitArchitecture.model_validate(origin.settings())
    return torchvision_vit(architecture.filled(origin.weights(), str(folder)), architecture)


def _matrix(part: Any) -> Weight:
    weight: Weight = getattr(part, "weight", part)
    return weight


def _last_linear(head: nn.Module) -> nn.Linear:
    *_, last = (part for part in head.modules() if isinstance(part, nn.Linear))
    return last
