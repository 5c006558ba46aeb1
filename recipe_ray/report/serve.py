"""The page on this machine alone, made again while a sweep runs (`report --serve`).

Only 127.0.0.1 is listened on, and only requests that name it are answered: a web page elsewhere
that makes a browser ask for another name here gets nothing. There is one page and nothing can be
changed through it.
"""

import logging
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

from recipe_ray.base.errors import UserError

HOST = "127.0.0.1"
REFRESH_S = 30  # the browser asks again after this
_KEPT_S = 10.0  # several browsers that ask within this get the same page
logger = logging.getLogger("recipe_ray")


class PageServer(ThreadingHTTPServer):
    """Serves what `make` returns; `port` 0 takes a free one.

    Raises UserError if the port is in use.
    """

    daemon_threads = True

    def __init__(self, make: Callable[[], str], port: int = 0) -> None:
        self._make, self._lock = make, Lock()
        self._text, self._made_at = "", -_KEPT_S
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise UserError(f"--port {port}: {error.strerror}; 0 takes a free one") from error

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_port}/"

    @property
    def names(self) -> tuple[str, ...]:
        """What a request may call this server."""
        return tuple(f"{name}:{self.server_port}" for name in (HOST, "localhost"))

    def page(self) -> str:
        """Return the page, made again if the last one is older than some seconds."""
        with self._lock:
            if time.monotonic() - self._made_at >= _KEPT_S:
                self._text = self._make()
                self._made_at = time.monotonic()
            return self._text


class _Handler(BaseHTTPRequestHandler):
    server: PageServer

    def do_GET(self) -> None:
        if self.headers.get("Host") not in self.server.names:
            self._answer(HTTPStatus.MISDIRECTED_REQUEST, "this server answers on 127.0.0.1 only")
        elif self.path != "/":
            self._answer(HTTPStatus.NOT_FOUND, "there is one page, /")
        else:
            try:
                self._answer(HTTPStatus.OK, self.server.page(), "text/html")
            except UserError as error:  # e.g. a store that is away: the next request may find it
                self._answer(HTTPStatus.SERVICE_UNAVAILABLE, str(error))

    def _answer(self, status: HTTPStatus, text: str, kind: str = "text/plain") -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Log requests for --verbose only."""
        logger.debug(format, *args)
