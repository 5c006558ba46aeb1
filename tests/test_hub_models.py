"""Models of the hub: only data is fetched, and every refusal says what to do."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_client import Client
from hub_stand_in import HubStandIn, Repo

from recipe_ray.base.errors import ModelError, UnsafeModelError
from recipe_ray.data.hub import HubSnapshot, fetch_card, fetch_model, snapshot_in

TINY = "someone/tiny-bert"


@pytest.fixture(scope="module")
def hub() -> Iterator[HubStandIn]:
    with HubStandIn({}) as stand_in:
        yield stand_in


@pytest.fixture(scope="module")
def client(
    hub: HubStandIn, home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    process = Client(hub.endpoint, home)
    folder = tmp_path_factory.mktemp("tiny")
    process(save_tiny_model, folder)
    hub.repos |= model_repos({file.name: file.read_bytes() for file in folder.iterdir()})
    yield process
    process.close()


def model_repos(files: dict[str, bytes]) -> dict[str, Repo]:
    """Return repositories of the model, whole and with something wrong."""
    plain = {name: content for name, content in files.items() if name != "model.safetensors"}
    pickled = {**plain, "pytorch_model.bin": b"a pickle, never opened here"}
    whole = {**files, "modeling_tiny.py": b"raise SystemExit"}
    return {
        TINY: Repo({**whole, "pytorch_model.bin": b"no"}, kind="models"),
        "someone/tiny-flaky": Repo(whole, kind="models", breaks={"model.safetensors": 2}),
        "someone/tiny-gated": Repo(whole, kind="models", gated=True),
        "someone/tiny-pickled": Repo(pickled, kind="models"),
        "someone/tiny-torch": Repo({**plain, "model.pt": b"another"}, kind="models"),
        "someone/tiny-empty": Repo(plain, kind="models"),
        "someone/tiny-card": Repo(
            {**plain, "README.md": b"---\nlicense: mit\n---\n"}, kind="models"
        ),
    }


def save_tiny_model(folder: Path) -> None:
    """Write a BERT of 2 layers with a 32-wide hidden state and its tokenizer."""
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fine", "film"]
    (folder / "vocab.txt").write_text("\n".join(words))
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)


def embed(snapshot: HubSnapshot) -> tuple[int, ...]:
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(snapshot.path)(["a fine film"], return_tensors="pt")
    return tuple(AutoModel.from_pretrained(snapshot.path)(**tokens).last_hidden_state.shape)


def test_a_model_loads_and_its_commit_is_known(client: Client, hub: HubStandIn) -> None:
    snapshot = client(fetch_model, TINY, None)
    assert snapshot.commit == hub.repos[TINY].commit
    assert client(embed, snapshot) == (1, 5, 32)


def test_the_card_of_a_commit_is_fetched_and_kept(
    client: Client, offline: Client, hub: HubStandIn
) -> None:
    commit = hub.repos["someone/tiny-card"].commit
    with pytest.raises(ModelError, match="cannot be reached"):
        offline(fetch_card, "someone/tiny-card", commit)
    card = client(fetch_card, "someone/tiny-card", commit)
    assert "license: mit" in card.read_text()
    assert snapshot_in(card.parent) == ("someone/tiny-card", commit)
    assert offline(fetch_card, "someone/tiny-card", commit) == card
    assert client(fetch_card, TINY, hub.repos[TINY].commit) is None


def test_neither_code_nor_pickles_are_fetched(client: Client, hub: HubStandIn) -> None:
    client(fetch_model, TINY, hub.repos[TINY].commit, True)
    fetched = hub.downloads(TINY)
    assert "model.safetensors" in fetched
    assert not [file for file in fetched if file.endswith((".py", ".bin"))]


def test_the_pickles_that_the_flag_allows_are_fetched(client: Client, hub: HubStandIn) -> None:
    client(fetch_model, "someone/tiny-torch", None, True)
    assert "model.pt" in hub.downloads("someone/tiny-torch")


def test_a_download_cut_off_is_resumed(client: Client, hub: HubStandIn) -> None:
    snapshot = client(fetch_model, "someone/tiny-flaky", "main")
    assert client(embed, snapshot) == (1, 5, 32)
    assert hub.downloads("someone/tiny-flaky").count("model.safetensors") == 3


def test_pickled_weights_need_the_flag(client: Client, hub: HubStandIn) -> None:
    repo = "someone/tiny-pickled"
    with pytest.raises(UnsafeModelError, match=r"pytorch_model\.bin.*--allow-pickle"):
        client(fetch_model, repo, None)
    assert hub.downloads(repo) == []
    assert (client(fetch_model, repo, None, True).path / "pytorch_model.bin").exists()


def test_a_model_without_weights_is_refused(client: Client) -> None:
    with pytest.raises(ModelError, match="no weights"):
        client(fetch_model, "someone/tiny-empty", None)


def test_a_missing_model_names_the_nearest(client: Client) -> None:
    with pytest.raises(ModelError, match=r"'someone/tiny-brt'.*mean 'someone/tiny-bert'\?"):
        client(fetch_model, "someone/tiny-brt", None)


def test_a_missing_revision_is_named(client: Client) -> None:
    with pytest.raises(ModelError, match="no revision 'v2'"):
        client(fetch_model, TINY, "v2")


def test_a_gated_model_says_how_to_log_in(client: Client) -> None:
    with pytest.raises(ModelError, match=r"gated.*/someone/tiny-gated.*hf auth login"):
        client(fetch_model, "someone/tiny-gated", None)


def test_without_a_network_the_cached_copy_serves(client: Client, offline: Client) -> None:
    online = client(fetch_model, TINY, None)
    assert offline(fetch_model, TINY, None) == online


def test_without_a_network_nor_copy_it_says_both(offline: Client) -> None:
    with pytest.raises(ModelError, match=r"cannot be reached.*nor is it in the local cache"):
        offline(fetch_model, "someone/tiny-other", None)


def save_other_families(folder: Path) -> None:
    """Write a ViT and a CLIP as transformers do, one folder each."""
    from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTForImageClassification

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    small["intermediate_size"] = 16
    vit = ViTConfig(**small, image_size=32, patch_size=16)
    ViTForImageClassification(vit).save_pretrained(folder / "vit")
    text = {**small, "vocab_size": 50}
    clip = CLIPConfig(text_config=text, vision_config={**small, "image_size": 32}, projection_dim=8)
    CLIPModel(clip).save_pretrained(folder / "clip")


def family_of(repo: str) -> str:
    """Return the family that `MODEL` on the command line is taken for."""
    from recipe_ray.api.arguments import parse_model

    return parse_model(repo, allow_pickle=False, revision=None).name


def load_as_bert(repo: str, commit: str) -> None:
    """Load what an experiment file calls a BERT."""
    from recipe_ray.models.family import MODELS

    MODELS.parse({"name": "bert", "source": repo, "revision": commit}).load()


def test_the_family_of_a_hub_model_is_what_its_files_say(
    client: Client, hub: HubStandIn, tmp_path: Path
) -> None:
    client(save_other_families, tmp_path)
    for name in ("vit", "clip"):
        files = {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
        hub.repos[f"someone/tiny-{name}"] = Repo(files, kind="models")
    assert client(family_of, TINY) == "bert"
    assert client(family_of, "someone/tiny-vit") == "vit"
    with pytest.raises(ModelError, match="CLIP"):
        client(family_of, "someone/tiny-clip")
    commit = hub.repos["someone/tiny-vit"].commit
    with pytest.raises(ModelError, match="family vit, not bert"):
        client(load_as_bert, "someone/tiny-vit", commit)
