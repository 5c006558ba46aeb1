"""Hostile data: tables, packed files, Parquet, archives, images, texts; and tokenizers."""

import bz2
import gzip
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from samples import SENTENCES

from hostile.case import EITHER, FINE, Case, cases
from hostile.good import OWN, changed_json
from hostile.models import ESCAPES, Make, images

TASK = "evaluate tiny --set steps=1 --set precision=fp32 --quiet --task"
AUX = "purify tiny --out out --no-scan --set fit.steps=1 --quiet --aux"
PICTURES = "purify vgg --out out --no-scan --set fit.steps=1 --quiet --aux"
QUOTED = [f'"{text}"' for text in SENTENCES]


def text(content: str | bytes, encoding: str = "utf-8") -> Callable[[Path], Any]:
    data = content if isinstance(content, bytes) else content.encode(encoding)
    return lambda path: path.write_bytes(data)


def labelled(*labels: Any, header: str = "text,label") -> Callable[[Path], Any]:
    """Return a writer of a CSV file whose rows have these labels in turn."""
    rows = [f"{one},{labels[n % len(labels)]}" for n, one in enumerate(QUOTED)]
    return text("\n".join([header, *rows]))


CSV: dict[str, tuple[Callable[[Path], Any], tuple[int, ...]] | Callable[[Path], Any]] = {
    "empty": text(""),
    "a header only": text("text,label\n"),
    "zeros": text(b"\0" * 1000),
    "a zero within a text": (text(OWN.replace("Call", "Ca\0ll")), EITHER),
    "a quote without end": text('text,label\n"' + "x" * 10**5),
    "in Latin-1": text(OWN.replace("Alice", "Älice"), "latin-1"),
    "in UTF-16": text(OWN, "utf-16"),
    "two columns of one name": text(OWN.replace("text,label", "text,text")),
    "rows of other lengths": text("text,label\na\nb,1,2,3\n" + OWN[11:]),
    "escapes in the header": text(OWN.replace("label", f"la{ESCAPES}bel").replace("\r", "")),
    "escapes in texts": (text(OWN.replace("Call", f"Call{ESCAPES}".replace("\r", ""))), EITHER),
    "escapes in labels": (labelled("a\x1b[2J", "b\u202e"), EITHER),
    "formulas": (text(OWN.replace("Call", "=cmd|' /C calc'!A0 ")), EITHER),
    "labels beyond 64 bits": (labelled(10**30, 10**31), EITHER),
    "labels that are nan": (labelled("nan", "inf"), EITHER),
    "labels of 10,000 letters": (labelled("x" * 10**4, "y" * 10**4), EITHER),
    "every label another": labelled(*range(24)),
    "one label": labelled(1),
    "no label": labelled(""),
    "a header of 10,000 columns more": text(
        "text,label," + ",".join(f"c{n}" for n in range(10**4)) + "\n" + OWN[11:]
    ),
    "100,000 quotes": text("text,label\n" + '"' * 10**5 + ",1\n"),
    "carriage returns alone": (text(OWN.replace("\n", "\r")), EITHER),
    "HTML": text("<!doctype html><html><body>404</body></html>"),
    "a workbook": text(b"PK\x03\x04" + bytes(100)),
    "a database": text(b"SQLite format 3\0" + bytes(1000)),
}


def jsonl(*rows: Any) -> Callable[[Path], Any]:
    return text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))


GOOD_ROWS = [{"text": one, "label": n % 2} for n, one in enumerate(SENTENCES)]
JSONL: dict[str, Any] = {
    "empty": jsonl(),
    "not JSON": jsonl("{", "}"),
    "100,000 deep": jsonl("[" * 10**5),
    "deep in a field": jsonl('{"text": "a", "o": ' + "[" * 10**5 + "]" * 10**5 + "}"),
    "numbers of 100,000 digits": jsonl('{"text": "a", "label": ' + "9" * 10**5 + "}"),
    "nan": (jsonl('{"text": "a", "label": NaN}', *GOOD_ROWS), EITHER),
    "lists": jsonl([1, 2], [3, 4]),
    "texts that are null": jsonl({"text": None, "label": 1}, {"text": None, "label": 0}),
    "texts that are numbers": jsonl({"text": 1, "label": 1}, {"text": 2, "label": 0}),
    "fields twice": jsonl('{"text": "a", "text": "b", "label": 1, "label": 0}'),
    "half a surrogate": (jsonl('{"text": "\\ud800 word", "label": 1}', *GOOD_ROWS), EITHER),
    "no UTF-8": text(b'{"text": "\xff\xfe", "label": 1}\n'),
    "every row other fields": jsonl(*({f"c{n}": n} for n in range(2000))),
    "names with escapes": jsonl(*({ESCAPES: "a", "label": n % 2} for n in range(20))),
    "a label of lists": jsonl(*({"text": "a", "label": [n]} for n in range(20))),
}


def table(**columns: Any) -> Callable[[Path], Any]:
    return lambda path: pq.write_table(pa.table(columns), path)


def broken(change: Callable[[bytes], bytes]) -> Callable[[Path], Any]:
    def write(path: Path) -> None:
        buffer = io.BytesIO()
        pq.write_table(pa.table({"text": SENTENCES, "label": [n % 2 for n in range(24)]}), buffer)
        path.write_bytes(change(buffer.getvalue()))

    return write


LABEL = [n % 2 for n in range(24)]
PARQUET: dict[str, Any] = {
    "no bytes": text(b""),
    "nothing but its mark": text(b"PAR1PAR1"),
    "cut off": broken(lambda data: data[: len(data) // 2]),
    "a footer of 2 GB": broken(lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1"),
    "a footer of zeros": broken(lambda data: data[:-200] + bytes(192) + data[-8:]),
    "encrypted": broken(lambda data: b"PARE" + data[4:-4] + b"PARE"),
    "pages of garbage": broken(lambda data: data[:4] + b"\xff" * 200 + data[204:]),
    "no columns": table(),
    "no rows": table(text=pa.array([], pa.string()), label=pa.array([], pa.int64())),
    "lists of texts": table(text=[[one] for one in SENTENCES], label=LABEL),
    "nothing but null": table(text=pa.nulls(24), label=pa.nulls(24)),
    "null labels": table(text=SENTENCES, label=pa.nulls(24, pa.int64())),
    "labels that are times": (
        table(text=SENTENCES, label=pa.array([*LABEL], pa.timestamp("s"))),
        EITHER,
    ),
    "bytes that are no text": table(text=[b"\xff\xfe"] * 24, label=LABEL),
    "names with escapes": table(**{ESCAPES: SENTENCES, "label": LABEL}),
    "labels that are nan": (table(text=SENTENCES, label=[float("nan"), 1.0] * 12), EITHER),
    "labels of lists": table(text=SENTENCES, label=[[n] for n in LABEL]),
    "texts without a letter": (table(text=["\u200b"] * 24, label=LABEL), EITHER),
}


def packed(pack: Callable[[bytes], bytes], content: bytes = OWN.encode()) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(pack(content))


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../secret", OWN)


OTHER_TABLES: dict[str, Any] = {
    "own.csv.gz": packed(lambda data: gzip.compress(data)[:-20]),
    "zeros.csv.gz": packed(gzip.compress, bytes(10**8)),
    "plain.csv.gz": packed(lambda data: data),
    "twice.csv.gz": (packed(lambda data: gzip.compress(data) + b"trailing"), EITHER),
    "own.csv.bz2": packed(lambda data: bz2.compress(data)[:-9]),
    "own.csv.zst": packed(lambda data: b"(\xb5/\xfd" + data),
    "own.csv.xz": packed(lambda data: b"\xfd7zXZ\0" + data),
    "own.zip": zipped,
    "own.xlsx": zipped,
    "own.pkl": text(b"\x80\x04cos\nsystem\n(S'touch ../executed'\ntR."),
    "own.arrow": text(b"ARROW1\0\0" + b"\xff" * 200),
    "own.feather": text(b"FEA1" + bytes(200)),
    "own.json": text('{"data": {"rows": [1, 2]}}'),
    "array.json": text("[" + "[" * 10**5),
    "own.orc": text(b"ORC" + bytes(100)),
    "own.db": text(b"SQLite format 3\0"),
    "own": os.mkfifo,
    "pipe.csv": os.mkfifo,
    "device.csv": lambda path: path.symlink_to("/dev/zero"),
    "loop.csv": lambda path: path.symlink_to("loop.csv"),
    "terabyte.csv": lambda path: (path.touch(), os.truncate(path, 2**40)),
    "folder.csv": Path.mkdir,
}


def member(name: str, data: bytes = b"x", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def tar(*members: tuple[tarfile.TarInfo, bytes], change: Any = None) -> Callable[[Path], Any]:
    def write(path: Path) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for info, data in members:
                archive.addfile(info, io.BytesIO(data))
        path.write_bytes(change(buffer.getvalue()) if change else buffer.getvalue())

    return write


def png(width: int = 16, height: int = 16, kind: str = "PNG", mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, kind)
    return buffer.getvalue()


def huge() -> bytes:
    """Return a PNG that says that it is 2e9 pixels high and wide."""
    data = bytearray(png())
    data[16:24] = (2 * 10**9).to_bytes(4, "big") * 2
    return bytes(data)


def webdataset(image: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [one for n in range(12) for one in (member(f"{n}.png", image),)]


TARS: dict[str, Any] = {
    "no members": tar(),
    "no bytes": text(b""),
    "zeros": text(bytes(10**6)),
    "cut off": tar(*webdataset(png()), change=lambda data: data[:700]),
    "sizes that are no numbers": tar(
        *webdataset(png()), change=lambda data: data[:124] + b"x" * 12 + data[136:]
    ),
    "sizes of a terabyte": tar(
        *webdataset(png()), change=lambda data: data[:124] + b"77777777777\0" + data[136:]
    ),
    "names outside": (tar(member("../../secret.png", png())), EITHER),
    "absolute names": (tar(member("/tmp/evil.png", png())), EITHER),
    "links outside": tar(member("0.png", b"", type=tarfile.SYMTYPE, linkname="../../secret")),
    "hard links outside": tar(member("0.png", b"", type=tarfile.LNKTYPE, linkname="../../secret")),
    "devices": tar(member("0.png", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=5)),
    "pipes": tar(member("0.png", b"", type=tarfile.FIFOTYPE)),
    "folders alone": tar(member("a/", b"", type=tarfile.DIRTYPE)),
    "names with escapes": (tar(member(f"{ESCAPES}.png", b"no image")), EITHER),
    "images of 2e9 pixels": tar(*webdataset(huge())),
    "images that are none": tar(*webdataset(b"no image")),
    "a whole archive within": tar(member("0.png", gzip.compress(bytes(10**7)))),
}

IMAGES: dict[str, Callable[[], bytes]] = {
    "2e9 pixels high": huge,
    "200 megapixels": lambda: png(20000, 10000, mode="1"),
    "one pixel high and 1e6 wide": lambda: png(10**6, 1),
    "no bytes": lambda: b"",
    "cut off": lambda: png()[:40],
    "a web page": lambda: b"<!doctype html>",
    "vectors": lambda: b"<svg xmlns='x' width='9e9'><image href='file:///etc/passwd'/></svg>",
    "PostScript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9999999 9999999\n",
    "a bitmap of 2 GB": lambda: (
        b"BM" + bytes(12) + b"(\0\0\0" + b"\xff\xff\xff\x7f" * 2 + bytes(99)
    ),
    "a PPM of 1e9": lambda: b"P6 1000000000 1000000000 255\n",
    "a PPM of text": lambda: b"P3 " + b"9" * 10**6,
    "an icon": lambda: png(kind="ICO"),
    "a TIFF without end": lambda: (
        b"II*\0\x08\0\0\0\x01\0\0\x01\x03\0\x01\0\0\0\x08\0\0\0\x08\0\0\0"
    ),
    "a script behind a PNG": lambda: png() + b"#!/bin/sh\ntouch executed",
}


def tokenizer(**changes: Any) -> Make:
    return lambda: changed_json("model/tokenizer.json", **changes)


def within(part: str, **changes: Any) -> Make:
    """Return a maker that changes fields of a part of tokenizer.json."""

    def make() -> None:
        path = Path("model/tokenizer.json")
        values = json.loads(path.read_text())
        values[part] = {**(values[part] or {}), **changes}
        path.write_text(json.dumps(values))

    return make


def added(*contents: str, **fields: Any) -> Make:
    tokens = [
        {"id": n, "content": one, "special": False, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False, **fields}
        for n, one in enumerate(contents)
    ]  # fmt: skip
    return tokenizer(added_tokens=tokens)


def settings(**changes: Any) -> Make:
    return lambda: changed_json("model/tokenizer_config.json", **changes)


def vocabulary(change: Callable[[dict[str, int]], dict[str, Any]]) -> Make:
    def make() -> None:
        values = json.loads(Path("model/tokenizer.json").read_text())
        within("model", vocab=change(values["model"]["vocab"]))()

    return make


SLOW = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
TOKENIZERS: dict[str, Any] = {
    "missing": lambda: Path("model/tokenizer.json").unlink(),
    "no JSON": lambda: Path("model/tokenizer.json").write_text("{"),
    "a list": lambda: Path("model/tokenizer.json").write_text("[]"),
    "100,000 deep": lambda: Path("model/tokenizer.json").write_text("[" * 10**5),
    "of another version": (tokenizer(version="9.9"), EITHER),
    "no model": tokenizer(model=None),
    "an unknown model": within("model", type="Evil"),
    "an empty vocabulary": vocabulary(lambda found: {}),
    "numbers below zero": vocabulary(lambda found: {**found, "x": -1}),
    "numbers beyond 64 bits": vocabulary(lambda found: {**found, "x": 2**70}),
    "numbers beyond the embeddings": vocabulary(lambda found: {**found, "x": 10**6}),
    "all words of one number": (vocabulary(lambda found: dict.fromkeys(found, 1)), EITHER),
    "numbers that are text": vocabulary(lambda found: dict.fromkeys(found, "1")),
    "no unknown word": (within("model", unk_token="gone"), EITHER),
    "words of at most no letters": (within("model", max_input_chars_per_word=0), EITHER),
    "a prefix of a megabyte": (
        within("model", continuing_subword_prefix="#" * 10**6),
        EITHER,
    ),
    "a pattern without end": tokenizer(pre_tokenizer=SLOW),
    "a normalizer that grows": tokenizer(
        normalizer={"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 10**5}
    ),
    "a map that is garbage": tokenizer(
        normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"}
    ),
    "a template of unknown tokens": within("post_processor", special_tokens={}),
    "padding to 1e9": tokenizer(padding={"strategy": {"Fixed": 10**9}}),
    "cuts to nothing": (tokenizer(truncation={"max_length": 0}), EITHER),
    "100,000 added tokens": added(*(f"<{n}>" for n in range(10**5))),
    "an added token of nothing": (added("", special=True), EITHER),
    "an added token of a megabyte": (added("x" * 10**6), EITHER),
    "added tokens with escapes": (added(ESCAPES), EITHER),
    "a class that is a path": (settings(tokenizer_class="../../secret"), EITHER),
    "a class of its own": (
        settings(tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", None]}),
        EITHER,
    ),
    "a vocabulary elsewhere": (settings(vocab_file="../../secret"), EITHER),
    "texts of 1e30 tokens": (settings(model_max_length=1e30), EITHER),
    "texts of no tokens": (settings(model_max_length=0), EITHER),
    "a mask that is a list": settings(mask_token=["[MASK]"]),
    "a mask that is missing": (settings(mask_token="<gone>"), EITHER),
    "a template of code": (settings(chat_template="{% for x in y %}{{ 1/0 }}"), FINE),
    "settings that are a list": lambda: Path("model/tokenizer_config.json").write_text("[]"),
}


def put(name: str, write: Callable[[Path], Any]) -> Make:
    return lambda: write(Path(name))


def written(group: str, command: str, name: str, rows: dict[str, Any]) -> list[Case]:
    """Return cases of a file of one name that is written in several ways."""
    own = {
        title: (put(name, row[0]), row[1]) if isinstance(row, tuple) else put(name, row)
        for title, row in rows.items()
    }
    return cases(group, f"{command} {name}", own)


def one_image(data: Callable[[], bytes]) -> Make:
    def make() -> None:
        images()
        Path("images", "0.png").write_bytes(data())

    return make


EVALUATE_MODEL = "evaluate model --task own.csv --set steps=1 --set precision=fp32 --quiet"
DATA: list[Case] = [
    *written("csv", TASK, "bad.csv", CSV),
    *written("tsv", AUX, "bad.tsv", {n: CSV[n] for n in ("empty", "zeros", "in UTF-16", "HTML")}),
    *written("jsonl", TASK, "bad.jsonl", JSONL),
    *written("parquet", TASK, "bad.parquet", PARQUET),
    *(
        one
        for name, row in OTHER_TABLES.items()
        for one in written("table", AUX, name, {name: row})
    ),
    *written("tar", PICTURES, "bad.tar", TARS),
    *cases("image", f"{PICTURES} images", {n: (one_image(d), EITHER) for n, d in IMAGES.items()}),
    *cases("tokenizer", EVALUATE_MODEL, TOKENIZERS),
]
