"""Figures of fine-tunings: what purification does to ASR and ACC, and what that depends on.

Each function takes a section's cells and returns a figure, or None if it has not the data for it.
MASR is the highest success rate over triggers. The floor is the clean PTM's MASR on the same
triggers. A cell at chance says nothing of MASR (`tables.py`): it is drawn as a cross.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean

from recipe_ray.report.charts import (
    BLUE,
    COLOURS,
    GREY,
    INK,
    ROW,
    SHAPES,
    TOLD,
    VERMILION,
    Figure,
    Panel,
    Spec,
    coloured,
    counted,
    data,
    names_axis,
    percent_axis,
    percent_of,
    said,
    short,
)
from recipe_ray.report.summary import CLEAN, SETTINGS, CellSummary
from recipe_ray.report.tables import percent, setting_text, tells_apart

Cells = Sequence[CellSummary]
STATES = ("undefended", "purified", "clean PTM")
STATE_COLOURS = (VERMILION, BLUE, GREY)
_FLOOR = "The grey tick is the clean PTM on the same triggers (the floor)."
_CROSS = " A cross is at chance: its MASR says nothing."


def attack_success(cells: Cells) -> Figure | None:
    """Return MASR of undefended and purified PTMs, with the floor: a panel per PTM and task."""
    attacked = [cell for cell in cells if cell.attack != CLEAN and cell.masr is not None]
    if not attacked:
        return None
    note = f"MASR: success rate of the best trigger, lower is better. {_FLOOR} "
    note += counted(cell.masr for cell in attacked) + crossed(attacked)
    return Figure(
        "attack-success",
        "Attack success before and after purification",
        note,
        tuple(_rows(*group, "MASR") for group in _panels(attacked)),
    )


def accuracy(cells: Cells) -> Figure | None:
    """Return ACC of undefended and purified PTMs: a panel per PTM and task."""
    known = [cell for cell in cells if cell.acc is not None]
    if not any(cell.defense != CLEAN for cell in known):
        return None
    note = "ACC: share of test samples classified correctly, higher is better. "
    note += "The grey tick is the clean PTM. " + counted(cell.acc for cell in known)
    return Figure(
        "accuracy",
        "Accuracy before and after purification",
        note,
        tuple(_rows(*group, "ACC") for group in _panels(known)),
    )


def _panels(cells: Cells) -> list[tuple[str, Cells, Cells]]:
    """Return (title, the panel's cells, all cells), by PTM and task."""
    groups: dict[tuple[str, str], list[CellSummary]] = defaultdict(list)
    for cell in cells:
        groups[cell.model, cell.task].append(cell)
    return [(f"{model} on {task}", own, cells) for (model, task), own in sorted(groups.items())]


def _rows(title: str, cells: Cells, everything: Cells, metric: str) -> Panel:
    values: list[Spec] = []
    names: list[str] = []
    for cell in cells:
        value = cell.masr if metric == "MASR" else cell.acc
        floor = cell.floor_masr if metric == "MASR" else cell.clean_acc
        assert value is not None
        state = STATES[cell.defense != CLEAN]
        row = f"{short(cell.attack, 16)}: {defense(cell, everything)}"
        if cell.attack == CLEAN:  # it has no backdoor: "none: undefended" would look attacked
            state = STATES[2] if cell.defense == CLEAN else state
            row = STATES[2] + ("" if cell.defense == CLEAN else f": {defense(cell, everything)}")
        names.append(row)
        told = f"{row}: {metric} {said(value)}"
        if floor is not None:
            told += f"; clean PTM {percent(floor)} %"
        crossed = metric == "MASR" and bool(cell.at_chance)
        value_fields = {**percent_of(value), "shape": "at chance" if crossed else "measured"}
        clean = None if floor is None else 100 * floor
        values.append({"row": row, "state": state, "told": told, "clean": clean, **value_fields})
    y = names_axis("row", names)
    x = percent_axis("mean", f"{metric} (%)", whole=metric == "MASR")  # ACC differ by points
    colour = coloured("state", STATES, STATE_COLOURS) | {"legend": {"columns": 3}}
    shape = {
        **{"field": "shape", "type": "nominal", "legend": None},
        "scale": {"domain": ["measured", "at chance"], "range": ["circle", "cross"]},
    }
    floors = [{**one, "state": STATES[2]} for one in values if one["clean"] is not None]
    interval = {"x": {**x, "field": "low"}, "x2": {"field": "high"}, "y": y, "color": colour}
    layers: tuple[Spec, ...] = (
        {
            **data(floors),
            "mark": {"type": "tick", "thickness": 2, "aria": False},
            "encoding": {"x": {**x, "field": "clean"}, "y": y, "color": colour},
        },
        {**data(values), "mark": {"type": "rule", "clip": True, "aria": False}}
        | {"encoding": interval},
        {
            **data(values),
            "mark": {"type": "point", "filled": True, "size": 55, "opacity": 1},
            "encoding": {"x": x, "y": y, "color": colour, "shape": shape, "description": TOLD},
        },
    )
    told = f"{metric} in percent, one row per attack and defense: " + listed(values)
    return Panel(title, told, layers, height=ROW * max(len(set(names)), 3))


def trade_off(cells: Cells) -> Figure | None:
    """Return ACC against MASR with the front of defenses that no other beats in both."""
    groups = {title: own for title, own in attacked(cells, "acc", "masr").items() if len(own) > 1}
    if not any(cell.defense != CLEAN for own in groups.values() for cell in own):
        return None
    drawn = [cell for own in groups.values() for cell in own]
    note = "Up and to the left is better. The line joins what no other beats in both. "
    note += counted(cell.masr for cell in drawn) + crossed(drawn)
    return Figure(
        "trade-off",
        "Accuracy against attack success",
        note,
        tuple(_scatter(title, own, cells) for title, own in groups.items()),
    )


def _scatter(title: str, cells: Cells, everything: Cells) -> Panel:
    values: list[Spec] = []
    for cell in cells:
        assert cell.acc is not None
        assert cell.masr is not None
        acc, masr = percent_of(cell.acc), percent_of(cell.masr)
        name = defense(cell, everything)
        told = f"{name}: ACC {said(cell.acc)}, MASR {said(cell.masr)}"
        if cell.at_chance:
            told += ", at chance"
        about = {"name": name, "told": told, "chance": bool(cell.at_chance)}
        values.append(
            {**about, **{f"x{k}": v for k, v in masr.items()}}
            | {f"y{k}": v for k, v in acc.items()}
        )
    front = pareto([(one["xmean"], one["ymean"]) for one in values if not one["chance"]])
    names = list(dict.fromkeys(one["name"] for one in values))
    x = percent_axis("xmean", "MASR (%)")
    y = percent_axis("ymean", "ACC (%)", whole=False)
    colour = coloured("name", names)
    shapes = [SHAPES[number // len(COLOURS) % len(SHAPES)] for number in range(len(names))]
    shape = {"field": "name", "type": "nominal", "scale": {"domain": names, "range": shapes}}
    bars = {"type": "rule", "clip": True, "aria": False, "opacity": 0.6}
    across = {"x": {**x, "field": "xlow"}, "x2": {"field": "xhigh"}, "y": y, "color": colour}
    along = {"x": x, "y": {**y, "field": "ylow"}, "y2": {"field": "yhigh"}, "color": colour}
    point = {"type": "point", "filled": True, "size": 65, "opacity": 1}
    layers: tuple[Spec, ...] = (
        {
            **data({"xmean": a, "ymean": b} for a, b in front),
            "mark": {"type": "line", "color": GREY, "strokeDash": [4, 3], "aria": False},
            "encoding": {"x": x, "y": y, "order": {"field": "xmean"}},
        },
        {**data(values), "mark": bars, "encoding": across},
        {**data(values), "mark": bars, "encoding": along},
        {
            **data(values),
            "mark": point,
            "encoding": {"x": x, "y": y, "color": colour, "shape": shape, "description": TOLD},
        },
        {
            **data(one for one in values if one["chance"]),
            "mark": {"type": "text", "text": "×", "fontSize": 16, "color": INK, "aria": False},
            "encoding": {"x": x, "y": y},
        },
    )
    told = "ACC against MASR, one point per defense: " + listed(values)
    return Panel(title, told, layers, height=190)


def pareto(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (MASR, ACC) that no other beats in both, by MASR."""
    front: list[tuple[float, float]] = []
    for masr, acc in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not front or acc > front[-1][1]:
            front.append((masr, acc))
    return front


def by_trigger(cells: Cells) -> Figure | None:
    """Return the heat map of ASR by trigger and label: a panel per PTM, attack and task."""
    groups = {name: own for name, own in attacked(cells, "masr").items() if any(map(_asr, own))}
    if not groups:
        return None
    drawn = [cell for own in groups.values() for cell in own]
    note = "ASR in percent: how often a trigger turns a sample into a label; lower is better. "
    note += "A column is a defense and a label. Means over seeds; "
    note += counted(cell.masr for cell in drawn).partition("; ")[2] or "n = 1 seed."
    return Figure(
        "triggers-by-label",
        "Attack success by trigger and label",
        note,
        tuple(_heat_map(title, own, cells) for title, own in groups.items()),
    )


def _asr(cell: CellSummary) -> dict[tuple[str, int], list[float]]:
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for trial in cell.trials:
        for place, share in trial.asr.items():
            found[place].append(share.value)
    return found


def _heat_map(title: str, cells: Cells, everything: Cells) -> Panel:
    values: list[Spec] = []
    for cell in cells:
        for (trigger, label), shares in sorted(_asr(cell).items()):
            column = f"{defense(cell, everything)}: {label}"
            told = f"{column}, trigger {short(trigger)}: ASR {percent(fmean(shares))} %"
            told += f" (n = {len(shares)})"
            about = {"trigger": short(trigger), "column": column, "told": told}
            values.append({**about, "asr": 100 * fmean(shares)})
    columns = list(dict.fromkeys(str(one["column"]) for one in values))
    rows = list(dict.fromkeys(str(one["trigger"]) for one in values))
    x = names_axis("column", columns, "defense: label", labelAngle=-60, domain=False)
    y = names_axis("trigger", rows, "trigger", domain=False)
    colour = {
        **{"field": "asr", "type": "quantitative"},
        "scale": {"domain": [0, 100], "range": ["#EAF1F8", "#8DB9DE", BLUE, "#12304D"]},
        "legend": {"title": "ASR (%)", "direction": "horizontal", "gradientLength": 140},
    }
    light = {"condition": {"test": "datum.asr > 45", "value": "#FFFFFE"}, "value": "#12304E"}
    layers: tuple[Spec, ...] = (
        {**data(values), "mark": {"type": "rect"}}
        | {"encoding": {"x": x, "y": y, "color": colour, "description": TOLD}},
        {**data(values), "mark": {"type": "text", "fontSize": 9, "aria": False}}
        | {
            "encoding": {"x": x, "y": y, "color": light}
            | {"text": {"field": "asr", "type": "quantitative", "format": ".0f"}}
        },
    )
    told = "ASR in percent by trigger, defense and label: " + listed(values)
    size = {"width": max(22 * len(columns), 90), "height": 20 * max(len(rows), 2)}
    return Panel(title, told, layers, **size)


# --- names


def attacked(cells: Cells, *metrics: str) -> dict[str, list[CellSummary]]:
    """Return the cells of backdoored PTMs that have these metrics, by PTM, attack and task."""
    found: dict[str, list[CellSummary]] = defaultdict(list)
    for cell in cells:
        if cell.attack != CLEAN and all(getattr(cell, metric) is not None for metric in metrics):
            found[named(cell)].append(cell)
    return found


def named(cell: CellSummary) -> str:
    return f"{cell.model}, {cell.attack} on {cell.task}"


def defense(cell: CellSummary, everything: Cells) -> str:
    """Return what was done to the PTM, with the settings that tell it from others."""
    if cell.defense == CLEAN:
        return STATES[0]
    apart = [name for name in SETTINGS if tells_apart(name, everything)]
    own = {name: getattr(cell, name) for name in apart}
    told = [_WORDS[name] + setting_text(value) for name, value in own.items() if value is not None]
    return ", ".join((short(cell.defense), *map(short, told)))


_WORDS = {"aux": "", "aux_size": "size ", "weight_factor": "weight ", "epoch": "epoch "}


def crossed(cells: Iterable[CellSummary]) -> str:
    return _CROSS if any(cell.at_chance for cell in cells) else ""


def listed(values: Sequence[Spec]) -> str:
    """Return what the marks of a panel say, the first forty of them."""
    told = [str(one["told"]) for one in values[:_MOST_TOLD]]
    more = f"; and {len(values) - _MOST_TOLD} more" if len(values) > _MOST_TOLD else ""
    return "; ".join(told) + more


_MOST_TOLD = 40
