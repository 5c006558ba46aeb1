"""Figures of all else that was measured: neurons, searches, scans, triggers, and when stages ran.

Each function returns a figure, or None if it has not the data for it.
"""

import base64
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import timedelta
from io import BytesIO

from PIL import Image

from recipe_ray.report.cell_figures import STATE_COLOURS, listed
from recipe_ray.report.charts import (
    BLUE,
    GREY,
    INK,
    ROW,
    SHADES,
    TOLD,
    VERMILION,
    Figure,
    Panel,
    Spec,
    axis,
    coloured,
    counted,
    data,
    names_axis,
    percent_axis,
    percent_of,
    said,
    short,
)
from recipe_ray.report.load import Recorded
from recipe_ray.report.measured import MeasuredSummary
from recipe_ray.report.overview import StageRun
from recipe_ray.report.published import PublishedTable
from recipe_ray.report.searches import SearchSummary
from recipe_ray.report.summary import CLEAN, ProbeSummary, by_attack
from recipe_ray.report.tables import setting_text
from recipe_ray.stages.scan import SUSPICION
from recipe_ray.stages.stage import shown_as
from recipe_ray.store.store import Store
from recipe_ray.triggers.pictures import CLEAN_PICTURE, FILE, Grid, read

PROBED = ("backdoored", "purified", "clean")
_PIXEL = 46  # side of one picture of a trigger
_PAUSE = timedelta(minutes=10)  # a longer time in which nothing ran is left out of the time line
POINT: Spec = {"type": "point", "filled": True, "size": 50, "opacity": 1}


def overlap(probes: Sequence[ProbeSummary], paper: PublishedTable | None) -> Figure | None:
    """Return the overlap ratios of PTMs (Figure 2): a panel per PTM and attack."""
    groups: dict[tuple[str, str], list[tuple[str, ProbeSummary]]] = defaultdict(list)
    for attack, state, probe in by_attack(probes):
        if state in PROBED and probe.overlap is not None:
            groups[probe.model, attack].append((state, probe))
    if not groups:
        return None
    note = "Neurons active on clean and on poisoned texts, of those active on poisoned ones. "
    note += counted(probe.overlap for own in groups.values() for _, probe in own)
    panels = tuple(
        _overlap_panel(", ".join(name), own, paper) for name, own in sorted(groups.items())
    )
    return Figure("overlap", "Neurons that clean and poisoned texts share", note, panels)


