"""Commands for one model: backdoor, evaluate; and what every command for one model shares."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recipe_ray.base.errors import SpecError, StageFailedError
from recipe_ray.base.paths import is_there, looks_like_path
from recipe_ray.base.printable import in_a_row, printable
from recipe_ray.base.spec import LARGEST, explained
from recipe_ray.cli.display import Display
from recipe_ray.cli.options import (
    AdapterOption,
    DataOption,
    JsonOption,
    PickleOption,
    QuietOption,
    SetOption,
    VerboseOption,
    data_locations,
    output_folder,
    set_up_logging,
)

if TYPE_CHECKING:
    from recipe_ray.attacks.attack import Attack
    from recipe_ray.cli.own_data import Found
    from recipe_ray.data.batches import LocalFeed
    from recipe_ray.data.sources import Locations
    from recipe_ray.models.family import ModelRef
    from recipe_ray.stages.pretrain import PretrainStage
    from recipe_ray.stages.run import Run
    from recipe_ray.stages.stage import Stage
    from recipe_ray.store.store import Store
    from recipe_ray.tasks.task import Task


ModelArgument = Annotated[
    str, typer.Argument(help="Local folder, hub id, or a model that `recipe-ray list` shows.")
]
RevisionOption = Annotated[str | None, typer.Option("--revision", help="Commit of a hub model.")]
OutOption = Annotated[
    str, typer.Option("--out", metavar="FOLDER", help="New folder for the result.")
]
WorkersOption = Annotated[
    int,
    typer.Option("--workers", min=1, help="DDP workers on Ray Train; 1: this process."),
]
TextColumnOption = Annotated[
    str | None, typer.Option("--text-column", help="The column of texts in your own data.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=LARGEST)]


def warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        typer.secho(f"warning: {printable(warning)}", fg="yellow", err=True)


def backdoor_command(
    model: ModelArgument,
    attack: Annotated[
        str, typer.Option("--attack", help="An attack of `recipe-ray list attacks`.")
    ],
    out: OutOption,
    set_: SetOption = None,
    seed: SeedOption = 0,
    workers: WorkersOption = 1,
    revision: RevisionOption = None,
    data: DataOption = None,
    allow_pickle: PickleOption = False,
    ignore_adapter: AdapterOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Put a backdoor into a model, for research; the result's card says so plainly."""
    from recipe_ray.cli.arguments import parse_attack, parse_model
    from recipe_ray.cli.card import backdoored_card, check_free, export, work_store
    from recipe_ray.cli.purification import data_warnings, measured_values, refuse_untrained
    from recipe_ray.stages.backdoor import BackdoorStage

    set_up_logging(verbose)
    target = output_folder(out, "--out")
    check_free(target)
    locations = data_locations(data)
    chosen = parse_model(
        model, allow_pickle=allow_pickle, revision=revision, ignore_adapter=ignore_adapter
    )
    planned = parse_attack(attack, set_ or []).pinned()
    if not planned.poisons:
        raise SpecError(f"--attack {planned.name}: it poisons nothing; `recipe-ray list attacks`")
    refuse_untrained(chosen)
    contents = {c.name: c.identity_at(locations)["source"] for c in planned.corpora()}
    with explained("--attack"):
        stage = BackdoorStage(
            model=chosen,
            parent=_completed(chosen, planned, locations, seed),
            attack=planned,
            seed=seed,
            content=contents,
        )
    with work_store(target) as store:
        run_stage(stage, store, locations, workers, verbose=verbose, quiet=quiet)
    measured = measured_values(store, stage)
    warn(data_warnings(measured))
    notes = chosen.left_out()
    for note in () if quiet else notes:
        typer.echo(f"note: {note}", err=True)
    card = backdoored_card(chosen.label(), chosen.opens_with, planned, measured, notes)
    export(store, stage, target, lambda said: card)
    typer.echo(f"BACKDOORED model, for research only: {out}")


