"""Object stores in this process: as much HTTP as our store needs, and failures on demand.

S3 and Google's XML interface are nearly one; Azure has its own lists, and deletes in batches.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_TIME = "Wed, 02 Jan 2030 03:04:05 GMT"


class ObjectServer(ThreadingHTTPServer):
    """Objects by bucket and key; `failures` are statuses that the next requests are answered by."""

    daemon_threads = True

    def __init__(self, *buckets: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.buckets: dict[str, dict[str, bytes]] = {name: {} for name in buckets}
        self.failures: list[int] = []
        self.num_requests = 0
        self.lock = threading.Lock()

    @property
    def options(self) -> str:
        """The options of a URI that leads here."""
        return f"scheme=http&endpoint_override=127.0.0.1:{self.server_address[1]}"


@contextmanager
def object_server(*buckets: str) -> Iterator[ObjectServer]:
    """Run a server that has these buckets."""
    server = ObjectServer(*buckets)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: ObjectServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: Any) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        tag = {"ETag": '"1"', "Last-Modified": _TIME, "Content-Length": str(len(body))}
        for name, value in {**tag, **named}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        said = f"<Error><Code>{code}</Code><Message>as the test wants it</Message></Error>"
        self._answer(status, said.encode())

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        query = {
            name: own[0] for name, own in parse_qs(parts.query, keep_blank_values=True).items()
        }
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        with self.server.lock:
            self.server.num_requests += 1
            if self.server.failures:
                return self._refuse(self.server.failures.pop(0), "AsTheTestWants")
            if bucket not in self.server.buckets:
                return self._refuse(404, "NoSuchBucket")
            objects = self.server.buckets[bucket]
            if query.get("comp") == "batch":
                return self._deleted_in_a_batch(objects, body)
            if "delete" in query:
                keys = re.findall(rb"<Key>(.*?)</Key>", body)
                for found in keys:
                    objects.pop(found.decode(), None)
                gone = b"".join(b"<Deleted><Key>%s</Key></Deleted>" % found for found in keys)
                return self._answer(200, b"<DeleteResult>%s</DeleteResult>" % gone)
            if not key:
                return self._listed(objects, query)
            if self.command == "PUT":
                headers = self.headers
                new = headers.get("If-None-Match") or headers.get("x-goog-if-generation-match")
                if new and key in objects:
                    azure = headers.get("x-ms-version")
                    return self._refuse(409 if azure else 412, "AlreadyThere")
                objects[key] = body
                return self._answer(201)
            if key not in objects:
                return self._refuse(404, "NoSuchKey")
            if self.command == "DELETE":
                del objects[key]
                return self._answer(202)
            return self._sent(objects[key])

    def _sent(self, data: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            return self._answer(200, data)
        first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        return self._answer(
            206, data[first : last + 1], Content_Range=f"bytes {first}-{last}/{len(data)}"
        )

    def _listed(self, objects: dict[str, bytes], query: dict[str, str]) -> None:
        prefix, mark = query.get("prefix", ""), query.get("delimiter")
        folders, files = set(), []
        for key in sorted(key for key in objects if key.startswith(prefix)):
            inside, found, _ = key[len(prefix) :].partition(mark) if mark else (key, "", "")
            if found:
                folders.add(f"{prefix}{inside}/")
            else:
                files.append(key)
        azure = query.get("comp") == "list"
        about = _azure_list if azure else _s3_list
        self._answer(200, about(files, sorted(folders), objects).encode())

    def _deleted_in_a_batch(self, objects: dict[str, bytes], body: bytes) -> None:
        answers = []
        for number, found in enumerate(re.findall(rb"DELETE /[^/]+/(\S+) HTTP", body)):
            status = "202 Accepted" if objects.pop(unquote(found.decode()), None) else "404 Gone"
            head = f"Content-Type: application/http\r\nContent-ID: {number}\r\n\r\n"
            answers.append(f"--b\r\n{head}HTTP/1.1 {status}\r\nx-ms-version: 1\r\n\r\n")
        whole = "".join(answers) + "--b--\r\n"
        self._answer(202, whole.encode(), Content_Type="multipart/mixed; boundary=b")


def _s3_list(files: list[str], folders: list[str], objects: dict[str, bytes]) -> str:
    time = "2030-01-02T03:04:05.000Z"
    found = "".join(
        f"<Contents><Key>{escape(key)}</Key><Size>{len(objects[key])}</Size>"
        f"<LastModified>{time}</LastModified><ETag>1</ETag></Contents>"
        for key in files
    )
    below = "".join(
        f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in folders
    )
    return f"<ListBucketResult>{found}{below}</ListBucketResult>"


def _azure_list(files: list[str], folders: list[str], objects: dict[str, bytes]) -> str:
    found = "".join(
        f"<Blob><Name>{escape(key)}</Name><Properties><Last-Modified>{_TIME}</Last-Modified>"
        f"<Content-Length>{len(objects[key])}</Content-Length><Content-Type>x</Content-Type>"
        f"<Etag>1</Etag></Properties></Blob>"
        for key in files
    )
    below = "".join(f"<BlobPrefix><Name>{escape(f)}</Name></BlobPrefix>" for f in folders)
    return f"<EnumerationResults><Blobs>{found}{below}</Blobs></EnumerationResults>"


for verb in ("GET", "HEAD", "PUT", "DELETE", "POST"):
    setattr(_Handler, f"do_{verb}", _Handler._handle)
