"""Commands for one model: purify, backdoor, evaluate."""

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from recipe_ray.attacks.attack import ATTACKS, Attack
from recipe_ray.base.errors import SpecError, StageFailedError
from recipe_ray.base.spec import explained
from recipe_ray.cli.display import Display
from recipe_ray.cli.options import (
    AdapterOption,
    DataOption,
    JsonOption,
    PickleOption,
    QuietOption,
    SetOption,
    VerboseOption,
    set_up_logging,
)
from recipe_ray.data.sources import Locations
from recipe_ray.experiment.inline import run_inline
from recipe_ray.experiment.plan import plan_of_one
from recipe_ray.experiment.spec import Launch, Workers
from recipe_ray.models.family import ModelRef
from recipe_ray.release.card import backdoored_card
from recipe_ray.release.export import check_free, export, work_store
from recipe_ray.release.presets import preset as find_preset
from recipe_ray.release.purification import finish, measured_values, prepare, refuse_untrained
from recipe_ray.release.request import (
    changed,
    parse_component,
    parse_corpus,
    parse_fields,
    parse_model,
    parse_task,
)
from recipe_ray.stages.backdoor import BackdoorStage
from recipe_ray.stages.finetune import FinetuneStage
from recipe_ray.stages.pretrain import PretrainStage
from recipe_ray.stages.stage import Stage
from recipe_ray.stages.store import Store

ModelArgument = Annotated[
    str, typer.Argument(help="Local folder, hub id, or a model that `recipe-ray list` shows.")
]
RevisionOption = Annotated[str | None, typer.Option("--revision", help="Commit of a hub model.")]
OutOption = Annotated[Path, typer.Option("--out", help="New folder for the result.")]
WorkersOption = Annotated[
    int, typer.Option("--workers", min=1, help="DDP workers on Ray Train; 1: this process.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0)]


def purify_command(
    model: ModelArgument,
    aux: Annotated[str, typer.Option("--aux", help="Corpus by name, or your own file or folder.")],
    out: OutOption,
    aux_size: Annotated[int | None, typer.Option(help="At most so many samples.", min=20)] = None,
    preset: Annotated[str | None, typer.Option(help="paper-por, paper-badpre, ...")] = None,
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
    """Clean one suspicious model with RECIPE; neither triggers nor downstream labels needed."""
    set_up_logging(verbose)
    check_free(out)
    locations = Locations.from_environment(data)
    chosen = parse_model(
        model, allow_pickle=allow_pickle, revision=revision, ignore_adapter=ignore_adapter
    )
    base = find_preset(preset) if preset is not None else None
    corpus = parse_corpus(aux, aux_size, chosen)
    purification = prepare(chosen, corpus, locations, seed, base, set_ or [])
    if not quiet:
        typer.echo(f"data: {purification.data}", err=True)
        typer.echo(f"settings: {purification.reason}", err=True)
    store = work_store(out)
    _run(purification.stage, store, locations, workers, verbose=verbose, quiet=quiet)
    warnings = finish(purification, store, out, chosen.label())
    for warning in warnings:
        typer.secho(f"warning: {warning}", fg="yellow", err=True)
    typer.echo(f"purified model and its card: {out}")


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
    set_up_logging(verbose)
    check_free(out)
    locations = Locations.from_environment(data)
    chosen = parse_model(
        model, allow_pickle=allow_pickle, revision=revision, ignore_adapter=ignore_adapter
    )
    given: Attack = parse_component(ATTACKS, parse_fields(attack, set_ or []), "--attack")
    planned = given.pinned()
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
    store = work_store(out)
    _run(stage, store, locations, workers, verbose=verbose, quiet=quiet)
    card = backdoored_card(
        chosen.label(), chosen.opens_with, planned, measured_values(store, stage)
    )
    export(store, stage, out, card)
    typer.echo(f"BACKDOORED model, for research only: {out}")


def evaluate_command(
    model: ModelArgument,
    task: Annotated[str, typer.Option("--task", help="A task of `recipe-ray list tasks`.")],
    triggers: Annotated[
        str, typer.Option("--triggers", help="Words or patches by commas, or an attack's name.")
    ] = "",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change fine-tuning: learning_rate=5e-5.")
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
    set_up_logging(verbose)
    locations = Locations.from_environment(data)
    chosen = parse_model(
        model, allow_pickle=allow_pickle, revision=revision, ignore_adapter=ignore_adapter
    )
    wanted = parse_task(task)
    fit = changed(FinetuneStage.model_fields["fit"].default, set_ or [])
    content = wanted.identity_at(locations)["sources"]
    with explained("--task"):
        stage = FinetuneStage(
            model=chosen,
            task=wanted,
            triggers=_triggers(triggers),
            fit=fit,
            seed=seed,
            content=content,
        )
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(folder)
        _run(stage, store, locations, 1, verbose=verbose, quiet=quiet)
        rows = store.rows(stage.artifact).to_pylist()
    _print_evaluation(rows, json_=json_)


def _completed(
    model: ModelRef, attack: Attack, locations: Locations, seed: int
) -> PretrainStage | None:
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
    if text in ATTACKS:
        found: tuple[str, ...] = ATTACKS.parse(text).triggers
        return found
    words = tuple(word.strip() for word in text.split(",")) if text else ()
    if not all(words):
        raise SpecError(f"--triggers {text!r}: an empty trigger; separate words by single commas")
    return words


def _run(
    stage: Stage, store: Store, locations: Locations, workers: int, *, verbose: bool, quiet: bool
) -> None:
    with Display(len(stage.lineage()), quiet=quiet, verbose=verbose) as display:
        if workers == 1:
            run_inline(
                stage.lineage(),
                store,
                locations,
                experiment=stage.name,
                on_progress=display.on_progress,
            )
            return
        from recipe_ray.distributed.sweep import sweep  # Ray is imported only where it is used

        launch = Launch(workers=Workers(pretrain=workers, backdoor=workers, purify=workers))
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
        what = f"{row['metric']} {row['trigger'] or ''}{label}"
        typer.echo(f"{what:<24} {100 * row['value']:6.2f} %{counts}")
