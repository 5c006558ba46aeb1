"""The Hugging Face hub: streamed tables and model snapshots, through its own clients only.

No repository's code is ever run. The clients read HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE
themselves; they are imported late, because importing them takes seconds.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from recipe_ray.base.errors import DataError, ModelError, UnsafeModelError, UserError, suggest
from recipe_ray.base.foreign import PICKLE_SUFFIXES
from recipe_ray.base.spec import Spec
from recipe_ray.data.content import BATCH_ROWS
from recipe_ray.data.text_tables import tsv_as_meant

if TYPE_CHECKING:
    import pyarrow as pa
    from huggingface_hub import HfApi


SHUFFLE_BUFFER = 10  # times the rows at once; it decides a seeded sample of a stream
IMAGE_ROWS = 100  # at once: a photograph takes as much memory as a thousand sentences

# everything a PTM and its tokenizer need, and nothing that is code
SAFE_PATTERNS = ("*.json", "*.txt", "*.model", "*.safetensors")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubSource:
    """One split of a hub data set, streamed; `revision` is a commit hash or, less firmly, a branch.

    The identity is what was asked for: with a branch, the content may change under the same
    identity, and `describe` says so.
    """

    repo: str
    revision: str
    config: str | None = None
    split: str = "train"
    note: str = ""
    shuffle_seed: int | None = None
    columns: tuple[tuple[str, str], ...] = ()  # (name there, name here); () for all as they are
    rows_at_once: int = BATCH_ROWS

    def identity(self) -> dict[str, Any]:
        """Return repository, revision, config and split, and the columns if they are chosen."""
        chosen = {"columns": [list(pair) for pair in self.columns]} if self.columns else {}
        return {
            "source": "hub",
            "repo": self.repo,
            "revision": self.revision,
            "config": self.config,
            "split": self.split,
            **chosen,
        }

    def describe(self) -> str:
        """Return repository, revision and whether that revision is pinned."""
        pinned = "" if is_commit(self.revision) else ", a branch: its content may change"
        note = f" ({self.note})" if self.note else ""
        return f"hub data set {self.repo} [{self.split}] at {self.revision}{pinned}{note}"

    def shuffled(self, seed: int) -> HubSource:
        """Return the source that streams in a seeded order (shards, then a buffer of rows)."""
        return replace(self, shuffle_seed=seed)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Stream the rows; a broken connection is retried by the client.

        Raises DataError if the data set is missing, gated, unreadable or out of reach.
        """
        try:
            yield from self._stream()
        except Exception as error:
            asked = f"hub data set {self.repo!r} (revision {self.revision!r})"
            problem = hub_problem(error, f"datasets/{self.repo}", self.revision)
            if problem is None:
                raise
            raise DataError(f"{asked}: {problem}") from error

    def _stream(self) -> Iterator[pa.RecordBatch]:
        import datasets

        if Path(self.repo).exists():
            raise DataError(
                f"hub data set {self.repo!r}: there is a folder of that name here, which "
                "`datasets` would read in place of the hub's; start in another folder"
            )
        builder = datasets.load_dataset_builder(self.repo, self.config, revision=self.revision)
        is_tsv = _as_they_stand(builder.config)
        rows: Any = builder.as_streaming_dataset(split=self.split)
        if rows.features is not None:
            rows = rows.decode(False)  # images stay bytes: they are decoded at their use
        if self.columns:
            rows = self._chosen(rows)
        if self.shuffle_seed is not None:
            buffer = SHUFFLE_BUFFER * self.rows_at_once
            rows = rows.shuffle(seed=self.shuffle_seed, buffer_size=buffer)
        for table in rows.with_format("arrow").iter(batch_size=self.rows_at_once):
            for batch in table.to_batches():
                yield tsv_as_meant(batch) if is_tsv else batch

    def _chosen(self, rows: Any) -> Any:
        names = [name for name, _ in self.columns]
        lacking = set(names) - set(rows.column_names or names)
        if lacking:
            raise DataError(
                f"hub data set {self.repo!r} at {self.revision}: no column "
                f"{', '.join(map(repr, sorted(lacking)))}; columns: {', '.join(rows.column_names)}"
            )
        renamed = {there: here for there, here in self.columns if there != here}
        chosen = rows.select_columns(names)
        return chosen.rename_columns(renamed) if renamed else chosen


