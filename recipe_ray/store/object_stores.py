"""Which object store a URI means, and the credentials for it; the operations are in `remote.py`.

    s3://bucket/path      options region, endpoint_override, scheme, anonymous
    gs://bucket/path      (gcs://) options endpoint_override, scheme, anonymous
    az://container/path   options account, endpoint_override, scheme, anonymous
    abfss://container@account.dfs.core.windows.net/path   (abfs://) the same store

Credentials come from the environment, as the tools of each cloud have them; `key:secret@` in an S3
URI comes first. obstore reads no profiles of AWS, so botocore reads those and single sign-on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store

from recipe_ray.base.errors import StoreError, unknown
from recipe_ray.store.patience import Patience

if TYPE_CHECKING:
    import pyarrow.fs as pafs

SCHEMES = ("file", "s3", "gs", "gcs", "az", "abfs", "abfss")
_KINDS = {"s3": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az"}
_SERVER = ("endpoint_override", "scheme", "anonymous")
_OPTIONS = {"s3": ("region", *_SERVER), "gs": _SERVER, "az": ("account", *_SERVER)}
_REGION = "AWS_DEFAULT_REGION"
_ACCOUNT_HINT = "abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/PATH"
CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run `aws configure`",
    "gs": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
    "az": "set AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, or run `az login` and set "
    "AZURE_USE_AZURE_CLI=true",
}


@dataclass(frozen=True)
class Place:
    """A bucket (or container) of one kind of object store, and a path in it.

    `config` is what obstore takes; `shown` is the URI without credentials and options.
    """

    kind: str  # s3, gs or az
    bucket: str
    path: str
    shown: str
    config: dict[str, Any]

    def open(self) -> ObjectStore:
        """Return the bucket; no request is made yet."""
        # obstore hears no Ctrl-C while it waits, so longer waits are ours
        how = {**self._how(Patience(total_s=2.0, longest_s=1.0)), "config": self.config}
        if self.kind == "s3":
            return S3Store(self.bucket, **how)
        return GCSStore(self.bucket, **how) if self.kind == "gs" else AzureStore(self.bucket, **how)

    def arrow(self) -> pafs.FileSystem:
        """Return the store as a pyarrow file system, whose paths begin with the bucket."""
        import pyarrow.fs as pafs
        from obstore.fsspec import FsspecStore

        make: Any = FsspecStore
        system = make(self.kind, config=self.config, **self._how(Patience()))
        return pafs.PyFileSystem(pafs.FSSpecHandler(system))

    def _how(self, patience: Patience) -> dict[str, Any]:
        how: dict[str, Any] = {
            "client_options": {
                "allow_http": str(self.config.get("endpoint", "")).startswith("http:")
                or str(self.config.get("base_url", "")).startswith("http:"),
                "connect_timeout": timedelta(seconds=5),
                "read_timeout": timedelta(seconds=60),  # no answer for this time
                "timeout": timedelta(hours=1),  # one request with all its bytes
            },
            "retry_config": {
                "max_retries": 1000,  # the time decides
                "retry_timeout": timedelta(seconds=patience.total_s),
                "backoff": {
                    "init_backoff": timedelta(seconds=patience.first_s),
                    "max_backoff": timedelta(seconds=patience.longest_s),
                    "base": 2,
                },
            },
        }
        if self.kind == "s3" and not _has_keys(self.config):
            how["credential_provider"] = AwsCredentials()
        return how


def _has_keys(config: dict[str, Any]) -> bool:
    given = "access_key_id" in config or config.get("skip_signature")
    return bool(given or os.environ.get("AWS_ACCESS_KEY_ID"))


class AwsCredentials:
    """What AWS's own tools would use: profiles, single sign-on, roles of a machine or container.

    Picklable: it is looked for again in the process that asks.
    """

    @cached_property
    def _found(self) -> Any:
        import botocore.session

        return botocore.session.Session().get_credentials()

    def __call__(self) -> Any:
        if self._found is None:
            raise ValueError(f"none were found: {CREDENTIALS['s3']}")
        keys = self._found.get_frozen_credentials()
        return {
            "access_key_id": keys.access_key,
            "secret_access_key": keys.secret_key,
            "token": keys.token,
            # botocore renews them ten minutes before their end; obstore asks five before this one
            "expires_at": datetime.now(UTC) + timedelta(minutes=12),
        }

    def __reduce__(self) -> tuple[type[AwsCredentials], tuple[()]]:
        return AwsCredentials, ()


def parse_place(uri: str) -> Place:
    """Return what a URI means; raise StoreError if it is not one of those above."""
    parts = urlsplit(uri)
    kind, host = _KINDS[parts.scheme], parts.netloc.rpartition("@")[2]
    # neither credentials nor connection options belong in messages
    shown = f"{parts.scheme}://{host}{parts.path}".rstrip("/")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in options:
        if name not in _OPTIONS[kind]:
            raise StoreError(f"store {shown}: {unknown('option', name, _OPTIONS[kind])}")
    config: dict[str, Any] = {}
    server = options.get("endpoint_override")
    if server:
        config["base_url" if kind == "gs" else "endpoint"] = (
            f"{options.get('scheme', 'https')}://{server}"
        )
    if options.get("anonymous", "").lower() in ("true", "1"):
        config["skip_signature"] = True
    bucket = host
    if kind == "s3":
        config |= _s3_config(parts, options)
    elif kind == "gs":
        if "skip_signature" in config or parts.username == "anonymous":
            # obstore always writes with some token; a stand-in of Google's server takes any
            config |= {"skip_signature": True, "bearer_token": "anonymous"}
    else:
        bucket, shown = _container(parts, shown)
        config |= _azure_config(parts, options, shown)
    if not bucket:
        raise StoreError(f"store {shown}: no bucket or host after {parts.scheme}://")
    path = "/".join(part for part in unquote(parts.path).split("/") if part)
    return Place(kind, bucket, path, shown, config)


def _s3_config(parts: SplitResult, options: dict[str, str]) -> dict[str, Any]:
    config = {"region": options["region"]} if options.get("region") else {}
    if parts.username and parts.password:
        config["access_key_id"] = unquote(parts.username)
        config["secret_access_key"] = unquote(parts.password)
    return config


def _container(parts: SplitResult, shown: str) -> tuple[str, str]:
    if parts.scheme == "az":
        return parts.netloc, shown
    container, at, host = parts.netloc.rpartition("@")
    if not at or ":" in container or not container:
        raise StoreError(f"store {shown}: an Azure store is {_ACCOUNT_HINT}")
    return container, f"{parts.scheme}://{container}@{host}{parts.path}".rstrip("/")


def _azure_config(parts: SplitResult, options: dict[str, str], shown: str) -> dict[str, Any]:
    host = parts.netloc.rpartition("@")[2] if parts.scheme != "az" else ""
    account = options.get("account") or host.partition(".")[0]
    account = account or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")
    if not account:
        raise StoreError(
            f"store {shown}: whose account? Give {_ACCOUNT_HINT}, or ?account=ACCOUNT, or set "
            "AZURE_STORAGE_ACCOUNT_NAME"
        )
    return {"account_name": account}


def with_region(uri: str) -> str:
    """Return an S3 URI with its bucket's region if neither it nor the environment has one."""
    place = parse_place(uri)
    known = "region" in place.config or "endpoint" in place.config
    if place.kind != "s3" or known or any(map(os.environ.get, ("AWS_REGION", _REGION))):
        return uri
    import botocore.session
    import pyarrow.fs as pafs
    from botocore.exceptions import BotoCoreError

    try:
        own = botocore.session.Session().get_config_variable("region")
        region = own or pafs.resolve_s3_region(place.bucket)
    except (OSError, BotoCoreError) as error:
        raise StoreError(f"cannot reach {place.shown}: {error}") from error
    return f"{uri}{'&' if '?' in uri else '?'}region={region}"
