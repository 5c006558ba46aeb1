"""Figures of fine-tunings against one setting: epochs, weight factor, size of the auxiliary data.

ACC and MASR are lines with their intervals, the clean PTM's are dotted. A line joins cells that
differ in that setting alone. Names and words are those of `cell_figures.py`.
"""

from collections import defaultdict

from recipe_ray.report.cell_figures import Cells, crossed, listed, named
from recipe_ray.report.charts import (
    BLUE,
    INK,
    TOLD,
    VERMILION,
    Figure,
    Panel,
    Spec,
    axis,
    coloured,
    counted,
    data,
    percent_axis,
    percent_of,
    said,
)
from recipe_ray.report.summary import CLEAN, SETTINGS, CellSummary
from recipe_ray.report.tables import setting_text


def over_epochs(cells: Cells) -> Figure | None:
    """Return ACC and MASR against epochs of purification (Figure 3); epoch 0 is undefended."""
    lines: dict[str, list[CellSummary]] = {}
    for cell in cells:
        if cell.defense != CLEAN and cell.epoch is not None:
            start = (o for o in cells if o.defense == CLEAN and named(o) == named(cell))
            lines.setdefault(f"{named(cell)}, {cell.defense}", [*start]).append(cell)
    return _against(lines, "epoch", "during purification", "epochs of purification")


def over_weight_factors(cells: Cells) -> Figure | None:
    """Return ACC and MASR against the weight factor of the penalty (Table 9)."""
    lines = _lines(cells, "weight_factor")
    return _against(lines, "weight_factor", "by weight of the penalty", "weight factor (no unit)")


def over_sizes(cells: Cells) -> Figure | None:
    """Return ACC and MASR against the size of the auxiliary data (Table 4)."""
    return _against(
        _lines(cells, "aux_size"), "aux_size", "by amount of auxiliary data", "auxiliary samples"
    )


def _lines(cells: Cells, setting: str) -> dict[str, list[CellSummary]]:
    """Return the cells that differ in one setting alone, or in that and their defense's title."""
    others = [name for name in SETTINGS if name != setting]
    groups: dict[tuple[object, ...], list[CellSummary]] = defaultdict(list)
    for cell in cells:
        if CLEAN not in (cell.defense, cell.attack) and getattr(cell, setting) is not None:
            groups[named(cell), *(getattr(cell, name) for name in others)].append(cell)
    found: dict[str, list[CellSummary]] = {}
    for (name, *_), group in groups.items():
        by_defense: dict[str, list[CellSummary]] = defaultdict(list)
        for cell in group:
            by_defense[cell.defense].append(cell)
        if len({getattr(cell, setting) for cell in group}) == len(group):
            by_defense = {"": group}  # titles that say the setting: one cell each, one line
        for defense, own in by_defense.items():
            title = ", ".join(filter(None, (str(name), defense)))
            while title in found:  # they differ in another setting
                title += "'"
            found[title] = own
    return found


def _against(
    lines: dict[str, list[CellSummary]], setting: str, title: str, x_title: str
) -> Figure | None:
    drawn = {name: own for name, own in lines.items() if len(own) > 1}
    if not drawn:
        return None
    cells = [cell for own in drawn.values() for cell in own]
    note = "Dotted lines: the clean PTM. " + counted(cell.masr or cell.acc for cell in cells)
    return Figure(
        _FILES[setting],
        f"Accuracy and attack success {title}",
        note + crossed(cells),
        tuple(_line_panel(name, own, setting, x_title) for name, own in drawn.items()),
    )


_FILES = {"epoch": "epochs", "weight_factor": "weight-factor", "aux_size": "data-efficiency"}


def _line_panel(title: str, cells: Cells, setting: str, x_title: str) -> Panel:
    values: list[Spec] = []
    levels: dict[str, float] = {}
    for cell in cells:
        place = getattr(cell, setting) or 0
        for metric, value in (("ACC", cell.acc), ("MASR", cell.masr)):
            if value is not None:
                chance = metric == "MASR" and bool(cell.at_chance)
                told = f"{x_title} {setting_text(place)}: {metric} {said(value)}"
                told += ", at chance" if chance else ""
                about = {"metric": metric, "x": place, "told": told, "chance": chance}
                values.append({**about, **percent_of(value)})
        for metric, level in (("ACC", cell.clean_acc), ("MASR", cell.floor_masr)):
            if level is not None:
                levels[metric] = 100 * level
    places = sorted({one["x"] for one in values})
    # Vega leaves out every other value if there are more than `tickCount`
    few: Spec = {"values": places, "tickCount": len(places)} if len(places) < 8 else {}
    scale: Spec = {"type": "linear", "nice": False, "padding": 8}
    if setting != "epoch":  # a weight factor may be 0, which has no logarithm
        scale["type"] = "log" if min(places) > 0 else "symlog"
        scale |= {"constant": 0.01} if min(places) <= 0 else {}
        x_title += ", log scale"
    x = axis("x", x_title, scale=scale, grid=False, labelOverlap="greedy", **few)
    x["axis"]["format"] = "~g"
    y = percent_axis("mean", "percent")
    colour = coloured("metric", ("ACC", "MASR"), (BLUE, VERMILION))
    level_rows = data({"metric": metric, "mean": value} for metric, value in levels.items())
    interval = {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour}
    point = {"type": "point", "filled": True, "size": 45, "opacity": 1}
    shape = {
        **{"field": "metric", "type": "nominal"},
        "scale": {"domain": ["ACC", "MASR"], "range": ["circle", "square"]},
    }
    layers: tuple[Spec, ...] = (
        {**level_rows, "mark": {"type": "rule", "strokeDash": [2, 3], "aria": False}}
        | {"encoding": {"y": y, "color": colour}},
        {**data(values), "mark": {"type": "line", "aria": False}}
        | {"encoding": {"x": x, "y": y, "color": colour}},
        {**data(values), "mark": {"type": "rule", "clip": True, "aria": False}}
        | {"encoding": interval},
        {**data(values), "mark": point}
        | {"encoding": {"x": x, "y": y, "color": colour, "shape": shape, "description": TOLD}},
        {
            **data(one for one in values if one["chance"]),
            "mark": {"type": "text", "text": "×", "fontSize": 16, "color": INK, "aria": False},
            "encoding": {"x": x, "y": y},
        },
    )
    return Panel(title, f"ACC and MASR against {x_title}: {listed(values)}", layers)
