"""Catalogues: corpora and tasks that are data, ours and a user's own."""

import json
import os
import pickle
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray import cloudpickle
from samples import raised_by, tiny_folder
from shell import Shell, shell

import recipe_ray
from recipe_ray.base.catalog import VARIABLE, settle
from recipe_ray.base.errors import SpecError
from recipe_ray.base.fingerprint import fingerprint
from recipe_ray.base.paths import FOLDER, enter_folder
from recipe_ray.base.spec import Component
from recipe_ray.data import corpora
from recipe_ray.data.corpus import CORPORA, Corpus
from recipe_ray.data.hub import HubSource
from recipe_ray.data.sources import Locations
from recipe_ray.experiment.files import load_experiment
from recipe_ray.experiment.plan import make_plan
from recipe_ray.tasks import catalog as tasks
from recipe_ray.tasks.task import TASKS, Task

__all__ = ["shell"]  # a fixture

PLACES = Locations(None, Path("/nowhere"))
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TWEETS = {"kind": "text", "path": "tweets.csv", "column": "body"}
MOODS = {
    "kind": "text",
    "class_names": ["calm", "angry"],
    "path_train": "moods.csv",
    "path_test": "moods.csv",
    "text_column": "body",
}
WEB = {"kind": "text", "hub": {"repo": "owner/web", "revision": COMMIT}}
FILMS = {
    "kind": "text",
    "class_names": ["bad", "good"],
    "hub": {"repo": "owner/films", "revision": COMMIT, "splits": {"train": "train", "test": "dev"}},
}
PHOTOS = {
    "kind": "images",
    "class_names": ["cat", "dog"],
    "hub": {**FILMS["hub"], "columns": {"img": "image", "y": "label"}},
}
Own = Callable[..., Path]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Own:
    """Return what writes a catalogue with its data into a folder, and names it."""

    def write(folder: str = "here", name: str = "own.yaml", **sections: Any) -> Path:
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        (place / "tweets.csv").write_text("body\nfirst tweet\nsecond tweet\n")
        (place / "moods.csv").write_text("body,label\nall is well,0\nhow dare you,1\n")
        file = place / name
        file.write_text(yaml.safe_dump(sections, sort_keys=False))
        monkeypatch.setenv("RECIPE_RAY_CATALOG", str(file))
        return file

    return write


def key(component: Any) -> str:
    return fingerprint(component.identity_at(PLACES))


def key_of(registry: Any, name: str, own: Own, folder: str = "here", **entry: Any) -> str:
    """Return the key of a user's entry."""
    own(folder, **{"corpora" if registry is CORPORA else "tasks": {name: entry}})
    return key(registry.parse(name))


def test_an_entry_of_a_user_is_a_corpus_or_task_like_any_other(own: Own) -> None:
    own(
        corpora={"tweets": {**TWEETS, "about": "Tweets of ours.", "size": 1}},
        tasks={"moods": MOODS},
    )
    corpus: Corpus = CORPORA.parse("tweets")
    assert len(list(corpus.samples(PLACES))) == 1
    whole: Corpus = CORPORA.parse({"name": "tweets", "size": None})
    assert list(whole.samples(PLACES)) == ["first tweet", "second tweet"]
    task: Task = TASKS.parse({"name": "moods", "train_size": 2})
    rows = task.load("train", PLACES)
    assert (rows.samples, list(rows.labels)) == (("all is well", "how dare you"), [0, 1])
    assert (task.classes, task.label(), corpus.label()) == (("calm", "angry"), "moods", "tweets")
    for registry, one in ((CORPORA, corpus), (TASKS, task)):
        again = registry.parse(json.loads(one.model_dump_json()))
        assert (again, key(again)) == (one, key(one))


def test_an_entry_says_where_its_data_are_on_the_hub(own: Own) -> None:
    own(corpora={"web": WEB}, tasks={"films": FILMS, "photos": PHOTOS})
    assert CORPORA.parse("web").resolve(PLACES) == HubSource("owner/web", COMMIT)
    newer = CORPORA.parse({"name": "web", "revision": "main"}).resolve(PLACES)
    assert newer.revision == "main"
    films = TASKS.parse("films").sources(PLACES)
    assert {split: source.split for split, source in films.items()} == {
        "train": "train",
        "test": "dev",
    }
    photos = TASKS.parse("photos").sources(PLACES)["train"]
    assert photos.columns == (("img", "image"), ("y", "label"))
    assert photos.rows_at_once == 100