def _overlap_panel(
    title: str, probes: Sequence[tuple[str, ProbeSummary]], paper: PublishedTable | None
) -> Panel:
    values: list[Spec] = []
    for state, probe in sorted(probes, key=lambda one: (PROBED.index(one[0]), one[1].defense)):
        assert probe.overlap is not None
        name = state if probe.defense == CLEAN else f"{state} ({short(probe.defense, 20)})"
        task = short(paper.dataset(probe.task) if paper else probe.task)
        told = f"{name} on {task}, trigger {short(probe.trigger)}: {said(probe.overlap)}"
        own = {"name": name, "state": state, "task": task, "told": told}
        values.append({**own, **percent_of(probe.overlap)})
    names = list(dict.fromkeys(one["name"] for one in values))
    tasks = list(dict.fromkeys(one["task"] for one in values))
    x = names_axis("task", tasks, labelAngle=0)
    beside = {"field": "name", "type": "nominal", "sort": names}
    y = percent_axis("mean", "overlap ratio (%)")
    by_state = dict(zip(PROBED, STATE_COLOURS, strict=True))
    states = {one["name"]: by_state[one["state"]] for one in values}
    colour = {**coloured("name", names), "scale": {"domain": names, "range": [*states.values()]}}
    layers: tuple[Spec, ...] = (
        {**data(values), "mark": {"type": "bar"}}
        | {"encoding": {"x": x, "xOffset": beside, "y": y, "color": colour, "description": TOLD}},
        {**data(values), "mark": {"type": "rule", "clip": True, "aria": False, "color": INK}}
        | {
            "encoding": {"x": x, "xOffset": beside}
            | {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
        },
    )
    return Panel(title, "Overlap ratio in percent: " + listed(values), layers)


def search_curve(search: SearchSummary) -> Figure:
    """Return the scores of a search: against the weight factor, and rung by rung (ASHA)."""
    looks = [(one, look) for one in search.candidates for look in one.looks]
    values: list[Spec] = []
    for one, look in looks:
        told = f"weight {setting_text(one.weight_factor)}, epoch {look.epoch}: "
        told += "at chance" if look.at_chance else f"score {100 * look.score:.1f} points"
        told += f" ({one.ended})" if one.ended else ""
        own = {"factor": one.weight_factor, "epoch": look.epoch, "score": 100 * look.score}
        chance = "at chance" if look.at_chance else "measured"
        values.append(
            {**own, "told": told, "candidate": short(one.defense), "ended": one.ended or "unknown"}
            | {"rung": f"epoch {look.epoch}", "shape": chance}
        )
    known = [one for one in values if one["shape"] == "measured"]
    rule = search.rule or "dev"
    note = f"Score by rule {rule}, in points, on dev data; higher is better. n = 1 look each, so "
    note += "there is no interval. "
    lost = [one for one in values if one["shape"] != "measured"]
    if lost:
        note += "A cross at the lower edge is at chance: it has no score."
    title = f"{search.model}, {search.attack} on {search.task}"
    panels = (_curve(title, search, known, lost), *((_rungs(title, known),) if known else ()))
    return Figure("search", "Which weight factor a search finds best", note, panels)


def _curve(
    title: str, search: SearchSummary, values: Sequence[Spec], lost: Sequence[Spec]
) -> Panel:
    rungs = [f"epoch {rung}" for rung in search.rungs]
    drawn = [one for one in values if one["rung"] in rungs]
    steps = max(len(rungs) - 1, 1)
    shades = [SHADES[round(n * (len(SHADES) - 1) / steps)] for n in range(len(rungs))]
    kind = "log" if all(one["factor"] > 0 for one in (*drawn, *lost)) else "symlog"
    scale: Spec = {"type": kind, "nice": False, "padding": 8}
    x = axis("factor", "weight factor (no unit, log scale)", scale=scale, grid=False)
    x["axis"] |= {"format": "~g", "labelOverlap": True}
    y = axis("score", "score (points)", scale={"zero": False})
    colour = coloured("rung", rungs, shades or SHADES)
    layers: tuple[Spec, ...] = (
        {**data(drawn), "mark": {"type": "line", "aria": False}}
        | {"encoding": {"x": x, "y": y, "color": colour}},
        {**data(drawn), "mark": POINT}
        | {"encoding": {"x": x, "y": y, "color": colour, "description": TOLD}},
        {**data(lost), "mark": {"type": "text", "text": "×", "fontSize": 16, "color": INK}}
        | {"encoding": {"x": x, "y": {"value": 164}, "description": TOLD}},
    )
    told = "Score by candidate: " + listed([*drawn, *lost])
    return Panel(f"By weight factor: {title}", told, layers)


def _rungs(title: str, values: Sequence[Spec]) -> Panel:
    epochs = sorted({one["epoch"] for one in values})
    endings = list(dict.fromkeys(one["ended"] for one in values))
    x = axis("epoch", "epochs of purification", grid=False, values=epochs, format="d")
    y = axis("score", "score (points)", scale={"zero": False})
    colour = coloured("ended", endings)
    lines = {"field": "candidate", "type": "nominal"}
    layers: tuple[Spec, ...] = (
        {**data(values), "mark": {"type": "line", "aria": False}}
        | {"encoding": {"x": x, "y": y, "color": colour, "detail": lines}},
        {**data(values), "mark": POINT}
        | {"encoding": {"x": x, "y": y, "color": colour, "description": TOLD}},
    )
    told = "Score by epoch, one line per candidate; it ends where the search stopped it: "
    return Panel(f"By rung: {title}", told + listed(values), layers)


def suspicion(measured: Sequence[MeasuredSummary]) -> Figure | None:
    """Return how suspicious scans found PTMs, by attack; above 1 is suspicious."""
    scans = [one for one in measured if SUSPICION in one.values]
    if not scans:
        return None
    groups: dict[str, list[MeasuredSummary]] = defaultdict(list)
    for one in scans:
        groups[one.model].append(one)
    note = "One mark per PTM; right of the dashed line (1) a scan says suspicious. "
    note += counted(one.values[SUSPICION] for one in scans)
    return Figure(
        "suspicion",
        "How suspicious scans find models, by attack",
        note,
        tuple(_suspicion_panel(model, own) for model, own in sorted(groups.items())),
    )


def _suspicion_panel(title: str, scans: Sequence[MeasuredSummary]) -> Panel:
    values: list[Spec] = []
    for one in scans:
        value = one.values[SUSPICION]
        attack = "clean" if one.attack == CLEAN else short(one.attack)
        state = "undefended" if one.defense == CLEAN else "purified"
        told = f"{attack}, {state}: suspicion {value.mean:.3g} (n = {value.n})"
        low, high = (value.mean if v is None else v for v in (value.low, value.high))
        own = {"attack": attack, "state": state, "told": told}
        values.append({**own, "mean": value.mean, "low": max(low, 0.0), "high": high})
    attacks = list(dict.fromkeys(str(one["attack"]) for one in values))
    scale = {"type": "symlog", "constant": 1, "domainMin": 0}
    x = axis("mean", "suspicion (no unit, log scale)", scale=scale)
    y = names_axis("attack", attacks, "attack")
    colour = coloured("state", ("undefended", "purified"), (VERMILION, BLUE))
    layers: tuple[Spec, ...] = (
        {**data([{"mean": 1}]), "mark": {"type": "rule", "strokeDash": [4, 3], "color": GREY}}
        | {"encoding": {"x": x}},
        {**data(values), "mark": {"type": "rule", "clip": True, "aria": False}}
        | {
            "encoding": {"x": {**x, "field": "low"}, "x2": {"field": "high"}, "y": y}
            | {"color": colour}
        },
        {**data(values), "mark": {**POINT, "opacity": 0.8}}
        | {"encoding": {"x": x, "y": y, "color": colour, "description": TOLD}},
    )
    told = "Suspicion by attack: " + listed(values)
    return Panel(title, told, layers, height=ROW * max(len(attacks), 3))


def timeline(runs: Sequence[StageRun]) -> Figure | None:
    """Return when each stage ran: one bar per stage, in as many rows as ran at the same time."""
    if not runs:
        return None
    kinds = list(dict.fromkeys(run.kind for run in runs))
    starts, pauses = _without_pauses(runs)
    rows: list[float] = []  # when each row is free again
    values: list[Spec] = []
    for run, start in zip(runs, starts, strict=True):
        end = start + run.wall_s / 60
        row = next((n for n, free in enumerate(rows) if free <= start), len(rows))
        rows[row : row + 1] = [end]
        told = f"{run.kind} {short(run.label, 60)}: {run.wall_s:,.0f} s, {run.workers} worker(s)"
        own = {"row": row, "below": row + 0.9, "start": start, "end": end}
        values.append({**own, "kind": run.kind, "told": told})
    note = f"n = {len(runs):,} stages, one run each. "
    if pauses:
        note += f"{pauses} pauses of more than {_PAUSE.seconds // 60} minutes are left out."
    x = axis("start", "minutes of work since the first stage began")
    y: Spec = {
        **{"field": "row", "type": "quantitative", "scale": {"reverse": True, "nice": False}},
        "axis": {"title": "at once", "labels": False, "ticks": False, "grid": False},
    }
    across = {"x": x, "x2": {"field": "end"}, "y": y, "y2": {"field": "below"}}
    colour = {"color": coloured("kind", kinds), "description": TOLD}
    bars: Spec = {**data(values), "mark": {"type": "rect"}, "encoding": {**across, **colour}}
    told = f"{len(runs)} stages by time: " + listed(values)
    panel = Panel("Stages by time", told, (bars,), width=560, height=max(12 * len(rows), 40))
    return Figure("timeline", "When the stages ran", note, (panel,))


def _without_pauses(runs: Sequence[StageRun]) -> tuple[list[float], int]:
    """Return the start of each run, sorted by start, in minutes of work; and how many pauses."""
    skipped, pauses, busy = timedelta(), 0, runs[0].began
    starts = []
    for run in runs:
        if run.began - busy > _PAUSE:
            skipped += run.began - busy
            pauses += 1
        busy = max(busy, run.ended)
        starts.append((run.began - runs[0].began - skipped).total_seconds() / 60)
    return starts, pauses


Look = tuple[int, tuple[str, ...]]  # the model's input size and its triggers


def trigger_pictures(found: Iterable[Recorded], store: Store) -> list[Figure]:
    """Return test images without and with each trigger, a figure per input size of models."""
    by_look: dict[Look, dict[str, Grid]] = defaultdict(dict)
    for task, kind, key in sorted(_finetunings(found)):
        grid = _grid(store, kind, key)
        if grid is not None:
            by_look[grid.size, tuple(sorted(grid.triggers))].setdefault(task, grid)
    sizes = [size for size, _ in by_look]
    figures = []
    for number, ((size, triggers), grids) in enumerate(sorted(by_look.items()), 1):
        own = f"-{number}" if sizes.count(size) > 1 else ""
        panels = tuple(
            _pictures(task, grid, (CLEAN_PICTURE, *triggers)) for task, grid in grids.items()
        )
        note = f"Test images of {size} x {size} pixels without and with each trigger."
        figures.append(Figure(f"triggers-{size}{own}", "What the triggers look like", note, panels))
    return figures


def _finetunings(found: Iterable[Recorded]) -> set[tuple[str, str, str]]:
    kinds = shown_as("attack success")
    rows = [row for one in found for row in one.rows.select(["kind", "task", "stage"]).to_pylist()]
    return {(row["task"], row["kind"], row["stage"]) for row in rows if row["kind"] in kinds}


def _grid(store: Store, kind: str, key: str) -> Grid | None:
    artifact = store.find(kind, key)
    if artifact is None or FILE not in store.manifest(artifact)["files"]:
        return None
    return read(store.fetch(artifact) / FILE)


def _pictures(task: str, grid: Grid, names: Sequence[str]) -> Panel:
    chosen = Grid({name: grid.rows[name] for name in names})
    image = Image.fromarray(chosen.image())
    across, down = image.width // grid.size, len(names)
    larger = max(1, -(-2 * _PIXEL // grid.size))  # pixels stay sharp on fine screens
    image = image.resize((image.width * larger, image.height * larger), Image.Resampling.NEAREST)
    kept = BytesIO()
    image.save(kept, "PNG")
    url = "data:image/png;base64," + base64.b64encode(kept.getvalue()).decode()
    width, height = across * _PIXEL, down * _PIXEL
    told = f"{across} test images of {task}, one row each: {', '.join(map(short, names))}"
    rows = [short(name) for name in names]
    blank = data({"row": row} for row in rows)
    y = names_axis("row", rows, domain=False)
    layers: tuple[Spec, ...] = (
        {**blank, "mark": {"type": "rect", "opacity": 0, "aria": False}, "encoding": {"y": y}},
        {
            **data([{"url": url, "told": told}]),
            "mark": {"type": "image", "width": width, "height": height},
            "encoding": {"url": {"field": "url", "type": "nominal"}, "description": TOLD}
            | {"x": {"value": width / 2}, "y": {"value": height / 2}},
        },
    )
    return Panel(task, told, layers, width=width, height=height)