def _as_they_stand(config: Any) -> bool:
    """Let a text table be read like a local one; return whether it is a TSV.

    pandas takes the texts NA, null and None for nothing. In a TSV, where a quote is a character
    of the text, it takes all from one quote to the next for one field, line breaks included.
    """
    from datasets.packaged_modules.csv.csv import CsvConfig

    if not isinstance(config, CsvConfig):
        return False
    config.keep_default_na, config.na_values = False, [""]
    is_tsv = bool(config.sep == "\t")
    if is_tsv:
        config.quoting = csv.QUOTE_NONE
    return is_tsv


class HubPlace(Spec):
    """What a catalogue says of a data set on the hub."""

    repo: str = Field(
        pattern=r"^\w[\w-]*(\.[\w-]+)*(/\w[\w-]*(\.[\w-]+)*)?$", description="owner/name"
    )
    revision: str = Field(min_length=1, description="commit, or a branch, which may change")
    config: str | None = None
    columns: dict[str, str] = Field(
        {}, description="column's name on the hub: its name here; empty: all, unchanged"
    )
    rows_at_once: int | None = Field(
        None, ge=1, description="rows held in memory while it is streamed"
    )

    def source(self, split: str, rows: int) -> HubSource:
        """Return the source of a split, read in `rows` rows at once unless the place says it."""
        return HubSource(
            *(self.repo, self.revision, self.config, split),
            columns=tuple(self.columns.items()),
            rows_at_once=self.rows_at_once or rows,
        )


@dataclass(frozen=True)
class HubSnapshot:
    """A model repository on this machine: its folder, and the commit it is."""

    path: Path
    commit: str


def is_commit(revision: str) -> bool:
    """Tell whether a revision is a full commit hash, whose meaning never changes."""
    return len(revision) == 40 and set(revision) <= set("0123456789abcdef")


def model_commit(repo: str, revision: str | None, allow_pickle: bool = False) -> str:
    """Return the commit of a revision; a commit is known without asking the hub."""
    if revision is not None and is_commit(revision):
        return revision
    return fetch_model(repo, revision, allow_pickle=allow_pickle).commit


def fetch_model(repo: str, revision: str | None, allow_pickle: bool = False) -> HubSnapshot:
    """Download a model's configuration, tokenizer and weights, never its code.

    Pickled weights are fetched only with `allow_pickle`, and only if there are no safetensors.
    Raises UnsafeModelError for a repository with pickled weights only, ModelError for one that is
    missing, gated, out of reach or without weights.
    """
    from huggingface_hub import HfApi, snapshot_download

    api = HfApi()
    asked = f"hub model {repo!r} (revision {revision or 'main'!r})"
    try:
        info = api.model_info(repo, revision=revision)
        files = [file.rfilename for file in info.siblings or []]
        patterns = _patterns(files, asked, allow_pickle)
        # by the revision's own name, so that the cache knows it when the hub is out of reach
        path = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
        return HubSnapshot(path, path.name)
    except Exception as error:
        problem = hub_problem(error, repo, revision or "main")
        if problem is None:
            raise
        if _is_outage(error):
            return _cached(repo, revision, f"{asked}: {problem}", allow_pickle)
        raise ModelError(f"{asked}: {problem}{_nearest(api, error, repo)}") from error


def check_repo(name: str) -> None:
    """Raise ValueError, of the hub's client, for a name that no repository of it can have."""
    from huggingface_hub.utils._validators import validate_repo_id

    validate_repo_id(name)


def snapshot_in(folder: Path) -> tuple[str, str] | None:
    """Return the repository and the commit of a model's folder in the hub's cache, else None."""
    kind, *parts = folder.parent.parent.name.split("--")
    if folder.parent.name != "snapshots" or kind != "models" or not is_commit(folder.name):
        return None
    return "/".join(parts), folder.name


