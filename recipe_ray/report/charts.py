"""How a figure is drawn: panels as Vega-Lite, made SVG, PNG or PDF by vl-convert (extra `figures`).

A figure is one question, a panel one small chart of it. Page and files draw the same panels: a page
lays them side by side as far as its width goes, a file has them all. What each figure shows is said
in `cell_figures.py` and `run_figures.py`. Names come from rows that somebody else may have written:
here they become data of a chart, cut to a length that fits, and never a part of its code.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from recipe_ray.base.errors import UserError, in_a_line
from recipe_ray.report.stats import Estimate
from recipe_ray.report.tables import range_text

Spec = dict[str, Any]  # a part of a Vega-Lite specification
# Each has a contrast of 3:1 or more both on white and on the dark page, and colour-blind readers
# tell the first three apart (blue, vermilion, grey).
BLUE, VERMILION, GREY = "#2F7FC1", "#D9541E", "#6B7785"
COLOURS = (BLUE, VERMILION, "#12906A", "#B5559A", "#A87400", "#7E6BC4", "#C2476B", GREY)
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross")
# light to dark: the later the rung, the fewer candidates and the surer their scores
SHADES = ("#8DB9DE", "#5B9BD0", BLUE, "#1F5F96", "#123B60")
INK, LINES = "#1B1F24", "#D8DDE3"  # text, and the grid; the page has others in the dark
WIDTH = 250  # of a panel's plot, in pixels: with its axis it fits a phone
ROW = 17  # height of one named row
FORMATS = ("svg", "png", "pdf")
MOST_MARKS = 4000  # of one panel; more cannot be read, and take minutes to draw
MOST_PANELS = 120  # of one figure
_LONGEST = 28  # characters of a name in a chart
_CONFIG: Spec = {
    "background": None,
    "font": "Arial, Liberation Sans, Helvetica, sans-serif",
    "view": {"stroke": None},
    "title": {"fontSize": 12, "anchor": "start", "color": INK, "subtitleColor": INK},
    "axis": {
        **{"labelColor": INK, "titleColor": INK, "labelFontSize": 10, "titleFontSize": 11},
        **{"gridColor": LINES, "domainColor": GREY, "tickColor": GREY, "titleFontWeight": "normal"},
        "labelLimit": 190,
    },
    "legend": {
        **{"orient": "bottom", "columns": 2, "title": None, "labelColor": INK, "titleColor": INK},
        **{"labelLimit": 150, "symbolOpacity": 1, "labelFontSize": 10, "columnPadding": 18},
    },
}


@dataclass(frozen=True)
class Panel:
    """One chart: its title, the layers, and `told`, what it shows for those who cannot see it."""

    title: str
    told: str
    layers: tuple[Spec, ...]
    width: int = WIDTH
    height: int = 170

    @property
    def marks(self) -> int:
        """How many marks it has."""
        return sum(len(layer["data"]["values"]) for layer in self.layers if "data" in layer)

    def spec(self) -> Spec:
        """Return it as Vega-Lite."""
        size = {"width": self.width, "height": self.height}
        return {"title": short(self.title, 44), **size, "layer": list(self.layers)}


@dataclass(frozen=True)
class Figure:
    """One question and its panels; `name` is a part of a file's name, `note` says how to read it.

    Raises UserError, when drawn, if the library is missing.
    """

    name: str
    title: str
    note: str
    panels: tuple[Panel, ...]

    @property
    def undrawable(self) -> str | None:
        """Say why it is not drawn, None if it can be."""
        if len(self.panels) > MOST_PANELS:
            return f"{len(self.panels):,} panels; at most {MOST_PANELS} are drawn"
        most = max(panel.marks for panel in self.panels)
        return f"{most:,} marks in a panel; at most {MOST_MARKS:,}" if most > MOST_MARKS else None

    def spec(self) -> Spec:
        """Return all panels as one Vega-Lite specification."""
        columns = min(3, len(self.panels))
        return {
            "title": {"text": self.title, "subtitle": _folded(self.note, 62 * columns)},
            "concat": [panel.spec() for panel in self.panels],
            "columns": columns,
            "resolve": {"scale": {"color": "independent", "shape": "independent"}},
        }


def require_library() -> Any:
    """Return vl-convert; raise UserError, saying how to get it, if it is missing."""
    try:
        return import_module("vl_convert")
    except ModuleNotFoundError as error:
        raise UserError(
            "figures are drawn by vl-convert-python, which is not installed: "
            "pip install 'recipe-ray[figures]'"
        ) from error


def svg(panel: Panel) -> str:
    """Return a panel as SVG, on no background."""
    return _svg(json.dumps(panel.spec()))


@lru_cache(maxsize=2000)
def _svg(spec: str) -> str:
    # kept: a page that is served again while a sweep runs has few new panels
    library = require_library()
    try:
        return renamed(library.vegalite_to_svg(spec, config=_CONFIG), "")
    except ValueError as error:  # a number of the rows that is none, e.g.
        raise UserError(f"a figure cannot be drawn: {in_a_line(error)}") from error


def save(figure: Figure, file: Path) -> None:
    """Write a figure in the format of the file's suffix, on white."""
    library, spec = require_library(), figure.spec()
    config = {**_CONFIG, "background": "white", "padding": 8}
    if file.suffix == ".svg":
        drawn = renamed(library.vegalite_to_svg(spec, config=config), "")
        file.write_text(drawn, encoding="utf-8")
    elif file.suffix == ".png":
        file.write_bytes(library.vegalite_to_png(spec, config=config, scale=2, ppi=96))
    else:
        file.write_bytes(library.vegalite_to_pdf(spec, config=config))


