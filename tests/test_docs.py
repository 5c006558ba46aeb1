"""What the pages say: commands parse, blocks run, numbers are the code's, the picture is drawn.

Commands that train are only parsed here. The links are checked by `make docs`.
"""

import ast
import inspect
import re
import shlex
import shutil
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from report_samples import clean, por
from samples import tiny_folder
from tiny_cell import run, tiny_plan

import recipe_ray
from recipe_ray.attacks.attack import ATTACKS
from recipe_ray.base import limits, loading, pickles, strict_yaml
from recipe_ray.base.limits import Limit
from recipe_ray.base.registry import Registry
from recipe_ray.cli.app import app
from recipe_ray.data.sources import Locations
from recipe_ray.defenses.defense import DEFENSES
from recipe_ray.experiment.files import load_experiment
from recipe_ray.experiment.plan import make_plan
from recipe_ray.models.family import MODELS
from recipe_ray.models.text import patterns, tokenizer, tokenizer_limits
from recipe_ray.report import html, load
from recipe_ray.report.charts import save
from recipe_ray.report.figures import figures
from recipe_ray.report.load import narrowed, recorded
from recipe_ray.report.sections import sections
from recipe_ray.stages.stage import STAGES
from recipe_ray.store.store import Store

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "cluster/*.md")
    for page in ROOT.glob(pattern)
    if page.name != "CHANGELOG.md"
)
TUTORIAL = (ROOT / "docs/tutorial.md").read_text()
LANGUAGES = {"", "bash", "python", "yaml", "toml"}


@dataclass(frozen=True)
class Block:
    """One block of code of a page; language "" without one."""

    page: Path
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}: {self.text.splitlines()[0][:40]}"


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced and the indented blocks of a page."""
    text = re.sub(r"<!--.*?-->", "", page.read_text(), flags=re.DOTALL)
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Block(page, language, body)
    rest = re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for body in re.findall(r"(?:^|(?<=\n\n))((?:    \S.*\n(?:    .*\n)*))", rest):
        yield Block(page, "", re.sub(r"^    ", "", body, flags=re.MULTILINE))


BLOCKS = [block for page in PAGES for block in blocks(page)]


def commands(block: Block) -> Iterator[list[str]]:
    """Yield the words of each command; of a transcript, those after the prompt."""
    lines = block.text.replace("\\\n", " ").splitlines()
    typed = [line[2:] for line in lines if line.startswith("$ ")]
    for line in typed or lines:
        for part in re.split(r" (?:&&|\||>) |; ", line):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:  # not a shell's line
                continue
            if words and Path(words[0]).name in ("recipe-ray", "make"):
                yield [Path(words[0]).name, *words[1:]]


TYPED = [
    (block, words)
    for block in BLOCKS
    if block.language in ("", "bash")
    for words in commands(block)
]


def command(words: list[str]) -> tuple[Any, list[str]]:
    """Return the parser of a command and the words that it gets."""
    found: Any = typer.main.get_command(app)
    while getattr(found, "commands", None) and words and words[0] in found.commands:
        found, words = found.get_command(None, words[0]), words[1:]
    return found, words


def test_every_block_is_of_a_known_language() -> None:
    assert {block.language for block in BLOCKS} <= LANGUAGES
    assert len(TYPED) > 70


@pytest.mark.parametrize(
    ("block", "words"), TYPED, ids=[f"{b.page.name}-{n}" for n, (b, _) in enumerate(TYPED)]
)
def test_the_command_line_takes_every_command(block: Block, words: list[str]) -> None:
    program, *rest = words
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(rest) <= set(targets), block
    else:
        parser, own = command(rest)
        assert parser.name not in (None, "recipe-ray"), f"{block}: {rest[:1]} is no command"
        given = parser.make_context(parser.name, list(own)).params
        for named in (given.get("file") or "", given.get("cluster") or ""):
            file = str(named).removeprefix("recipe-ray/")  # as on the nodes of a cluster
            # `mine.yaml` is the reader's own
            if file.startswith(("experiments/", "cluster/")) and "$" not in file:
                assert (ROOT / file).is_file(), f"{block}: {file}"


def test_options_named_in_a_sentence_exist() -> None:
    parsers: Any = typer.main.get_command(app).commands
    wrong = []
    for page in PAGES:
        for code in re.findall(r"`(recipe-ray [^`]+)`", page.read_text()):
            parser, _ = command(code.split()[1:])
            if parser.name in parsers or parser.name in ("verify", "du", "gc", "export"):
                known = {opt for one in parser.params for opt in one.opts} | {"--help", "--debug"}
                wrong += [
                    (page.name, code)
                    for opt in re.findall(r" (--[a-z-]+)", code)
                    if opt not in known
                ]
    assert wrong == []


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=str)
def test_yaml_is_yaml(block: Block) -> None:
    assert yaml.safe_load(block.text)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=str)
def test_python_compiles_and_its_calls_of_the_package_have_known_arguments(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Attribute) and ast.unparse(called.value) == "recipe_ray":
            function = getattr(recipe_ray, called.attr)
            named = {word.arg: None for word in node.keywords if word.arg}
            inspect.signature(function).bind(*node.args, **named)


def code(page: str, heading: str, language: str = "python") -> str:
    """Return the block of a page after a heading."""
    (_, found), *_ = re.findall(
        rf"^#+ ({re.escape(heading)})$.*?^```{language}\n(.*?)^```$",
        (ROOT / page).read_text(),
        re.MULTILINE | re.DOTALL,
    )
    return str(found)


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return what imports a block of Python as a module; its plugins are gone afterwards."""
    registries: tuple[Registry[Any], ...] = (ATTACKS, DEFENSES, MODELS, STAGES)
    for registry in registries:
        list(registry)
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(text: str, name: str) -> types.ModuleType:
        (tmp_path / f"{name}.py").write_text(text)
        return __import__(name)

    return install


