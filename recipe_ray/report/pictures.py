"""What the patches of an experiment look like: a row a trigger, columns of test images (`figures`).

Each fine-tuning on images kept a few of them in its artifact, so no data are read here.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recipe_ray.data.pictures import CLEAN, FILE, Grid, read
from recipe_ray.report.panels import require_matplotlib
from recipe_ray.report.recorded import Recorded
from recipe_ray.stages.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INCHES = 0.7  # a side of one image
Look = tuple[int, tuple[str, ...]]  # the model's input size and its triggers


def draw_triggers(found: Iterable[Recorded], store: Store, folder: Path) -> list[Path]:
    """Write `triggers-<size>.png` for each input size of models in `found`; return the files."""
    by_look: dict[Look, dict[str, Grid]] = defaultdict(dict)
    for task, key in sorted(_finetunings(found)):
        grid = _grid(store, key)
        if grid is not None:
            by_look[grid.size, tuple(sorted(grid.triggers))].setdefault(task, grid)
    written = []
    sizes = [size for size, _ in by_look]
    for number, ((size, triggers), grids) in enumerate(sorted(by_look.items()), 1):
        own = f"-{number}" if sizes.count(size) > 1 else ""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"triggers-{size}{own}.png"
        _figure((CLEAN, *triggers), grids).savefig(file, dpi=150)
        written.append(file)
    return written


def _finetunings(found: Iterable[Recorded]) -> set[tuple[str, str]]:
    rows = [row for one in found for row in one.rows.select(["kind", "task", "stage"]).to_pylist()]
    return {(row["task"], row["stage"]) for row in rows if row["kind"] == "finetune"}


def _grid(store: Store, key: str) -> Grid | None:
    artifact = store.find("finetune", key)
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