_OWN_ID = re.compile(r'(<(?:clipPath|linearGradient)[^>]*? id=")(\w+)(?=")')
_USED_ID = re.compile(r'(="url\(#)(\w+)(?=\)")')


def renamed(drawn: str, prefix: str) -> str:
    """Return an SVG whose ids are the prefix and a number; the library counts through all it draws.

    So the same rows give the same bytes, and charts on one page do not share ids.
    """
    ids = dict.fromkeys(found[1] for found in _OWN_ID.findall(drawn))
    names = {old: f"{prefix}i{number}" for number, old in enumerate(ids)}

    def new(match: re.Match[str]) -> str:
        return match[1] + names.get(match[2], match[2])

    return _USED_ID.sub(new, _OWN_ID.sub(new, drawn))


# --- what charts are made of


def data(values: Iterable[Spec]) -> Spec:
    """Return the data of a layer."""
    return {"data": {"values": list(values)}}


def axis(
    field: str, title: str, *, scale: Spec | None = None, grid: bool = True, **more: Any
) -> Spec:
    """Return a channel along an axis of numbers."""
    shown = {"title": title, "grid": grid, "tickCount": 5, **more}
    found = {"field": field, "type": "quantitative", "axis": shown}
    return {**found, "scale": scale} if scale is not None else found


def percent_axis(field: str, title: str, *, whole: bool = True) -> Spec:
    """Return a channel of percentages: from 0 to 100, or (not `whole`) as far as the data go."""
    return axis(field, title, scale={"domain": [0, 100]} if whole else {"zero": False})


def names_axis(field: str, names: Sequence[str], title: str | None = None, **more: Any) -> Spec:
    """Return a channel along an axis of names, in this order."""
    shown = {"title": title, "grid": False, "ticks": False, **more}
    return {"field": field, "type": "nominal", "sort": list(names), "axis": shown}


def coloured(field: str, names: Sequence[str], colours: Sequence[str] = COLOURS) -> Spec:
    """Return a channel of colours by name."""
    chosen = [colours[number % len(colours)] for number in range(len(names))]
    return {"field": field, "type": "nominal", "scale": {"domain": list(names), "range": chosen}}


TOLD: Spec = {"field": "told", "type": "nominal"}  # what a mark says when pointed at


def percent_of(value: Estimate) -> Spec:
    """Return a mean share and its interval as percentages: `mean`, `low`, `high`, in 0 to 100.

    A t interval may go beyond that, where no share can be. A line that is only clipped there still
    counts as wide as it would be, and pages make room for it.
    """
    low = value.mean if value.low is None else max(value.low, 0.0)
    high = value.mean if value.high is None else min(value.high, 1.0)
    return {"mean": 100 * value.mean, "low": 100 * low, "high": 100 * high}


def said(value: Estimate) -> str:
    """Return a mean fraction in percent with its interval and the number of seeds, in words."""
    margin = "" if value.margin is None else f" ±{100 * value.margin:.1f}"
    return f"{100 * value.mean:.1f}{margin} % (n = {value.n})"


def counted(values: Iterable[Estimate | None]) -> str:
    """Return the sentence that gives n and says what the bars are."""
    counts = [value.n for value in values if value is not None]
    bars = "Bars: 95 % t interval over seeds"
    if counts and max(counts) == 1:
        return "n = 1 seed, so there is no interval."
    some = " (none where n = 1)" if counts and min(counts) == 1 else ""
    return f"{bars}{some}; n = {range_text(counts)} seeds." if counts else ""


def short(name: str, longest: int = _LONGEST) -> str:
    """Return a name for a chart: without control signs; a long one is cut, and stays unique."""
    plain = "".join(" " if sign.isspace() else _visible(sign) for sign in name)
    if len(plain) <= longest:
        return plain
    mark = hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:4]
    return f"{plain[: longest - 7]}…({mark})"


def _visible(sign: str) -> str:
    return sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}"


def _folded(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines
