"""The functions that `recipe_ray` offers by name. They do what the commands of that name do.

They print nothing. `progress` is called with an `Advance` as stages get on; sentences go to the log
`recipe_ray` (level INFO), warnings are in the outcome, too. All errors that a caller can cause are
`recipe_ray.base.errors.UserError`s; they name the option of the command (`--aux`) that an argument
stands for. A model, a corpus and a task are given by name, path, hub id or as a dict of fields.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from recipe_ray.api.places import Named, output_folder, store_or_temporary
from recipe_ray.api.running import Advance, Listener, Workers, quiet_libraries
from recipe_ray.base.errors import SpecError

if TYPE_CHECKING:
    import pyarrow as pa

    from recipe_ray.api.outcomes import (
        Comparison,
        Evaluation,
        PurifyOutcome,
        Results,
        RunOutcome,
        ScanOutcome,
    )
    from recipe_ray.report.load import Recorded

Place = str | PurePath
Changes = Mapping[str, Any] | Sequence[str]  # {"fit.steps": 300}, or ["fit.steps=300"]
OnProgress = Callable[[Advance], None] | None

# a library is silent unless its user sets up logging
logging.getLogger("recipe_ray").addHandler(logging.NullHandler())


def scan(
    models: Named | Sequence[Named],
    data: Named,
    *,
    reference: Named | None = None,
    detectors: Named | Sequence[Named] = (),
    text_column: str | None = None,
    seed: int = 0,
    store: Place = "",
    at_once: int = 1,
    address: str | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    ignore_adapter: bool = False,
    sandbox: bool = False,
    progress: OnProgress = None,
) -> ScanOutcome:
    """Say whether models look backdoored, and which inputs give them away.

    `models`: one, several, or folders of model folders. `data`: unlabelled texts or images.
    `reference`: a clean model of the same make that says what is normal; without one, and without a
    calibration for the make, there is no verdict. `detectors`: all that fit if empty. `store`: a
    folder that keeps the scans. `at_once`, `address`: as of the command, on Ray.

    Raises UserError if the only model, the data or a detector cannot be used; of several models
    those that fail have an `error`.
    """
    from recipe_ray.api.outcomes import ScanOutcome
    from recipe_ray.api.scans import Asked, Scanner, exit_code

    given, looking = _listed(models), _listed(detectors)
    if not given:
        raise SpecError("models: give one or more")
    _at_least(1, at_once=at_once)
    opening = _opening(revision, allow_pickle, ignore_adapter, sandbox)
    with quiet_libraries(), store_or_temporary(str(store)) as kept:
        asked = Asked.of(data, looking, seed, opening, text_column)
        listener = Listener(progress)
        found = Scanner(asked, kept, at_once, address, listener).scanned(given, reference)
    return ScanOutcome.of(found, exit_code(found))


def purify(
    model: Named,
    aux: Named,
    out: Place,
    *,
    aux_size: int | None = None,
    text_column: str | None = None,
    preset: str | None = None,
    defense: Named | None = None,
    changes: Changes = (),
    accept_harm: bool = False,
    scan: bool = True,
    scan_budget_s: float = 600.0,
    until_clean: bool = False,
    max_rounds: int = 3,
    evaluate: Named | None = None,
    triggers: str | Sequence[str] = "",
    floor: Named | None = None,
    evaluate_changes: Changes = (),
    label_column: str | None = None,
    seed: int = 0,
    workers: int = 1,
    address: str | None = None,
    data: Place | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    ignore_adapter: bool = False,
    sandbox: bool = False,
    progress: OnProgress = None,
) -> PurifyOutcome:
    """Clean a model into the new folder `out`; neither triggers nor labels are needed.

    `aux`: unlabelled data of the model's kind, 11 samples or more, a few thousand are usual.
    `defense`: scans guide the work ("unlearn") if they can tell for this make of model; else, and
    by "recipe", it is RECIPE with settings by the rule. `changes`: fields of the defense that are
    set, such as {"fit.steps": 300}; the rule chooses RECIPE's others.
    `scan`: scan before and after, each for about `scan_budget_s` seconds. `until_clean`: purify
    until the scan is silent, at most `max_rounds` times. `evaluate`: a task to fine-tune on before
    and after, and with `floor` a clean model; `triggers` are measured there and never reach the
    purifier.

    Raises HarmError, before anything is changed, if the model would probably be damaged (unless
    `accept_harm`), UserError for what cannot be used. Harm or a backdoor that is seen afterwards is
    no error: `exit_code` and `warnings` say it.
    """
    from recipe_ray.api.outcomes import PurifyOutcome
    from recipe_ray.api.purifying import Asked, purified
    from recipe_ray.api.tuning import FineTuning

    _at_least(1, workers=workers, max_rounds=max_rounds, scan_budget_s=scan_budget_s)
    where = None if data is None else str(data)
    tuning = None
    if evaluate is not None:
        tuning = FineTuning(
            evaluate,
            triggers,
            label_column=label_column,
            changes=_changes(evaluate_changes),
            data=where,
        )
    elif triggers:
        raise SpecError("triggers: they are measured on a task; give evaluate=TASK, too")
    asked = Asked(
        model=model,
        aux=aux,
        out=str(out),
        aux_size=aux_size,
        text_column=text_column,
        preset=preset,
        defense=defense,
        changes=_changes(changes),
        accept_harm=accept_harm,
        scan_budget_s=scan_budget_s if scan else None,
        most_rounds=max_rounds if until_clean else None,
        seed=seed,
        data=where,
        opening=_opening(revision, allow_pickle, ignore_adapter, sandbox),
        workers=Workers(workers, address),
        evaluation=tuning,
        floor=floor,
    )
    with quiet_libraries():
        done, result = purified(asked, Listener(progress))
    measured = [{"metric": name, "value": value} for name, value in done.kept.measured.items()]
    return PurifyOutcome(
        rows=_table(measured),
        warnings=tuple(result["warnings"]),
        folder=Path(out),
        exit_code=done.exit_code,
        notes=tuple(result["notes"]),
        result=result,
    )


def evaluate(
    model: Named,
    task: Named,
    *,
    triggers: str | Sequence[str] = "",
    changes: Changes = (),
    seed: int = 0,
    text_column: str | None = None,
    label_column: str | None = None,
    keep_classifier: Place | None = None,
    store: Place = "",
    data: Place | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    ignore_adapter: bool = False,
    sandbox: bool = False,
    progress: OnProgress = None,
) -> Evaluation:
    """Fine-tune a model on a task and measure ACC, and the ASR of triggers, as fractions.

    `task`: a name, or own data ("train.csv,test.csv"). `triggers`: a list of words or patches, an
    attack's name. `changes`: of fine-tuning, such as {"epochs": 1}. `keep_classifier`: a new folder
    for the fine-tuned weights. `store`: a folder in which a fine-tuning is kept and never repeated.

    Raises UserError for a model, task or trigger that cannot be used.
    """
    from recipe_ray.api.arguments import parse_model
    from recipe_ray.api.folder import check_free
    from recipe_ray.api.outcomes import Evaluation
    from recipe_ray.api.tuning import FineTuning, Side, doubts, tuned

    kept = None
    if keep_classifier is not None:
        kept = output_folder(str(keep_classifier), "--keep-classifier")
        check_free(kept, "--keep-classifier")
    where = None if data is None else str(data)
    how = FineTuning(task, triggers, text_column, label_column, _changes(changes), where)
    with quiet_libraries(), store_or_temporary(str(store)) as opened:
        listener = Listener(progress)
        chosen = parse_model(model, **_opening(revision, allow_pickle, ignore_adapter, sandbox))
        stage = how.stage(chosen, seed, listener, keep_model=kept is not None)
        table = tuned(stage, opened, how.locations(), listener, kept)
    rows = table.to_pylist()
    found = {name: one.mean for name, one in Side(chosen.label(), [rows]).estimates.items()}
    asr = {name[4:]: value for name, value in found.items() if name.startswith("asr ")}
    return Evaluation(
        rows=table,
        warnings=tuple(doubts(rows)),
        model=chosen.label(),
        acc=found["acc"],
        aasr=found.get("aasr"),
        masr=found.get("masr"),
        asr=asr,
    )


def compare(
    before: Named,
    after: Named,
    task: Named,
    *,
    floor: Named | None = None,
    triggers: str | Sequence[str] = "",
    seeds: int = 1,
    changes: Changes = (),
    text_column: str | None = None,
    label_column: str | None = None,
    store: Place = "",
    data: Place | None = None,
    revision: str | None = None,
    allow_pickle: bool = False,
    ignore_adapter: bool = False,
    sandbox: bool = False,
    progress: OnProgress = None,
) -> Comparison:
    """Fine-tune two models in the same way, and say what the second does otherwise.

    `floor`: a clean model, which shows what triggers do without a backdoor. `seeds`: fine-tunings
    of each. The others are as of `evaluate`.

    Raises UserError, before anything is fine-tuned, for what cannot be used.
    """
    from recipe_ray.api.arguments import parse_model
    from recipe_ray.api.outcomes import Comparison
    from recipe_ray.api.tuning import FineTuning, compared, lost_accuracy

    _at_least(1, seeds=seeds)
    where = None if data is None else str(data)
    how = FineTuning(task, triggers, text_column, label_column, _changes(changes), where)
    named = {"A": before, "B": after, **({"floor": floor} if floor is not None else {})}
    opening = _opening(revision, allow_pickle, ignore_adapter, sandbox)
    with quiet_libraries(), store_or_temporary(str(store)) as kept:
        models = {}
        for side, given in named.items():
            model = parse_model(given, **opening)
            models[side] = (model.label(), model)
        sides = compared(models, how, seeds, kept, Listener(progress))
    estimates = {side: one.estimates for side, one in sides.items()}
    rows = [
        {"side": side, "model": sides[side].model, "metric": name}
        | {"mean": value.mean, "low": value.low, "high": value.high, "n": value.n}
        for side, own in estimates.items()
        for name, value in own.items()
    ]
    warnings = [f"{side}: {doubt}" for side, one in sides.items() for doubt in one.doubts()]
    warnings += lost_accuracy(sides["A"], sides["B"])
    return Comparison(rows=_table(rows), warnings=tuple(warnings), sides=estimates)


def run(
    experiment: Place | Mapping[str, Any],
    *,
    store: Place = "runs/store",
    changes: Changes = (),
    limit: int | None = None,
    in_process: bool = False,
    address: str | None = None,
    data: Place | None = None,
    progress: OnProgress = None,
) -> RunOutcome:
    """Run what a store lacks of an experiment: a YAML file, or a dict that says the same.

    It runs on Ray, on this machine or the cluster at `address`; with `in_process` cell after cell
    here, without Ray. `limit`: only the first so many cells. A stage that fails costs only what
    needs it, and `failed` says why. The same call continues what was stopped.

    Raises UserError, before anything runs, for an experiment or data that cannot be used.
    """
    from recipe_ray.api.experiments import planned, recorded_at, run_here, swept
    from recipe_ray.api.outcomes import RunOutcome
    from recipe_ray.data.sources import Locations
    from recipe_ray.store.store import Store

    if in_process and address is not None:
        raise SpecError("in_process: it runs without Ray; leave out address")
    if limit is not None:
        _at_least(1, limit=limit)
    with quiet_libraries():
        plan = planned(experiment, _changes(changes), None if data is None else str(data), limit)
        opened = Store.open(str(store))
        where = Locations.from_environment(None if data is None else Path(data))
        listener = Listener(progress)
        if in_process:
            outcome = run_here(plan, opened, where, listener)
        else:
            with listener.watching(len(plan.stages)) as watcher:
                outcome = swept(plan, opened, where, address, watcher)
    own = [one for one in recorded_at(str(store)) if one.experiment == plan.name]
    return RunOutcome(
        rows=_rows_of(own),
        experiment=plan.name,
        store=str(store),
        done=outcome.done,
        skipped=outcome.skipped,
        failed=outcome.failed,
        wall_s=outcome.wall_s,
    )


def results(store: Place = "runs/store", experiment: str | None = None) -> Results:
    """Return the result rows of a store, a folder of `report --export` or a Parquet file.

    `experiment`: only that one's. Raises UserError if there are none, or for an unknown name.
    """
    from recipe_ray.api.experiments import recorded_at
    from recipe_ray.api.outcomes import Results
    from recipe_ray.base.errors import unknown

    found = recorded_at(str(store))
    names = [one.experiment for one in found]
    if experiment is not None and experiment not in names:
        raise SpecError(f"{store}: " + unknown("experiment", experiment, names))
    kept = tuple(one for one in found if experiment in (None, one.experiment))
    plans = {one.experiment: one.plan for one in kept}
    return Results(rows=_rows_of(kept), plans=plans, recorded=kept)


def _opening(
    revision: str | None, allow_pickle: bool, ignore_adapter: bool, sandbox: bool
) -> dict[str, Any]:
    about = {"allow_pickle": allow_pickle, "ignore_adapter": ignore_adapter, "sandbox": sandbox}
    return {"revision": revision, **about}


def _listed(given: Named | Sequence[Named]) -> list[Named]:
    return [given] if isinstance(given, (str, PurePath, Mapping)) else list(given)


def _at_least(least: float, **given: float) -> None:
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < least:
            raise SpecError(f"{name}: expected {least:g} or more, got {value!r}")


def _changes(given: Changes) -> tuple[str, ...]:
    """Return changes as `--set` takes them."""
    import json

    if isinstance(given, Mapping):
        return tuple(f"{name}={json.dumps(value, default=str)}" for name, value in given.items())
    if isinstance(given, str) or not all(isinstance(one, str) for one in given):
        raise SpecError(f"changes {given!r}: give a dict such as {{'fit.steps': 300}}")
    return tuple(given)


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_pylist(rows)


def _rows_of(found: Sequence[Recorded]) -> pa.Table:
    import pyarrow as pa

    from recipe_ray.store.rows import result_schema

    return pa.concat_tables([result_schema().empty_table(), *(one.rows for one in found)])