ADD = "docs/guides/add-a-plugin.md"


def test_the_attack_of_the_guide_attacks(plugins: Any, tmp_path: Path) -> None:
    plugins(code(ADD, "An attack"), "guide_attack")
    plan = tiny_plan(tmp_path, attacks=["loud-word"], defenses=["none"])
    backdoor = next(stage for stage in plan.stages.values() if stage.name == "backdoor")
    folder = run(plan, tmp_path).fetch(backdoor.artifact) / "model"
    before, after = (
        MODELS.parse({"name": "bert", "source": str(place)}).load().word_embeddings().weight
        for place in (tiny_folder(), folder)
    )
    grown = (after.norm(dim=1) / before.norm(dim=1)).detach() > 10
    assert grown.sum() == 2


def test_the_family_of_the_guide_opens_a_model(plugins: Any, tmp_path: Path) -> None:
    plugins(code(ADD, "A family of PTMs"), "guide_family")
    shutil.copytree(tiny_folder(), tmp_path / "bert-007")
    model = {"name": "shelf", "number": 7, "shelf": str(tmp_path)}
    plan = tiny_plan(tmp_path, models=[model], attacks=["none"], defenses=["none"])
    (stage,) = plan.stages.values()
    assert stage.name == "finetune"
    assert stage.model.load().hidden_size == 32


def test_the_stage_of_the_guide_is_planned_run_and_reported(plugins: Any, tmp_path: Path) -> None:
    plugins(code(ADD, "A kind of stage"), "guide_stage")
    file = tmp_path / "counted.yaml"
    file.write_text(code(ADD, "A kind of stage", "yaml"))
    model = f"grid.models=[{{name: bert, source: '{tiny_folder()}'}}]"
    plan = make_plan(load_experiment(file, (model,)), Locations(None, tmp_path))
    store = run(plan, tmp_path)
    shares = [store.rows(stage.artifact)["value"][0].as_py() for stage in plan.stages.values()]
    assert 0 < min(shares) < max(shares) < 1


def test_the_defense_of_the_design_halves(plugins: Any, tmp_path: Path) -> None:
    head = "from recipe_ray.defenses.defense import DEFENSES, Defense\n"
    plugins(head + code("docs/design.md", "The map"), "guide_defense")
    plan = tiny_plan(tmp_path, attacks=["none"], defenses=["halve"])
    purify = next(stage for stage in plan.stages.values() if stage.name == "purify")
    folder = run(plan, tmp_path).fetch(purify.artifact) / "model"
    before, after = (
        MODELS.parse({"name": "bert", "source": str(place)}).load().weight_group("ffn_in")[0]
        for place in (tiny_folder(), folder)
    )
    assert after.norm() < 0.51 * before.norm()


