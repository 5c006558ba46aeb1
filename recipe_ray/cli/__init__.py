"""The command line: thin typer commands over the packages below."""

import os
import sys

USER_ERROR, HARM, INTERRUPTED = 2, 3, 130


def main() -> None:
    """Run the command line; an error that a user can repair is printed without a traceback."""
    from recipe_ray.base.import_path import leave_out_working_folder

    leave_out_working_folder()  # first: all other modules are looked for along the path
    # before tokenizers and torch are imported: their own threads only hinder ours
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import typer

    from recipe_ray.base.errors import ClusterLostError, HarmError, UserError
    from recipe_ray.cli.app import app

    try:
        app(standalone_mode=True)
    except UserError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        if isinstance(error, ClusterLostError):
            sys.stdout.flush()
            os._exit(USER_ERROR)  # what is left of Ray would crash on the usual way out
        sys.exit(HARM if isinstance(error, HarmError) else USER_ERROR)
    except KeyboardInterrupt:
        typer.secho("interrupted; start the same command again to go on", fg="yellow", err=True)
        sys.exit(INTERRUPTED)


__all__ = ["main"]
