"""The served page: on this machine only, made again as results arrive."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from threading import Thread

import pytest

from recipe_ray.base.errors import StoreError, UserError
from recipe_ray.report import serve
from recipe_ray.report.serve import PageServer


@contextmanager
def served(texts: list[str]) -> Iterator[PageServer]:
    """Serve the next of the texts each time; a text that begins with "away" is an error."""

    def make() -> str:
        text = texts.pop(0)
        if text.startswith("away"):
            raise StoreError(text)
        return text

    with PageServer(make) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def get(server: PageServer, path: str = "/", host: str | None = None) -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    headers = {"Host": host} if host is not None else {}
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


def test_the_page_is_made_again_after_a_while_and_not_for_every_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with served(["one", "two"]) as server:
        assert server.url == f"http://127.0.0.1:{server.server_port}/"
        assert get(server) == get(server) == (200, "one")
        monkeypatch.setattr(serve, "_KEPT_S", 0.0)
        assert get(server) == (200, "two")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:80", ""])
def test_another_name_for_this_machine_gets_nothing(host: str) -> None:
    with served(["secret"]) as server:
        assert get(server, host=host) == (421, "this server answers on 127.0.0.1 only")
        assert get(server, host=f"localhost:{server.server_port}") == (200, "secret")


@pytest.mark.parametrize("path", ["/rows.parquet", "/../etc/passwd", "/?a=b"])
def test_there_is_one_page(path: str) -> None:
    with served(["page"]) as server:
        assert get(server, path)[0] == 404


def test_a_store_that_is_away_is_said_and_asked_again() -> None:
    with served(["away for a minute", "back"]) as server:
        assert get(server) == (503, "away for a minute")
        assert get(server) == (200, "back")


def test_a_port_in_use_is_an_error_for_people() -> None:
    with (
        served(["page"]) as server,
        pytest.raises(UserError, match=r"--port \d+: .*; 0 takes a free one"),
    ):
        PageServer(str, server.server_port)
