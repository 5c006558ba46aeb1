"""Figures from our measurements, by matplotlib (extra `figures`), the same bytes each time.

Figure 2: overlap ratios of backdoored, purified and clean PTMs, by attack and task. Figure 3: ACC
and MASR against epochs of purification, by task. The paper prints no values for them, so only ours
are drawn. The curve of a search: score against weight factor, one line per rung. The patches of an
experiment: each fine-tuning on images kept a few samples in its artifact, so no data are read.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from recipe_ray.base.errors import UserError
from recipe_ray.base.paths import path_part
from recipe_ray.report.load import Recorded
from recipe_ray.report.published import PublishedTable
from recipe_ray.report.searches import SearchSummary
from recipe_ray.report.sections import Section
from recipe_ray.report.stats import Estimate
from recipe_ray.report.summary import CLEAN, CellSummary, by_attack
from recipe_ray.stages.stage import shown_as
from recipe_ray.store.store import Store
from recipe_ray.triggers.pictures import CLEAN_PICTURE, FILE, Grid, read

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart
STATE_COLOURS = {"backdoored": "#D55E00", "purified": "#0072B2", "clean": "#999999"}
ACC_COLOUR, MASR_COLOUR = "#0072B2", "#D55E00"
PANEL = 3.2, 2.6  # inches


def require_matplotlib() -> None:
    """Raise UserError, saying how to get it, if matplotlib is missing."""
    try:
        import_module("matplotlib")
    except ModuleNotFoundError as error:
        install = "pip install 'recipe-ray[figures]'"
        raise UserError(f"--figures needs {error.name}: {install}") from error


def panels(rows: int, columns: int, label: str) -> "tuple[Figure, list[Axes]]":
    """Return a figure of panels, row by row, whose percent axis is called `label`.

    Raises UserError if matplotlib is missing.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for first in grid[:, 0]:
        first.set_ylabel(label)
    for axes in grid.flat:
        axes.set_ylim(0, 105)
    return figure, list(grid.flat)


def draw_bars(
    axes: "Axes",
    series: Mapping[tuple[str, str], Mapping[str, Estimate]],
    tasks: Mapping[str, str],
) -> None:
    """Draw groups of bars: `series` is by (state, defense) and task, `tasks` names the groups."""
    order = list(STATE_COLOURS)
    ordered = sorted(series.items(), key=lambda one: (order.index(one[0][0]), one[0][1]))
    purified = [defense for (state, defense), _ in ordered if state == "purified"]
    width = 0.8 / len(ordered)
    for number, ((state, defense), found) in enumerate(ordered):
        shift = (number - (len(ordered) - 1) / 2) * width
        present = [(place, found[task]) for place, task in enumerate(tasks) if task in found]
        several = state == "purified" and len(purified) > 1
        axes.bar(
            [place + shift for place, _ in present],
            [100 * value.mean for _, value in present],
            width * 0.9,
            yerr=[100 * (value.margin or 0.0) for _, value in present],
            color=STATE_COLOURS[state],
            hatch="/" * purified.index(defense) if several else "",
            error_kw={"elinewidth": 0.8},
            label=f"{state} ({defense})" if several else state,
        )
    axes.set_xticks(range(len(tasks)), list(tasks.values()))


def draw_epochs(axes: "Axes", cells: Sequence[CellSummary]) -> None:
    """Draw ACC and MASR against epochs, and the clean PTM's as dotted lines.

    Crosses mark cells of which a seed is at chance.
    """
    ordered = sorted(cells, key=lambda cell: cell.epoch or 0)
    epochs = [cell.epoch or 0 for cell in ordered]
    _line(axes, "ACC", "o", ACC_COLOUR, epochs, [cell.acc for cell in ordered])
    _line(axes, "MASR", "s", MASR_COLOUR, epochs, [cell.masr for cell in ordered])
    _level(axes, "clean PTM's ACC", ACC_COLOUR, [cell.clean_acc for cell in ordered])
    _level(axes, "clean PTM's MASR", MASR_COLOUR, [cell.floor_masr for cell in ordered])
    chance = [cell for cell in ordered if cell.at_chance]
    points = [
        (cell.epoch or 0, 100 * value.mean)
        for cell in chance
        for value in (cell.acc, cell.masr)
        if value is not None
    ]
    if points:
        label = "at chance: MASR says nothing"
        axes.plot(*zip(*points, strict=True), "x", color="black", markersize=8, label=label)
    axes.set_xlabel("epochs of purification")
    axes.set_xticks(sorted(set(epochs)))


