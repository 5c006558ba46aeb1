"""Options that several commands have, and the files and folders that they name.

This module is light, like those of the commands. `arguments.py`, which makes models, corpora and
tasks from words, is not.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recipe_ray.base.errors import SpecError
from recipe_ray.base.paths import existing_path, local_path, why_missing

if TYPE_CHECKING:
    from recipe_ray.data.sources import Locations
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
DEFAULT_STORE = "runs/store"
FAILED = 1  # exit code if a stage failed


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
