"""Options that several commands have, and the files and folders that they name.

This module is light, like those of the commands. `arguments.py`, which makes models, corpora and
tasks from words, is not.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from recipe_ray.base.limits import LARGEST
from recipe_ray.base.paths import existing_path

if TYPE_CHECKING:
    from recipe_ray.base.registry import Registry
    from recipe_ray.models.family import ModelRef

KINDS = ("attacks", "defenses", "models", "corpora", "tasks", "detectors")  # of plugins

ExperimentFile = Annotated[
    str, typer.Argument(metavar="FILE", help="Experiment file (YAML).", show_default=False)
]
StoreOption = Annotated[
    str, typer.Option("--store", help="Folder or URI (s3://, gs://, az://) where results are kept.")
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="FOLDER",
        help="Folder of Parquet files NAME.parquet; also RECIPE_RAY_DATA.",
    ),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Change a field: a.b=value; may be given often.")
]
AddressOption = Annotated[
    str | None,
    typer.Option("--address", help="Ray cluster to use; default: RAY_ADDRESS, else this machine."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show more: losses every few seconds, and logs.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show errors and results only.")]
PickleOption = Annotated[
    bool,
    typer.Option("--allow-pickle", help="Read pickle weights with the weights_only unpickler."),
]
AdapterOption = Annotated[
    bool,
    typer.Option(
        "--ignore-adapter", help="Ignore an adapter (LoRA) that lies next to the weights."
    ),
]
SandboxOption = Annotated[
    bool,
    typer.Option(
        "--sandbox",
        help="Let a process without network, with limits, read the model's folder and rewrite it.",
    ),
]
ModelArgument = Annotated[
    str, typer.Argument(help="Local folder, hub id, or a model that `recipe-ray list` shows.")
]
RevisionOption = Annotated[str | None, typer.Option("--revision", help="Commit of a hub model.")]
OutOption = Annotated[
    str, typer.Option("--out", metavar="FOLDER", help="New folder for the result.")
]
WorkersOption = Annotated[
    int,
    typer.Option("--workers", min=1, help="DDP workers on Ray Train; 1: this process."),
]
TextColumnOption = Annotated[
    str | None, typer.Option("--text-column", help="The column of texts in your own data.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=LARGEST)]
DEFAULT_STORE = "runs/store"


@dataclass(frozen=True)
class Opening:
    """The options that say how a model is opened."""

    revision: RevisionOption = None
    allow_pickle: PickleOption = False
    ignore_adapter: AdapterOption = False
    sandbox: SandboxOption = False

    def model(self, text: str) -> ModelRef:
        """Return the model that was named; errors as of `parse_model`."""
        from recipe_ray.api.arguments import parse_model

        return parse_model(text, **asdict(self))


@dataclass(frozen=True)
class Telling:
    """The options that say how much is shown."""

    verbose: VerboseOption = False
    quiet: QuietOption = False


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Make each field of a command's dataclass parameters an option of its own.

    Fields need defaults. Typer reads the signature; the command gets whole groups.
    """
    hinted = get_type_hints(command).items()
    groups: dict[str, Any] = {name: kind for name, kind in hinted if is_dataclass(kind)}
    names = {group: [one.name for one in fields(kind)] for group, kind in groups.items()}
    parameters: list[inspect.Parameter] = []
    for one in inspect.signature(command, eval_str=True).parameters.values():
        if one.name not in groups:
            parameters.append(one)
            continue
        kind = groups[one.name]
        hints = get_type_hints(kind, include_extras=True)
        parameters += [
            one.replace(name=field.name, default=field.default, annotation=hints[field.name])
            for field in fields(kind)
        ]

    @wraps(command)
    def ungrouped(**given: Any) -> None:
        whole = {
            group: kind(**{name: given.pop(name) for name in names[group]})
            for group, kind in groups.items()
        }
        command(**given, **whole)

    ungrouped.__dict__["__signature__"] = inspect.Signature(parameters)
    ungrouped.__annotations__ = {one.name: one.annotation for one in parameters}
    return ungrouped


def set_up_logging(verbose: bool) -> None:
    """Show the stages' logs on standard error if asked."""
    if verbose:
        logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
        logging.getLogger("recipe_ray").setLevel(logging.INFO)


def experiment_file(text: str, what: str = "experiment file") -> Path:
    """Return the path of a YAML file; raise SpecError if it is missing or not a file."""
    article = "an" if what[0] in "aeiou" else "a"
    return existing_path(text, "FILE", f"{article} {what} (YAML)", "file")


def registries() -> dict[str, Registry[Any]]:
    """Return the registry of every kind of `KINDS`."""
    from recipe_ray.attacks.attack import ATTACKS
    from recipe_ray.data.corpus import CORPORA
    from recipe_ray.defenses.defense import DEFENSES
    from recipe_ray.detectors.detector import DETECTORS
    from recipe_ray.models.family import MODELS
    from recipe_ray.tasks.task import TASKS

    found = (ATTACKS, DEFENSES, MODELS, CORPORA, TASKS, DETECTORS)
    return dict(zip(KINDS, found, strict=True))
