"""What figures are drawn with: matplotlib panels of bars and of lines, the same bytes each time.

matplotlib is the extra `figures`; it is imported when a figure is asked for.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from recipe_ray.base.errors import UserError
from recipe_ray.report.estimate import Estimate
from recipe_ray.report.results import CellSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart
STATE_COLOURS = {"backdoored": "#D55E00", "purified": "#0072B2", "clean": "#999999"}
ACC_COLOUR, MASR_COLOUR = "#0072B2", "#D55E00"
PANEL = 3.2, 2.6  # inches


def require_matplotlib() -> None:
    """Raise UserError, saying how to get it, where matplotlib is missing."""
    try:
        import_module("matplotlib")
    except ModuleNotFoundError as error:
        install = "pip install 'recipe-ray[figures]'"
        raise UserError(f"--figures needs {error.name}: {install}") from error


def panels(rows: int, columns: int, label: str) -> "tuple[Figure, list[Axes]]":
    """Return a figure of panels, row by row, whose percent axis is called `label`.

    Raises UserError where matplotlib is missing.
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

    Crosses are on cells of which a seed is at chance.
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
