"""`recipe-ray scan`: is this model backdoored? One model or many, without triggers or labels.

Exit codes: 0 nothing found, 1 suspicious, 2 an error, 3 no verdict on this kind of model, 4 wrong
use of the command. For several models it is the first of 1, 2, 3, 0 that is true of any of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from recipe_ray.base.errors import SpecError, StageFailedError, UserError
from recipe_ray.base.paths import existing_path
from recipe_ray.cli.options import (
    AddressOption,
    JsonOption,
    Opening,
    SeedOption,
    StoreOption,
    Telling,
    TextColumnOption,
    set_up_logging,
    store_or_temporary,
    with_groups,
)
from recipe_ray.cli.scan_report import Result, as_html, as_json, as_sarif, printed
from recipe_ray.cli.single import columns_named, warn

if TYPE_CHECKING:
    from recipe_ray.data.sources import Locations
    from recipe_ray.detectors.calibration import OfReference
    from recipe_ray.experiment.plan import Plan
    from recipe_ray.stages.scan import ScanStage
    from recipe_ray.store.store import Store

CLEAN, SUSPICIOUS, ERROR, UNSUPPORTED, USAGE = 0, 1, 2, 3, 4
MOST_MODELS = 10_000
UsageError: Any = typer.BadParameter.__mro__[1]  # of the click that typer has


class ScanCommand(TyperCommand):
    """The command, with an exit code of its own for wrong options."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """Read the words of the command line."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except UsageError as error:
            error.show()
            raise typer.Exit(USAGE) from None


@with_groups
def scan_command(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL...",
            help="Local folders, hub ids, registered models, or folders of model folders.",
        ),
    ] = None,
    data: Annotated[
        str, typer.Option("--data", help="Unlabelled texts or images: a corpus, file or folder.")
    ] = "",
    from_file: Annotated[
        str | None, typer.Option("--models", metavar="FILE", help="A file with one model per line.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="MODEL", help="A clean model of the same make."),
    ] = None,
    detector: Annotated[
        list[str] | None,
        typer.Option("--detector", help="One of `recipe-ray list detectors`; default: all."),
    ] = None,
    json_: JsonOption = False,
    sarif: Annotated[str | None, typer.Option(metavar="FILE", help="Write SARIF 2.1.0.")] = None,
    html: Annotated[str | None, typer.Option(metavar="FILE", help="Write an HTML page.")] = None,
    text_column: TextColumnOption = None,
    at_once: Annotated[
        int,
        typer.Option(
            "--at-once",
            min=1,
            help="Models scanned at the same time; Ray runs them if there are several.",
        ),
    ] = 1,
    address: AddressOption = None,
    store: StoreOption = "",
    seed: SeedOption = 0,
    *,
    opening: Opening,
    telling: Telling,
) -> None:
    """Say whether models look backdoored, and which inputs give them away."""
    set_up_logging(telling.verbose)
    with _as_usage():
        if not data:
            raise SpecError("--data: give unlabelled texts or images: a corpus, a file or a folder")
        named = [one for text in (*(models or ()), *_listed(from_file)) for one in _inside(text)]
        if not named:
            raise SpecError("MODEL: give one or more models, or --models FILE")
        for option, file in (("--sarif", sarif), ("--html", html)):
            if file is not None and not Path(file).absolute().parent.is_dir():
                raise SpecError(f"{option} {file}: the folder does not exist")
    ask = _Asked(data, columns_named(text=text_column), detector or [], seed, opening)
    with store_or_temporary(store) as kept:
        runner = _Runner(ask, kept, at_once, address, telling)
        normal = runner.reference(reference) if reference is not None else None
        results = runner.run(list(dict.fromkeys(named)), normal)
    if json_:
        typer.echo(json.dumps(as_json(results), indent=1, ensure_ascii=True))
    else:
        typer.echo(printed(results))
    if sarif is not None:
        Path(sarif).write_text(json.dumps(as_sarif(results), indent=1))
    if html is not None:
        Path(html).write_text(as_html(results), encoding="utf-8")
    raise typer.Exit(exit_code(results))


def exit_code(results: list[Result]) -> int:
    """Return the first of suspicious, error and unsupported that is true of any; else clean."""
    codes = {one.code for one in results}
    return next((code for code in (SUSPICIOUS, ERROR, UNSUPPORTED) if code in codes), CLEAN)


class _Asked:
    """The options of every scan."""

    def __init__(
        self,
        data: str,
        columns: dict[str, str],
        detectors: list[str],
        seed: int,
        opening: Opening,
    ) -> None:
        from recipe_ray.cli.arguments import parse_detector
        from recipe_ray.data.sources import Locations

        self._data, self._columns, self._seed, self._opening = data, columns, seed, opening
        with _as_usage():
            self._detectors = tuple(parse_detector(text) for text in detectors)
        self.locations: Locations = Locations.from_environment()

    def stage(self, model: str) -> ScanStage:
        """Return the scan of a model; raise UserError if it cannot be."""
        from recipe_ray.base.spec import explained
        from recipe_ray.cli.arguments import parse_corpus
        from recipe_ray.cli.purification import refuse_untrained
        from recipe_ray.stages.scan import ScanStage, default_detectors, scan_content

        chosen = self._opening.model(model)
        refuse_untrained(chosen)
        corpus = parse_corpus(self._data, None, self._columns, chosen).component
        detectors = self._detectors or default_detectors(chosen.reads)
        content = scan_content(corpus.identity_at(self.locations)["source"], detectors)
        with explained(f"scan of {model}"):
            fields = {"corpus": corpus, "detectors": detectors, "content": content}
            return ScanStage(model=chosen, seed=self._seed, **fields)