def save(figure: "Figure", file: Path) -> None:
    """Write the figure with one legend below it, in the format of the file's suffix."""
    import matplotlib as mpl

    labelled = (axes.get_legend_handles_labels() for axes in figure.axes)
    handles = {label: handle for pair in labelled for handle, label in zip(*pair, strict=True)}
    legend = figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False
    )
    # neither time nor random names: a figure in a repository changes only with its numbers
    with mpl.rc_context({"svg.hashsalt": "recipe-ray"}):
        figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
    legend.remove()


def _line(
    axes: "Axes",
    name: str,
    marker: str,
    colour: str,
    epochs: Sequence[int],
    values: Sequence[Estimate | None],
) -> None:
    present = [(epoch, v) for epoch, v in zip(epochs, values, strict=True) if v is not None]
    axes.errorbar(
        [epoch for epoch, _ in present],
        [100 * value.mean for _, value in present],
        yerr=[100 * (value.margin or 0.0) for _, value in present],
        color=colour,
        marker=marker,
        markersize=4,
        elinewidth=0.8,
        label=name,
    )


def _level(axes: "Axes", name: str, colour: str, values: Sequence[float | None]) -> None:
    known = [value for value in values if value is not None]
    if known:
        axes.axhline(100 * known[0], color=colour, linestyle=":", linewidth=1, label=name)


if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INCHES = 0.7  # a side of one image
Look = tuple[int, tuple[str, ...]]  # the model's input size and its triggers


def draw_triggers(found: Iterable[Recorded], store: Store, folder: Path) -> list[Path]:
    """Write `triggers-<size>.png` for each input size of models in `found`; return the files."""
    by_look: dict[Look, dict[str, Grid]] = defaultdict(dict)
    for task, kind, key in sorted(_finetunings(found)):
        grid = _grid(store, kind, key)
        if grid is not None:
            by_look[grid.size, tuple(sorted(grid.triggers))].setdefault(task, grid)
    written = []
    sizes = [size for size, _ in by_look]
    for number, ((size, triggers), grids) in enumerate(sorted(by_look.items()), 1):
        own = f"-{number}" if sizes.count(size) > 1 else ""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"triggers-{size}{own}.png"
        _figure((CLEAN_PICTURE, *triggers), grids).savefig(file, dpi=150)
        written.append(file)
    return written


def _finetunings(found: Iterable[Recorded]) -> set[tuple[str, str, str]]:
    kinds = shown_as("attack success")
    rows = [row for one in found for row in one.rows.select(["kind", "task", "stage"]).to_pylist()]
    return {(row["task"], row["kind"], row["stage"]) for row in rows if row["kind"] in kinds}


def _grid(store: Store, kind: str, key: str) -> Grid | None:
    artifact = store.find(kind, key)
    if artifact is None or FILE not in store.manifest(artifact)["files"]:
        return None
    return read(store.fetch(artifact) / FILE)


