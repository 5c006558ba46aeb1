"""How far purifying may move clean representations; `studied_drift.json` says why."""

import json
from functools import cache
from importlib.resources import files


@cache
def studied_drift(reads: str) -> float | None:
    """Return the drift to warn above for models that read `text` or `image`; None: not known."""
    data = json.loads((files("recipe_ray.release") / "studied_drift.json").read_text())
    bound: float | None = data["bounds"].get(reads)
    return bound
