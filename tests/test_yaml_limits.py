"""Small files that ask for much, and words that YAML reads as something else."""

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from samples import EXAMPLES
from shell import Shell, shell
from tiny_search import search_fields

from recipe_ray.base.errors import SpecError
from recipe_ray.base.limits import CELLS, NODES, OF_TRAINING, STEPS, YAML_BYTES, YAML_VALUES
from recipe_ray.base.strict_yaml import MAX_DEPTH, check_size, read_yaml
from recipe_ray.experiment.files import load_experiment, load_search
from recipe_ray.experiment.spec import Experiment
from recipe_ray.learn.optim import FitSpec
from recipe_ray.models.family import MODELS
from recipe_ray.schedule.resources import load_cluster
from recipe_ray.stages.finetune import FinetuneStage
from recipe_ray.tasks.task import TASKS

__all__ = ["shell"]
GRID: dict[str, Any] = {"models": [{"name": "minilm"}], "attacks": ["por"], "tasks": ["sst2"]}
LINK = "{name}: &{name} [{parts}]\n"
MERGED = "{name}: &{name} {{<<: [{parts}]}}\n"


def bomb(first: str, link: str = LINK) -> str:
    """Return lines of which each holds nine of the one before."""
    names = "abcdefghi"
    parts = [",".join([f"*{name}"] * 9) for name in names]
    links = [link.format(name=n, parts=p) for n, p in zip(names[1:], parts, strict=False)]
    return first + "".join(links)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            bomb("a: &a [x, x, x]\n"),
            r"expanded: .* values; allowed: at most 20,000.*MAX_YAML_VALUES",
        ),
        (bomb("a: &a {x: 1}\n", MERGED), "expanded: .* values"),
        ("a: &a " + "x" * 9_000 + "\nb: [" + "*a," * 200 + "]", "expanded: .* bytes"),
        ("[" * 10_000 + "]" * 10_000, f"line 1: .* more than {MAX_DEPTH} deep"),
        ("{a: " * 10_000, "deep"),
        ("- " * 10_000 + "x", "deep"),
        ("a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 300)), "deep"),
        ("[" + "1," * 30_000 + "]", "20,001 values"),
        ("# " + "x" * 1_000_001, "1,000,003 bytes; allowed: at most 1,000,000"),
        ("a: &a [*a]", "line 1: an alias is inside the value that it refers to"),
        ("a: &a {b: *a}", "an alias is inside"),
        ("x: 1\na: " + "9" * 5_000, "line 2: a whole number beyond 64 bits"),
        ("a: 9223372036854775808", "beyond 64 bits"),
        ("a: -0x" + "f" * 100, "beyond 64 bits"),
        ("a: 1" + ":59" * 1000, "in base 60"),
        ("a: 12:30", 'YAML reads 12:30 in base 60, .*"12:30" for text'),
        ("a: 010", 'YAML reads 010 as an octal number; .*"010" for text'),
        ("a: .inf", r"\.inf is not a finite number"),
        ("a: .nan", "not a finite number"),
        ("a: 1.0e+999", "not a finite number"),
        ("[a]: 1", "line 1: a list or mapping cannot be a key"),
        ("x: 1\nno: 1", 'line 2: YAML reads the key no as a truth value; write "no"'),
        ("~: a", "the key ~ as nothing"),
        ("a: 1\n'a': 2", "line 2: the key 'a' is given twice"),
        ("a: {<<: {b: 1}, <<: {c: 1}}", "given twice"),
        ("a: !!python/object/apply:os.getcwd []", "the tag !!python/.* allowed: !!null"),
        ("a: !!timestamp 2020-13-45", "the tag !!timestamp is not supported"),
        ("a: !!set {x, y}", "the tag !!set"),
        ("a: !!int abc", "'abc' is not a number"),
        ("a: !!float abc", "abc is not a finite number"),
        ("a: !!bool 3", "'3' is neither true nor false"),
        ("a: !!str [b]", "expected one value"),
        ("a: !!map [b]", "expected a mapping"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("a: \x01", "special characters"),
    ],
)
def test_yaml_that_is_too_much_or_not_plain_is_refused_at_once(text: str, said: str) -> None:
    started = time.process_time()
    with pytest.raises(SpecError, match=said) as raised:
        read_yaml(text)
    assert len(str(raised.value)) < 500
    assert time.process_time() - started < 20


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[1, -5, 1_000, 0x1F, 0b11, 1.5, 0, -0]", [1, -5, 1000, 31, 3, 1.5, 0, 0]),
        ("[yes, Off, true, ~, null, ]", [True, False, True, None, None]),
        ("[2020-01-01, 2020-13-45, =, 1e3, 08, 'no', !!str no]", None),
        ("{a: &a {k: 1, j: 2}, b: {<<: *a, k: 3}}", {"a": {"k": 1, "j": 2}, "b": {"k": 3, "j": 2}}),
        ("[{<<: &x {<<: {k: 1}, k: 2}}, *x]", [{"k": 2}, {"k": 2}]),
        ("{a: 9223372036854775807}", {"a": 2**63 - 1}),
        ("", None),
    ],
)
def test_plain_yaml_is_read_as_before(text: str, value: Any) -> None:
    texts = ["2020-01-01", "2020-13-45", "=", "1e3", "08", "no", "no"]
    assert read_yaml(text) == (texts if "2020" in text else value)