def evaluate_command(
    model: ModelArgument,
    task: Annotated[
        str,
        typer.Option(
            "--task",
            help="A task of `recipe-ray list tasks`, or your own data: TRAIN,TEST, one FILE to be "
            "split, or a folder with train and test.",
        ),
    ],
    triggers: Annotated[
        str, typer.Option("--triggers", help="Words or patches by commas, or an attack's name.")
    ] = "",
    text_column: TextColumnOption = None,
    label_column: Annotated[
        str | None, typer.Option("--label-column", help="The column of labels in your own data.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change fine-tuning: learning_rate=5e-5.")
    ] = None,
    keep_classifier: Annotated[
        str | None,
        typer.Option(
            "--keep-classifier",
            metavar="FOLDER",
            help="New folder for the fine-tuned weights (classifier.safetensors).",
        ),
    ] = None,
    seed: SeedOption = 0,
    revision: RevisionOption = None,
    data: DataOption = None,
    allow_pickle: PickleOption = False,
    ignore_adapter: AdapterOption = False,
    json_: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Fine-tune a model on a task and measure ACC, and the ASR of triggers."""
    from recipe_ray.base.changes import changed
    from recipe_ray.cli.arguments import parse_model, parse_task
    from recipe_ray.cli.card import check_free
    from recipe_ray.learn.metrics import learned
    from recipe_ray.stages.finetune import CLASSIFIER, FinetuneStage
    from recipe_ray.store.store import Store

    set_up_logging(verbose)
    kept = output_folder(keep_classifier, "--keep-classifier") if keep_classifier else None
    if kept is not None:
        check_free(kept, "--keep-classifier")
    locations = data_locations(data)
    chosen = parse_model(
        model, allow_pickle=allow_pickle, revision=revision, ignore_adapter=ignore_adapter
    )
    columns = columns_named(text=text_column, label=label_column)
    found = parse_task(task, columns, chosen)
    wanted: Task = found.component
    if not quiet:
        say(found)
    fit = changed(FinetuneStage.model_fields["fit"].default, set_ or [])
    content = wanted.identity_at(locations)["sources"]
    with explained("--task"):
        stage = FinetuneStage(
            model=chosen,
            task=wanted,
            triggers=_triggers(triggers),
            fit=fit,
            keep_model=kept is not None,
            seed=seed,
            content=content,
        )
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(folder)
        run_stage(stage, store, locations, 1, verbose=verbose, quiet=quiet)
        rows = store.rows(stage.artifact).to_pylist()
        if kept is not None:
            kept.mkdir(parents=True, exist_ok=True)
            shutil.copy(store.fetch(stage.artifact) / CLASSIFIER, kept)
    _print_evaluation(rows, json_=json_)
    known = learned(rows)
    if known is not None and known.at_chance:
        typer.secho(
            f"warning: this classifier is at chance, so AASR and MASR say nothing of the model: "
            f"{known}; fine-tune longer (--set epochs=10) or on more data",
            fg="yellow",
            err=True,
        )
    _warn_of_left_out(rows)


def columns_named(**asked: str | None) -> dict[str, str]:
    return {what: column for what, column in asked.items() if column is not None}


def say(found: Found) -> None:
    for note in found.notes:
        typer.echo(printable(note), err=True)


def _completed(
    model: ModelRef, attack: Attack, locations: Locations, seed: int
) -> PretrainStage | None:
    from recipe_ray.stages.pretrain import PretrainStage

    # a PTM without pre-training head gets one, on the attacker's own corpus
    if not model.needs_pretraining:
        return None
    if not attack.corpora():
        raise SpecError(
            f"--attack {attack.name}: it trains on nothing, and MODEL {model.label()!r} has no "
            "pre-training head to begin with; give a model with one, or an attack with a corpus"
        )
    corpus = attack.corpora()[0]
    content = corpus.identity_at(locations)["source"]
    return PretrainStage(model=model, seed=seed, corpus=corpus, content=content)


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


@contextmanager
def processes(workers: int) -> Iterator[None]:
    """Start or attach to one Ray for all stages of a command, if they take more than a process."""
    if workers == 1:
        yield
        return
    from recipe_ray.distributed.cluster import connected  # Ray is imported only if it is used
    from recipe_ray.experiment.spec import Launch

    with connected(None, Launch(), nested=True):
        yield


def run_stage(
    stage: Stage,
    store: Store,
    locations: Locations,
    workers: int,
    *,
    verbose: bool,
    quiet: bool,
    feed: LocalFeed | None = None,
    run: Run | None = None,
) -> None:
    """Run a stage and its ancestors. In this process `feed` and `run` use what is in memory."""
    from recipe_ray.experiment.collect import run_inline
    from recipe_ray.experiment.plan import plan_of_one
    from recipe_ray.experiment.spec import Launch

    with Display(len(stage.lineage()), quiet=quiet, verbose=verbose) as display:
        if workers == 1:
            run_inline(
                stage.lineage(),
                store,
                locations,
                experiment=stage.name,
                on_progress=display.on_progress,
                feed=feed,
                run=run,
            )
            return
        from recipe_ray.distributed.sweep import sweep
        from recipe_ray.stages.stage import makers_of_ptms

        launch = Launch(workers=dict.fromkeys(makers_of_ptms(), workers))
        plan = plan_of_one(stage, launch)
        outcome = sweep(plan, store, locations, on_event=display.on_event)
    if outcome.failed:
        raise StageFailedError("\n".join(outcome.failed.values()))


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


def _warn_of_left_out(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if row["metric"] == "left_out":
            counts = f"{row['numerator']:.0f} of {row['denominator']:.0f} samples"
            typer.secho(
                f"warning: {counts} cannot hold trigger {row['trigger']!r} within max_length; "
                "they count in no ASR",
                fg="yellow",
                err=True,
            )