class _Runner:
    """Runs scans in this process, or many at once by Ray, and reads what they found."""

    def __init__(
        self, asked: _Asked, store: Store, at_once: int, address: str | None, telling: Telling
    ) -> None:
        self._asked, self._store = asked, store
        self._at_once, self._address = at_once, address
        self._telling = telling

    def reference(self, model: str) -> OfReference:
        """Scan a clean model; return what is normal by detector."""
        from recipe_ray.detectors.calibration import bounds_of_reference

        stage = self._asked.stage(model)
        failed = self._scan({model: stage}, several=False)
        if failed:
            raise StageFailedError(f"--reference {failed[model]}")
        return bounds_of_reference(self._record(stage), model)

    def run(self, models: list[str], normal: OfReference | None) -> list[Result]:
        """Scan models; if one cannot be opened or scanned, the others still are."""
        stages: dict[str, ScanStage] = {}
        errors: dict[str, str] = {}
        found: dict[str, Result] = {}
        several = len(models) > 1
        for model in models:
            with _noted(errors, model) if several else nullcontext():
                stages[model] = self._asked.stage(model)
        errors |= self._scan(stages, several)
        for model in [one for one in stages if one not in errors]:
            with _noted(errors, model) if several else nullcontext():
                found[model] = self._result(model, stages[model], normal)
        if not self._telling.quiet:
            warn(f"{model}: {error}" for model, error in errors.items())
        return [found.get(model) or Result(model, None, errors[model]) for model in models]

    def _scan(self, stages: dict[str, ScanStage], several: bool) -> dict[str, str]:
        """Run what the store does not have; return what failed."""
        from recipe_ray.cli.display import Display
        from recipe_ray.experiment.plan import plan_of
        from recipe_ray.experiment.spec import Launch

        # on this machine its cores are shared out; a cluster's nodes have a fixed size
        share = max(1, (os.cpu_count() or 1) // self._at_once)
        cores = 1 if self._address is not None else share
        plan = plan_of("scan", stages.values(), Launch(cpus_per_worker={"scan": cores}))
        quiet, verbose = self._telling.quiet, self._telling.verbose
        with Display(len(plan.stages), quiet=quiet, verbose=verbose) as display:
            if self._at_once == 1 and self._address is None:
                return self._scan_here(plan, stages, display, several)
            from recipe_ray.distributed.sweep import sweep

            outcome = sweep(
                plan,
                self._store,
                self._asked.locations,
                address=self._address,
                on_event=display.on_event,
            )
        return {
            model: outcome.failed[stage.key]
            for model, stage in stages.items()
            if stage.key in outcome.failed
        }

    def _scan_here(
        self, plan: Plan, stages: dict[str, ScanStage], display: Any, several: bool
    ) -> dict[str, str]:
        from recipe_ray.experiment.collect import collect_missing, plan_record, run_inline

        failed: dict[str, str] = {}
        how = {"experiment": plan.name, "on_progress": display.on_progress}
        self._store.write_plan(plan.name, plan_record(plan))
        for model, stage in stages.items():
            with _noted(failed, model, expected_only=not several):
                run_inline([stage], self._store, self._asked.locations, **how)
                collect_missing(plan, self._store, [stage])
        return failed

    def _result(self, model: str, stage: ScanStage, normal: OfReference | None = None) -> Result:
        from recipe_ray.detectors.calibration import judged_again

        record = self._record(stage)
        return Result(model, judged_again(record, normal) if normal is not None else record)

    def _record(self, stage: ScanStage) -> dict[str, Any]:
        from recipe_ray.stages.scan import read_scan

        return read_scan(self._store, stage)


def _listed(file: str | None) -> Iterator[str]:
    if file is None:
        return
    path = existing_path(file, "--models", "a file with one model per line", "file")
    lines = path.read_text(encoding="utf-8").splitlines()
    if len(lines) > MOST_MODELS:
        raise SpecError(f"--models {file}: {len(lines)} lines; at most {MOST_MODELS}")
    for line in lines:
        if line.strip() and not line.startswith("#"):
            yield line.strip()


def _inside(text: str) -> list[str]:
    """Return the model folders in a folder that is none itself; else the text as it is."""
    from recipe_ray.models.contents import model_folders
    from recipe_ray.models.family import MODELS

    path = Path(text).expanduser()
    if text in MODELS or not path.is_dir():
        return [text]
    found = model_folders(path)
    return [text] if found == [path] else [str(one) for one in found]


@contextmanager
def _noted(errors: dict[str, str], model: str, *, expected_only: bool = False) -> Iterator[None]:
    """Keep why a model cannot be scanned; an error that nobody expected is kept or let pass."""
    from recipe_ray.models.config_fields import explained_by

    try:
        with nullcontext() if expected_only else explained_by(model, "it cannot be scanned"):
            yield
    except UserError as error:
        errors[model] = str(error)


@contextmanager
def _as_usage() -> Iterator[None]:
    """Turn an error in what was typed into the exit code for that."""
    try:
        yield
    except (SpecError, UnicodeDecodeError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(USAGE) from None