@pytest.mark.parametrize("how", ["In SQL", "In pandas"])
def test_the_queries_of_the_guide_run(how: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store.open("runs/demo")
    for stage, rows in {"p0": por(), "c0": clean()}.items():
        store.write_results("quickstart", stage, rows)
    exec(compile(code("docs/guides/read-the-results.md", how), how, "exec"), {})


def test_the_plan_of_the_tutorial_has_the_stages_that_it_tells(tmp_path: Path) -> None:
    told = re.findall(r"^\| (\w+)(?:, three times)? \| .* \| [\d.]+(?: each)? \|$", TUTORIAL, re.M)
    plan = make_plan(
        load_experiment(ROOT / "experiments/quickstart.yaml"), Locations(None, tmp_path)
    )
    kinds = [stage.name for stage in plan.stages.values()]
    assert list(dict.fromkeys(kinds)) == told
    assert (len(kinds), kinds.count("finetune"), len(plan.cells)) == (6, 3, 3)
    assert "This one has three *cells*" in TUTORIAL
    assert "six *stages*" in " ".join(TUTORIAL.split())


LIMITS = [one for one in vars(limits).values() if isinstance(one, Limit)]
FIXED = {
    "bytes of a file of weights": loading.MAX_WEIGHTS,
    "bytes of a JSON file of a model": loading.MAX_JSON,
    "bytes of a file of a tokenizer": tokenizer.MAX_FILE,
    "tokens of a tokenizer": tokenizer_limits.MAX_TOKENS,
    "seconds of CPU that its rules may take for short texts": tokenizer_limits.MAX_PROBE_S,
    "characters of a pattern in it": patterns.MAX_PATTERN,
    "levels of lists and mappings in YAML": strict_yaml.MAX_DEPTH,
    "bytes of a file of rows that `report` reads": load._LARGEST,
    "bytes of an HTML report": html.LARGEST,
    "bytes that describe the tensors of a safetensors file": loading.MAX_HEADER,
    "instructions of a pickle (`--allow-pickle`)": pickles.MAX_STEPS,
    "files in a model's folder": loading.MAX_FILES,
}


def test_the_limits_of_the_security_page_are_those_of_the_code() -> None:
    page = (ROOT / "docs/security.md").read_text()
    stated = {
        row[1]: row[0] for row in re.findall(r"\| ([\d,]+) \| `(\w+)` \|$", page, re.MULTILINE)
    }
    assert stated == {one.variable: f"{one.default:,}" for one in LIMITS}
    fixed = dict(re.findall(r"^\| ([^|]+) \| ([\d,]+) \|$", page, re.MULTILINE))
    assert fixed == {what: f"{value:,.0f}" for what, value in FIXED.items()}
    assert f"(or {limits.PACKING} times its size" in page


def test_the_picture_of_the_readme_is_drawn_from_the_kept_rows(tmp_path: Path) -> None:
    made_by, picture = re.findall(
        r"\]\((docs/\S+\.svg)\)\s+<!-- made by: (.*?) -->", (ROOT / "README.md").read_text()
    )[0][::-1]
    parser, own = command(shlex.split(made_by)[1:])
    given = parser.make_context("report", own).params
    found = recorded(str(ROOT / given["place"]))
    for one in given["only"]:
        column, _, values = one.partition("=")
        found = narrowed(found, column, values.split(","))
    (section,) = sections(found, given["experiment"])
    names = {f"{given['experiment']}-{one.name}": one for one in figures(section)}
    save(names[Path(picture).stem], tmp_path / "again.svg")
    again, kept = ((tmp_path / "again.svg").read_text(), (ROOT / picture).read_text())
    # what is written in it, and what its marks tell: where they lie depends on a machine's fonts
    words = r'>([^<>]+)<|aria-label="([^"]*)"'
    assert re.findall(words, again) == re.findall(words, kept)
    assert re.findall(words, kept)