def _figure(names: tuple[str, ...], grids: Mapping[str, Grid]) -> "Figure":
    require_matplotlib()
    from matplotlib.figure import Figure

    blocks = [Grid({name: grid.rows[name] for name in names}).image() for grid in grids.values()]
    pixels = np.concatenate(blocks, axis=1)
    size = next(iter(grids.values())).size
    height, width = (side // size * _INCHES for side in pixels.shape[:2])
    figure = Figure(figsize=(width + 1.4, height + 0.5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(pixels, interpolation="nearest")
    axes.set_yticks([(row + 0.5) * size for row in range(len(names))], names)
    ends = np.cumsum([block.shape[1] for block in blocks])
    starts = ends - [block.shape[1] for block in blocks]
    axes.set_xticks(((starts + ends) / 2).tolist(), list(grids))
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    return figure


if TYPE_CHECKING:
    from matplotlib.figure import Figure

# light to dark: the later the rung, the fewer candidates and the surer their scores
_SHADES = ("#A6CEE3", "#56B4E9", "#0072B2", "#003F66", "#001F33")


def search_curve(search: SearchSummary) -> "Figure":
    """Return the figure; raise UserError if matplotlib is missing."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 * PANEL[0], 1.4 * PANEL[1]), layout="constrained")
    axes = figure.subplots()
    for number, rung in enumerate(search.rungs):
        points = [
            (one.weight_factor, 100 * look.score)
            for one in search.candidates
            for look in one.looks
            if look.epoch == rung and not look.at_chance
        ]
        shade = _SHADES[round(number * (len(_SHADES) - 1) / max(len(search.rungs) - 1, 1))]
        factors, scores = zip(*points, strict=True) if points else ((), ())
        axes.plot(factors, scores, "o-", color=shade, markersize=4, label=f"epoch {rung}")
    lost = [one.weight_factor for one in search.candidates if any(k.at_chance for k in one.looks)]
    if lost:  # at the lower edge: their scores are below every other
        edge = axes.get_xaxis_transform()
        axes.plot(lost, [0.02] * len(lost), "x", color="black", transform=edge, label="at chance")
    axes.set_xscale("log")
    axes.set_xlabel("weight factor")
    axes.set_ylabel(f"score ({search.rule or 'dev'}), points")
    axes.set_title(f"{search.model}, {search.attack}: {search.task}", fontsize="medium")
    return figure


if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("svg", "png")


def refuse_no_figure() -> NoReturn:
    """Raise UserError: there is nothing to draw."""
    raise UserError(
        "--figures: nothing in this report can be drawn: no experiment is one of a figure (its "
        f"file says so with `paper: {{table: ...}}`, one of {', '.join(FIGURES)}), is a search, "
        "or has triggers on images"
    )


def draw(sections: Sequence[Section], folder: Path) -> list[Path]:
    """Write the paper's figures and the curves of searches; return the files.

    Raises UserError if matplotlib is missing, StoreError for an experiment name that is not valid.
    """
    for section in sections:
        path_part(section.experiment, "experiment name")  # it becomes a part of a file's name
    wanted = [(one, one.paper) for one in sections if one.paper and one.paper.name in FIGURES]
    names = [paper.name for _, paper in wanted]
    figures = {}
    for section, paper in wanted:
        own = f"-{section.experiment}" if names.count(paper.name) > 1 else ""
        name = f"figure{paper.name.removeprefix('F')}{own}"
        figures[name] = FIGURES[paper.name](section, paper)
    for section in sections:
        if section.search is not None:
            figures[f"search-{section.experiment}"] = search_curve(section.search)
    written = []
    for name, figure in figures.items():
        folder.mkdir(parents=True, exist_ok=True)
        for suffix in FORMATS:
            written.append(folder / f"{name}.{suffix}")
            save(figure, written[-1])
    return written


def overlap_bars(section: Section, paper: PublishedTable) -> "Figure":
    """Return Figure 2: one panel per attack (and PTM), one group of bars per task."""
    series: dict[tuple[str, str], dict[tuple[str, str], dict[str, Estimate]]] = defaultdict(dict)
    for attack, state, probe in by_attack(section.probes):
        if state in STATE_COLOURS and probe.overlap is not None:
            bars = series[probe.model, attack].setdefault((state, probe.defense), {})
            bars[probe.task] = probe.overlap
    _refuse_nothing(section, series, "probes")
    found = {task for panel in series.values() for bars in panel.values() for task in bars}
    tasks = {task: paper.dataset(task) for task in sorted(found, key=paper.task_rank)}
    figure, drawn = panels(1, len(series), "overlap ratio (%)")
    ordered = sorted(series, key=lambda name: (name[0], paper.attack_rank(name[1])))
    for name, axes in zip(ordered, drawn, strict=True):
        draw_bars(axes, series[name], tasks)
        axes.set_title(", ".join(name), fontsize="medium")
    return figure


def epoch_lines(section: Section, paper: PublishedTable) -> "Figure":
    """Return Figure 3: a row of panels per purification, a panel per task; epoch 0: undefended."""
    lines: dict[tuple[str, str, str], dict[str, list[CellSummary]]] = defaultdict(dict)
    for cell in section.cells:
        if cell.defense != CLEAN and cell.epoch is not None:
            start = [other for other in section.cells if _is_start(other, cell)]
            lines[cell.model, cell.attack, cell.defense].setdefault(cell.task, start).append(cell)
    _refuse_nothing(section, lines, "fine-tunings after epochs of a purification (snapshots)")
    tasks = sorted({task for by_task in lines.values() for task in by_task}, key=paper.task_rank)
    figure, drawn = panels(len(lines), len(tasks), "percent")
    places = [(name, task) for name in lines for task in tasks]
    for (name, task), axes in zip(places, drawn, strict=True):
        draw_epochs(axes, lines[name].get(task, []))
        axes.set_title(f"{', '.join(name)}: {paper.dataset(task)}", fontsize="medium")
    return figure


# what draws a figure of the paper
FIGURES: dict[str, Callable[[Section, PublishedTable], "Figure"]] = {
    "F2": overlap_bars,
    "F3": epoch_lines,
}


def _is_start(other: CellSummary, cell: CellSummary) -> bool:
    same = (other.model, other.attack, other.task) == (cell.model, cell.attack, cell.task)
    return same and other.defense == CLEAN


def _refuse_nothing(section: Section, found: object, what: str) -> None:
    if not found:
        raise UserError(f"--figures: experiment {section.experiment!r} has no {what} yet")
