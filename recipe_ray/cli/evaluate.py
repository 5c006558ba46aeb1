"""`recipe-ray evaluate` and `compare`: what a fine-tuned descendant does, of one model or several.

This is the laboratory's side: it knows labels, and triggers if they are given. `compare` fine-tunes
each model in the same way, with the same seeds, and shows the difference.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recipe_ray.base.errors import SpecError
from recipe_ray.base.paths import is_there, looks_like_path
from recipe_ray.base.printable import in_a_row
from recipe_ray.cli.options import (
    DataOption,
    JsonOption,
    ModelArgument,
    Opening,
    SeedOption,
    StoreOption,
    Telling,
    TextColumnOption,
    data_locations,
    output_folder,
    set_up_logging,
    store_or_temporary,
    with_groups,
)
from recipe_ray.cli.single import columns_named, run_stages, say, warn

if TYPE_CHECKING:
    from recipe_ray.data.sources import Locations
    from recipe_ray.models.family import ModelRef
    from recipe_ray.report.stats import Estimate
    from recipe_ray.stages.finetune import FinetuneStage

TaskOption = Annotated[
    str,
    typer.Option(
        "--task",
        help="A task of `recipe-ray list tasks`, or your own data: TRAIN,TEST, one FILE to be "
        "split, or a folder with train and test.",
    ),
]
PROMISED = 0.02  # ACC that a purification may cost by the paper


@dataclass(frozen=True)
class FineTuning:
    """The options that say how a model is fine-tuned and what is measured."""

    triggers: Annotated[
        str,
        typer.Option(
            "--triggers", help="Words or patches, separated by commas, or an attack's name."
        ),
    ] = ""
    text_column: TextColumnOption = None
    label_column: Annotated[
        str | None, typer.Option("--label-column", help="The column of labels in your own data.")
    ] = None
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change fine-tuning: learning_rate=5e-5.")
    ] = None
    data: DataOption = None

    def locations(self) -> Locations:
        """Return where data lie."""
        return data_locations(self.data)

    def stage(
        self, model: ModelRef, task: str, seed: int, *, keep_model: bool = False, quiet: bool
    ) -> FinetuneStage:
        """Return the fine-tuning of a model; unless `quiet`, say what was found in own data.

        Raises UserError for a task, trigger or setting that will not do.
        """
        from recipe_ray.base.changes import changed
        from recipe_ray.base.spec import explained
        from recipe_ray.cli.arguments import parse_task
        from recipe_ray.stages.finetune import FinetuneStage

        found = parse_task(
            task, columns_named(text=self.text_column, label=self.label_column), model
        )
        if not quiet:
            say(found)
        with explained("--task"):
            return FinetuneStage(
                model=model,
                task=found.component,
                triggers=_triggers(self.triggers),
                fit=changed(FinetuneStage.model_fields["fit"].default, self.set_ or []),
                keep_model=keep_model,
                seed=seed,
                content=found.component.identity_at(self.locations())["sources"],
            )


@with_groups
def evaluate_command(
    model: ModelArgument,
    task: TaskOption,
    keep_classifier: Annotated[
        str | None,
        typer.Option(
            "--keep-classifier",
            metavar="FOLDER",
            help="New folder for the fine-tuned weights (classifier.safetensors).",
        ),
    ] = None,
    seed: SeedOption = 0,
    store: StoreOption = "",
    json_: JsonOption = False,
    *,
    how: FineTuning,
    opening: Opening,
    telling: Telling,
) -> None:
    """Fine-tune a model on a task and measure ACC, and the ASR of triggers."""
    from recipe_ray.cli.card import check_free
    from recipe_ray.stages.finetune import CLASSIFIER

    set_up_logging(telling.verbose)
    kept = output_folder(keep_classifier, "--keep-classifier") if keep_classifier else None
    if kept is not None:
        check_free(kept, "--keep-classifier")
    chosen = opening.model(model)
    stage = how.stage(chosen, task, seed, keep_model=kept is not None, quiet=telling.quiet)
    with store_or_temporary(store) as opened:
        run_stages("evaluate", [stage], opened, how.locations(), 1, telling)
        rows = opened.rows(stage.artifact).to_pylist()
        if kept is not None:
            kept.mkdir(parents=True, exist_ok=True)
            shutil.copy(opened.fetch(stage.artifact) / CLASSIFIER, kept)
    _print_evaluation(rows, json_=json_)
    warn(_doubts(rows))


def _triggers(text: str) -> tuple[str, ...]:
    from recipe_ray.attacks.attack import ATTACKS

    if text in ATTACKS:
        found: tuple[str, ...] = ATTACKS.parse(text).triggers
        return found
    if re.fullmatch(r"\[[^\]]*,[^\]]*\]", text.strip()):  # not [unused1],[unused2]
        raise SpecError(f"--triggers {text!r}: not a YAML list; separate words by commas: cf,mn")
    if looks_like_path(text) and is_there(text):
        raise SpecError(f"--triggers {text!r}: a file; give the words themselves by commas: cf,mn")
    words = tuple(word.strip() for word in text.split(",")) if text else ()
    if not all(words):
        raise SpecError(f"--triggers {text!r}: an empty trigger; separate words by single commas")
    return words


def _print_evaluation(rows: list[dict[str, Any]], *, json_: bool) -> None:
    kept = ("metric", "trigger", "label", "value", "numerator", "denominator")
    shown = [
        {name: row[name] for name in kept} for row in rows if not row["metric"].startswith("loss.")
    ]
    if json_:
        typer.echo(json.dumps(shown, indent=1))
        return
    for row in shown:
        counts = (
            ""
            if row["denominator"] is None
            else f"  {row['numerator']:.0f}/{row['denominator']:.0f}"
        )
        label = "" if row["label"] is None else f" -> {row['label']}"
        what = f"{row['metric']} {in_a_row(row['trigger'] or '', 60)}{label}"
        typer.echo(f"{what:<24} {100 * row['value']:6.2f} %{counts}")


def _doubts(rows: list[dict[str, Any]]) -> list[str]:
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


@with_groups
def compare_command(
    before: Annotated[str, typer.Argument(metavar="A", help="A model, such as the suspect one.")],
    after: Annotated[str, typer.Argument(metavar="B", help="Another, such as the purified one.")],
    task: TaskOption,
    floor: Annotated[
        str | None,
        typer.Option(
            "--floor", metavar="MODEL", help="A clean model: what triggers do without a backdoor."
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, max=100, help="Fine-tunings of each model.")
    ] = 1,
    store: StoreOption = "",
    json_: JsonOption = False,
    *,
    how: FineTuning,
    opening: Opening,
    telling: Telling,
) -> None:
    """Fine-tune two models in the same way, and show what B does otherwise than A."""
    set_up_logging(telling.verbose)
    named = {"A": before, "B": after, **({"floor": floor} if floor is not None else {})}
    stages: dict[str, list[FinetuneStage]] = {}
    for side, text in named.items():
        model = opening.model(text)
        quiet = telling.quiet or bool(stages)  # the data are the same each time
        stages[side] = [how.stage(model, task, seed, quiet=quiet) for seed in range(seeds)]
    with store_or_temporary(store) as kept:
        run_stages("compare", [*chain(*stages.values())], kept, how.locations(), 1, telling)
        sides = {
            side: Side(named[side], [kept.rows(stage.artifact).to_pylist() for stage in own])
            for side, own in stages.items()
        }
    if json_:
        whole = {
            "task": task,
            "seeds": seeds,
            **{name: one.to_json() for name, one in sides.items()},
        }
        typer.echo(json.dumps(whole, indent=1, ensure_ascii=True))
    else:
        typer.echo("\n".join(_side_by_side(sides)))
    for side, one in sides.items():
        warn(f"{side}: {doubt}" for rows in one.rows for doubt in _doubts(rows))
    warn(lost_accuracy(sides["A"], sides["B"]))


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


def _side_by_side(sides: dict[str, Side]) -> list[str]:
    """Return a table for a terminal: a row per metric, the change from A to B, and the floor."""
    from recipe_ray.report.tables import estimate_text

    found = {side: one.estimates for side, one in sides.items()}
    names = sorted(found["A"], key=lambda name: (_ORDER.get(name, 1), name))
    rows = [["percent", "A", "B", "B - A", *(["floor"] if "floor" in sides else [])]]
    for name in names:
        one, other = found["A"].get(name), found["B"].get(name)
        change = "-" if one is None or other is None else f"{100 * (other.mean - one.mean):+.1f}"
        title = (
            name.upper()
            if name in _ORDER
            else f'ASR of "{in_a_row(name.removeprefix("asr "), 40)}"'
        )
        rows.append([title, estimate_text(one), estimate_text(other), change])
        if "floor" in sides:
            rows[-1].append(estimate_text(found["floor"].get(name)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(f"{v:>{w}}" for v, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]
    told = [f"{side}: {one.model}" for side, one in sides.items()]
    return [*told, "", *lines, "", *_EXPLAINED]


_ORDER = {"acc": 0, "aasr": 2, "masr": 3}
_EXPLAINED = (
    "ACC: accuracy after fine-tuning. ASR: how often a trigger brings about its best",
    "label; AASR, MASR: mean and maximum over triggers. ±: 95 % interval over seeds.",
)


def lost_accuracy(before: Side, after: Side) -> list[str]:
    one, other = before.estimates["acc"].mean, after.estimates["acc"].mean
    if one - other <= PROMISED:
        return []
    return [
        f"B has lost {100 * (one - other):.1f} points of ACC, more than the {100 * PROMISED:.0f} "
        "that purifying may cost: users of B would pay for it; purify more gently"
    ]
