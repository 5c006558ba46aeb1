"""The command over a search file, and what a person sees while candidates run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from recipe_ray.api.places import data_locations
from recipe_ray.base.printable import printable
from recipe_ray.cli.display import Display, duration, told_if_slow
from recipe_ray.cli.exits import FAILED
from recipe_ray.cli.options import (
    DEFAULT_STORE,
    AddressOption,
    DataOption,
    JsonOption,
    QuietOption,
    SetOption,
    StoreOption,
    VerboseOption,
    experiment_file,
    set_up_logging,
)

if TYPE_CHECKING:
    from recipe_ray.data.sources import Locations
    from recipe_ray.experiment.search_plan import Course, SearchPlan


logger = logging.getLogger("recipe_ray")
SearchFile = Annotated[
    str, typer.Argument(metavar="FILE", help="Search file (YAML).", show_default=False)
]


def search_command(
    file: SearchFile,
    store: StoreOption = DEFAULT_STORE,
    data: DataOption = None,
    address: AddressOption = None,
    set_: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    json_: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Search a weight factor by ASHA on dev data, confirm the best on test data."""
    from recipe_ray.experiment.files import load_search
    from recipe_ray.experiment.search_plan import make_search_plan
    from recipe_ray.store.store import Store

    set_up_logging(verbose)
    locations = data_locations(data)
    given = experiment_file(file, "search file")
    what = f"reading {file}, its model and the checksums of its data"
    with told_if_slow(what, quiet=quiet or json_):
        plan = make_search_plan(load_search(given, tuple(set_ or ())), locations)
    if dry_run:
        _print_plan(plan, locations)
        return
    from recipe_ray.distributed.search import SearchWatcher, search  # Ray only if it is used

    with SearchDisplay(plan, quiet=quiet or json_, verbose=verbose) as display:
        watcher = SearchWatcher(
            display.on_part,
            display.on_stage,
            display.on_candidate,
            display.on_wait,
            display.on_doing,
        )
        outcome = search(plan, Store.open(store), locations, address=address, watcher=watcher)
    _print_results(plan, store, json_=json_)
    for reason in outcome.failed.values():
        typer.secho(f"failed: {reason}", fg="red", err=True)
    if outcome.failed:
        raise typer.Exit(FAILED)


