"""Hostile experiments, catalogues, stores and kept reports."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from hostile.case import EITHER, FINE, Case, cases
from hostile.good import experiment
from hostile.models import ESCAPES, Make

PLAN = "plan e.yaml"
ARTIFACT = "store/finetune/por-p0"
VERIFY = (1,)


def file(content: str | bytes, name: str = "e.yaml") -> Make:
    data = content if isinstance(content, bytes) else content.encode()

    def make() -> None:
        Path(name).unlink(missing_ok=True)
        Path(name).write_bytes(data)

    return make


def grid(**changes: Any) -> Make:
    """Return a maker of an experiment whose grid has other fields."""
    whole = yaml.safe_load(experiment())
    return file(yaml.safe_dump({**whole, "grid": {**whole["grid"], **changes}}))


def top(**changes: Any) -> Make:
    return file(experiment(**changes))


def texts(path: str) -> dict[str, Any]:
    return {"name": "file", "path": path}


def special(path: str, make: Callable[[Path], Any]) -> Make:
    def put() -> None:
        Path(path).unlink(missing_ok=True)
        make(Path(path))

    return put


POR = {"name": "por", "corpus": texts("texts.txt")}
OWN_TASK = {"name": "file", "path_train": "own.csv", "path_test": "own.csv"}
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
EXPERIMENTS: dict[str, Any] = {
    "empty": file(""),
    "a list": file("[1, 2]"),
    "a text": file("hello"),
    "no YAML": file("a: [b\n: c}"),
    "no UTF-8": file(b"name: \xff\xfe"),
    "zeros": file(bytes(1000)),
    "a million of the same": file(LAUGHS),
    "a circle": file("a: &a {b: *a}"),
    "merged into itself": file("a: &a {<<: *a}"),
    "10,000 deep": file("[" * 10**4),
    "10 MB": file("# " + "x" * 10**7),
    "code": file("name: !!python/object/apply:os.system ['touch ../executed']"),
    "a tag of its own": file("name: !evil 1"),
    "bytes": file("name: !!binary aGVsbG8="),
    "a key that is a list": file("? [1, 2]\n: x"),
    "a key twice": file("name: a\nname: b\n" + experiment()),
    "a date that is none": file("name: 2020-13-45\n"),
    "a number beyond 64 bits": top(finetuning={"steps": 10**30}),
    "a number that is infinite": file(experiment() + "\npaper: .inf\n"),
    "text for steps": top(finetuning={"steps": "many"}),
    "steps below zero": top(finetuning={"steps": -1}),
    "a rate that is nan": file("finetuning: {learning_rate: .nan}\n"),
    "a name that is a path": top(name="../../secret"),
    "a name with escapes": top(name=ESCAPES),
    "a name of 10,000 letters": top(name="x" * 10**4),
    "a name that is a number": top(name=7),
    "no name": top(name=None),
    "an unknown field with escapes": top(**{ESCAPES: 1}),
    "a base that is itself": top(base="e.yaml"),
    "a base that is a device": top(base="/dev/zero"),
    "a base that is a secret": top(base="../secret"),
    "a definition of itself": top(define={"x": "x"}),
    "definitions that are a list": top(define=[1]),
    "a catalogue that is a device": top(catalog="/dev/zero"),
    "a catalogue that is a secret": top(catalog="../secret"),
    "a catalogue that is a folder": top(catalog="tiny"),
    "no grid": top(grid=None),
    "1e9 seeds": grid(seeds=list(range(10**4)), models=[{"name": "minilm", "layers": 1}] * 3),
    "seeds that are text": grid(seeds="0-9"),
    "an attack that is none": grid(attacks=["evil"]),
    "a model in a device": grid(models=[{"name": "bert", "source": "/dev/zero"}]),
    "a model that is a secret": grid(models=[{"name": "bert", "source": "../secret"}]),
    "a model with escapes": grid(models=[{"name": "bert", "source": ESCAPES}]),
    "a model that is a URL": grid(models=[{"name": "bert", "source": "https://x.invalid/y"}]),
    "a corpus in a pipe": lambda: (
        os.mkfifo("p.txt"),
        grid(auxiliaries=[texts("p.txt")], defenses=["recipe"])(),
    ),
    "a corpus that is a list": grid(auxiliaries=[[1]]),
    "triggers of 1e5": grid(attacks=[{**POR, "triggers": ["x"] * 10**5}]),
    "a trigger of a megabyte": grid(attacks=[{**POR, "triggers": ["x" * 10**6]}]),
    "classes that repeat": grid(tasks=[{**OWN_TASK, "class_names": ["a", "a"]}]),
    "workers of 1e9": (top(launch={"workers": {"purify": 10**9}}), EITHER),
    "a launch that is a text": top(launch="fast"),
    "the file is a pipe": special("e.yaml", os.mkfifo),
    "the file is a device": special("e.yaml", lambda path: path.symlink_to("/dev/zero")),
    "the file is a folder": special("e.yaml", Path.mkdir),
    "the file is gone": lambda: Path("e.yaml").unlink(),
}  # fmt: skip

CATALOGUES: dict[str, str] = {
    "is a list": "[1]",
    "has an unknown section": "evil: {}",
    "has an unknown kind": "corpora: {x: {kind: evil}}",
    "has a name that is a path": "corpora: {../../secret: {kind: text}}",
    "has an entry that is a text": "corpora: {x: y}",
    "names an entry of ours": "tasks: {sst2: {kind: text, class_names: [a, b]}}",
    "is bound to itself": "corpora: &a {x: *a}",
    "has fields of no kind": "corpora: {x: {kind: text, evil: 1}}",
    "has a hub that is no name": "corpora: {x: {kind: text, hub: {repo: ../.., revision: x}}}",
}


def catalogue(content: str) -> Make:
    """Return a maker of a catalogue, and of an experiment that uses its corpus `x`."""

    def make() -> None:
        file(content, "c.yaml")()
        whole = yaml.safe_load(experiment(catalog="c.yaml"))
        Path("e.yaml").write_text(
            yaml.safe_dump(
                {**whole, "grid": {**whole["grid"], "auxiliaries": ["x"], "defenses": ["recipe"]}}
            )
        )

    return make


def spoilt(path: str, content: Any) -> Make:
    """Return a maker that replaces a file of the store; JSON unless it is bytes."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()

    def make() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).unlink(missing_ok=True)
        Path(path).write_bytes(data)

    return make