def test_a_kind_says_how_many_samples_are_held_at_once(own: Own) -> None:
    def pairs(**hub: Any) -> dict[str, Any]:
        return {"kind": "pairs", "hub": {**WEB["hub"], **hub}}

    more = {"drawings": {**pairs(), "kind": "images"}, "own": pairs(rows_at_once=7)}
    own(corpora={"web": WEB, "photos": pairs(), **more}, tasks={"films": FILMS, "cats": PHOTOS})
    found = {name: CORPORA.get(name).hub.rows_at_once for name in ("web", "photos", *more)}
    assert found == {"web": 1000, "photos": 100, "drawings": 100, "own": 7}
    held = {name: TASKS.get(name).hub["train"].rows_at_once for name in ("films", "cats")}
    assert held == {"films": 1000, "cats": 100}


def test_a_bound_on_the_tokens_is_taken_for_what_it_says(own: Own) -> None:
    own(tasks={"films": {**FILMS, "longest": 50}, "moods": MOODS})
    assert not TASKS.parse("films").may_be_cut(128, ("cf",))
    assert TASKS.parse("films").may_be_cut(40, ("cf",))
    assert TASKS.parse("moods").may_be_cut(128, ("cf",))


@pytest.mark.parametrize(
    ("registry", "entry", "change"),
    [
        (CORPORA, WEB, {"hub": {**WEB["hub"], "revision": "f" * 40}}),
        (CORPORA, WEB, {"hub": {**WEB["hub"], "repo": "owner/other"}}),
        (CORPORA, WEB, {"hub": {**WEB["hub"], "split": "test"}}),
        (CORPORA, WEB, {"hub": {**WEB["hub"], "config": "large"}}),
        (CORPORA, WEB, {"hub": {**WEB["hub"], "columns": {"body": "text"}}}),
        (CORPORA, WEB, {"hub": {**WEB["hub"], "rows_at_once": 10}}),
        (CORPORA, WEB, {"column": "body"}),
        (CORPORA, WEB, {"size": 100}),
        (CORPORA, WEB, {"version": 2}),
        (CORPORA, TWEETS, {"path": "moods.csv"}),
        (TASKS, MOODS, {"class_names": ["angry", "calm"]}),
        (TASKS, MOODS, {"path_train": "tweets.csv"}),
        (TASKS, MOODS, {"label_column": "body"}),
        (TASKS, FILMS, {"hub": {**FILMS["hub"], "splits": {"train": "all", "test": "dev"}}}),
    ],
)
def test_what_decides_the_data_of_an_entry_moves_its_key(
    own: Own, registry: Any, entry: dict[str, Any], change: dict[str, Any]
) -> None:
    before = key_of(registry, "mine", own, **entry)
    assert key_of(registry, "mine", own, **{**entry, **change}) != before
    assert key_of(registry, "mine", own, **entry) == before


def test_neither_the_place_of_a_catalogue_nor_its_words_move_a_key(own: Own) -> None:
    for registry, entry in ((CORPORA, TWEETS), (CORPORA, WEB), (TASKS, MOODS), (TASKS, FILMS)):
        before = key_of(registry, "mine", own, **entry)
        words = {"about": "Other words.", "descriptions": {"sample_seed": "chance"}}
        assert key_of(registry, "mine", own, "elsewhere", **entry, **words) == before


def test_an_entry_is_known_by_its_fields_and_by_no_source_code(own: Own) -> None:
    own(corpora={"tweets": TWEETS}, tasks={"moods": MOODS})
    assert CORPORA.get("tweets").meaning() == {"name": "tweets", "version": 1}
    assert TASKS.get("moods").meaning()["version"] == 1
    for ours in (*corpora.LISTED.values(), *tasks.LISTED.values()):
        assert ours.meaning() == {"name": ours.name, "version": 1}


