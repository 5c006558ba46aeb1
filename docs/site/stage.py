"""Puts the pages of the site together: `python docs/site/stage.py FOLDER` (see `make docs`).

The pages lie in FOLDER/pages as they lie in the repository, so links between them, to experiment
files and to pictures are the same there and on GitHub. What is in `docs/reference/` is written
here, from the command line's parser, the specs and the docstrings; it is never committed.
"""

import inspect
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

import recipe_ray
from recipe_ray.base import limits
from recipe_ray.base.limits import Limit
from recipe_ray.base.spec import Spec
from recipe_ray.cli.app import app
from recipe_ray.cli.options import registries
from recipe_ray.experiment.search import Search
from recipe_ray.experiment.spec import Experiment, Growth, Launch, Paper, grid_class
from recipe_ray.learn.optim import FitSpec

ROOT = Path(__file__).parents[2]
SITE = Path(__file__).with_name("zensical.toml")
COPIED = ("*.md", "docs", "cluster", "examples", "experiments", "LICENSE", ".github")
LEFT_OUT = shutil.ignore_patterns("*.parquet", "plan.json", "site", "__pycache__")
Rows = Iterable[tuple[object, ...]]


def stage(folder: Path) -> None:
    """Write the configuration and every page of the site into `folder`, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    pages = folder / "pages"
    pages.mkdir(parents=True)
    for pattern in COPIED:
        for source in ROOT.glob(pattern):
            if source.is_dir():
                shutil.copytree(source, pages / source.name, ignore=LEFT_OUT)
            else:
                shutil.copy(source, pages / source.name)
    shutil.copy(SITE, folder / SITE.name)
    reference = pages / "docs" / "reference"
    reference.mkdir()
    for name, text in references().items():
        (reference / f"{name}.md").write_text(text, encoding="utf-8")


def references() -> dict[str, str]:
    """Return the generated pages by name, as Markdown."""
    found = {
        "commands": commands(),
        "experiment": experiment_file(),
        "components": components(),
        "python": python(),
        "limits": stated_limits(),
    }
    return {name: "\n".join(lines) + "\n" for name, lines in found.items()}


def commands() -> Iterator[str]:
    """Yield every command with its arguments and options."""
    yield "# Commands\n"
    yield "`recipe-ray COMMAND --help` prints the same. [Exit codes](../exit-codes.md)."
    group: Any = get_command(app)
    context = group.make_context("recipe-ray", [], resilient_parsing=True)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        inner = getattr(command, "commands", None) or {name: command}
        for own, one in inner.items():
            yield from _command(name if one is command else f"{name} {own}", one)


def _command(name: str, command: Any) -> Iterator[str]:
    yield f"\n## {name}\n"
    yield f"{inspect.cleandoc(command.help or '')}\n"
    context = command.make_context(name, [], resilient_parsing=True)
    pieces = command.collect_usage_pieces(context)
    yield f"    recipe-ray {name} {' '.join(pieces)}\n"
    rows = []
    for param in command.params:
        option = param.param_type_name == "option"
        kind = str(getattr(param.type_descriptor, "annotation", "")).removeprefix("<class '")
        takes = param.metavar or (kind.removesuffix("'>") if option else param.name.upper())
        shown = " ".join(param.opts) if option else takes
        given = option and not getattr(param, "is_flag", False)
        silent = callable(param.default) or param.default in (None, (), [], "")
        default = None if silent or param.default is False else param.default
        about = getattr(param, "help", None)
        rows.append((f"`{shown}`", f"`{takes}`" if given else "", default, about))
    yield from _table(("option", "takes", "default", "meaning"), rows)


def experiment_file() -> Iterator[str]:
    """Yield every field of experiment and search files."""
    yield "# Experiment files\n"
    yield (
        "`recipe-ray sweep FILE` reads an experiment, `recipe-ray search FILE` a search "
        "([what they mean](../experiments.md))."
    )
    shown: list[tuple[str, Any]] = [
        ("An experiment", Experiment),
        ("`grid`: one block, or a list of them", grid_class()),
        ("`fit` of a training", FitSpec),
        ("`launch`", Launch),
        ("`launch.grow_to`", Growth),
        ("`paper`", Paper),
        ("A search", Search),
    ]
    for title, spec in shown:
        yield f"\n## {title}\n"
        yield f"{_summary(spec)}\n"
        yield from _table(("field", "default", "meaning"), _fields(spec))


def components() -> Iterator[str]:
    """Yield every registered attack, defense, model, corpus, task and detector with its fields."""
    yield "# Attacks, defenses, models, data\n"
    yield "What an experiment file can name; `recipe-ray list KIND` prints the same."
    for kind, registry in registries().items():
        yield f"\n## {kind.capitalize()}"
        for name in registry:
            plugin: Any = registry.get(name)
            yield f"\n### {kind}: {name}\n"
            yield f"{_summary(plugin)}\n"
            yield from _table(("field", "default", "meaning"), _fields(plugin))


def python() -> Iterator[str]:
    """Yield the functions of the package, and the classes that plugins derive from."""
    from recipe_ray.attacks.attack import Attack
    from recipe_ray.data.corpus import TextCorpus
    from recipe_ray.defenses.defense import Defense
    from recipe_ray.detectors.detector import Detector
    from recipe_ray.models.family import PTM, ModelRef
    from recipe_ray.stages.stage import Stage
    from recipe_ray.tasks.task import TextTask

    yield "# Python\n"
    names = [name for name in getattr(recipe_ray, "__all__", ()) if name != "__version__"]
    for name in names:
        yield from _documented(f"recipe_ray.{name}", getattr(recipe_ray, name))
    yield "\n## What plugins derive from\n"
    yield "[How to add one](../guides/add-a-plugin.md)."
    for base in (Attack, Defense, ModelRef, PTM, TextCorpus, TextTask, Detector, Stage):
        yield f"\n### {base.__name__}\n"
        yield f"`{base.__module__}.{base.__name__}`\n"
        yield inspect.getdoc(base) or ""
        for name, method in list(vars(base).items()):
            function = getattr(method, "__func__", method)
            if not name.startswith("_") and inspect.isfunction(function):
                yield from _documented(name, function, "####")


def _documented(name: str, function: Any, heading: str = "##") -> Iterator[str]:
    yield f"\n{heading} {name}\n"
    if callable(function) and not inspect.isclass(function):
        yield f"    {name}{inspect.signature(function)}\n".replace("'", "")
    yield inspect.getdoc(function) or ""


def stated_limits() -> Iterator[str]:
    """Yield every limit that an environment variable sets."""
    yield "# Limits\n"
    yield "What may come from outside, and how much of it ([why](../security.md))."
    yield ""
    found = [one for one in vars(limits).values() if isinstance(one, Limit)]
    rows = [(f"`{one.variable}`", f"{one.default:,}", one.unit, one.of) for one in found]
    yield from _table(("variable", "default", "of what", "limits"), rows)


def _fields(spec: type[Spec]) -> Iterator[tuple[object, ...]]:
    for name, info in spec.model_fields.items():
        default = info.get_default(call_default_factory=True)
        if isinstance(default, Spec):
            default = default.model_dump(mode="json", exclude_defaults=True)
        shown = "required" if info.is_required() else f"`{_cut(default)}`"
        yield f"`{name}`", shown, info.description or ""


def _summary(spec: Any) -> str:
    return inspect.cleandoc(spec.__doc__ or "").partition("\n\n")[0]


def _cut(value: object, longest: int = 80) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _table(heads: tuple[str, ...], rows: Rows) -> Iterator[str]:
    listed = list(rows)
    if not listed:
        return
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in listed:
        cells = [
            " ".join(("" if cell is None else str(cell)).replace("|", "\\|").split())
            for cell in row
        ]
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    stage(Path(sys.argv[1]))
