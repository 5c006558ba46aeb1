"""`recipe-ray purify`: suspicious models are scanned, cleaned, judged, and pushed if that is asked.

Exit codes: 0 a model was written, 2 an error, 3 harm is likely, 4 a model was written and something
still looks like a backdoor (docs/purify.md). Of several models it is the first of 2, 3, 4, 0.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recipe_ray.api.purifying import BUDGET_S, MAX_ROUNDS, Asked, purified
from recipe_ray.api.running import Workers
from recipe_ray.api.tuning import FineTuning
from recipe_ray.base.errors import SpecError, UserError
from recipe_ray.base.limits import LARGEST
from recipe_ray.base.paths import path_part
from recipe_ray.cli.evaluate import TASK_HELP, LabelColumnOption, TriggersOption
from recipe_ray.cli.options import (
    AddressOption,
    DataOption,
    Opening,
    OutOption,
    SeedOption,
    SetOption,
    Telling,
    TextColumnOption,
    WorkersOption,
    set_up_logging,
    with_groups,
)
from recipe_ray.cli.single import Screen

if TYPE_CHECKING:
    from recipe_ray.api.dry_run import Estimate

WORST_FIRST = (2, 3, 4, 0)


@dataclass(frozen=True)
class Evaluating:
    """The options of the measurement before and after, which never reaches the purifier."""

    evaluate: Annotated[
        str | None,
        typer.Option("--evaluate", metavar="TASK", help=f"Measure before and after. {TASK_HELP}"),
    ] = None
    triggers: TriggersOption = ""
    floor: Annotated[
        str | None,
        typer.Option("--floor", metavar="MODEL", help="Of --evaluate: a clean model, too."),
    ] = None
    label_column: LabelColumnOption = None
    evaluate_set: Annotated[
        list[str] | None,
        typer.Option("--evaluate-set", help="Change the fine-tuning of --evaluate: epochs=1."),
    ] = None

    def tuning(self, data: str | None) -> FineTuning | None:
        """Return how models are fine-tuned, None if they are not; raise SpecError for leftovers."""
        changes = tuple(self.evaluate_set or ())
        if self.evaluate is not None:
            return FineTuning(
                self.evaluate,
                self.triggers,
                label_column=self.label_column,
                changes=changes,
                data=data,
            )
        given = {
            "triggers": self.triggers,
            "label-column": self.label_column,
            "evaluate-set": changes,
        }
        left = [name for name, value in given.items() if value]
        if left:
            raise SpecError(f"--{left[0]}: it is measured on a task; give --evaluate TASK, too")
        return None


@dataclass(frozen=True)
class Pushing:
    """The options for the hub."""

    push_to_hub: Annotated[
        str | None,
        typer.Option("--push-to-hub", metavar="OWNER/NAME", help="Then put it on the hub."),
    ] = None
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before it is pushed.")] = False
    push_backdoored: Annotated[
        bool,
        typer.Option("--push-backdoored", help="Push it even if it still looks backdoored."),
    ] = False

    def check(self, models: Sequence[str]) -> None:
        """Raise UserError, before any work, for what would stop the push afterwards."""
        if self.push_to_hub is None:
            return
        from recipe_ray.api.upload import check_upload

        if len(models) > 1:
            raise SpecError("--push-to-hub: one repository is for one model; give one MODEL")
        if not self.yes and not sys.stdin.isatty():
            raise SpecError("--push-to-hub asks before it pushes, and there is no terminal: --yes")
        check_upload(self.push_to_hub)

    def push(self, folder: str, result: Mapping[str, Any], screen: Screen) -> None:
        """Push a purified model if it may be and a person agrees."""
        if self.push_to_hub is None:
            return
        from recipe_ray.api.upload import upload, why_not

        why = why_not(result)
        if why is not None and not self.push_backdoored:
            raise SpecError(
                f"not pushed to {self.push_to_hub}: {why}. The model is in {folder}; "
                "--push-backdoored would push it all the same"
            )
        count = len(result["warnings"])
        known = f", with {count} warnings in its card" if count else ""
        asked = f"push {folder} to {self.push_to_hub} on the hub{known}?"
        if not self.yes and not typer.confirm(asked, err=True):
            screen.say(f"not pushed; the model is in {folder}")
            return
        place = upload(Path(folder), self.push_to_hub, "Purified by recipe-ray")
        screen.say(f"pushed to {place}; a new repository is private until you change that")


@with_groups
def purify_command(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Local folders, hub ids, or models that `recipe-ray list` shows.",
        ),
    ],
    aux: Annotated[str, typer.Option("--aux", help="Corpus by name, or your own file or folder.")],
    out: OutOption,
    aux_size: Annotated[
        int | None, typer.Option(help="Use at most this many samples.", min=20, max=LARGEST)
    ] = None,
    text_column: TextColumnOption = None,
    preset: Annotated[str | None, typer.Option(help="paper-por, paper-badpre, ...")] = None,
    defense: Annotated[
        str | None,
        typer.Option(
            help="unlearn, recipe (settings by its rule), ..., or a YAML mapping; default: "
            "unlearn if scans can tell for this make of model, else recipe."
        ),
    ] = None,
    set_: SetOption = None,
    accept_harm: Annotated[
        bool,
        typer.Option(
            "--accept-harm",
            help="Continue even if the model will probably be damaged (otherwise: exit code 3).",
        ),
    ] = False,
    no_scan: Annotated[
        bool, typer.Option("--no-scan", help="Leave the scans before and after out.")
    ] = False,
    scan_budget: Annotated[
        float,
        typer.Option(
            "--scan-budget",
            metavar="SECONDS",
            min=1,
            help="What fits into about so many seconds is scanned, each time.",
        ),
    ] = BUDGET_S,
    until_clean: Annotated[
        bool,
        typer.Option(
            "--until-clean", help="Purify again until the scan is silent (else: exit code 4)."
        ),
    ] = False,
    max_rounds: Annotated[
        int, typer.Option("--max-rounds", min=1, max=20, help="Of --until-clean, at most.")
    ] = MAX_ROUNDS,
    seed: SeedOption = 0,
    workers: WorkersOption = 1,
    address: AddressOption = None,
    data: DataOption = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Time a few steps, say what all takes, write nothing."),
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print result.json.")] = False,
    *,
    evaluating: Evaluating,
    pushing: Pushing,
    opening: Opening,
    telling: Telling,
) -> None:
    """Clean suspicious models; neither triggers nor downstream labels are needed."""
    set_up_logging(telling.verbose)
    asked = Asked(
        model="",
        aux=aux,
        out=out,
        aux_size=aux_size,
        text_column=text_column,
        preset=preset,
        defense=defense,
        changes=tuple(set_ or ()),
        accept_harm=accept_harm,
        scan_budget_s=None if no_scan else scan_budget,
        most_rounds=max_rounds if until_clean else None,
        seed=seed,
        data=data,
        opening=asdict(opening),
        workers=Workers(workers, address),
        evaluation=evaluating.tuning(data),
        floor=evaluating.floor,
    )
    each = _each(asked, models)
    if not dry_run:
        pushing.check(models)
    screen, work = Screen(telling), _estimate if dry_run else _purify
    results: list[dict[str, Any]] = []
    for one in each:
        if len(each) > 1 and not json_:
            typer.echo(f"{'' if one is each[0] else chr(10)}{one.model}:")
        try:
            with _explained(one) if len(each) > 1 else nullcontext():
                results.append(work(one, screen, json_))
        except UserError as error:
            if len(each) == 1:
                raise
            screen.warn(f"{one.model}: {error}")
            about = {"model": {"given": one.model}, "error": str(error)}
            results.append({**about, "exit_code": error.exit_code})
    if json_:
        shown = results if len(each) > 1 else results[0]
        typer.echo(json.dumps(shown, indent=1, ensure_ascii=True))
    if not dry_run:
        pushing.push(out, results[0], screen)
    codes = {result["exit_code"] for result in results}
    raise typer.Exit(next(code for code in WORST_FIRST if code in codes))


def _explained(asked: Asked) -> AbstractContextManager[None]:
    """Make any error of one model, of several, one that does not stop the others."""
    from recipe_ray.models.config_fields import explained_by

    return explained_by(str(asked.model), "it cannot be purified")


def _each(asked: Asked, models: Sequence[str]) -> list[Asked]:
    """Return what is asked for each model: one goes to --out itself, several into it by name."""
    if len(models) == 1:
        return [replace(asked, model=models[0])]
    folders: dict[str, str] = {}
    for model in models:
        name = path_part(Path(model.rstrip("/")).name, "the name of MODEL")
        if name in folders:
            raise SpecError(
                f"MODEL {folders[name]} and {model}: both would go to {asked.out}/{name}; purify "
                "one of them by itself"
            )
        folders[name] = model
    return [
        replace(asked, model=model, out=str(Path(asked.out) / name))
        for name, model in folders.items()
    ]


def _purify(asked: Asked, screen: Screen, json_: bool) -> dict[str, Any]:
    done, result = purified(asked, screen)
    if not json_:
        for line in done.printed():
            typer.echo(line)
        typer.echo(f"purified model and its card: {asked.out}")
    return dict(result)


def _estimate(asked: Asked, screen: Screen, json_: bool) -> dict[str, Any]:
    from recipe_ray.api.dry_run import estimated

    found = estimated(asked, screen)
    if not json_:
        for line in _lines(found):
            typer.echo(line)
    return {"model": {"given": asked.model}, **found.to_json(), "exit_code": 0}


def _lines(found: Estimate) -> list[str]:
    from recipe_ray.cli.display import duration, size

    rows = [(part.name, duration(part.takes_s), part.said) for part in found.parts]
    rows += [("in all, about", duration(found.takes_s), "")]
    rows += [(f"{found.memory}, about", size(found.peak_bytes), "")]
    shown = [f"{name:<24}{value:>10}  {said}".rstrip() for name, value, said in rows]
    return [*shown, f"measured here by {found.timed_steps} real steps; nothing was written"]