def test_every_entry_travels_to_a_process_that_has_no_catalogue(own: Own, tmp_path: Path) -> None:
    own(corpora={"tweets": TWEETS}, tasks={"moods": MOODS})
    sent: list[Any] = [CORPORA.parse({"name": "tweets", "size": 5}), TASKS.parse("moods")]
    sent += [CORPORA.parse({"name": name, "title": "t"}) for name in corpora.LISTED]
    sent += [TASKS.parse({"name": name, "sample_seed": 3}) for name in tasks.LISTED]
    for pickler in (pickle, cloudpickle):
        back = pickler.loads(pickler.dumps(sent))
        assert back == sent
        assert [type(one) for one in back] == [type(one) for one in sent]
    for listed in (corpora.LISTED, tasks.LISTED):
        assert all(pickle.loads(pickle.dumps(made)) is made for made in listed.values())
    (tmp_path / "sent").write_bytes(cloudpickle.dumps(sent))
    code = """if True:
        import pickle, sys
        sent = pickle.load(open(sys.argv[1], "rb"))
        from recipe_ray.tasks.task import TASKS
        assert "moods" not in TASKS
        assert type(sent[-1]) is TASKS.get(sent[-1].name)
        for one in sent:
            print(one.model_dump_json(), one.identity(), one.label())
    """
    environment = {k: v for k, v in os.environ.items() if k != "RECIPE_RAY_CATALOG"}
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "sent"],
        env={**environment, "PYTHONPATH": str(Path(recipe_ray.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    said = [f"{one.model_dump_json()} {one.identity()} {one.label()}" for one in sent]
    assert done.stdout.splitlines() == said


class Louder(corpora.LISTED["bookcorpus"]):
    """A plugin derived from an entry."""

    shout: bool = True


def test_a_class_derived_from_an_entry_stays_itself_when_it_travels() -> None:
    louder = Louder(size=3, shout=False)
    back = pickle.loads(pickle.dumps(louder))
    assert (back, type(back)) == (louder, Louder)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"corpus": {}}, r"own\.yaml: unknown section 'corpus' \(did you mean 'corpora'\?\)"),
    ({"corpora": ["tweets"]}, r"own\.yaml: corpora: expected names with a mapping each"),
    ({"corpora": {"x": "text"}}, r"own\.yaml: corpora\.x: expected a mapping with kind"),
    ({"corpora": {"../x": TWEETS}}, r"'\.\./x' is not a valid name; allowed: letters"),
    ({"corpora": {"x.": TWEETS}}, r"'x\.' is not a valid name"),
    ({"corpora": {"x": {}}}, r"corpora\.x: kind is missing; allowed: text, images, pairs"),
    ({"corpora": {"x": {"kind": "txt"}}}, r"unknown kind 'txt' \(did you mean 'text'\?\)"),
    ({"corpora": {"x": {"kind": ["text"]}}}, r"corpora\.x: unknown kind"),
    ({"corpora": {"x": {**TWEETS, "colum": "a"}}}, r"'colum' \(did you mean 'column'\?\)"),
    ({"corpora": {"x": {**TWEETS, "num_classes": 3}}}, r"unknown field 'num_classes'"),
    ({"corpora": {"x": {**TWEETS, "title": "y"}}}, r"corpora\.x: unknown field 'title'"),
    ({"corpora": {"x": {**TWEETS, "size": 0}}}, r"corpora\.x: size: .*greater than or equal to 1"),
    ({"corpora": {"x": {**TWEETS, "path": 3}}}, r"corpora\.x: .*path: text is expected"),
    ({"corpora": {"x": {**TWEETS, "version": 0}}}, r"corpora\.x: version: .*greater than 0"),
    ({"corpora": {"x": {**TWEETS, "descriptions": {"sise": "a"}}}}, r"mean 'size'"),
    ({"corpora": {"x": {"kind": "text", "hub": {"repo": "a/b"}}}}, r"x: hub\.revision: Field req"),
    (
        {"corpora": {"x": {"kind": "text", "hub": {**WEB["hub"], "splits": {}}}}},
        r"corpora\.x: hub.*'splits' \(did you mean 'split'\?\)",
    ),
    ({"corpora": {"x": {"kind": "text", "hub": {**WEB["hub"], "repo": "a b"}}}}, r"x: hub\.repo"),
    ({"corpora": {"x": {"kind": "text", "file_name": "../y"}}}, r"corpora\.x: file_name: "),
    ({"corpora": {"x": {"kind": "embedded", "member": "tweets"}}}, r"x: member: .*movieReview"),
    ({"corpora": {"wikitext": TWEETS}}, r"corpora\.wikitext: this name is taken"),
    ({"corpora": {"coco": TWEETS}}, r"corpora\.coco: this name is taken"),
    ({"tasks": {"sst2": MOODS}}, r"tasks\.sst2: this name is taken"),
    ({"tasks": {"x": {"kind": "text"}}}, r"tasks\.x: class_names: Field required"),
    ({"tasks": {"x": {**MOODS, "class_names": ["a"]}}}, r"x: class_names: only 'a' given"),
    ({"tasks": {"x": {**MOODS, "class_names": ["a", "a"]}}}, r"'a' is given twice"),
    ({"tasks": {"x": {**MOODS, "class_names": [False, True]}}}, r"class_names\[0\].*truth value"),
    ({"tasks": {"x": {**PHOTOS, "longest": 9}}}, r"tasks\.x: unknown field 'longest'"),
    ({"tasks": {"x": {**MOODS, "kind": "pairs"}}}, r"unknown kind 'pairs'.*images, text"),
    (
        {"tasks": {"x": {**FILMS, "hub": {**FILMS["hub"], "splits": {"train": "a"}}}}},
        r"tasks\.x: hub.*test is missing",
    ),
    ({"tasks": {"x": {**MOODS, "evaluate_on": "tset"}}}, r"x: evaluate_on: .*'test' or 'dev'"),
]


