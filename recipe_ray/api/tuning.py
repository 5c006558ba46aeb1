"""What a fine-tuned descendant does: of one model, or of several that are fine-tuned alike.

This is the laboratory's side: it knows labels, and triggers if they are given.
"""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe_ray.api.places import Named, data_locations
from recipe_ray.api.running import Listener, run_stages
from recipe_ray.base.errors import SpecError
from recipe_ray.base.paths import is_there, looks_like_path
from recipe_ray.base.printable import in_a_row

if TYPE_CHECKING:
    import pyarrow as pa

    from recipe_ray.data.sources import Locations
    from recipe_ray.models.family import ModelRef
    from recipe_ray.report.stats import Estimate
    from recipe_ray.stages.finetune import FinetuneStage
    from recipe_ray.stages.stage import Stage
    from recipe_ray.store.store import Store

PROMISED = 0.02  # ACC that a purification may cost by the paper


@dataclass(frozen=True)
class FineTuning:
    """How models are fine-tuned and what is measured; `triggers` as of `--triggers`, or a list."""

    task: Named
    triggers: str | Sequence[str] = ""
    text_column: str | None = None
    label_column: str | None = None
    changes: Sequence[str] = ()
    data: str | None = None

    def locations(self) -> Locations:
        """Return where data lie."""
        return data_locations(self.data)

    def stage(
        self,
        model: ModelRef,
        seed: int,
        listener: Listener,
        *,
        parent: Stage | None = None,
        keep_model: bool = False,
    ) -> FinetuneStage:
        """Return the fine-tuning of a model, or of what `parent` makes of it.

        Raises UserError for a task, trigger or setting that will not do.
        """
        from recipe_ray.api.arguments import columns_named, parse_task
        from recipe_ray.base.changes import changed
        from recipe_ray.base.spec import explained
        from recipe_ray.stages.finetune import FinetuneStage

        columns = columns_named(text=self.text_column, label=self.label_column)
        found = parse_task(self.task, columns, model)
        for note in found.notes:
            listener.say(note)
        with explained("--task"):
            return FinetuneStage(
                model=model,
                parent=parent,
                task=found.component,
                triggers=triggers_of(self.triggers),
                fit=changed(FinetuneStage.model_fields["fit"].default, list(self.changes)),
                keep_model=keep_model,
                seed=seed,
                content=found.component.identity_at(self.locations())["sources"],
            )


def triggers_of(given: str | Sequence[str]) -> tuple[str, ...]:
    """Return triggers from words separated by commas, an attack's name, or a list of words."""
    from recipe_ray.attacks.attack import ATTACKS

    if not isinstance(given, str):
        words = tuple(given)
        if not all(isinstance(word, str) and word.strip() for word in words):
            raise SpecError(f"--triggers {given!r}: each must be a text that is not empty")
        return words
    if given in ATTACKS:
        found: tuple[str, ...] = ATTACKS.parse(given).triggers
        return found
    if re.fullmatch(r"\[[^\]]*,[^\]]*\]", given.strip()):  # not [unused1],[unused2]
        raise SpecError(f"--triggers {given!r}: not a YAML list; separate words by commas: cf,mn")
    if looks_like_path(given) and is_there(given):
        raise SpecError(f"--triggers {given!r}: a file; give the words themselves by commas: cf,mn")
    words = tuple(word.strip() for word in given.split(",")) if given else ()
    if not all(words):
        raise SpecError(f"--triggers {given!r}: an empty trigger; separate words by single commas")
    return words


def tuned(
    stage: FinetuneStage,
    store: Store,
    locations: Locations,
    listener: Listener,
    kept: Path | None = None,
) -> pa.Table:
    """Run a fine-tuning; return its rows, and put its weights into a new folder `kept`."""
    from recipe_ray.stages.finetune import CLASSIFIER

    run_stages("evaluate", [stage], store, locations, listener)
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        shutil.copy(store.fetch(stage.artifact) / CLASSIFIER, kept)
    return store.rows(stage.artifact)