def fetch_card(repo: str, commit: str) -> Path | None:
    """Return the card of a model on the hub at a commit; None if it has none.

    Raises ModelError if the hub is out of reach and the card is not in the cache.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo, "README.md", revision=commit))
    except Exception as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        problem = hub_problem(error, repo, commit)
        if problem is None:
            raise
        raise ModelError(f"the card of hub model {repo!r}: {problem}") from error


def _cached(repo: str, revision: str | None, problem: str, allow_pickle: bool) -> HubSnapshot:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # without the patterns the client would miss the files never asked for
        found = snapshot_download(
            repo, revision=revision, local_files_only=True, allow_patterns=list(SAFE_PATTERNS)
        )
    except LocalEntryNotFoundError as error:
        raise ModelError(f"{problem}; nor is it in the local cache") from error
    log.warning("%s; using the copy in the local cache", problem)
    path = Path(found)
    _patterns([file.name for file in path.iterdir()], problem, allow_pickle)
    return HubSnapshot(path, path.name)


def _patterns(files: list[str], asked: str, allow_pickle: bool) -> list[str]:
    from recipe_ray.base.loading import standard_weights

    weights = sorted(file for file in files if "/" not in file)  # folders hold other formats
    standard = standard_weights(weights)
    pickled = standard is not None and not standard.startswith("model.safetensors")
    if not pickled and any(file.endswith(".safetensors") for file in weights):
        return list(SAFE_PATTERNS)
    pickles = [file for file in weights if file.endswith(PICKLE_SUFFIXES)]
    if not pickles:
        raise ModelError(f"{asked}: no weights; needed: a *.safetensors file")
    if not allow_pickle:
        raise UnsafeModelError(
            f"{asked}: its weights are pickles ({', '.join(pickles)}), and opening a pickle "
            "can run code; convert them to safetensors, or pass --allow-pickle if you trust it"
        )
    return [*SAFE_PATTERNS, *pickles]


def _nearest(api: HfApi, error: BaseException, repo: str) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    chain = _chain(error)
    missing = any(isinstance(link, RepositoryNotFoundError) for link in chain)
    if not missing or any(isinstance(link, GatedRepoError) for link in chain):
        return ""
    try:
        found = [model.id for model in api.list_models(search=repo.rpartition("/")[2], limit=20)]
    except OSError:  # a hint only; the error that matters is the one being reported
        return ""
    return suggest(repo, found)


def hub_problem(error: BaseException, page: str, revision: str) -> str | None:
    """Return the sentence for a hub client's error, or None for an error that is not one."""
    import pyarrow as pa
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub import constants, errors

    if isinstance(error, UserError):
        return None
    chain = _chain(error)

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in chain)

    # `datasets` drops the hub's own error if a data set is gated as a whole
    if has(errors.GatedRepoError) or (has(DatasetNotFoundError) and "gated" in str(error)):
        return (
            f"it is gated; accept its terms at {constants.ENDPOINT}/{page}, then log in with "
            "`hf auth login` or set HF_TOKEN"
        )
    if has(errors.RevisionNotFoundError):
        return f"it has no revision {revision!r}; give a commit hash, branch or tag it has"
    if has(errors.RepositoryNotFoundError, DatasetNotFoundError):
        return f"there is no such repository at {constants.ENDPOINT}, or it is private"
    if _is_outage(error):
        return (
            f"the hub at {constants.ENDPOINT} cannot be reached ({_first_line(error)}); check the "
            "connection, HF_ENDPOINT and HF_HUB_OFFLINE, or give local files"
        )
    if has(
        errors.HfHubHTTPError, DatasetsError, pa.ArrowException, ValueError, RuntimeError, OSError
    ):
        return f"it cannot be read: {_first_line(error)}"
    return None


def _is_outage(error: BaseException) -> bool:
    import httpx2
    from huggingface_hub.errors import OfflineModeIsEnabled

    outages = (OfflineModeIsEnabled, ConnectionError, TimeoutError, httpx2.RequestError)
    return any(isinstance(link, outages) for link in _chain(error))


def _chain(error: BaseException) -> list[BaseException]:
    """Return the error with its causes: `datasets` hides the hub's error behind its own."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    return chain


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else '(no message)'}"
