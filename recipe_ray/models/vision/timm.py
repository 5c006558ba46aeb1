"""The family `timm`: what timm names, such as ResNet, ConvNeXt, EfficientNet and ViT of any size.

A network comes from a folder or a hub repository in timm's layout, from a file of weights with
`arch`, or is trained from scratch. Attackers aim at the pooled vector that the classifier reads.

Legend: B images, n neurons of a layer, H features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from recipe_ray.base.errors import SpecError
from recipe_ray.base.spec import NOT_HASHED
from recipe_ray.data.hub import fetch_model, model_commit
from recipe_ray.models.family import MODELS, Revision, Scope
from recipe_ray.models.vision.labelled import LabelledReference
from recipe_ray.models.vision.timm_network import (
    Pooling,
    TimmArchitecture,
    TimmFolder,
    architecture_from,
    is_timm_folder,
)
from recipe_ray.models.vision.vision import VisionPTM
from recipe_ray.models.vision.weight_source import LocalFolder, Origin, names_hub

if TYPE_CHECKING:
    from torch import Tensor, nn

    from recipe_ray.data.images import ImageBatch, ImageRows
    from recipe_ray.learn.neuron_stats import NeuronLayer
    from recipe_ray.learn.objective import Objective, Terms, Weight
    from recipe_ray.models.vision.heads import HeadClassifier

# what the paper penalises in a VGG and in a ViT (docs/method.md section 2), as far as there is any
PENALISED = ("conv", "depthwise", "fc1", "fc2", "query", "key", "value", "qkv")
_OF_ATTENTION = frozenset({"query", "qkv"})


class TimmPTM(VisionPTM):
    """A network of timm with the classifier it was pre-trained with."""

    family: ClassVar[str] = "timm"

    def __init__(self, module: nn.Module, architecture: TimmArchitecture) -> None:
        from recipe_ray.models.vision.timm_parts import groups_of, survey

        statistics = (architecture.mean, architecture.std)
        super().__init__(module, architecture.image_size, statistics)
        self.architecture = architecture
        self.num_classes = architecture.num_classes
        self._survey = survey(architecture)
        is_transformer = not _OF_ATTENTION.isdisjoint(groups_of(module))
        # as those of a ViT and of a VGG
        self.target_range = (-1.0, 1.0) if is_transformer else (-3.0, 3.0)

    @property
    def make(self) -> str:
        """The family's name and timm's of the kind of network, such as `timm-resnet`."""
        return f"{self.family}-{type(self.module).__module__.rpartition('.')[2]}"

    @property
    def feature_size(self) -> int:
        """Return H, the width of what the classifier reads."""
        return self._survey.feature_size

    def features(self, module: Any, batch: ImageBatch) -> Tensor:
        """Return the pooled vector that the classifier reads [B, H]."""
        from recipe_ray.models.vision.timm_parts import features_of

        return features_of(module, self.normalised(batch.pixels))

    def layers_of(self, module: Any) -> list[nn.Module]:
        """Return what timm counts as layers: blocks, or the last one of each resolution."""
        return [module.get_submodule(name) for name in self._survey.layers]

    def logits(self, module: Any, batch: ImageBatch) -> Tensor:
        """Return what its own classifier says [B, num_classes]."""
        scores: Tensor = module.get_classifier()(self.features(module, batch))
        return scores

    def pretraining_objective(self) -> Objective:
        """Return the cross-entropy against the labels of the corpus."""
        from recipe_ray.models.vision.heads import labelled_objective

        return labelled_objective(self)

    def pretraining_beside(
        self, module: Any, batch: ImageBatch, others: ImageBatch
    ) -> tuple[Terms, Tensor]:
        """Run both in one pass: batch normalisation may be among the layers."""
        from recipe_ray.models.vision.heads import in_one_pass

        return in_one_pass(self, module.get_classifier(), module, batch, others)

    @property
    def weight_groups(self) -> tuple[str, ...]:
        """Return the groups that this architecture has.

        `conv`, `depthwise`, `patches` (a ViT's first layer), `fc1`, `fc2`, `query`, `key`, `value`
        (or `qkv`, if the three alternate) and `attention_out`.
        """
        from recipe_ray.models.vision.timm_parts import groups_of

        return tuple(groups_of(self.module))

    def weight_group(self, name: str) -> list[Weight]:
        """Return the weights of all layers of a kind."""
        from recipe_ray.models.vision.timm_parts import groups_of

        groups = groups_of(self.module)
        if name not in groups:
            raise self.unknown_group(name)
        return groups[name]

    @property
    def purification_scope(self) -> tuple[tuple[str, ...], Scope]:
        """Return all convolutions, or a transformer's matrices; everything trains."""
        groups = self.weight_groups
        return tuple(name for name in PENALISED if name in groups), "all"

    def neuron_layers(self) -> list[NeuronLayer]:
        """Return the layers whose outputs go straight into an activation function.

        A ResNet's last convolution of a block does not: it is first added to another output.
        """
        return [neurons.fed_by(self.module) for neurons in self._survey.neurons]

    def neuron_activations(self, module: Any, batch: ImageBatch) -> list[Tensor]:
        """Return their outputs [B, n]: means over positions, or of the token that is pooled."""
        from recipe_ray.learn.neuron_stats import outputs_of

        def of_state(states: Tensor) -> Tensor:
            rows = states.flatten(1, -2) if states.dim() > 2 else states[:, None]
            return rows[:, 0] if reads_first else rows.float().mean(1)

        reads_first = getattr(module, "global_pool", None) == "token"
        found = self._survey.neurons
        maps, others = (
            [module.get_submodule(one.activation) for one in found if one.is_map is wanted]
            for wanted in (True, False)
        )
        with (
            outputs_of(maps, lambda output: output.float().flatten(2).mean(2)) as of_maps,
            outputs_of(others, of_state) as of_others,
        ):
            self.features(module, batch)
        seen = {
            True: iter(of_maps[place] for place in range(len(maps))),
            False: iter(of_others[place] for place in range(len(others))),
        }
        return [next(seen[one.is_map]) for one in found]

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the classifier."""
        return list(self.module.get_classifier().parameters())

    def classifier(self, num_labels: int, seed: int, rows: Sequence[ImageRows]) -> HeadClassifier:
        """Return the whole network with a new last layer."""
        from recipe_ray.models.vision.heads import HeadClassifier, fresh_linear

        head = self.module.get_classifier()
        name = next(name for name, part in self.module.named_modules() if part is head)
        self.module.set_submodule(name, fresh_linear(head.in_features, num_labels, seed))
        return HeadClassifier(self)

    def save(self, folder: Path) -> None:
        """Write model.safetensors and config.json in timm's layout."""
        self.architecture.save(self.module, folder)


@MODELS.register("timm")
class Timm(LabelledReference):
    """A network of timm by its name; without a source it is untrained."""

    architecture_kind: ClassVar[type[TimmArchitecture]] = TimmArchitecture

    source: str | None = Field(
        None,
        description="a local folder in timm's layout or weights file, or a hub id such as "
        "timm/resnet50.a1_in1k; None: trained from scratch",
        json_schema_extra=NOT_HASHED,
    )
    revision: Revision = None
    arch: str | None = Field(
        None, description="its name in timm, such as resnet50; None: the source's own"
    )
    global_pool: Pooling | None = Field(
        None, description="how positions become one vector; None: the source's own"
    )

    @model_validator(mode="after")
    def _check_architecture(self) -> Self:
        # not more: timm takes seconds to import, and is asked when the model is
        if self.source is None and self.arch is None:
            raise SpecError("arch: give a name of timm such as resnet50, or a source")
        return self

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Tell whether config.json names an architecture as timm does."""
        return is_timm_folder(folder)

    def architecture(self, origin: Origin | None) -> TimmArchitecture:
        """Return what is asked for, else what the origin says, else what timm says of the name."""
        return architecture_from(self, origin)

    def origin(self) -> Origin | None:
        """Return the folder, file or hub snapshot; raise ModelError for what is not there."""
        if names_hub(self.source):
            repo = str(self.source)
            path = fetch_model(repo, self.revision, allow_pickle=self.allow_pickle).path
            return TimmFolder(path, self.name, self.allow_pickle, self.ignore_adapter)
        found = super().origin()
        if isinstance(found, LocalFolder):
            return TimmFolder(found.path, self.name, self.allow_pickle, self.ignore_adapter)
        return found

    def load(self) -> TimmPTM:
        """Return the network, untrained or with the source's weights."""
        origin = self.origin()
        asked = self.architecture(origin)
        own = origin.settings().get("image_size") if origin is not None else None
        given = asked if own is None else asked.revised(image_size=own)
        module = self.network(given, origin)
        if given != asked:
            asked = given.resized(module, asked.image_size, f"model {self.name!r}")
        return TimmPTM(module, asked)

    def reload(self, folder: Path) -> TimmPTM:
        """Return a PTM that a stage saved."""
        return load_timm(folder)

    def content(self) -> dict[str, Any]:
        """Return the architecture, and checksums, hub commit or seed of the weights."""
        if not names_hub(self.source):
            return super().content()
        changed = {n: v for n in TimmArchitecture.model_fields if (v := getattr(self, n))}
        commit = model_commit(str(self.source), self.revision, self.allow_pickle)
        return {"hub": self.source, "commit": commit, **changed}

    def pinned(self) -> Self:
        """Return the model with the hub commit looked up; another origin as it is."""
        hub = names_hub(self.source)
        return self.revised(revision=self.content()["commit"]) if hub else self

    @property
    def opens_with(self) -> str:
        """Return timm."""
        return "timm"

    def default_label(self) -> str:
        """Return the architecture's name, or the last part of the source's."""
        if self.source is None:
            return str(self.arch)
        last = self.source.rstrip("/").rpartition("/")[2]
        return last if names_hub(self.source) else Path(last).stem


def load_timm(folder: Path) -> TimmPTM:
    """Return the PTM in a folder of timm's layout; raise ModelError if it holds none."""
    return Timm(source=str(folder.resolve())).load()
