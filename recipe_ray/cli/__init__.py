"""The command line: thin typer commands over the packages below."""

import os
import sys

# before tokenizers and torch are imported: their own threads only get in the way of ours
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import typer

from recipe_ray.base.errors import HarmError, UserError
from recipe_ray.cli.app import app

USER_ERROR, HARM, INTERRUPTED = 2, 3, 130


def main() -> None:
    """Run the command line; what a user can mend is printed without a traceback."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(HARM if isinstance(error, HarmError) else USER_ERROR)
    except KeyboardInterrupt:
        typer.secho("interrupted; start the same command again to go on", fg="yellow", err=True)
        sys.exit(INTERRUPTED)


__all__ = ["main"]
