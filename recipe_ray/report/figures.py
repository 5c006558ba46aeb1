"""The paper's two figures and the curves of searches, from our measurements (extra `figures`).

Figure 2: overlap ratios of backdoored, purified and clean PTMs, by attack and task. Figure 3: ACC
and MASR against epochs of purification, by task. The paper prints no values for them, so none are
drawn.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from recipe_ray.base.errors import UserError
from recipe_ray.base.names import path_part
from recipe_ray.report.contents import Section
from recipe_ray.report.estimate import Estimate
from recipe_ray.report.panels import STATE_COLOURS, draw_bars, draw_epochs, panels, save
from recipe_ray.report.probes import by_attack
from recipe_ray.report.published import PublishedTable
from recipe_ray.report.results import CLEAN, CellSummary
from recipe_ray.report.search_figure import search_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("svg", "png")


def refuse_no_figure() -> NoReturn:
    """Raise UserError: there is nothing to draw."""
    raise UserError(
        "--figures: no experiment of this report is one of a figure (its file says so with "
        f"`paper: {{table: ...}}`, one of {', '.join(FIGURES)}), is a search, or has triggers on "
        "images"
    )


def draw(sections: Sequence[Section], folder: Path) -> list[Path]:
    """Write the paper's figures and the curves of searches; return the files.

    Raises UserError if matplotlib is missing, StoreError for an experiment name that is no name.
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
    """Return Figure 2: one panel an attack (and PTM), one group of bars a task."""
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
    """Return Figure 3: a row of panels a purification, a panel a task; at epoch 0 undefended."""
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
