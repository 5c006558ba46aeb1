"""Files changed at random are read, or refused by an error for people; nothing else happens.

RECIPE_RAY_FUZZ=N tries each N times instead of a few: 2000 take some minutes. A case that is found
becomes a row of `tests/hostile` or a test of its own.
"""

import io
import json
import os
import struct
import tarfile
import tempfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hostile.good import experiment, tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_samples import image_bytes
from samples import SENTENCES

from recipe_ray.base.errors import UserError
from recipe_ray.data.image_sources import open_images
from recipe_ray.data.sources import column_texts, open_path
from recipe_ray.experiment.files import load_experiment
from recipe_ray.models.text.checkpoint import load_bert
from recipe_ray.store.manifest import parse_manifest
from recipe_ray.store.notes import checked_plan
from recipe_ray.store.rows import decode_rows
from recipe_ray.store.store import Store

TIMES = int(os.environ.get("RECIPE_RAY_FUZZ", "0"))
ODD: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**63, 2**70, 10**400, 1e308, -0.5, float("nan"), float("inf"),
    "",
    "../../x", "/dev/zero", "a\0b", "\x1b[2J\u202e", "x" * 5000, "9" * 5000, [], [[]], {},
    {"": None}, [None], ["[MASK]"], {"type": "Sequence"}, "[", "\ud800",
]  # fmt: skip
odd = st.sampled_from(ODD).map(deepcopy) | st.integers() | st.floats() | st.text(max_size=20)


def few(times: int) -> Any:
    """Return settings that try `times` times, or as often as was asked for."""
    return settings(
        max_examples=TIMES or times,
        deadline=None,
        database=None,
        derandomize=not TIMES,
        suppress_health_check=list(HealthCheck),
    )


def harmless(call: Callable[[], Any]) -> None:
    """Let a call succeed or raise an error for people, short and without signs for terminals."""
    try:
        call()
    except UserError as error:
        said = str(error)
        assert len(said) < 20_000
        assert all(line.isprintable() for line in said.splitlines())


@st.composite
def trees(draw: Any, good: Any) -> Any:
    """Draw a good tree of lists and dictionaries in which a few values are odd, gone or more."""
    tree = json.loads(json.dumps(good))
    for _ in range(draw(st.integers(1, 3))):
        holder, depth = tree, draw(st.integers(0, 6))
        while isinstance(holder, (dict, list)) and holder:
            names = list(holder) if isinstance(holder, dict) else range(len(holder))
            name = draw(st.sampled_from(list(names)))
            if depth == 0 or not isinstance(holder[name], (dict, list)) or not holder[name]:
                if draw(st.booleans()) or isinstance(holder, list):
                    holder[name] = draw(odd)
                elif draw(st.booleans()):
                    del holder[name]
                else:
                    holder[draw(st.text(max_size=5))] = draw(odd)
                break
            holder, depth = holder[name], depth - 1
    return tree


@st.composite
def spoilt(draw: Any, good: bytes) -> bytes:
    """Draw good bytes of which some are other ones, repeated, or cut off."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, len(data) - 1))
        match draw(st.integers(0, 9)):
            case 0:
                data = data[: place + 1]
            case 1:
                data[place:place] = data[place : place + draw(st.integers(1, 600))]
            case 2:
                data[place : place + 4] = draw(
                    st.sampled_from([b"\xff" * 4, bytes(4), b"\x7f" * 4])
                )
            case _:
                data[place] = draw(st.integers(0, 255))
    return bytes(data)


def written(content: bytes, name: str, call: Callable[[Path], Any]) -> None:
    """Write a file into a folder of its own and let `call` read it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        harmless(lambda: call(path))


FRAGMENTS = ["&a ", "*a", "<<: ", "!!python/name:os.system ", "? ", "- ", "{", "}", "[", "]", ": "]
FRAGMENTS += [
    "\n",
    "  ",
    "'",
    '"',
    "|",
    ">",
    "#",
    "%YAML 1.2\n",
    "---\n",
    "\t",
    "\0",
    "0x",
    "1e999",
]
FRAGMENTS += ["name", "grid", "models", "12:30", "2020-13-45", ".inf", "~", "\ufeff", "\u2028"]


@few(60)
@given(st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=5), max_size=30).map("".join))
def test_no_text_is_more_than_a_bad_experiment(text: str) -> None:
    written(text.encode(errors="surrogatepass"), "e.yaml", load_experiment)


@few(40)
@given(trees(yaml.safe_load(experiment())))
def test_an_experiment_with_odd_values_is_refused_in_words(tree: Any) -> None:
    text = yaml.safe_dump(tree, allow_unicode=True)
    written(text.encode(errors="surrogatepass"), "e.yaml", load_experiment)


