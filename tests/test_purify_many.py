"""`recipe-ray purify`: several models at once, what it would take, and the way to the hub."""

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
from samples import corpus_file, task_fields, tiny_folder
from shell import Outcome, Shell, shell

from recipe_ray.api import upload
from recipe_ray.api.published import RESIDUE, Evaluated
from recipe_ray.api.tuning import Side
from recipe_ray.base.errors import ModelError

__all__ = ["shell"]  # a fixture

MODEL = str(tiny_folder())
QUICK = ["--set", "fit.steps=3", "--set", "fit.precision=fp32", "--accept-harm", "--no-scan", "-q"]


def purify(shell: Shell, *words: object) -> Outcome:
    return shell("purify", *words, "--aux", corpus_file(shell.folder), "--out", "out", *QUICK)


def test_several_models_go_into_the_folder_and_a_bad_one_stops_none(shell: Shell) -> None:
    for name in ("one", "two"):
        shutil.copytree(MODEL, shell.folder / "models" / name)
    (shell.folder / "models" / "bad").mkdir()
    done = purify(shell, "models/one", "models/bad", "models/two/", "--json")
    assert done.code == 2
    one, bad, two = json.loads(done.out)
    assert [part["exit_code"] for part in (one, bad, two)] == [0, 2, 0]
    assert "the folder is empty" in bad["error"]
    assert "models/bad: " in done.err
    kept = sorted(path.name for path in (shell.folder / "out").iterdir())
    assert kept == ["one", "two"]
    assert json.loads(Path("out/two/result.json").read_text()) == two


def test_two_models_of_one_name_are_refused_before_any_work(shell: Shell) -> None:
    said = shell.fails("purify", "a/m", "b/m", "--aux", "T.txt", "--out", "out")
    assert "both would go to out/m" in said
    assert not Path("out").exists()


def test_a_dry_run_times_real_steps_and_writes_nothing(shell: Shell) -> None:
    aux = corpus_file(shell.folder)
    words = ["purify", MODEL, "--aux", aux, "--out", "out", "--dry-run", "--no-scan", "-q"]
    task = ["--evaluate", str(task_fields(shell.folder)), "--triggers", "cf"]
    before = sorted(shell.folder.iterdir())
    printed = shell(*words, "--json", *task)
    assert printed.code == 0, printed.err
    found = json.loads(printed.out)
    parts = {part["name"]: part for part in found["parts"]}
    assert list(parts) == ["load and read", "look at held-out data", "purify", "fine-tune"]
    assert parts["purify"]["steps"] >= 600  # of the rule, not those that were timed
    assert found["takes_s"] > parts["purify"]["takes_s"] > 0
    assert parts["purify"]["step_s"] > 0
    assert 3 < found["timed_steps"] < 100
    assert found["peak_bytes"] > 2**20
    assert "real steps" in found["how"]
    assert sorted(shell.folder.iterdir()) == before
    lines = shell(*words).out.splitlines()
    assert any(line.startswith("in all, about") for line in lines)
    assert lines[-1].endswith("nothing was written")