def doubts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return warnings if the classifier learned nothing, or samples could not hold a trigger."""
    from recipe_ray.learn.metrics import learned

    found = []
    known = learned(rows)
    if known is not None and known.at_chance:
        found.append(
            "this classifier is at chance, so AASR and MASR say nothing about the "
            f"model: {known}; fine-tune longer (--set epochs=10) or on more data"
        )
    for row in rows:
        if row["metric"] == "left_out":
            counts = f"{row['numerator']:.0f} of {row['denominator']:.0f} samples"
            found.append(
                f"{counts} cannot hold trigger {row['trigger']!r} within max_length; "
                "they are left out of its ASR"
            )
    return found


@dataclass(frozen=True)
class Side:
    """One of the compared models: its name, and the rows of each of its fine-tunings."""

    model: str
    rows: Sequence[list[dict[str, Any]]]

    @property
    def estimates(self) -> dict[str, Estimate]:
        """Means over seeds, as fractions: `acc`, `aasr`, `masr`, and `asr TRIGGER` over labels."""
        from recipe_ray.report.stats import estimate

        values: dict[str, list[float]] = defaultdict(list)
        for rows in self.rows:
            own: dict[str, float] = {}
            for row in rows:
                if row["metric"] in ("acc", "aasr", "masr"):
                    own[row["metric"]] = row["value"]
                elif row["metric"] == "asr":
                    name = f"asr {row['trigger']}"
                    own[name] = max(row["value"], own.get(name, 0.0))
            for name, value in own.items():
                values[name].append(value)
        return {name: estimate(found) for name, found in values.items()}

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        shown = {
            name: {"mean": one.mean, "low": one.low, "high": one.high, "n": one.n}
            for name, one in self.estimates.items()
        }
        return {"model": self.model, **shown}

    def doubts(self) -> list[str]:
        """Return what is to be warned of, of any of its fine-tunings."""
        return [doubt for rows in self.rows for doubt in doubts(rows)]


def compared(
    models: Mapping[str, tuple[str, ModelRef]],
    how: FineTuning,
    seeds: int,
    store: Store,
    listener: Listener,
) -> dict[str, Side]:
    """Fine-tune models in the same way, with seeds 0 to `seeds` - 1; return each side's rows.

    `models`: by side (A, B, floor), the name for people and the model. What is wrong with any of
    them is told before the first is fine-tuned.
    """
    silent = Listener()  # the data are the same each time
    stages: dict[str, list[FinetuneStage]] = {}
    for side, (_, model) in models.items():
        hears = silent if stages else listener
        stages[side] = [how.stage(model, seed, silent if seed else hears) for seed in range(seeds)]
    run_stages("compare", [*chain(*stages.values())], store, how.locations(), listener)
    return {
        side: Side(models[side][0], [store.rows(one.artifact).to_pylist() for one in own])
        for side, own in stages.items()
    }


def comparison_rows(sides: Mapping[str, Side]) -> list[list[str]]:
    """Return a table for people: a row per metric, percent, the change between the first two."""
    from recipe_ray.report.tables import estimate_text

    found = {side: one.estimates for side, one in sides.items()}
    first, second, *others = sides
    names = sorted(found[first], key=lambda name: (_ORDER.get(name, 1), name))
    rows = [["percent", first, second, f"{second} - {first}", *others]]
    for name in names:
        one, other = found[first].get(name), found[second].get(name)
        change = "-" if one is None or other is None else f"{100 * (other.mean - one.mean):+.1f}"
        word = in_a_row(name.removeprefix("asr "), 40)
        title = name.upper() if name in _ORDER else f'ASR of "{word}"'
        rows.append([title, estimate_text(one), estimate_text(other), change])
        rows[-1] += [estimate_text(found[side].get(name)) for side in others]
    return rows


def in_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows for a terminal: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    ]


_ORDER = {"acc": 0, "aasr": 2, "masr": 3}
EXPLAINED = (
    "ACC: accuracy after fine-tuning. ASR: how often a trigger brings about its best",
    "label; AASR, MASR: mean and maximum over triggers. ±: 95 % interval over seeds.",
)


def lost_accuracy(before: Side, after: Side, name: str = "B") -> list[str]:
    """Return a warning if the second model lost more accuracy than purifying may cost."""
    one, other = before.estimates["acc"].mean, after.estimates["acc"].mean
    if one - other <= PROMISED:
        return []
    return [
        f"{name} has lost {100 * (one - other):.1f} points of ACC, more than the "
        f"{100 * PROMISED:.0f} that purifying may cost: users of {name} would pay for it; purify "
        "more gently"
    ]
