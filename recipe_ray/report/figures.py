"""The figures of a report: which ones an experiment has the data for, and files of them.

The page (`html.py`) and `report --figures` draw the same ones. An experiment need not name a table
of the paper: its own grid has the figures that its rows can fill.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from recipe_ray.base.errors import UserError
from recipe_ray.base.paths import path_part
from recipe_ray.report.cell_figures import Cells, accuracy, attack_success, by_trigger, trade_off
from recipe_ray.report.charts import FORMATS, Figure, require_library, save
from recipe_ray.report.overview import Overview
from recipe_ray.report.run_figures import overlap, search_curve, suspicion, timeline
from recipe_ray.report.sections import Section
from recipe_ray.report.setting_figures import over_epochs, over_sizes, over_weight_factors

logger = logging.getLogger("recipe_ray")
OF_CELLS: tuple[Callable[[Cells], Figure | None], ...] = (
    attack_success,
    accuracy,
    trade_off,
    over_epochs,
    over_weight_factors,
    over_sizes,
    by_trigger,
)


def figures(section: Section, overview: Overview | None = None) -> list[Figure]:
    """Return the figures that an experiment has the data for."""
    found: list[Figure | None] = []
    if section.search is not None:  # its fine-tunings are looks, which the curve shows
        found.append(search_curve(section.search))
    else:
        found += [of(_named(section)) for of in OF_CELLS]
        found.append(overlap(section.probes, section.paper))
        found.append(suspicion(section.measured))
    if overview is not None:
        found.append(timeline(overview.runs))
    return [figure for figure in found if figure is not None]


def _named(section: Section) -> Cells:
    """Return the cells with their tasks named as in the section's table: AG News, not ag_news."""
    if section.paper is None:
        return section.cells
    return [replace(cell, task=section.paper.dataset(cell.task)) for cell in section.cells]


def draw(
    sections: Sequence[Section],
    folder: Path,
    overviews: Mapping[str, Overview] | None = None,
    others: Sequence[Figure] = (),
) -> list[Path]:
    """Write each experiment's figures as `EXPERIMENT-FIGURE.svg`, .png and .pdf; return the files.

    `others` belong to no experiment. A figure with too many marks is left out with a warning.
    Raises UserError if the library is missing or there is nothing to draw, StoreError for an
    experiment name that is not valid.
    """
    for section in sections:
        path_part(section.experiment, "experiment name")  # it becomes a part of a file's name
    found = {
        f"{section.experiment}-{figure.name}": figure
        for section in sections
        for figure in figures(section, (overviews or {}).get(section.experiment))
    }
    found |= {figure.name: figure for figure in others}
    if not found:
        _refuse_nothing(sections)
    require_library()
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in found.items():
        if figure.undrawable is not None:
            logger.warning("%s is not drawn: %s", name, figure.undrawable)
            continue
        for suffix in FORMATS:
            written.append(folder / f"{name}.{suffix}")
            save(figure, written[-1])
    return written


def _refuse_nothing(sections: Sequence[Section]) -> NoReturn:
    names = ", ".join(section.experiment for section in sections) or "none"
    raise UserError(
        f"--figures: nothing was measured yet that can be drawn (experiments here: {names}); "
        "`recipe-ray status` shows what is done"
    )