def test_every_experiment_of_ours_is_read_as_yaml_reads_it() -> None:
    files = list(Path(__file__).parents[1].joinpath("experiments").rglob("*.yaml"))
    assert files
    for file in files:
        assert read_yaml(file.read_text()) == yaml.safe_load(file.read_text())


def test_what_is_shared_is_counted_as_often_as_it_stands() -> None:
    shared = ["x"] * 1000
    check_size([shared] * 10)
    with pytest.raises(SpecError, match="values"):
        check_size([shared] * 30)


def written(folder: Path, values: dict[str, Any] | str) -> Path:
    file = folder / "experiment.yaml"
    file.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return file


def refused(folder: Path, values: dict[str, Any] | str, *changes: str) -> str:
    with pytest.raises(SpecError) as raised:
        load_experiment(written(folder, values), changes)
    said = str(raised.value)
    assert len(said) < 600
    return said


def define(count: int, included: Any) -> dict[str, Any]:
    """Return an experiment of `count` definitions, each of which includes others by their names."""
    named = {f"d{n}": {"name": "por", "corpus": included(n)} for n in range(count)}
    return {"name": "x", "grid": {**GRID, "attacks": ["d0"]}, "define": named}


def test_definitions_that_include_one_another_are_refused(tmp_path: Path) -> None:
    said = refused(tmp_path, define(2, lambda n: f"d{1 - n}"))
    assert "define: d0 -> d1 -> d0: they include one another" in said
    everything = [f"d{n}" for n in range(30)]
    assert "include one another" in refused(tmp_path, define(30, lambda n: everything))


def test_definitions_that_unfold_to_much_are_refused(tmp_path: Path) -> None:
    said = refused(tmp_path, define(12, lambda n: [f"d{n + 1}"] * 9))
    assert "expanded" in said
    assert "MAX_YAML_VALUES" in said
    assert "deep" in refused(tmp_path, define(2_000, lambda n: f"d{n + 1}"))


def test_a_name_within_its_own_definition_is_the_registered_one(tmp_path: Path) -> None:
    named = {"bookcorpus": {"name": "bookcorpus", "size": 7}}
    grid = {**GRID, "attacks": [{"name": "por", "corpus": "bookcorpus"}]}
    found = load_experiment(written(tmp_path, {"name": "x", "define": named, "grid": grid}))
    attack: Any = found.grid[0].attacks[0]
    assert (attack.corpus.size, attack.corpus.title) == (7, "bookcorpus")


def test_deep_changes_are_refused(tmp_path: Path) -> None:
    deep = ".".join(["a"] * 10_000)
    assert "names deep" in refused(tmp_path, {"name": "x", "grid": GRID}, f"{deep}=1")
    assert "deep" in refused(tmp_path, {"name": "x", "grid": GRID}, "a=" + "[" * 10_000)
    digits = "9" * 5_000
    assert "place in a list" in refused(tmp_path, {"name": "x", "grid": [GRID]}, f"grid.{digits}=1")


def test_files_that_are_no_text_of_that_size_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "huge.yaml"
    with file.open("wb") as out:
        out.truncate(3_000_000_000)  # a hole: it takes no room
    with pytest.raises(SpecError, match=r"huge.yaml: .*3,000,000,000 bytes; allowed: at most"):
        load_experiment(file)
    with pytest.raises(SpecError, match="not a regular file"):
        load_experiment(Path("/dev/zero"))
    file.write_bytes(b"name: \xff")
    with pytest.raises(SpecError, match="not UTF-8"):
        load_experiment(file)
    file.write_bytes(b"\xef\xbb\xbf" + yaml.safe_dump({"name": "x", "grid": GRID}).encode())
    assert load_experiment(file).name == "x"


HUGE = {**GRID, "seeds": list(range(1000)), "attacks": ["por"] * 1000, "defenses": ["none"] * 1000}


def test_a_huge_grid_is_counted_and_not_built(shell: Shell, monkeypatch: Any) -> None:
    file = written(shell.folder, {"name": "x", "grid": HUGE})
    for words in (("plan", file), ("plan", file, "--limit", 1), ("sweep", file, "--dry-run")):
        said = shell.fails(*words)
        assert "grid: 1,000,000,000 cells; allowed: at most 20,000" in said
        assert "raise the limit with RECIPE_RAY_MAX_CELLS" in said
    monkeypatch.setenv(CELLS.variable, "1000000000")
    shell("plan", file, "--limit", 1)  # only the first is built


