"""A stand-in for the Hugging Face hub on 127.0.0.1, for the real clients to talk to.

It serves what huggingface_hub and datasets ask of models and data sets (info, tree, paths, files
with ranges) from repositories held in memory, and breaks on request: gated, missing, cut off.
"""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_KINDS = "models|datasets"
_INFO = re.compile(rf"/api/({_KINDS})/([^/]+/[^/]+)(?:/revision/(.+))?")
_TREE = re.compile(rf"/api/({_KINDS})/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?")
_PATHS = re.compile(rf"/api/({_KINDS})/([^/]+/[^/]+)/paths-info/(.+)")
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_LIST = re.compile(rf"/api/({_KINDS})")


@dataclass
class Repo:
    """A repository: its files at one commit, and what is wrong with it."""

    files: dict[str, bytes]
    kind: str = "datasets"  # or "models"
    commit: str = ""  # 40 hexadecimal digits; by default made from the file names
    branches: tuple[str, ...] = ("main",)
    gated: bool = False
    breaks: dict[str, int] = field(default_factory=dict)  # file -> downloads still to cut off

    def __post_init__(self) -> None:
        self.commit = self.commit or hashlib.sha1(repr(sorted(self.files)).encode()).hexdigest()


@dataclass
class RefusalError(Exception):
    """An answer other than 200, with the error code the clients look at."""

    status: int
    code: str


class HubStandIn:
    """The server, running inside `with`; `requests` holds every (method, path) it was asked."""

    def __init__(self, repos: dict[str, Repo]) -> None:
        self.repos = repos
        self.requests: list[tuple[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def endpoint(self) -> str:
        """Return the address to give as HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def revisions(self, repo: str) -> set[str]:
        """Return the revisions of a repository that were asked for."""
        pattern = re.compile(rf"{re.escape(repo)}/(?:revision|tree|paths-info|resolve)/([^/?]+)")
        found = (pattern.search(path) for _, path in self.requests)
        return {unquote(match.group(1)) for match in found if match}

    def downloads(self, repo: str) -> list[str]:
        """Return the files of a repository that were downloaded, in order."""
        pattern = re.compile(rf"{re.escape(repo)}/resolve/[^/]+/([^?]+)")
        found = (pattern.search(path) for method, path in self.requests if method == "GET")
        return [unquote(match.group(1)) for match in found if match]

    def find(self, kind: str, name: str, revision: str | None) -> Repo:
        """Return a repository, or raise the refusal the hub would give."""
        repo = self.repos.get(name)
        if repo is None or repo.kind != kind:
            raise RefusalError(404, "RepoNotFound")
        if revision not in (None, repo.commit, *repo.branches):
            raise RefusalError(404, "RevisionNotFound")
        return repo

    def __enter__(self) -> "HubStandIn":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing; the hub object has the list of requests."""

    def _answer(self) -> None:
        self.hub.requests.append((self.command, self.path))
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length).decode()
        address = urlsplit(self.path)
        routes = ((_TREE, self._tree), (_PATHS, self._paths), (_FILE, self._file))
        try:
            for pattern, answer in (*routes, (_INFO, self._info), (_LIST, self._list)):
                match = pattern.fullmatch(address.path)
                if match:
                    parts = [unquote(part or "") for part in match.groups()]
                    answer(parts, parse_qs(address.query) | parse_qs(body))
                    return
            raise RefusalError(404, "EntryNotFound")
        except RefusalError as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.code}
            self._send(b"", headers, refusal.status)

    def _info(self, parts: list[str], query: dict[str, list[str]]) -> None:
        kind, name, revision = parts
        repo = self.hub.find(kind, name, revision or None)
        self._send_json(_described(name, repo))

    def _list(self, parts: list[str], query: dict[str, list[str]]) -> None:
        wanted = query.get("search", [""])[0]
        found = [
            _described(name, repo)
            for name, repo in self.hub.repos.items()
            if repo.kind == parts[0] and wanted[:4] in name
        ]
        self._send_json(found)

    def _tree(self, parts: list[str], query: dict[str, list[str]]) -> None:
        kind, name, revision, folder = parts
        repo = self.hub.find(kind, name, revision)
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
        found: dict[str, dict[str, Any]] = {}
        for path in repo.files:
            if path.startswith(prefix):
                for entry in _entries(repo, path, prefix, recursive):
                    found[entry["path"]] = entry
        if prefix and not found:
            raise RefusalError(404, "EntryNotFound")
        self._send_json(list(found.values()))

    def _paths(self, parts: list[str], query: dict[str, list[str]]) -> None:
        kind, name, revision = parts
        repo = self.hub.find(kind, name, revision)
        found = [_file_entry(repo, path) for path in query.get("paths", []) if path in repo.files]
        folders = {
            folder
            for folder in query.get("paths", [])
            if any(path.startswith(f"{folder}/") for path in repo.files)
        }
        self._send_json([*found, *(_folder_entry(folder) for folder in sorted(folders))])

    def _file(self, parts: list[str], query: dict[str, list[str]]) -> None:
        datasets, name, revision, path = parts
        repo = self.hub.find("datasets" if datasets else "models", name, revision)
        if repo.gated and path != "README.md":  # the hub shows everyone the card
            raise RefusalError(403, "GatedRepo")
        if path not in repo.files:
            raise RefusalError(404, "EntryNotFound")
        content = repo.files[path]
        headers = {
            "ETag": f'"{_etag(content)}"',
            "X-Repo-Commit": repo.commit,
            "Accept-Ranges": "bytes",
        }
        first, last = self._range(len(content))
        if "Range" in self.headers:
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        cut = self.command == "GET" and repo.breaks.get(path, 0) > 0
        if cut:
            repo.breaks[path] -= 1
        self._send(content[first : last + 1], headers, 206 if "Range" in self.headers else 200, cut)

    def _range(self, length: int) -> tuple[int, int]:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "bytes=0-"))
        assert match is not None
        last = int(match.group(2)) if match.group(2) else length - 1
        return int(match.group(1)), min(last, length - 1)

    def _send_json(self, value: object) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(
        self, content: bytes, headers: dict[str, str], status: int = 200, cut: bool = False
    ) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = self.close_connection or cut


def _handler(hub: HubStandIn) -> type[BaseHTTPRequestHandler]:
    return type("Handler", (_Handler,), {"hub": hub})


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _described(name: str, repo: Repo) -> dict[str, Any]:
    siblings = [{"rfilename": path} for path in repo.files]
    return {
        "_id": _etag(name.encode())[:24],
        "id": name,
        "sha": repo.commit,
        "private": False,
        "gated": "manual" if repo.gated else False,
        "disabled": False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "siblings": siblings,
    }


def _entries(repo: Repo, path: str, prefix: str, recursive: bool) -> list[dict[str, Any]]:
    below = path[len(prefix) :].split("/")
    if not recursive:
        inside = _file_entry(repo, path) if len(below) == 1 else _folder_entry(prefix + below[0])
        return [inside]
    folders = [prefix + "/".join(below[:depth]) for depth in range(1, len(below))]
    return [*map(_folder_entry, folders), _file_entry(repo, path)]


def _file_entry(repo: Repo, path: str) -> dict[str, Any]:
    content = repo.files[path]
    return {"type": "file", "path": path, "size": len(content), "oid": _etag(content)}


def _folder_entry(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": _etag(path.encode())}