class SearchDisplay:
    """Says which part runs, how each stage goes, every look with its score, and the best so far."""

    def __init__(self, plan: SearchPlan, *, quiet: bool, verbose: bool) -> None:
        from recipe_ray.stages.run import Warned

        self._console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._errors = Console(stderr=True, highlight=False, soft_wrap=True)
        self._how = {"quiet": quiet, "verbose": verbose}
        self._search = plan.search
        self._stages: Display | None = None
        self._count = 0
        self._ended = 0
        self._best = (False, float("-inf"), "")  # fine-tuned or not, score, candidate
        self._warned = Warned(self._warn)

    def __enter__(self) -> SearchDisplay:
        return self

    def __exit__(self, *error: object) -> None:
        logger.removeHandler(self._warned)
        self._close()

    def on_part(self, title: str, count: int) -> None:
        """Begin a part: the undefended PTM, candidates, the confirmation."""
        self._close()
        self._hear_warnings()
        self._console.print(f"{title} ({count})", style="bold", markup=False)
        self._count = count

    def on_stage(self, event: Any) -> None:
        """Draw an event of a sweep."""
        if self._stages is None:  # not earlier: a live display and plain lines do not mix
            logger.removeHandler(self._warned)  # it has its own
            self._stages = Display(self._count, **self._how)
            self._stages.__enter__()
        self._stages.on_event(event)

    def on_candidate(self, event: Any) -> None:
        """Print a candidate's start, look or end."""
        course: Course = event.course
        name = course.candidate.settings.title()
        self._ended += event.kind in ("skipped", "ended")
        said = {
            "skipped": self._known,
            "started": self._started,
            "looked": self._looked,
            "ended": self._over,
        }[event.kind]
        count = f"[{self._ended:>{len(str(self._search.trials))}}/{self._search.trials}]"
        self._console.print(f"{count} {name} {said(course)}", markup=False)
        if event.message:
            where = f"{count} {name}: " if self._how["quiet"] else "        "
            self._errors.print(where + printable(event.message), style="red", markup=False)

    def on_wait(self, driver: str) -> None:
        """Print which other driver runs the candidates."""
        self._console.print(f"waiting for {driver}, which runs them", markup=False)

    def on_doing(self, what: str) -> None:
        """Print what is done before the first stage of a part starts."""
        self._console.print(f"{what} ...", style="dim", markup=False)

    def _hear_warnings(self) -> None:
        if not self._how["verbose"]:  # otherwise they are among the logs that are shown
            logger.addHandler(self._warned)

    def _warn(self, message: str) -> None:
        self._console.print(f"warning: {message}", style="yellow", markup=False)

    def _known(self, course: Course) -> str:
        self._compare(course)
        return f"done before: {course.ended} after {course.epochs} epochs"

    def _started(self, course: Course) -> str:
        known = f", {course.epochs} looks are there already" if course.epochs else ""
        return f"started{known}"

    def _looked(self, course: Course) -> str:
        look, best = course.last, self._compare(course)
        assert look is not None
        rung = ", a rung" if look.epoch in self._search.rungs else ""
        chance = ", at chance, which counts as the worst" if look.at_chance else ""
        if look.acc is None or look.masr is None:
            seen = f"triggers move texts by up to {look.displacement:.2f} of their spread"
        else:
            seen = f"ACC {100 * look.acc:.1f}, MASR {100 * look.masr:.1f}{chance}"
        return (
            f"epoch {look.epoch} of {self._search.epochs}{rung}: {seen}, "
            f"score {100 * look.score:.1f}; best so far {best}"
        )

    def _compare(self, course: Course) -> str:
        """Return the best look so far, and whose it is; a fine-tuning counts more than none."""
        name = course.candidate.settings.title()
        scores = [(look.acc is not None, look.score, name) for look in course.looks.values()]
        self._best = max([self._best, *scores])
        return f"{100 * self._best[1]:.1f} ({self._best[2]})"

    def _over(self, course: Course) -> str:
        spent = sum(look.purify_s + look.look_s for look in course.looks.values())
        return f"{course.ended} after {course.epochs} epochs, {duration(spent)}"

    def _close(self) -> None:
        if self._stages is not None:
            self._stages.__exit__(None, None, None)
            self._stages = None


def _print_plan(plan: SearchPlan, locations: Locations) -> None:
    from recipe_ray.experiment.search import drawn_at_random

    search = plan.search
    typer.secho(search.name, bold=True)
    if search.description:
        typer.echo(f"  {search.description.strip()}")
    rungs = ", ".join(map(str, search.rungs))
    typer.echo(
        f"{search.trials} candidates, {search.sampling} sampling, compared after epochs "
        f"{rungs}; 1/{search.reduction} continue"
    )
    for settings in drawn_at_random(search) if search.sampling == "random" else ():
        typer.echo(f"  {settings.title()}")
    confirmed = plan.confirmation([plan.template.settings], locations)
    parts = {"before": plan.undefended, "confirmation, for one survivor": confirmed}
    for title, part in parts.items():
        typer.echo(f"{title}: {len(part.cells)} cells, {len(part.stages)} distinct stages")


def _print_results(plan: SearchPlan, store: str, *, json_: bool) -> None:
    from recipe_ray.report.json_report import as_json
    from recipe_ray.report.load import recorded
    from recipe_ray.report.render import Terminal
    from recipe_ray.report.sections import sections

    found = recorded(store)
    parts = [plan.search.name, f"{plan.search.name}.confirm"]
    shown = [section for name in parts for section in sections(found, name)]
    if json_:
        typer.echo(as_json(shown))
        return
    Console().print(Terminal([table for section in shown for table in section.tables()]))