def test_blocks_and_snapshots_count(tmp_path: Path) -> None:
    many = {**GRID, "seeds": list(range(150)), "snapshots": list(range(1, 150))}
    assert "22,350 cells" in refused(tmp_path, {"name": "x", "grid": many})
    block = {**GRID, "seeds": list(range(101)), "attacks": ["por"] * 100}
    assert "20,200 cells" in refused(tmp_path, {"name": "x", "grid": [block] * 2})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"trials": 1_000_000_000},
            "trials x epochs, one evaluation each: .* cells; allowed: at most 20,000",
        ),
        ({"epochs": 1_000_000_000}, "trials x epochs"),
        ({"trials": 10**30}, "beyond 64 bits"),
    ],
)
def test_a_huge_search_is_counted_and_not_built(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    file = written(tmp_path, {**search_fields(tmp_path), **changes})
    with pytest.raises(SpecError, match=said):
        load_search(file)


def test_a_huge_cluster_is_counted_and_not_built(tmp_path: Path) -> None:
    for fields in ({"count": 10**9}, {"count": 600}, {}):
        nodes = [{"name": "a", "cpus": 4, **fields}] * 2
        more = {} if fields else {"max_nodes": 10**9}
        with pytest.raises(SpecError, match=r"nodes; allowed: at most 1,000.*RECIPE_RAY_MAX_NODES"):
            load_cluster(written(tmp_path, {"nodes": nodes, **more}))
    whole = load_cluster(written(tmp_path, {"nodes": [{"name": "a", "cpus": 4, "count": 999}]}))
    assert whole.with_nodes(whole.most_nodes).nodes[0].count == 1_000


TRAININGS = [
    ("finetuning.steps=1000000000000", "steps: 1,000,000,000,000 steps; allowed: at most 10,000,0"),
    ("finetuning={epochs: 1.0e+12}", "epochs: 1,000,000,000,000 epochs; allowed: at most 100,000"),
    ("grid.defenses=[{name: recipe, fit: {batch_size: 1000000000}}]", "batch_size: 1,000,000,000"),
    ("pretraining={fit: {max_length: 1000000000}}", "max_length: 1,000,000,000 tokens"),
    ("grid.attacks=[{name: por, fit: {steps: 100000000}}]", "steps: 100,000,000 steps"),
]


@pytest.mark.parametrize(("change", "said"), TRAININGS)
def test_a_training_without_end_is_refused(
    tmp_path: Path, monkeypatch: Any, change: str, said: str
) -> None:
    found = refused(tmp_path, {"name": "x", "grid": GRID}, change)
    assert said in found
    variable = found.split()[-1]
    monkeypatch.setenv(variable, "1000000000000")
    load_experiment(written(tmp_path, {"name": "x", "grid": GRID}), (change,))


def test_the_steps_that_epochs_come_to_have_the_same_limit() -> None:
    fit = FitSpec(epochs=50_000, batch_size=1)
    assert fit.num_steps(200) == STEPS.default
    with pytest.raises(SpecError, match="epochs 50000: 10,050,000 steps; allowed"):
        fit.num_steps(201)


def test_triggers_and_classes_without_end_are_refused(shell: Shell, tmp_path: Path) -> None:
    words = [f"w{number}" for number in range(15_000)]
    attack = {"name": "por", "triggers": words}
    said = refused(tmp_path, {"name": "x", "grid": {**GRID, "attacks": [attack]}})
    assert "triggers: 15,000 triggers; allowed: at most 1,000" in said
    ours = {"name": "file", "class_names": words, "path_train": "a.csv", "path_test": "b.csv"}
    said = refused(tmp_path, {"name": "x", "grid": {**GRID, "tasks": [ours]}})
    assert "class_names: 15,000 classes; allowed: at most 10,000" in said
    few = {**ours, "class_names": words[:5_000]}
    stage: dict[str, Any] = {"model": MODELS.parse("minilm"), "seed": 0, "content": {}}
    with pytest.raises(ValidationError, match="triggers x classes, one ASR each: 500,000 rates"):
        FinetuneStage(task=few, triggers=tuple(words[:100]), **stage)
    many = ",".join(words[:1_001])
    assert "1,001 triggers" in shell.fails(
        *("evaluate", "minilm", "--task", "sst2", "--triggers", many)
    )


NETWORKS: list[dict[str, Any]] = [
    {"name": "vit", "mlp": 10**12},
    {"name": "vgg", "channels": [10**7, 10**7]},
    {"name": "vgg", "num_classes": 10**9},
]


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_from_scratch_is_counted_and_not_built(network: dict[str, Any]) -> None:
    model: Any = MODELS.parse(network)
    with pytest.raises(SpecError, match=r"parameters; allowed: .*RECIPE_RAY_MAX_PARAMETERS"):
        model.load()


def test_more_values_than_allowed_are_counted_before_they_are_read() -> None:
    started = time.process_time()
    with pytest.raises(SpecError, match="20,001 values"):
        read_yaml("".join(f"key{number}: {number}\n" for number in range(60_000)))
    assert time.process_time() - started < 2


def test_of_a_thousand_errors_of_a_kind_the_first_are_told(tmp_path: Path) -> None:
    file = written(tmp_path, {"name": "x", "grid": {**GRID, "seeds": [-1] * 5_000}})
    with pytest.raises(SpecError) as raised:
        load_experiment(file)
    lines = str(raised.value).splitlines()
    assert len(lines) == 21
    assert lines[-1].endswith("and 4,980 more errors")
    assert "too few" not in str(raised.value)  # there are 5,000


@pytest.mark.parametrize(
    "limit", [CELLS, NODES, YAML_BYTES, YAML_VALUES, *OF_TRAINING], ids=lambda limit: limit.name
)
def test_every_limit_can_be_raised_and_is_stated(limit: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv(limit.variable, str(limit.default + 1))
    limit.check(limit.default + 1, "it")
    for wrong in ("many", "-1", "0", "1e9", "9" * 5000):
        monkeypatch.setenv(limit.variable, wrong)
        with pytest.raises(SpecError, match=f"{limit.variable}=.*expected a whole number"):
            limit.check(1, "it")
    stated = Path(__file__).parents[1].joinpath("docs/experiments.md").read_text()
    assert f"`{limit.variable}`" in stated
    assert f"{limit.default:,}" in stated


def task(names: str) -> str:
    return f"{{name: file, class_names: {names}, path_train: a.csv, path_test: b.csv}}"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("[no, yes]", "class_names[0]: this is the truth value false (YAML reads no, off"),
        ("[a, On]", "class_names[1]: this is the truth value true (YAML reads yes, on"),
        ("[0, 1]", "class_names[0]: text is expected, this is 0 (YAML reads digits without"),
        ("[a, null]", "class_names[1]: text is expected, this is null"),
        ("[a, ~]", "YAML reads null, ~ and nothing as no value"),
        ("[a, 010]", "as an octal number"),
        ("[a, .nan]", "not a finite number"),
        ("no", "class_names: this is the truth value false"),
    ],
)
def test_words_that_yaml_reads_as_other_than_text_are_explained(
    shell: Shell, names: str, said: str
) -> None:
    assert said in shell.fails("evaluate", "minilm", "--task", task(names))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("name=no", "name: this is the truth value false"),
        ("description=on", "description: this is the truth value true"),
        ("grid.attacks=[{name: por, triggers: [no, on]}]", "triggers[0]: this is the truth value"),
        ("grid.attacks=[{name: por, triggers: [cf, 7]}]", "triggers[1]: text is expected"),
        ("grid.attacks=[{name: por, title: off}]", "title: this is the truth value false"),
        ("grid.attacks=[{name: por, title: 12}]", 'put it in quotes: "12"'),
        ("grid.attacks=[no]", "YAML reads words such as no"),
        ("grid.probes=[{task: sst2, trigger: on}]", "trigger: this is the truth value true"),
        ("grid.probes=[{task: sst2, trigger: cf, without: 1}]", "without: text is expected"),
        ("paper={table: 1}", "table: text is expected"),
        ("paper={table: '1', models: {a: no}}", "models.a: this is the truth value"),
        ("grid.seeds=[0, yes]", "seeds[1]: this is the truth value true"),
        ("finetuning.epochs=on", "epochs: this is the truth value true"),
        ("finetuning.learning_rate=no", "a number is expected"),
        ("finetuning.learning_rate=1e999", "finite number"),
        ("finetuning.learning_rate='inf'", "finite number"),
        ("finetuning.optimizer=off", "optimizer: this is the truth value"),
        ("release_seed='99999999999999999999999'", "64 bits"),
        ("launch.cpus_per_worker=yes", "truth value"),
    ],
)
def test_fields_of_an_experiment_say_what_yaml_made_of_a_word(
    tmp_path: Path, change: str, said: str
) -> None:
    assert said in refused(tmp_path, {"name": "x", "grid": GRID}, change)


def test_quotes_are_the_way_out() -> None:
    fields = {**EXAMPLES["tasks", "file"], **read_yaml('class_names: ["no", "1", "~"]')}
    assert TASKS.parse({"name": "file", **fields}).classes == ("no", "1", "~")
    dated = read_yaml("{name: 2020-01-01, description: 12:30:00 is no time, launch: {stream: yes}}")
    assert Experiment.model_validate({**dated, "grid": GRID}).launch.stream is True
