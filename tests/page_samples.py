"""Rows of a small study, also with hostile names, and the page of a report read back."""

from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import pyarrow as pa
from report_samples import clean, por

from recipe_ray.report import html
from recipe_ray.report.load import Recorded
from recipe_ray.report.overview import overviews
from recipe_ray.report.sections import sections

SCRIPT = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"
TIME = {"wall_s": 1800.0, "world_size": 2, "time": datetime(2026, 1, 2, 3, tzinfo=UTC)}


class Page(HTMLParser):
    """Every start tag with its attributes, and the text of some elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of every element of this name."""
        return [attrs for name, attrs in self.tags if name == tag]


def page_of(*tables: pa.Table, plan: dict[str, Any] | None = None) -> str:
    by_name: dict[str, list[pa.Table]] = {}
    for table in tables:
        by_name.setdefault(table["experiment"][0].as_py(), []).append(table)
    found = [Recorded(name, pa.concat_tables(own), plan) for name, own in by_name.items()]
    about = {one.experiment: one for one in overviews(found, None)}
    return html.page(sections(found), about)


def study(**changes: Any) -> list[pa.Table]:
    """Return a grid of three seeds: clean, backdoored, purified."""
    made = []
    for seed in range(3):
        made += [
            clean(f"c{seed}", seed=seed, **TIME, **changes),
            por(f"p{seed}", seed=seed, **TIME, **changes),
            por(
                f"r{seed}",
                **{"seed": seed, "defense": "recipe", "masr": 0.2 + seed / 10, "aasr": 0.1},
                **TIME,
                **changes,
            ),
        ]
    return made