def manifest(**changes: Any) -> Make:
    def make() -> None:
        path = Path(ARTIFACT, "manifest.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return make


def named_file(name: str, **about: Any) -> Make:
    return manifest(files={name: {"bytes": 1, "sha256": "0" * 64, **about}})


NOTE = {"time": "2026-01-02T03:04:05+00:00", "kind": "purify", "label": "x"}
BAD_MANIFESTS: dict[str, Any] = {
    "no bytes": spoilt(f"{ARTIFACT}/manifest.json", b""),
    "a list": spoilt(f"{ARTIFACT}/manifest.json", []),
    "100,000 deep": spoilt(f"{ARTIFACT}/manifest.json", b"[" * 10**5),
    "20 MB": spoilt(f"{ARTIFACT}/manifest.json", b'{"x": "' + b"x" * 2 * 10**7 + b'"}'),
    "of another stage": manifest(kind="purify", key="x"),
    "of a later version": manifest(manifest_version=99),
    "without files": manifest(files=None),
    "files that are a list": manifest(files=["a"]),
    "files outside": named_file("../../../secret"),
    "absolute files": named_file("/etc/passwd"),
    "files with escapes": named_file(ESCAPES),
    "sizes below zero": named_file("log.txt", bytes=-1),
    "sizes that are text": named_file("log.txt", bytes="many"),
    "sums that are numbers": named_file("log.txt", sha256=7),
    "a named pipe": special(f"{ARTIFACT}/manifest.json", os.mkfifo),
    "a link to a secret": special(
        f"{ARTIFACT}/manifest.json", lambda path: path.symlink_to("../../../../secret")
    ),
}
BAD_STORES: dict[str, Any] = {
    "a row file of garbage": (spoilt("store/results/table1/p0.parquet", b"PAR1" * 9), (0, 1, 2)),
    "a row file that is a pipe": (special("store/results/table1/p0.parquet", os.mkfifo), (0, 1, 2)),
    "a plan that is a list": (spoilt("store/plans/table1.json", []), (0, 1, 2)),
    "a plan 100,000 deep": (spoilt("store/plans/table1.json", b"[" * 10**5), (0, 1, 2)),
    "a plan of parents in a circle": (
        spoilt(
            "store/plans/x.json",
            {"cells": [], "stages": {"a": {"parent": "b"}, "b": {"parent": "a"}}},
        ),
        (0, 1, 2),
    ),
    "a plan of cells that are numbers": (
        spoilt("store/plans/x.json", {"cells": [1], "stages": {}}),
        (0, 1, 2),
    ),
    "a plan with escapes in its name": (
        spoilt(f"store/plans/{ESCAPES.replace('/', '')}.json", {"cells": [], "stages": {}}),
        (0, 1, 2),
    ),
    "a note of escapes": (
        spoilt("store/failures/k.json", {**NOTE, "error": ESCAPES, "message": ESCAPES * 999}),
        (0, 1, 2),
    ),
    "a note of numbers": (spoilt("store/progress/k.json", {**NOTE, "step": "many"}), (0, 1, 2)),
    "a note of infinite steps": (
        spoilt(
            "store/progress/k.json",
            b'{"time": "2026-01-02T03:04:05+00:00", "kind": "purify", "label": "x", '
            b'"phase": "a", "step": 1e999, "num_steps": NaN}',
        ),
        (0, 1, 2),
    ),
    "a note of the year 9999": (
        spoilt(
            "store/progress/k.json",
            {**NOTE, "time": "9999-12-31T23:59:59+00:00", "phase": "a", "step": 1, "num_steps": 0},
        ),
        (0, 1, 2),
    ),
    "a note that is a pipe": (
        lambda: (Path("store/failures").mkdir(exist_ok=True), os.mkfifo("store/failures/k.json")),
        (0, 1, 2),
    ),
    "a lease of text": (spoilt("store/drivers/d.json", {"pid": "x", "host": []}), (0, 1, 2)),
    "a claim with escapes": (spoilt(f"store/claims/{ESCAPES}", b""), (0, 1, 2)),
    "a room that is a file": (special("store/claims", Path.touch), (0, 1, 2)),
    "a kind that is a pipe": (lambda: os.mkfifo("store/evil"), (0, 1, 2)),
    "a kind that leads out": (lambda: Path("store/evil").symlink_to("../../.."), (0, 1, 2)),
    "a folder in a circle": (
        lambda: Path("store/evil").symlink_to("../store", target_is_directory=True),
        (0, 1, 2),
    ),
    "an artifact with escapes": (
        lambda: Path(f"store/finetune/{ESCAPES}-k1").mkdir(),
        (0, 1, 2),
    ),
    "10,000 stray files": (
        lambda: [Path("store", f"{n}").touch() for n in range(10**4)],
        (0, 1, 2),
    ),
    "a resume point of garbage": (spoilt("store/checkpoints/p0", b"\x80garbage"), (0, 1, 2)),
    "events of garbage": (spoilt("store/tensorboard/x/y-p0/e", b"garbage"), (0, 1, 2)),
}
LOOKS = {
    "verify": "store verify --store store",
    "du": "store du --store store",
    "gc": "store gc --store store --yes",
    "status": "status --store store",
    "report": "report store",
}


def rows(**changes: Any) -> Make:
    """Return a maker of a kept folder whose rows have other values in some columns."""

    def make() -> None:
        import pyarrow as pa

        from recipe_ray.store.rows import decode_rows, encode_rows

        path = Path("kept/table1/rows.parquet")
        table = decode_rows(path.read_bytes(), "rows")
        for name, value in changes.items():
            place = table.schema.get_field_index(name)
            field = table.schema.field(place)
            table = table.set_column(place, field, pa.array([value] * len(table), field.type))
        path.write_bytes(encode_rows(table))

    return make


HTML = "<script>alert(1)</script><img src=x onerror=alert(1)>\n# heading\n| a | b |"
KEPT: dict[str, Any] = {
    "rows of garbage": spoilt("kept/table1/rows.parquet", b"PAR1" * 99),
    "rows that are a link out": special(
        "kept/table1/rows.parquet", lambda path: path.symlink_to("../../../secret")
    ),
    "rows that are a pipe": special("kept/table1/rows.parquet", os.mkfifo),
    "a plan that is a list": spoilt("kept/table1/plan.json", []),
    "a plan that is a link out": special(
        "kept/table1/plan.json", lambda path: path.symlink_to("../../../secret")
    ),
    "values that are nan": (rows(value=float("nan")), EITHER),
    "values that are infinite": (rows(value=float("inf")), EITHER),
    "values of 1e308": (rows(value=1e308), EITHER),
    "counts below zero": (rows(denominator=-5.0, numerator=9.0), EITHER),
    "times below zero": (rows(wall_s=-1e300, world_size=-7), EITHER),
    "no time": (rows(time=None), EITHER),
    "names with escapes": (rows(model=ESCAPES, attack=ESCAPES, metric=ESCAPES), EITHER),
    "names of HTML": (rows(model=HTML, defense=HTML, task=HTML, trigger=HTML), EITHER),
    "names of 100,000 letters": (rows(model="x" * 10**5, trigger="y" * 10**5), EITHER),
    "versions 100,000 deep": (rows(versions="[" * 10**5), EITHER),
    "seeds beyond reason": (rows(seed=2**63 - 1, epoch=-(2**62)), EITHER),
    "cells without names": (rows(cell=None), EITHER),
}

PAGES = (
    "names of HTML",
    "names with escapes",
    "values that are nan",
    "names of 100,000 letters",
)
FILES: list[Case] = [
    *cases("experiment", PLAN, EXPERIMENTS),
    *cases("catalogue", PLAN, {name: catalogue(text) for name, text in CATALOGUES.items()}),
    *cases("manifest", LOOKS["verify"], {n: (make, VERIFY) for n, make in BAD_MANIFESTS.items()}),
    *cases("reported", LOOKS["report"], {n: (make, EITHER) for n, make in BAD_MANIFESTS.items()}),
    *(
        one
        for number, (name, row) in enumerate(BAD_STORES.items())
        # each is looked at in two ways
        for look in (list(LOOKS)[number % 5], list(LOOKS)[(number + 3) % 5])
        for one in cases(f"store {look}", LOOKS[look], {name: row})
    ),
    *cases("kept", "report kept", KEPT),
    *cases("kept as a page", "report kept --html page.html", {n: KEPT[n] for n in PAGES}),
    *cases("whole store", "report store", {"untouched": (lambda: None, FINE)}),
]