def changed_model(file: str, content: bytes) -> None:
    """Load the tiny model with another file in the place of one of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for one in tiny().iterdir():
            Path(folder, one.name).write_bytes(content if one.name == file else one.read_bytes())
        harmless(lambda: load_bert(Path(folder)))


def tree_of(file: str) -> Any:
    return json.loads((tiny() / file).read_text())


@few(12)
@given(trees(tree_of("config.json")))
def test_a_config_with_odd_values_is_read_or_refused(tree: Any) -> None:
    changed_model("config.json", json.dumps(tree).encode())


@few(12)
@given(trees(tree_of("tokenizer.json")))
def test_a_tokenizer_with_odd_values_is_read_or_refused(tree: Any) -> None:
    changed_model("tokenizer.json", json.dumps(tree).encode())


@few(8)
@given(trees(tree_of("tokenizer_config.json")))
def test_settings_of_a_tokenizer_with_odd_values_are_read_or_refused(tree: Any) -> None:
    changed_model("tokenizer_config.json", json.dumps(tree).encode())


WEIGHTS = (tiny() / "model.safetensors").read_bytes()
(SIZE,) = struct.unpack("<Q", WEIGHTS[:8])


@few(12)
@given(trees(json.loads(WEIGHTS[8 : 8 + SIZE])))
def test_a_header_of_weights_with_odd_values_is_read_or_refused(tree: Any) -> None:
    text = json.dumps(tree).encode()
    changed_model("model.safetensors", struct.pack("<Q", len(text)) + text + WEIGHTS[8 + SIZE :])


@few(12)
@given(spoilt(WEIGHTS))
def test_spoilt_weights_are_read_or_refused(data: bytes) -> None:
    changed_model("model.safetensors", data)


def parquet() -> bytes:
    sink = io.BytesIO()
    label = pa.array([n % 2 for n in range(24)])
    pq.write_table(pa.table({"text": SENTENCES, "label": label}), sink)
    return sink.getvalue()


def read_texts(path: Path) -> None:
    source = open_path(path, "corpus")
    source.identity()
    list(column_texts(source, "text", "corpus"))


CSV = ("text,label\n" + "".join(f'"{one}",{n % 2}\n' for n, one in enumerate(SENTENCES))).encode()
JSONL = b"".join(json.dumps({"text": one, "label": 1}).encode() + b"\n" for one in SENTENCES)


@pytest.mark.parametrize(
    ("name", "good"), [("a.parquet", parquet()), ("a.csv", CSV), ("a.jsonl", JSONL)]
)
def test_a_spoilt_table_is_read_or_refused(name: str, good: bytes) -> None:
    few(40)(given(spoilt(good))(lambda data: written(data, name, read_texts)))()


def tar() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for number in range(4):
            for name, data in ((f"{number}.png", image_bytes(number)), (f"{number}.cls", b"1")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


@few(40)
@given(spoilt(tar()))
def test_a_spoilt_archive_of_images_is_read_or_refused(data: bytes) -> None:
    written(data, "a.tar", lambda path: list(open_images(path, "task", "label").batches()))


STORE = Path(__file__).parent / "first_store"
MANIFEST = STORE / "finetune" / "por-p0" / "manifest.json"
ROWS = (STORE / "results" / "table1" / "p0.parquet").read_bytes()
NOTE = {
    "time": "2026-01-02T03:04:05+00:00", "kind": "purify", "label": "x", "phase": "p", "step": 1,
    "num_steps": 9, "error": "E", "message": "m", "seed": 0, "host": "h", "values": {"loss": 1.0},
}  # fmt: skip


@few(60)
@given(trees(json.loads(MANIFEST.read_text())), spoilt(MANIFEST.read_bytes()))
def test_a_spoilt_manifest_is_read_or_refused(tree: Any, data: bytes) -> None:
    harmless(lambda: parse_manifest(json.dumps(tree).encode(), "manifest"))
    harmless(lambda: parse_manifest(data, "manifest"))


@few(40)
@given(trees(json.loads((STORE / "plans" / "table1.json").read_text())))
def test_a_plan_with_odd_values_is_read_or_refused(tree: Any) -> None:
    if isinstance(tree, dict):
        harmless(lambda: checked_plan(tree, "plan"))


@few(25)
@given(trees(NOTE), spoilt(json.dumps(NOTE).encode()))
def test_a_spoilt_note_stops_nobody(tree: Any, data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(folder)
        for room in ("failures", "progress", "drivers"):
            Path(folder, room).mkdir()
            Path(folder, room, "a.json").write_text(json.dumps(tree))
            Path(folder, room, "b.json").write_bytes(data)
        store.failures()
        store.progress()


@few(40)
@given(spoilt(ROWS))
def test_spoilt_result_rows_are_read_or_refused(data: bytes) -> None:
    harmless(lambda: decode_rows(data, "rows"))
