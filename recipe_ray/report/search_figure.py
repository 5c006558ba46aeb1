"""The curve of a search: score against weight factor, a line a rung, the full grid beside."""

from statistics import fmean
from typing import TYPE_CHECKING

from recipe_ray.experiment.search.spec import WORST
from recipe_ray.report.panels import PANEL, require_matplotlib
from recipe_ray.report.searches import SearchSummary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# light to dark: the later the rung, the fewer candidates and the surer their scores
_SHADES = ("#A6CEE3", "#56B4E9", "#0072B2", "#003F66", "#001F33")
_GRID = "#D55E00"


def search_curve(search: SearchSummary) -> "Figure":
    """Return the figure; raise UserError where matplotlib is missing."""
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
    # a mean with the worst score in it is no point of a curve
    grid = {factor: own for factor, own in search.grid.items() if min(own) > WORST}
    if grid:
        means = [100 * fmean(scores) for scores in grid.values()]
        axes.plot(list(grid), means, "s--", color=_GRID, markersize=4, label="full grid")
    lost = [one.weight_factor for one in search.candidates if any(k.at_chance for k in one.looks)]
    if lost:  # at the lower edge: their scores are below every other
        edge = axes.get_xaxis_transform()
        axes.plot(lost, [0.02] * len(lost), "x", color="black", transform=edge, label="at chance")
    axes.set_xscale("log")
    axes.set_xlabel("weight factor")
    axes.set_ylabel(f"score ({search.rule or 'dev'}), points")
    axes.set_title(f"{search.model}, {search.attack}: {search.task}", fontsize="medium")
    return figure
