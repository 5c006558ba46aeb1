"""Tokenizers as an attacker ships them: what they name is not read, what they bring not saved."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from samples import SENTENCES, minilm, raised_by
from transformers import AutoTokenizer

from recipe_ray.base.errors import ModelError, UnsafeModelError
from recipe_ray.models.text.checkpoint import load_bert
from recipe_ray.models.text.tokenizer import load_tokenizer

TEXTS = SENTENCES[:6]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "call", "me", "is", "##h", "##ma", "##el"]
SECRET = "aws_secret_access_key"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Return a file that no model has to do with."""
    file = tmp_path / "credentials"
    file.write_text(f"[default]\n{SECRET}\n")
    return file


def settle(folder: Path, file: str = "tokenizer_config.json", **settings: Any) -> Path:
    """Change settings of the tokenizer in a file of the folder."""
    place = folder / file
    before = json.loads(place.read_text()) if place.is_file() else {}
    place.write_text(json.dumps({**before, **settings}))
    return folder


def with_vocabulary(folder: Path, words: list[str] = WORDS) -> Path:
    """Replace a folder's tokenizer by a vocab.txt."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


def ids(tokenizer: Any) -> list[list[int]]:
    found: list[list[int]] = tokenizer(TEXTS)["input_ids"]
    return found


# --- what a tokenizer is read from


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(
    "field",
    ["vocab", "merges", "vocab_file", "tokenizer_file", "full_tokenizer_file", "gguf_file"],
)
def test_settings_may_not_name_a_file_to_be_read(
    folder: Path, secret: Path, file: str, field: str
) -> None:
    settle(with_vocabulary(folder), file, **{field: str(secret), "unk_token": "[default]"})
    with pytest.raises(UnsafeModelError, match=rf"{file}: {field} is .*; allowed: null") as caught:
        load_bert(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [{"init_inputs": ["x"]}, {"fast_tokenizer_files": ["tokenizer.1.json"]}, {"vocab": {"a": 0}}],
)
def test_nor_bring_a_vocabulary_of_their_own(folder: Path, settings: dict[str, Any]) -> None:
    (field,) = settings
    with pytest.raises(UnsafeModelError, match=f"{field} is "):
        load_bert(settle(folder, **settings))


def test_a_vocabulary_may_not_be_a_link_to_another_place(folder: Path, secret: Path) -> None:
    place = with_vocabulary(folder) / "vocab.txt"
    place.unlink()
    place.symlink_to(secret)
    with pytest.raises(UnsafeModelError, match=r"vocab\.txt: a link out of its folder"):
        load_bert(folder)


def test_a_vocabulary_may_be_a_link_as_the_hubs_cache_has_them(folder: Path) -> None:
    before = ids(load_bert(folder).tokenizer)
    snapshot = folder.parent / "models--a--b" / "snapshots" / "c0ffee"
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir(parents=True)
    shutil.copytree(folder, snapshot)
    for file in snapshot.iterdir():
        file.rename(blobs / file.name)
        file.symlink_to(Path("../../blobs") / file.name)
    assert ids(load_bert(snapshot).tokenizer) == before


def test_what_transformers_itself_leaves_in_settings_is_harmless(folder: Path) -> None:
    before = ids(load_bert(folder).tokenizer)
    settle(
        folder,
        tokenizer_file=None,
        full_tokenizer_file=None,
        vocab_file=None,
        init_inputs=[],
        name_or_path="/home/author/model",
        special_tokens_map_file="/home/author/model/special_tokens_map.json",
    )
    assert ids(load_bert(folder).tokenizer) == before


def test_no_other_file_of_a_folder_is_opened(folder: Path, secret: Path) -> None:
    # a sentencepiece model would be read where a vocabulary is missing
    with_vocabulary(folder)
    (folder / "tokenizer.model").write_text(SECRET)
    (folder / "chat_template.jinja").write_text("{{ 1 }}")
    tokenizer = load_bert(folder).tokenizer
    assert len(tokenizer) == len(WORDS)
    assert tokenizer.chat_template is None


# --- what is published


def test_code_and_chat_templates_do_not_survive_into_a_saved_folder(
    folder: Path, tmp_path: Path
) -> None:
    load_bert(folder).save(tmp_path / "plain")
    settle(
        folder,
        auto_map={"AutoTokenizer": ["own.Tokenizer", "org/repo--own.Tokenizer"]},
        chat_template="{{ messages }}",
        processor_class="OwnProcessor",
        response_template="x",
        custom_pipelines={"own": {"impl": "own.Pipeline"}},
    )
    (folder / "chat_template.jinja").write_text("{{ 1 }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_text("{{ 2 }}")
    load_bert(folder).save(tmp_path / "saved")
    plain, saved = tmp_path / "plain", tmp_path / "saved"
    assert {p.name for p in saved.rglob("*")} == {p.name for p in plain.rglob("*")}
    for file in ("tokenizer_config.json", "tokenizer.json", "config.json"):
        assert (saved / file).read_bytes() == (plain / file).read_bytes()


@pytest.mark.parametrize("field", ["extra_special_tokens", "additional_special_tokens"])
def test_a_token_may_not_be_saved_under_the_name_of_a_setting(
    folder: Path, secret: Path, tmp_path: Path, field: str
) -> None:
    settle(folder, **{field: {"eot_token": "[unused1]", "vocab": str(secret)}})
    with pytest.raises(ModelError, match=rf"{field} names 'vocab'; .* end in _token"):
        load_bert(folder)
    load_bert(settle(folder, **{field: {"eot_token": "[unused1]"}})).save(tmp_path / "s")
    assert json.loads((tmp_path / "s" / "tokenizer_config.json").read_text())["eot_token"]


@pytest.mark.parametrize("auto_map", [5, [], {"AutoTokenizer": []}, ["own.A", None]])
def test_an_auto_map_of_any_shape_is_ignored(folder: Path, auto_map: Any) -> None:
    assert load_bert(settle(folder, auto_map=auto_map)).tokenizer.mask_token == "[MASK]"


# --- the same tokens as in transformers


def as_vocabulary(folder: Path) -> None:
    vocabulary = minilm().tokenizer.get_vocab()
    with_vocabulary(folder, sorted(vocabulary, key=vocabulary.__getitem__))


def as_roberta(folder: Path) -> None:
    with_vocabulary(folder)
    (folder / "vocab.txt").unlink()
    tokens = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "<mask>",
        *"CalmeIshr.",
        "Ġ",
        "me",
        "Ġme",
        "ll",
        "all",
    ]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nm e\nĠ me\nl l\na ll\n")
    settle(folder, "config.json", model_type="roberta")


LAYOUTS: dict[str, Any] = {
    "tokenizer.json": lambda folder: None,
    "vocab.txt": as_vocabulary,
    "cased": lambda folder: settle(with_vocabulary(folder), do_lower_case=False),
    "the class of config.json": lambda folder: settle(
        settle(with_vocabulary(folder)), "config.json", tokenizer_class="BertTokenizerFast"
    ),
    "PreTrainedTokenizerFast": lambda folder: settle(
        folder, tokenizer_class="PreTrainedTokenizerFast"
    ),
    "vocab.json and merges.txt": as_roberta,
    "tokens added": lambda folder: settle(
        with_vocabulary(folder), additional_special_tokens=["ishmael"]
    ),
    "added_tokens.json": lambda folder: settle(
        with_vocabulary(folder), "added_tokens.json", ishmael=len(WORDS)
    ),
    "special_tokens_map.json": lambda folder: settle(
        with_vocabulary(folder), "special_tokens_map.json", unk_token="me"
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_tokens_that_it_gives_in_transformers(
    folder: Path, layout: str
) -> None:
    LAYOUTS[layout](folder)
    config = json.loads((folder / "config.json").read_text())
    default = {"bert": "BertTokenizer", "roberta": "RobertaTokenizer"}[config["model_type"]]
    ours = load_tokenizer(folder, config.get("tokenizer_class") or default)
    theirs = AutoTokenizer.from_pretrained(folder)
    assert type(ours) is type(theirs)
    assert ids(ours) == ids(theirs)
    assert len({i for text in ids(ours) for i in text}) > 3


# --- tokenizers that are none


@pytest.mark.parametrize("words", [30523, 40000])
def test_more_tokens_than_embeddings_are_refused(folder: Path, words: int) -> None:
    with_vocabulary(folder, [*WORDS, *(f"w{number}" for number in range(words - len(WORDS)))])
    said = raised_by(lambda: load_bert(folder))
    assert f"its tokenizer has {words} tokens, its embeddings have 30522 rows" in said


def test_so_is_a_number_beyond_them_however_few_tokens_there_are(folder: Path) -> None:
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["model"]["vocab"] = {word: number for number, word in enumerate(WORDS)} | {"far": 40000}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    said = raised_by(lambda: load_bert(folder))
    assert "its tokenizer has 40001 tokens, its embeddings have 30522 rows" in said


BROKEN: dict[str, Any] = {
    "no JSON": "{",
    "a list": "[]",
    "nested": "[" * 100_000,
    "no model": "{}",
    "another model": '{"model": {"type": "Evil"}}',
    "a model that is none": '{"model": 5, "added_tokens": []}',
    "tokens that are none": '{"model": {"type": "WordPiece", "vocab": {"a": "b"}}}',
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_tokenizer_is_named(folder: Path, broken: str) -> None:
    (folder / "tokenizer.json").write_text(BROKEN[broken])
    with pytest.raises(ModelError, match=r"tokenizer\.json: no BertTokenizer can be made of it"):
        load_bert(folder)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tokenizer_class": "BertTokeniser"}, r"unknown tokenizer_class 'BertTokeniser'.*allowed"),
        ({"tokenizer_class": "pipeline"}, "unknown tokenizer_class 'pipeline'"),
        ({"tokenizer_class": ["a"]}, "unknown tokenizer_class"),
        ({"padding_side": "up"}, "no BertTokenizer can be made of it: ValueError: Padding side"),
        ({"unk_token": 5}, "no BertTokenizer can be made of it: TypeError"),
        ({"mask_token": None}, "no mask token"),
    ],
)
def test_settings_that_make_no_sense_are_named(folder: Path, settings: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        load_bert(settle(folder, **settings))


def test_a_vocabulary_of_another_class_is_no_tokenizer(folder: Path) -> None:
    with_vocabulary(folder)
    (folder / "vocab.txt").rename(folder / "vocab.json")
    with pytest.raises(ModelError, match=r"no tokenizer; expected tokenizer\.json or vocab\.txt"):
        load_bert(folder)
