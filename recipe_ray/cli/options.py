"""Options that several commands share."""

import logging
from pathlib import Path
from typing import Annotated

import typer

ExperimentFile = Annotated[Path, typer.Argument(help="Experiment file (YAML).", show_default=False)]
StoreOption = Annotated[
    str, typer.Option("--store", help="Folder or URI (s3://, gs://) where results are kept.")
]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="Folder of Parquet files NAME.parquet; also RECIPE_RAY_DATA."),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Change a field: a.b=value; may be given often.")
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address", help="Ray cluster to use; without it RAY_ADDRESS, else this machine."
    ),
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
        "--ignore-adapter", help="Leave an adapter (LoRA) beside the weights out of the result."
    ),
]
DEFAULT_STORE = "runs/store"
FAILED = 1  # exit code where a stage failed


def set_up_logging(verbose: bool) -> None:
    """Show the stages' logs on standard error if asked."""
    if verbose:
        logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
        logging.getLogger("recipe_ray").setLevel(logging.INFO)
