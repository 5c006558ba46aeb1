"""`--sandbox`: a foreign model is read by a process apart, and only what that wrote is opened."""

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from headless_samples import headless
from safetensors.torch import load_file
from samples import raised_by, tiny_folder

from recipe_ray.api import sandbox, sandboxed
from recipe_ray.api.sandbox import converted
from recipe_ray.base.errors import SpecError
from recipe_ray.cli.options import Opening

HOW = {"allow_pickle": False, "ignore_adapter": False}
ISOLATED = """
import socket, sys
from recipe_ray.api.sandboxed import leave_network, limit
leave_network()
limit(10**8, 10**6, 5)
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=3)
    print("connected")
except OSError as error:
    print("no network")
try:
    bytearray(10**9)
except MemoryError:
    print("no memory")
try:
    open("big", "wb", 0).write(bytes(10**7))
    open("big", "ab", 0).write(bytes(10**7))
except OSError:
    print("no space")
"""


def test_the_child_has_no_network_and_cannot_take_more_than_its_limits(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        words = [sys.executable, "-c", ISOLATED, str(server.getsockname()[1])]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[:2] == ["no network", "no memory"], done.stderr
    assert (tmp_path / "big").stat().st_size <= 10**6


def test_what_is_opened_is_what_the_child_wrote(tmp_path: Path) -> None:
    given = headless(tmp_path, "encoder without pooler")
    weights = load_file(given / "model.safetensors")
    torch.save(weights, given / "pytorch_model.bin")
    (given / "model.safetensors").unlink()
    (given / "modeling_evil.py").write_text("raise SystemExit")
    model = Opening(allow_pickle=True, sandbox=True).model(str(given))
    folder = Path(model.source)
    assert folder.name == given.name
    assert not folder.is_relative_to(tmp_path)
    assert not model.allow_pickle
    assert model.needs_pretraining  # a head that was drawn is none
    assert {one.suffix for one in folder.iterdir()} <= {".safetensors", ".json", ".txt"}
    written = load_file(folder / "model.safetensors")
    assert written.keys() == weights.keys()
    assert all(torch.equal(written[name], weights[name]) for name in weights)


def test_a_model_that_asks_for_too_much_memory_is_refused(tmp_path: Path) -> None:
    given = Path(shutil.copytree(tiny_folder(), tmp_path / "model"))
    size = 4 * 2**30
    about = {"x": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    header = json.dumps(about).encode()
    with (given / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)  # holes: on the disk it is as good as empty
    said = raised_by(lambda: converted(str(given), **HOW))
    assert "--sandbox" in said
    assert "memory" in said.lower()


def test_a_model_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECIPE_RAY_MAX_SANDBOX_S", "1")
    said = raised_by(lambda: converted(str(tiny_folder()), **HOW))
    assert "seconds" in said
    assert "RECIPE_RAY_MAX_SANDBOX_S" in said


def test_without_namespaces_nothing_is_opened_and_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sandboxed.ctypes, "CDLL", lambda *_, **__: Mock(unshare=lambda flags: -1))
    monkeypatch.setattr(sandboxed, "convert", Mock(side_effect=AssertionError("opened")))
    monkeypatch.setattr("sys.argv", ["sandboxed", "{}"])
    with pytest.raises(SystemExit) as ended:
        sandboxed.main()
    said = json.loads(capsys.readouterr().out)["error"]
    assert ended.value.code == 2
    assert "nothing was opened" in said
    assert "user namespaces" in said


def test_a_child_that_is_killed_or_talks_nonsense_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    monkeypatch.setattr(sandbox.sys, "executable", str(python))
    for script, expected in {
        "kill -SEGV $$": "SIGSEGV",
        "exit 0": "ended with code 0",
        "yes": "ended",
        'echo "[1]"; exit 0': "ended with code 0",
        'printf \'{"error": "bad\\\\u001b[2J"}\'; exit 2': "bad",
        "env; exit 0": "ended with code 0",
    }.items():
        python.write_text(f"#!/bin/sh\n{script}\n" if script != "yes" else "#!/bin/sh\necho yes\n")
        python.chmod(0o700)
        said = raised_by(lambda: converted(str(tiny_folder()), **HOW))
        assert expected in said
        assert said.isprintable()


def test_no_credential_reaches_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("HF_TOKEN", "x")
    started: dict[str, Any] = {}

    def start(words: list[str], **how: Any) -> Any:
        started.update(how)
        raise SpecError("enough")

    monkeypatch.setattr(sandbox.subprocess, "Popen", start)
    raised_by(lambda: converted(str(tiny_folder()), **HOW))
    assert not {"AWS_SECRET_ACCESS_KEY", "HF_TOKEN"} & started["env"].keys()
    assert started["env"]["HOME"] != os.environ.get("HOME")


@pytest.mark.parametrize("name", ["owner/name", "minilm", "{name: bert, source: x}"])
def test_only_folders_can_be_read_in_the_sandbox(name: str) -> None:
    said = raised_by(lambda: converted(name, **HOW))
    assert "no folder on this machine" in said
