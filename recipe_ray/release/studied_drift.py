"""How far purifying moved clean representations in the studies (`studied_drift.json`)."""

import json
from functools import cache
from importlib.resources import files


@cache
def studied_drift(reads: str) -> float | None:
    """Return the largest drift in the studies of models that read `text` or `image`, else None."""
    rows = json.loads((files("recipe_ray.release") / "studied_drift.json").read_text())["rows"]
    found = [float(row["drift"]) for row in rows if row["reads"] == reads]
    return max(found, default=None)