@pytest.mark.parametrize(("sections", "said"), BAD)
def test_an_entry_that_says_what_it_may_not_is_refused(
    own: Own, sections: dict[str, Any], said: str
) -> None:
    own(**sections)
    with pytest.raises(SpecError, match=said):
        list(CORPORA), list(TASKS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("corpora:\n  x: {kind: text}\n  x: {kind: text}\n", r"not valid YAML: .*x"),
        ("corpora:\n  no: {kind: text}\n", r"own\.yaml: not valid YAML"),
        ("- corpora\n", r"expected a mapping with corpora or tasks"),
        ("", r"expected a mapping with corpora or tasks"),
        ("corpora: {x: {kind: text, size: .inf}}\n", r"not valid YAML"),
    ],
)
def test_a_catalogue_is_read_as_strictly_as_an_experiment(own: Own, text: str, said: str) -> None:
    own().write_text(text)
    with pytest.raises(SpecError, match=said):
        list(CORPORA)


def test_a_name_in_two_catalogues_is_refused_with_both_places(
    own: Own, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = own("one", corpora={"x": TWEETS}), own("two", corpora={"x": TWEETS, "y": WEB})
    monkeypatch.setenv("RECIPE_RAY_CATALOG", os.pathsep.join([str(one), "", str(two)]))
    with pytest.raises(SpecError, match=r"two/own.yaml: corpora\.x: .*one/own.yaml has an entry"):
        CORPORA.parse("y")
    monkeypatch.setenv("RECIPE_RAY_CATALOG", os.pathsep.join([str(two), str(two)]))
    assert CORPORA.parse("y").name == "y"


def test_a_catalogue_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECIPE_RAY_CATALOG", str(tmp_path / "none.yaml"))
    assert "none.yaml: no such catalogue (RECIPE_RAY_CATALOG" in raised_by(lambda: list(TASKS))
    monkeypatch.setenv("RECIPE_RAY_CATALOG", str(tmp_path))
    assert "a folder, not a catalogue" in raised_by(lambda: list(TASKS))


def experiment(folder: Path, **changes: Any) -> Path:
    """Write an experiment on the entries `tweets` and `moods`."""
    grid = {
        "models": [{"name": "bert", "source": str(tiny_folder())}],
        "auxiliaries": ["tweets"],
        "defenses": ["recipe"],
        "tasks": [{"name": "moods", "evaluate_on": "dev"}],
    }
    file = folder / "moods-experiment.yaml"
    file.write_text(yaml.safe_dump({"name": "moods", "grid": grid, **changes}))
    return file


def test_an_experiment_names_a_catalogue_for_itself_alone(
    own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = own("data", corpora={"tweets": TWEETS}, tasks={"moods": MOODS})
    monkeypatch.delenv("RECIPE_RAY_CATALOG")
    [block] = load_experiment(experiment(tmp_path, catalog="data/own.yaml")).grid
    assert list(block.auxiliaries[0].samples(PLACES)) == ["first tweet", "second tweet"]
    assert block.tasks[0].classes == ("calm", "angry")
    with pytest.raises(SpecError, match="unknown task 'moods'"):
        TASKS.parse("moods")
    with pytest.raises(SpecError, match="unknown corpus 'tweets'"):
        load_experiment(experiment(tmp_path))
    listed = load_experiment(experiment(tmp_path), (f"catalog=[{written}]",))
    assert listed.grid[0].tasks == block.tasks
    base = experiment(tmp_path, catalog=["data/own.yaml"])
    (tmp_path / "sub").mkdir()
    over = tmp_path / "sub" / "over.yaml"
    over.write_text(yaml.safe_dump({"base": f"../{base.name}", "name": "over"}))
    assert load_experiment(over).grid[0].tasks == block.tasks


@pytest.mark.parametrize(
    ("catalog", "said"),
    [
        (3, "experiment.yaml: catalog: expected a file or a list of them, got 3"),
        ([""], "experiment.yaml: catalog: expected a file"),
        ("gone.yaml", "gone.yaml: no such catalogue"),
        ("bad.yaml", "bad.yaml: corpora.x: kind is missing"),
    ],
)
def test_a_wrong_catalogue_of_an_experiment_is_named(
    tmp_path: Path, catalog: object, said: str
) -> None:
    (tmp_path / "bad.yaml").write_text("corpora: {x: {}}\n")
    file = experiment(tmp_path, catalog=catalog)
    assert said in raised_by(lambda: load_experiment(file))


def test_a_changed_catalogue_is_read_again(own: Own) -> None:
    own(corpora={"tweets": TWEETS})
    assert CORPORA.parse("tweets").size == 20_000
    own(corpora={"tweets": {**TWEETS, "size": 3}})
    assert CORPORA.parse("tweets").size == 3


def test_list_shows_the_users_entries(own: Own, shell: Shell) -> None:
    own(corpora={"tweets": {**TWEETS, "about": "Tweets of ours.\n\nMore of them."}})
    out = shell("list", "corpora").out
    assert re.search(r"^  tweets +Tweets of ours\.$", out, re.MULTILINE)
    assert re.search(r"^ +column +body  the column of texts$", out, re.MULTILINE)


def test_the_data_files_of_the_package_are_installed_with_it() -> None:
    package = Path(recipe_ray.__file__).parent
    settings = tomllib.loads((package.parent / "pyproject.toml").read_text())
    globs = settings["tool"]["setuptools"]["package-data"]["recipe_ray"]
    data = {path for path in package.rglob("*.*") if path.suffix not in (".py", ".pyc")}
    assert package / "data" / "catalog.yaml" in data
    assert data == {path for pattern in globs for path in package.glob(pattern)}


def test_the_example_of_the_documentation_runs(tmp_path: Path) -> None:
    text = (Path(recipe_ray.__file__).parents[1] / "docs/experiments.md").read_text()
    section = text.partition("## A catalogue of your own")[2].partition("\n## ")[0]
    for block in re.findall(r"```yaml\n(.*?)```", section, re.DOTALL):
        name = block.splitlines()[0].removeprefix("# ")
        (tmp_path / name).write_text(block)
    (tmp_path / "tickets.csv").write_text("body\nit is broken\nall is well\n")
    for split in ("train", "test"):
        file = tmp_path / f"moods-{split}.csv"
        file.write_text("body,label\nall is well,0\nhow dare you,1\n")
    model = {"name": "bert", "source": str(tiny_folder())}
    changes = (f"grid.models={json.dumps([model])}", "grid.attacks=[none]")
    plan = make_plan(load_experiment(tmp_path / "moods.yaml", changes), PLACES)
    assert [(cell.last.task.name, cell.last.task.num_labels) for cell in plan.cells] == [
        ("moods", 2),
        ("moods", 2),
    ]
    purify = next(stage for stage in plan.stages.values() if stage.name == "purify")
    assert list(purify.corpus.samples(PLACES)) == ["it is broken", "all is well"]
    assert isinstance(purify.corpus, Component)
    assert purify.corpus.size == 5000


def test_a_relative_name_in_the_environment_holds_for_processes_that_stand_elsewhere(
    own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own(tasks={"moods": MOODS})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, os.pathsep.join(["here/own.yaml", ""]))
    settle()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert TASKS.parse("moods").load("train", PLACES).samples == ("all is well", "how dare you")


def test_the_processes_of_a_cluster_stand_where_the_command_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    enter_folder()
    assert Path.cwd() == Path("/")  # nothing is said
    monkeypatch.setenv(FOLDER, str(tmp_path / "of another machine"))
    enter_folder()
    assert Path.cwd() == Path("/")
    monkeypatch.setenv(FOLDER, str(tmp_path))
    enter_folder()
    assert Path.cwd() == tmp_path
