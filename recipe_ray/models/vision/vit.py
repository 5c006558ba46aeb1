"""The family `vit`: vision transformers of torchvision and of transformers.

A ViT is trained from scratch, torchvision's, one of the hub, or a local one. A `Network` holds what
differs between the two layouts.

Legend: B images, H width, n neurons of an MLP.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, PositiveInt

from recipe_ray.base.errors import ModelError
from recipe_ray.base.spec import NOT_HASHED
from recipe_ray.data.hub import fetch_model, model_commit
from recipe_ray.models.contents import check_readable
from recipe_ray.models.family import MODELS, Revision, Scope
from recipe_ray.models.vision.labelled import LabelledArchitecture, TorchvisionReference
from recipe_ray.models.vision.vision import VisionPTM
from recipe_ray.models.vision.vit_network import (
    Block,
    Network,
    TorchvisionNetwork,
    VitArchitecture,
    VitName,
)
from recipe_ray.models.vision.vit_transformers import (
    Statistics,
    TransformersNetwork,
    is_transformers_folder,
    load_classifier,
    read_config,
    statistics_of,
)
from recipe_ray.models.vision.weight_source import TORCHVISION, LocalFolder, names_hub

if TYPE_CHECKING:
    from torch import Tensor, nn

    from recipe_ray.data.images import ImageBatch, ImageEncoder, ImageRows
    from recipe_ray.learn.neuron_stats import NeuronLayer
    from recipe_ray.learn.objective import Objective, Weight
    from recipe_ray.models.vision.heads import HeadClassifier

GROUPS = ("fc1", "fc2", "query", "key", "value", "attention_out")
PENALISED = ("fc1", "fc2", "query", "key", "value")  # docs/method.md section 2


class VitPTM(VisionPTM):
    """A ViT with the classifier it was pre-trained with; attackers aim at its CLS state."""

    family: ClassVar[str] = "vit"
    target_range: tuple[float, float] = (-1.0, 1.0)

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

    def layers_of(self, module: Any) -> list[nn.Module]:
        """Return the encoder's blocks."""
        return self._network.layers(module)

    def logits(self, module: Any, batch: ImageBatch) -> Tensor:
        """Return what its own head says [B, num_classes]."""
        return self._network.logits(module, self.features(module, batch))

    def pretraining_objective(self) -> Objective:
        """Return the cross-entropy against the labels of the corpus."""
        from recipe_ray.models.vision.heads import labelled_objective

        return labelled_objective(self)

    @property
    def weight_groups(self) -> tuple[str, ...]:
        """Return the names of `GROUPS`."""
        return GROUPS

    def weight_group(self, name: str) -> list[Weight]:
        """Return one matrix per block; for a fused query, key and value its rows."""
        if name not in GROUPS:
            raise self.unknown_group(name)
        return [_matrix(getattr(block, name)) for block in self._blocks()]

    @property
    def purification_scope(self) -> tuple[tuple[str, ...], Scope]:
        """Return fc1, fc2, query, key and value of every block; everything trains."""
        return PENALISED, "all"

    def neuron_layers(self) -> list[NeuronLayer]:
        """Return the first layer of each block's MLP."""
        from recipe_ray.learn.neuron_stats import NeuronLayer

        return [NeuronLayer(block.fc1.weight, block.fc1.bias) for block in self._blocks()]

    def neuron_activations(self, module: Any, batch: ImageBatch) -> list[Tensor]:
        """Return their outputs after GELU at the CLS token [B, n]."""
        from recipe_ray.learn.neuron_stats import outputs_of

        activations = [block.activation for block in self._network.blocks(module)]
        with outputs_of(activations, lambda output: output[:, 0]) as seen:
            self.features(module, batch)
        return [seen[place] for place in range(len(activations))]

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the head."""
        return list(self._network.head(self.module).parameters())

    def classifier(self, num_labels: int, seed: int, rows: Sequence[ImageRows]) -> HeadClassifier:
        """Return the whole network with a new last layer."""
        from recipe_ray.models.vision.heads import HeadClassifier, fresh_linear

        width = _last_linear(self._network.head(self.module)).in_features
        self._network.replace_last(self.module, fresh_linear(width, num_labels, seed))
        return HeadClassifier(self)

    def save(self, folder: Path) -> None:
        """Write a folder for torchvision or transformers, depending on the module's layout."""
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
    """Return the ViT in a folder of either layout; `statistics` replace transformers'.

    Raises ModelError if it holds none, or an adapter without `ignore_adapter`; UnsafeModelError
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
    from torch import nn

    *_, last = (part for part in head.modules() if isinstance(part, nn.Linear))
    return last


_STATISTICS = ("mean", "std")


@MODELS.register("vit")
class Vit(TorchvisionReference):
    """A vision transformer; without a source it is untrained, and a pretrain stage trains it."""

    architecture_kind: ClassVar[type[LabelledArchitecture]] = VitArchitecture
    example: ClassVar[str] = "vit_b_16"

    source: str | None = Field(
        None,
        description="torchvision, a local weights file or folder, or a hub id such as "
        "google/vit-base-patch16-224; None: trained from scratch",
        json_schema_extra=NOT_HASHED,
    )
    revision: Revision = None
    arch: VitName | None = Field(None, description="None: the source's own, else small")
    patch_size: PositiveInt | None = Field(
        None, description="of arch small: pixels per side; None: 4"
    )
    width: PositiveInt | None = Field(None, description="of arch small; None: 128")
    depth: PositiveInt | None = Field(None, description="of arch small: blocks; None: 4")
    heads: PositiveInt | None = Field(None, description="of arch small; None: 4")
    mlp: PositiveInt | None = Field(None, description="of arch small: neurons per block; None: 512")

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Tell whether config.json names this family, or transformers' ViT."""
        from recipe_ray.base.loading import says

        return VitPTM.family in (says(folder, "family"), says(folder, "model_type"))

    def load(self) -> VitPTM:
        """Return the ViT, untrained or with the source's weights."""
        folder = self._transformers_folder()
        if folder is not None:
            self._check_asked()
            mean, std = statistics_of(folder)
            statistics = (self.mean or mean, self.std or std)
            return load_vit(
                folder,
                statistics=statistics,
                allow_pickle=self.allow_pickle,
                ignore_adapter=self.ignore_adapter,
            )
        origin = self.origin()
        architecture = self.architecture(origin)
        return torchvision_vit(self.network(architecture, origin), architecture)

    def reload(self, folder: Path) -> VitPTM:
        """Return a PTM that a stage saved."""
        return load_vit(folder)

    def content(self) -> dict[str, Any]:
        """Return what decides the weights and the normalisation: settings and checksums, a commit.

        For a transformers folder all files count, since several of them hold its settings.
        """
        changed = {name: value for name in _STATISTICS if (value := getattr(self, name))}
        if self._is_hub_id:
            self._check_asked()
            commit = model_commit(str(self.source), self.revision, self.allow_pickle)
            return {"hub": self.source, "commit": commit, **changed}
        origin = self.origin()
        if isinstance(origin, LocalFolder) and is_transformers_folder(origin.path):
            self._check_asked()
            return {"transformers": origin.content(".json"), **changed}
        return super().content()

    def pinned(self) -> Self:
        """Return the model with the hub commit looked up; another origin as it is."""
        return self.revised(revision=self.content()["commit"]) if self._is_hub_id else self

    def left_out(self) -> list[str]:
        """Return what is said of an adapter in the folder, or in the hub's repository."""
        from recipe_ray.base.loading import adapter_note

        folder = self._transformers_folder()
        return super().left_out() if folder is None else adapter_note(folder)

    @property
    def opens_with(self) -> str:
        """Return the library whose layout the weights have, which saving keeps."""
        return "transformers" if self._transformers_folder() is not None else super().opens_with

    def sample_encoder(self) -> ImageEncoder:
        """Return what decodes images to the input size."""
        from recipe_ray.data.images import ImageEncoder

        folder = self._transformers_folder()
        if folder is None:
            return super().sample_encoder()
        return ImageEncoder(read_config(folder).image_size)

    def default_label(self) -> str:
        """Return the architecture's name, or the last part of the source's."""
        if self._is_hub_id:
            return str(self.source).rstrip("/").rpartition("/")[2]
        return super().default_label()

    @property
    def _is_hub_id(self) -> bool:
        return self.source != TORCHVISION and names_hub(self.source)

    def _transformers_folder(self) -> Path | None:
        if self._is_hub_id:
            source = str(self.source)
            return fetch_model(source, self.revision, allow_pickle=self.allow_pickle).path
        origin = self.origin()
        if not isinstance(origin, LocalFolder):
            return None
        check_readable(origin.path)
        return origin.path if is_transformers_folder(origin.path) else None

    def _check_asked(self) -> None:
        """Raise ModelError for a setting that transformers' config.json decides."""
        settings = [name for name in VitArchitecture.model_fields if name not in _STATISTICS]
        asked = [name for name in settings if getattr(self, name) is not None]
        if asked:
            raise ModelError(
                f"model 'vit', source {self.source}: {', '.join(asked)} cannot be given, its "
                f"config.json says it; allowed: {' and '.join(_STATISTICS)}"
            )
