"""Scans of models: each by its own name, in this process or many at once on Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from recipe_ray.api.places import Named
from recipe_ray.api.running import Listener, Watcher
from recipe_ray.api.scan_report import Result
from recipe_ray.base.errors import SpecError, StageFailedError, UserError
from recipe_ray.base.paths import existing_path, expanded

if TYPE_CHECKING:
    from recipe_ray.data.sources import Locations
    from recipe_ray.detectors.calibration import OfReference
    from recipe_ray.detectors.detector import Detector
    from recipe_ray.experiment.plan import Plan
    from recipe_ray.stages.scan import ScanStage
    from recipe_ray.store.store import Store

CLEAN, SUSPICIOUS, ERROR, UNSUPPORTED = 0, 1, 2, 3
MOST_MODELS = 10_000


def exit_code(results: Sequence[Result]) -> int:
    """Return the first of suspicious, error and unsupported that is true of any; else clean."""
    codes = {one.code for one in results}
    return next((code for code in (SUSPICIOUS, ERROR, UNSUPPORTED) if code in codes), CLEAN)


@dataclass(frozen=True)
class Asked:
    """What every scan is made with; `opening` are the further arguments of `parse_model`."""

    data: Named
    columns: dict[str, str]
    detectors: tuple[Detector, ...]  # empty: every one for the model's kind of data
    seed: int
    opening: Mapping[str, Any]
    locations: Locations

    @classmethod
    def of(
        cls,
        data: Named,
        detectors: Sequence[Named],
        seed: int,
        opening: Mapping[str, Any],
        text_column: str | None = None,
    ) -> Asked:
        """Return what words ask for; raise SpecError for a detector that there is not."""
        from recipe_ray.api.arguments import columns_named, parse_detector
        from recipe_ray.data.sources import Locations

        chosen = tuple(parse_detector(one) for one in detectors)
        columns = columns_named(text=text_column)
        return cls(data, columns, chosen, seed, opening, Locations.from_environment())

    def stage(self, model: Named) -> ScanStage:
        """Return the scan of a model; raise UserError if it cannot be."""
        from recipe_ray.api.arguments import parse_corpus, parse_model
        from recipe_ray.api.purification import refuse_untrained
        from recipe_ray.base.spec import explained
        from recipe_ray.stages.scan import ScanStage, default_detectors, scan_content

        chosen = parse_model(model, **self.opening)
        refuse_untrained(chosen)
        corpus = parse_corpus(self.data, None, self.columns, chosen).component
        detectors = self.detectors or default_detectors(chosen.reads)
        content = scan_content(corpus.identity_at(self.locations)["source"], detectors)
        with explained(f"scan of {model}"):
            fields = {"corpus": corpus, "detectors": detectors, "content": content}
            return ScanStage(model=chosen, seed=self.seed, **fields)


class Scanner:
    """Runs scans in this process, or many at once by Ray, and reads what they found."""

    def __init__(
        self, asked: Asked, store: Store, at_once: int, address: str | None, listener: Listener
    ) -> None:
        """`at_once`: models scanned at the same time; `address`: of a Ray cluster."""
        self._asked, self._store = asked, store
        self._at_once, self._address = at_once, address
        self._listener = listener

    def scanned(self, given: Sequence[Named], reference: Named | None = None) -> list[Result]:
        """Scan models, or those in folders of them; if one fails, the others still are scanned.

        `reference`: a clean model that says what is normal. Raises UserError if the only model
        cannot be opened, or the reference cannot be scanned.
        """
        normal = self._normal(reference) if reference is not None else None
        models = {_shown(one): one for word in given for one in _inside(word)}
        stages: dict[str, ScanStage] = {}
        errors: dict[str, str] = {}
        found: dict[str, Result] = {}
        several = len(models) > 1
        for name, model in models.items():
            with _noted(errors, name) if several else nullcontext():
                stages[name] = self._asked.stage(model)
        errors |= self._scan(stages, several)
        for name in [one for one in stages if one not in errors]:
            with _noted(errors, name) if several else nullcontext():
                found[name] = self._result(name, stages[name], normal)
        return [found.get(name) or Result(name, None, errors[name]) for name in models]

    def _normal(self, model: Named) -> OfReference:
        """Scan a clean model; return what is normal by detector."""
        from recipe_ray.detectors.calibration import bounds_of_reference

        stage, name = self._asked.stage(model), _shown(model)
        failed = self._scan({name: stage}, several=False)
        if failed:
            raise StageFailedError(f"--reference {failed[name]}")
        return bounds_of_reference(self._record(stage), name)

    def _scan(self, stages: dict[str, ScanStage], several: bool) -> dict[str, str]:
        """Run what the store does not have; return what failed."""
        from recipe_ray.experiment.plan import plan_of
        from recipe_ray.experiment.spec import Launch

        # on this machine its cores are shared out; a cluster's nodes have a fixed size
        share = max(1, (os.cpu_count() or 1) // self._at_once)
        cores = 1 if self._address is not None else share
        plan = plan_of("scan", stages.values(), Launch(cpus_per_worker={"scan": cores}))
        with self._listener.watching(len(plan.stages)) as watcher:
            if self._at_once == 1 and self._address is None:
                return self._scan_here(plan, stages, watcher, several)
            from recipe_ray.distributed.sweep import sweep

            outcome = sweep(
                plan,
                self._store,
                self._asked.locations,
                address=self._address,
                on_event=watcher.on_event,
            )
        return {
            model: outcome.failed[stage.key]
            for model, stage in stages.items()
            if stage.key in outcome.failed
        }

    def _scan_here(
        self, plan: Plan, stages: dict[str, ScanStage], watcher: Watcher, several: bool
    ) -> dict[str, str]:
        from recipe_ray.experiment.collect import collect_missing, plan_record, run_inline

        failed: dict[str, str] = {}
        how: dict[str, Any] = {"experiment": plan.name, "on_progress": watcher.on_progress}
        self._store.write_plan(plan.name, plan_record(plan))
        for model, stage in stages.items():
            with _noted(failed, model, expected_only=not several):
                run_inline([stage], self._store, self._asked.locations, **how)
                collect_missing(plan, self._store, [stage])
        return failed

    def _result(self, model: str, stage: ScanStage, normal: OfReference | None) -> Result:
        from recipe_ray.detectors.calibration import judged_again

        record = self._record(stage)
        return Result(model, judged_again(record, normal) if normal is not None else record)

    def _record(self, stage: ScanStage) -> dict[str, Any]:
        from recipe_ray.stages.scan import read_scan

        return read_scan(self._store, stage)


@contextmanager
def _noted(errors: dict[str, str], model: str, *, expected_only: bool = False) -> Iterator[None]:
    """Keep why a model cannot be scanned; an error that nobody expected is kept or let pass."""
    from recipe_ray.models.config_fields import explained_by

    try:
        with nullcontext() if expected_only else explained_by(model, "it cannot be scanned"):
            yield
    except UserError as error:
        errors[model] = str(error)


def listed(file: str | None) -> Iterator[str]:
    """Yield the models that a file names, one per line; none without a file."""
    if file is None:
        return
    path = existing_path(file, "--models", "a file with one model per line", "file")
    lines = path.read_text(encoding="utf-8").splitlines()
    if len(lines) > MOST_MODELS:
        raise SpecError(f"--models {file}: {len(lines)} lines; at most {MOST_MODELS}")
    for line in lines:
        if line.strip() and not line.startswith("#"):
            yield line.strip()


def _shown(model: Named) -> str:
    return str(model) if isinstance(model, (str, PurePath)) else str(dict(model))


def _inside(given: Named) -> list[Named]:
    """Return the model folders in a folder that is none itself; else what was given as it is."""
    from recipe_ray.models.contents import model_folders
    from recipe_ray.models.family import MODELS

    if not isinstance(given, (str, PurePath)):
        return [given]
    path = expanded(str(given))
    if str(given) in MODELS or not path.is_dir():
        return [given]
    found = model_folders(path)
    return [given] if found == [path] else [str(one) for one in found]