def test_a_dry_run_refuses_what_the_run_would(shell: Shell) -> None:
    (shell.folder / "out").mkdir()
    (shell.folder / "out" / "file").touch()
    said = shell.fails(
        "purify", MODEL, "--aux", corpus_file(shell.folder), "--out", "out", "--dry-run"
    )
    assert "something is there already" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--triggers", "cf"], "--triggers: it is measured on a task; give --evaluate"),
        (["--floor", MODEL], "give --evaluate TASK"),
        (["--evaluate", "sst22"], "did you mean 'sst2'"),
        (["--evaluate-set", "steps=1"], "--evaluate-set: it is measured"),
        (["--push-to-hub", "me/clean"], "no terminal: --yes"),
        (["--push-to-hub", "me", "--yes"], "owner/name"),
        (["--push-to-hub", "me/a b", "--yes"], "--push-to-hub 'me/a b'"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(
    shell: Shell, words: list[str], said: str
) -> None:
    assert said in " ".join(purify(shell, MODEL, *words).err.split())
    assert not Path("out").exists()


class Hub:
    """Stands for the hub's client; keeps what is done with it."""

    made: ClassVar[list[dict[str, Any]]]
    pushed: ClassVar[list[dict[str, Any]]]
    error: ClassVar[Exception | None]

    def whoami(self) -> dict[str, str]:
        return {"name": "me"}

    def create_repo(self, repo: str, **about: Any) -> str:
        self.made.append({"repo": repo, **about})
        return f"https://hub/{repo}"

    def upload_folder(self, **about: Any) -> None:
        if self.error is not None:
            raise self.error
        self.pushed.append(about)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    Hub.made, Hub.pushed, Hub.error = [], [], None
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    return Hub


def test_a_purified_model_is_pushed_as_it_lies_there(shell: Shell, hub: type[Hub]) -> None:
    done = purify(shell, MODEL, "--push-to-hub", "me/clean", "--yes")
    assert done.code == 0, done.err
    assert hub.made == [{"repo": "me/clean", "private": True, "exist_ok": True}]
    (pushed,) = hub.pushed
    assert (pushed["repo_id"], str(pushed["folder_path"])) == ("me/clean", "out")
    assert pushed["ignore_patterns"] == ["tensorboard/**"]
    hub.error = ModelError("no room")
    shutil.rmtree("out")
    failed = purify(shell, MODEL, "--push-to-hub", "me/clean", "--yes")
    assert (failed.code, Path("out/README.md").is_file()) == (2, True)
    assert "no room" in failed.err


def test_a_person_is_asked_and_may_say_no(
    shell: Shell, hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda text, **_: asked.append(text))
    assert purify(shell, MODEL, "--push-to-hub", "me/clean").code == 0
    assert hub.pushed == []
    assert asked == ["push out to me/clean on the hub, with 1 warnings in its card?"]


def test_one_whose_source_was_backdoored_is_not_pushed_unless_that_is_asked(
    shell: Shell, hub: type[Hub]
) -> None:
    source = Path(shutil.copytree(MODEL, shell.folder / "bad"))
    (source / "README.md").write_text("---\ntags: [backdoored]\n---\n")
    done = purify(shell, source, "--push-to-hub", "me/clean", "--yes")
    assert (done.code, hub.pushed) == (2, [])
    assert "backdoored on purpose" in done.err
    assert "The model is in out" in done.err
    shutil.rmtree("out")
    words = ["--push-to-hub", "me/clean", "--yes", "--push-backdoored"]
    assert purify(shell, source, *words).code == 0
    assert len(hub.pushed) == 1


def test_what_still_looks_like_a_backdoor_is_not_to_be_pushed() -> None:
    result: dict[str, Any] = {"exit_code": 4, "evaluation": None}
    assert "exit code 4" in str(upload.why_not(result))
    result = {"exit_code": 0, "model": {"marked_backdoored": True}}
    shown = {"triggers": ["cf"], "before": {}, "after": {}}
    assert upload.why_not({**result, "evaluation": shown}) is not None
    assert upload.why_not({**result, "evaluation": {**shown, "floor": {}}}) is None


def test_nobody_who_is_logged_in_is_told_what_to_do(
    hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.errors import LocalTokenNotFoundError

    def refuse(_: Any) -> Any:
        raise LocalTokenNotFoundError("no token")

    monkeypatch.setattr(Hub, "whoami", refuse)
    with pytest.raises(ModelError, match="hf auth login"):
        upload.check_upload("me/clean")


@pytest.mark.parametrize(("after", "left"), [(0.9, True), (0.3, False)])
def test_a_trigger_that_acts_more_than_in_the_clean_model_is_warned_of(
    after: float, left: bool
) -> None:
    def side(masr: float) -> Side:
        rates = {"acc": 0.8, "masr": masr}
        counts = {"trigger": None, "numerator": None, "denominator": None}
        return Side("m", [[{"metric": n, "value": v, **counts} for n, v in rates.items()]])

    sides = {"before": side(1.0), "after": side(after), "floor": side(0.25)}
    found = Evaluated("sst2", ("cf",), 0, sides)
    assert (found.residue > RESIDUE) == left
    assert any("the backdoor is not gone" in one for one in found.warnings) == left
    del sides["floor"]
    assert Evaluated("sst2", ("cf",), 0, sides).residue == 0


def test_a_cluster_that_does_not_answer_is_told_before_any_work(shell: Shell) -> None:
    done = purify(shell, MODEL, "--address", "127.0.0.1:1")
    assert done.code == 2
    assert "--address" in done.err
    assert "127.0.0.1:1" in done.err
    assert not Path("out").exists()
