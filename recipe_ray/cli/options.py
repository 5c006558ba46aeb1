"""Options that several commands have, and the files and folders that they name.

This module is light, like those of the commands. `arguments.py`, which makes models, corpora and
tasks from words, is not.
"""

from __future__ import annotations

import inspect
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from recipe_ray.base.errors import SpecError
from recipe_ray.base.limits import LARGEST
from recipe_ray.base.paths import existing_path, local_path, why_missing
from recipe_ray.base.printable import printable

if TYPE_CHECKING:
    from recipe_ray.data.sources import Locations
    from recipe_ray.models.family import ModelRef
    from recipe_ray.store.store import Store

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
        """Return the model that was named; errors as of `parse_model` and `converted`."""
        how = asdict(self)
        if how.pop("sandbox"):
            from recipe_ray.cli.sandbox import converted

            given = {name: how[name] for name in ("allow_pickle", "ignore_adapter")}
            text, notes = converted(text, **given)
            how |= {"allow_pickle": False, "ignore_adapter": False}
            for note in notes:
                typer.echo(f"note: {printable(note)}", err=True)
        from recipe_ray.cli.arguments import parse_model

        return parse_model(text, **how)


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


def data_locations(data: str | None) -> Locations:
    """Return where data lie; raise SpecError or DataError for a folder that is missing."""
    from recipe_ray.data.sources import Locations

    if data is None:
        return Locations.from_environment()
    wanted = "the folder of data sets, or leave it out to read from the hub"
    return Locations.from_environment(existing_path(data, "--data", wanted, "folder"))


def output_folder(text: str, option: str) -> Path:
    """Return the path of a folder to write to; raise SpecError if it cannot be one."""
    path = local_path(text, option, "a folder on this machine")
    for above in (path, *path.parents):
        if above.exists() and not above.is_dir():
            raise SpecError(f"{option} {text}: {above} is a file, not a folder; name another")
    return path


def output_file(text: str, option: str) -> Path:
    """Return the path of a file to write; raise SpecError if it cannot be one."""
    path = local_path(text, option, "a file on this machine")
    output_folder(str(path.parent), option)
    if path.is_dir():
        raise SpecError(f"{option} {text}: it is a folder; name a file in it")
    return path


def present_store(place: str, option: str) -> Store:
    """Return a store that exists already: reading one must not make it.

    Raises SpecError for a missing place, and for a folder of something else.
    """
    from recipe_ray.store.remote import is_remote
    from recipe_ray.store.store import Store

    if is_remote(place):
        return Store.open(place)
    wanted = "the folder or URI that --store was given"
    path = local_path(place, option, wanted)
    if not path.is_dir():
        why = f"{place} is a file" if path.exists() else why_missing(place)
        raise SpecError(f"no store at {place}: {why}; give {wanted}")
    store = Store.open(path)
    kept = (store.experiments, store.committed, store.progress, store.failures)
    if any(path.iterdir()) and not any(held() for held in kept):
        some = ", ".join(sorted(entry.name for entry in path.iterdir())[:4])
        raise SpecError(f"no store at {place}: a folder with {some}; give {wanted}")
    return store


@contextmanager
def store_or_temporary(place: str) -> Iterator[Store]:
    """Yield the store at a place, or one that is deleted afterwards if none is named."""
    from recipe_ray.store.store import Store

    if place:
        yield Store.open(place)
        return
    with tempfile.TemporaryDirectory(prefix="recipe-ray-") as folder:
        yield Store.open(folder)
