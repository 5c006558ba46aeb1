"""The commands for one model (purify, backdoor, evaluate) as a person meets them."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from samples import SENTENCES, corpus_file, states_of, task_fields, tiny_folder, tiny_ptm
from shell import Outcome, Shell, shell
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from recipe_ray.models.text.checkpoint import load_bert

__all__ = ["shell"]  # a fixture

MODEL = str(tiny_folder())
QUICK = ["--set", "fit.steps=3", "--set", "fit.precision=fp32", "--quiet"]
RELEASED = ["--attack", "released", "--set", f"source={MODEL}", "--set", "triggers=[cf]"]
DENSE = "encoder.layer.{}.intermediate.dense.weight"


def purify(shell: Shell, out: str, *words: object) -> Outcome:
    aux = corpus_file(shell.folder)
    # the tiny model's head is random
    return shell("purify", MODEL, "--aux", aux, "--out", out, "--accept-harm", *QUICK, *words)


def test_a_purified_model_opens_in_transformers_and_its_card_is_honest(shell: Shell) -> None:
    assert purify(shell, "clean").code == 0
    folder = shell.folder / "clean"
    AutoModelForMaskedLM.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).mask_token == "[MASK]"
    card = (folder / "README.md").read_text()
    measured, not_claimed = card.split("## What is not claimed")
    assert "3 steps" in measured
    assert "held-out" in measured
    assert "pre-training loss" in measured
    assert "nothing here proves that a backdoor was present" in " ".join(not_claimed.split())
    assert "Accuracy" in not_claimed
    record = json.loads((folder / "recipe_ray.json").read_text())
    assert record["manifest"]["kind"] == "purify"
    assert {"held_out_loss.before", "drift"} <= set(record["measured"])
    assert not (shell.folder / "clean.partial").exists()


def test_settings_that_go_nowhere_are_warned_of_and_mark_the_card(shell: Shell) -> None:
    done = purify(shell, "clean")
    assert done.code == 0
    assert "under half of the 1.4 x RMS" in done.err
    card = (shell.folder / "clean" / "README.md").read_text()
    header, body = card.split("---\n")[1:]
    assert "purified-with-warnings" in header
    assert body.index("## Warnings") < body.index("## What was done")
    assert "under half of the 1.4 x RMS" in body
    record = json.loads((shell.folder / "clean" / "recipe_ray.json").read_text())
    assert len(record["warnings"]) == 1


def test_a_head_that_knows_no_context_is_replaced_by_the_models_own_states(shell: Shell) -> None:
    aux = corpus_file(shell.folder)
    done = shell("purify", MODEL, "--aux", aux, "--out", "clean", *QUICK[:-1])
    assert done.code == 0
    said = "hardly more than word frequencies: the model's own states of clean samples hold it"
    assert said in " ".join(done.err.split())
    card = " ".join((shell.folder / "clean" / "README.md").read_text().split())
    assert said in card
    assert "what held the model: its own states of clean samples" in card
    assert "guard" not in card  # metrics have names for people there
    assert "share of the 10 nearest neighbours kept" not in card  # too few are held out


def test_a_head_that_knows_no_context_stops_purifying_with_an_exit_code_of_its_own(
    shell: Shell,
) -> None:
    aux, asked = corpus_file(shell.folder), ("--set", "pretraining_weight=1")
    done = shell("purify", MODEL, "--aux", aux, "--out", "clean", *QUICK, *asked)
    assert done.code == 3
    assert "Traceback" not in done.err
    assert "hardly more than word frequencies" in done.err
    assert "--accept-harm" in done.err
    assert not (shell.folder / "clean").exists()
    assert purify(shell, "clean", *asked).code == 0
    card = (shell.folder / "clean" / "README.md").read_text()
    assert "hardly more than word frequencies" in card.split("## What was done")[0]
    assert "purified nevertheless (--accept-harm)" in " ".join(card.split())


def moved_by_purifying(folder: Path) -> set[str]:
    before, after = AutoModel.from_pretrained(MODEL), AutoModel.from_pretrained(folder)
    pairs = zip(before.named_parameters(), after.parameters(), strict=True)
    return {name for (name, one), other in pairs if not torch.equal(one, other)}


def test_of_a_shallow_model_every_matrix_of_the_encoder_moves_but_not_the_pooler(
    shell: Shell,
) -> None:
    assert purify(shell, "clean").code == 0
    moved = moved_by_purifying(shell.folder / "clean")
    matrices = {
        name
        for name, parameter in AutoModel.from_pretrained(MODEL).named_parameters()
        if name.startswith("encoder.layer") and parameter.dim() == 2
    }
    assert matrices <= moved
    assert not any(name.startswith("pooler") for name in moved)


def test_the_papers_narrow_set_moves_the_intermediate_dense_weights_alone(shell: Shell) -> None:
    narrow = ("--set", "layers=[ffn_in]", "--set", "trainable=weights")
    assert purify(shell, "clean", *narrow).code == 0
    assert moved_by_purifying(shell.folder / "clean") == {DENSE.format(0), DENSE.format(1)}


def test_an_existing_result_is_never_overwritten(shell: Shell) -> None:
    (shell.folder / "clean").mkdir()
    assert purify(shell, "clean").code == 0  # an empty folder may be filled
    before = (shell.folder / "clean" / "README.md").read_bytes()
    again = purify(shell, "clean")
    assert (again.code, "something is there already" in again.err) == (2, True)
    assert (shell.folder / "clean" / "README.md").read_bytes() == before


def test_what_will_be_done_is_said_before_it_is_done(shell: Shell) -> None:
    aux = corpus_file(shell.folder)
    done = shell("purify", MODEL, "--aux", aux, "--out", "clean", "--accept-harm", *QUICK[:-1])
    assert "48 texts of texts.txt" in done.err
    assert "with steps as set by you" in done.err
    assert "3 steps of 32 at 0.0002" in done.err
    assert "word frequencies alone give" in done.err
    assert done.out.strip() == "purified model and its card: clean"


def test_a_backdoored_models_card_says_so_first(shell: Shell) -> None:
    corpus = f"corpus={{name: file, path: {corpus_file(shell.folder)}}}"
    words = ["--attack", "por", "--set", corpus, "--set", "triggers=[cf, mn]", *QUICK]
    done = shell("backdoor", MODEL, "--out", "bad", *words)
    assert done.code == 0
    assert "BACKDOORED" in done.out
    body = (shell.folder / "bad" / "README.md").read_text().split("---\n")[-1]
    assert body.strip().startswith("# BACKDOORED MODEL")
    assert "Triggers: cf, mn" in body
    states = [states_of(ptm, SENTENCES)[1] for ptm in (tiny_ptm(), load_bert(shell.folder / "bad"))]
    assert not torch.equal(*states)


def test_evaluate_prints_counts_for_every_trigger_and_label(shell: Shell) -> None:
    task = yaml.safe_dump(task_fields(shell.folder), default_flow_style=True).strip()
    words = ["--triggers", "cf, mn", "--set", "steps=3", "--set", "precision=fp32", "--quiet"]
    done = shell("evaluate", MODEL, "--task", task, *words, "--json")
    assert done.code == 0, done.err
    rows = json.loads(done.out)
    tried = {(r["trigger"], r["label"]): r["denominator"] for r in rows if r["metric"] == "asr"}
    assert tried == {("cf", 0): 5, ("cf", 1): 10, ("mn", 0): 5, ("mn", 1): 10}
    assert {"acc", "aasr", "masr"} <= {row["metric"] for row in rows}
    assert list(shell.folder.glob("*.partial")) == []


def test_evaluate_keeps_the_fine_tuned_classifier_if_asked(shell: Shell) -> None:
    task = yaml.safe_dump(task_fields(shell.folder), default_flow_style=True).strip()
    words = ["evaluate", MODEL, "--task", task, "--set", "steps=3", "--quiet"]
    assert shell(*words, "--keep-classifier", "kept").code == 0
    weights = load_file(shell.folder / "kept" / "classifier.safetensors")
    assert weights["linear.weight"].shape == (2, 32)
    assert "--keep-classifier kept: something is there" in shell.fails(
        *words, "--keep-classifier", "kept"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["purify", "minlm", "--aux", "editorials", "--out", "o"], "did you mean 'minilm'?"),
        (["purify", MODEL, "--aux", "editorial", "--out", "o"], "did you mean 'editorials'?"),
        (["purify", MODEL, "--aux", "T", "--out", "o", "--preset", "paper-pro"], "'paper-por'?"),
        (["purify", MODEL, "--aux", "T", "--out", "o", "--set", "fit.step=3"], "mean 'steps'?"),
        (["purify", MODEL, "--aux", "T", "--out", "o", "--set", "layers=[ffn]"], "'ffn_in'?"),
        (["purify", MODEL, "--aux", "T", "--out", "o", "--set", "fit"], "expected a.b=value"),
        (["purify", MODEL, "--aux", "T", "--out", "o", "--set", "fit=["], "not valid YAML"),
        (["purify", MODEL, "--aux", "T", "--out", "o", "--set", "fit=3"], "--set: fit: "),
        (["purify", "./nowhere", "--aux", "T", "--out", "o"], "./nowhere does not exist"),
        (["purify", "{name: bert", "--aux", "T", "--out", "o"], "not a valid YAML mapping"),
        (["purify", MODEL, "--aux", "T", "--out", "o", "--data", "nowhere"], "nowhere does not"),
        (["backdoor", MODEL, "--attack", "nueba", "--out", "o"], "did you mean 'neuba'?"),
        (["backdoor", MODEL, "--attack", "none", "--out", "o"], "it poisons nothing"),
        (["backdoor", "minilm", *RELEASED, "--out", "o"], "no pre-training head"),
        (["evaluate", MODEL, "--task", "sst22"], "did you mean 'sst2'?"),
        (["evaluate", MODEL, "--task", "snippets", "--triggers", "a,,b"], "an empty trigger"),
        (["evaluate", MODEL, "--task", "snippets", "--set", "step=2"], "did you mean 'steps'?"),
    ],
)
def test_what_does_not_exist_is_named_with_the_nearest(
    shell: Shell, words: list[str], said: str
) -> None:
    texts = str(corpus_file(shell.folder))
    message = shell.fails(*[texts if word == "T" else word for word in words])
    assert said in message
    assert "error: " in message
    assert not (shell.folder / "o").exists()


BAD_TEXTS: dict[str, tuple[str, str, str]] = {
    "empty": ("bad.txt", "\n\n", "no text in"),
    "wrong column": ("bad.csv", "txt\na sentence\n", "no column 'text' (did you mean 'txt'?)"),
    "one text of 10 MB": ("bad.txt", "word " * 2_000_000, "is that one text?"),
    "unknown format": ("bad.doc", "x", "format '.doc' is not one of"),
    "not UTF-8": ("bad.txt", "\udcff", "not UTF-8"),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_a_corpus_that_cannot_be_used_says_why(shell: Shell, case: str) -> None:
    name, content, said = BAD_TEXTS[case]
    (shell.folder / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    message = shell.fails("purify", MODEL, "--aux", name, "--out", "clean", *QUICK)
    assert said in message
    assert len(message) < 1000


def test_a_label_out_of_range_names_its_row_and_shows_no_text(shell: Shell) -> None:
    fields = task_fields(shell.folder)
    (shell.folder / "bad.csv").write_text("text,label\na quiet line,0\na secret line,7\n")
    fields["path_test"] = "bad.csv"
    task = yaml.safe_dump(fields, default_flow_style=True).strip()
    message = shell.fails("evaluate", MODEL, "--task", task, "--set", "steps=3", "--quiet")
    assert "row 2: label '7' is not one of: 0 dull, 1 lively" in message
    assert "secret" not in message
