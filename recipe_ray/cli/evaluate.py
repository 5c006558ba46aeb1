"""`recipe-ray evaluate` and `compare`: what a fine-tuned descendant does, of one model or several.

The work is in `api/tuning.py`; here are the options and what is printed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recipe_ray.api.places import output_folder, store_or_temporary
from recipe_ray.api.tuning import (
    EXPLAINED,
    FineTuning,
    Side,
    compared,
    comparison_rows,
    doubts,
    in_columns,
    lost_accuracy,
    tuned,
)
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
    set_up_logging,
    with_groups,
)
from recipe_ray.cli.single import Screen

if TYPE_CHECKING:
    from recipe_ray.models.family import ModelRef

TASK_HELP = (
    "A task of `recipe-ray list tasks`, or your own data: TRAIN,TEST, one FILE to be split, or a "
    "folder with train and test."
)
TaskOption = Annotated[str, typer.Option("--task", help=TASK_HELP)]
TriggersOption = Annotated[
    str,
    typer.Option("--triggers", help="Words or patches, separated by commas, or an attack's name."),
]
LabelColumnOption = Annotated[
    str | None, typer.Option("--label-column", help="The column of labels in your own data.")
]


@dataclass(frozen=True)
class Tuning:
    """The options that say how a model is fine-tuned and what is measured."""

    triggers: TriggersOption = ""
    text_column: TextColumnOption = None
    label_column: LabelColumnOption = None
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change fine-tuning: learning_rate=5e-5.")
    ] = None
    data: DataOption = None

    def of(self, task: str) -> FineTuning:
        """Return how a model is fine-tuned on a task."""
        about = (task, self.triggers, self.text_column, self.label_column)
        return FineTuning(*about, tuple(self.set_ or ()), self.data)


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
    how: Tuning,
    opening: Opening,
    telling: Telling,
) -> None:
    """Fine-tune a model on a task and measure ACC, and the ASR of triggers."""
    from recipe_ray.api.folder import check_free

    set_up_logging(telling.verbose)
    screen = Screen(telling)
    kept = output_folder(keep_classifier, "--keep-classifier") if keep_classifier else None
    if kept is not None:
        check_free(kept, "--keep-classifier")
    chosen, tuning = opening.model(model), how.of(task)
    stage = tuning.stage(chosen, seed, screen, keep_model=kept is not None)
    with store_or_temporary(store) as opened:
        rows = tuned(stage, opened, tuning.locations(), screen, kept).to_pylist()
    _print_evaluation(rows, json_=json_)
    for doubt in doubts(rows):
        screen.warn(doubt)


def _print_evaluation(rows: Sequence[Mapping[str, Any]], *, json_: bool) -> None:
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
    how: Tuning,
    opening: Opening,
    telling: Telling,
) -> None:
    """Fine-tune two models in the same way, and show what B does otherwise than A."""
    set_up_logging(telling.verbose)
    screen = Screen(telling)
    named = {"A": before, "B": after, **({"floor": floor} if floor is not None else {})}
    models: dict[str, tuple[str, ModelRef]] = {
        side: (text, opening.model(text)) for side, text in named.items()
    }
    with store_or_temporary(store) as kept:
        sides = compared(models, how.of(task), seeds, kept, screen)
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
        for doubt in one.doubts():
            screen.warn(f"{side}: {doubt}")
    for warning in lost_accuracy(sides["A"], sides["B"]):
        screen.warn(warning)


def _side_by_side(sides: Mapping[str, Side]) -> list[str]:
    told = [f"{side}: {one.model}" for side, one in sides.items()]
    return [*told, "", *in_columns(comparison_rows(sides)), "", *EXPLAINED]
