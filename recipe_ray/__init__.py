"""recipe-ray removes backdoors from pre-trained models, and is the laboratory that proves it.

From Python, as from the command line: `scan`, `purify`, `evaluate`, `compare`, `run`, `results`
(docs/api.md). They are imported if they are named, so that importing this package loads neither
torch nor transformers nor Ray.
"""

from __future__ import annotations

# Nothing is imported here: `python -m recipe_ray` has the working folder on its path until
# `__main__` takes it off, and a file there could stand in for a module of the standard library.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from recipe_ray.api.calls import compare as compare
    from recipe_ray.api.calls import evaluate as evaluate
    from recipe_ray.api.calls import purify as purify
    from recipe_ray.api.calls import results as results
    from recipe_ray.api.calls import run as run
    from recipe_ray.api.calls import scan as scan

__version__ = "0.1.0"
__all__ = ["__version__", "compare", "evaluate", "purify", "results", "run", "scan"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from importlib import import_module

        return getattr(import_module("recipe_ray.api.calls"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
