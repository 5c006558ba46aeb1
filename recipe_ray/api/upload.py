"""Putting a purified model on the hub, through the hub's own client.

What still looks backdoored is not put there unless that is asked for. A new repository is private:
whoever makes it public has read the card before.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipe_ray.base.errors import ModelError, SpecError, in_a_line
from recipe_ray.data.hub import check_repo, hub_problem
from recipe_ray.stages.tensorboard import FOLDER as EVENTS

_LEFT_OUT = (f"{EVENTS}/**",)  # how the losses went is no part of a model


def check_upload(repo: str) -> str:
    """Return the name of the user who is logged in to the hub, before any work for `repo` is done.

    Raises SpecError for a name that is no repository, ModelError if nobody is logged in or the hub
    is out of reach.
    """
    from huggingface_hub import HfApi

    try:
        check_repo(repo)
    except ValueError as error:
        raise SpecError(f"--push-to-hub {repo!r}: {error}") from None
    if repo.count("/") != 1:
        raise SpecError(f"--push-to-hub {repo!r}: a repository is written owner/name")
    try:
        return str(HfApi().whoami()["name"])
    except Exception as error:
        raise _refused(error, repo) from error


def upload(folder: Path, repo: str, message: str) -> str:
    """Put a model's folder into a repository, which is made if it is not there; return its address.

    Raises ModelError, which says why, if the hub refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        place = api.create_repo(repo, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message=message,
            ignore_patterns=list(_LEFT_OUT),
        )
    except Exception as error:
        raise _refused(error, repo) from error
    return str(place)


def why_not(result: Mapping[str, Any]) -> str | None:
    """Return why a purified model is not to be published, by its `result.json`; None if it may be.

    It may not if a scan or triggers that were measured still find something, or if its source's
    card says that it was backdoored and nothing measured here says that this is gone.
    """
    from recipe_ray.api.published import NOT_SILENT

    if result["exit_code"] == NOT_SILENT:
        return "something in it still looks like a backdoor (exit code 4)"
    evaluation = result["evaluation"] or {}
    shown = "floor" in evaluation and evaluation["triggers"]
    if result["model"]["marked_backdoored"] and not shown:
        return (
            "its source's card says that it was backdoored on purpose, and nothing shows that this "
            "is gone; --evaluate TASK with --triggers and --floor would"
        )
    return None


def _refused(error: Exception, repo: str) -> Exception:
    """Return the error for people that the client's error is; another error as it is."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        said = "nobody is logged in; `hf auth login`, or set HF_TOKEN to a token that may write"
    elif isinstance(error, HfHubHTTPError) and status is not None:
        said = f"the hub refuses ({in_a_line(error)}); may your token write there?"
    else:
        said = hub_problem(error, repo, "main") or ""
    return ModelError(f"hub model {repo!r}: {said}") if said else error
