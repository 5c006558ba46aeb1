"""A report as JSON, one object, stable within a `schema_version`.

    {"schema_version": 3,
     "cells": [{"experiment", "model", "attack", "defense", "aux", "aux_size", "weight_factor",
                "task", "epoch",
                "acc" | "aasr" | "masr": {"mean", "low", "high", "n"} or null,
                "clean_acc", "floor_aasr", "floor_masr", "seeds": [0, ...],
                "at_chance": [seed, ...], "floor_at_chance": [seed, ...],
                "paper": paper or null,
                "trials": [{"stage", "seed", "sample_seed", "comparison",
                            "acc": share, "majority": share or null, "at_chance", "aasr", "masr",
                            "asr": [{"trigger", "label", ...share}]}]}],
     "probes": [{"experiment", "model", "attack", "defense", "aux", "aux_size", "weight_factor",
                 "task", "trigger",
                 "overlap" | "poisoned_only" | "share": {"mean", "low", "high", "n"} or null,
                 "seeds", "stages", "paper": paper or null}],
     "measured": [{"experiment", "kind", "model", "attack", "defense", "aux", "aux_size",
                   "weight_factor", "task", "epoch", "trigger", "label", "stage",
                   "values": {metric: {"mean", "low", "high", "n"}}, "seeds", "stages"}],
     "searches": [{"experiment", "model", "attack", "task", "rungs", "rule", "trials",
                   "candidates": [{"defense", "weight_factor", "ended",
                                   "looks": [{"stage", "epoch", "acc", "masr", "score",
                                              "at_chance"}]}]}]}

Values are fractions, or neurons for `poisoned_only`; null if absent. `measured` holds the other
kinds of stages, and each kind says what its metrics mean. Its `stage` is null unless nothing
else tells rows apart. A share is {"value", "numerator", "denominator"}. `stage` is the key of the
artifact whose manifest and rows say everything else. `majority` is the largest class's share of the
test set. `at_chance`: ACC is not above it, so ASR says nothing (for a cell: the seeds of which this
is so; `floor_at_chance`: seeds of the clean PTM that the floors leave out). `paper` is what the
paper has in the same place, and measured minus published:

    {"table", "model", "attack", "defense", "aux_data", "aux_size", "variant", "dataset",
     "values": {"acc" | "aasr" | "masr" | "poisoned_only": value},
     "differences": {as values; null if it was not measured}}
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from recipe_ray.report.measured import MeasuredSummary
from recipe_ray.report.published import Published, PublishedTable
from recipe_ray.report.searches import SearchSummary
from recipe_ray.report.sections import Section
from recipe_ray.report.stats import Estimate
from recipe_ray.report.summary import POISONED_ONLY, CellSummary, ProbeSummary, SeedResult

JSON_SCHEMA_VERSION = 3
_PRINTED = ("table", "model", "attack", "defense", "aux_data", "aux_size", "variant", "dataset")


def as_json(sections: Sequence[Section]) -> str:
    """Return a report as JSON (structure above)."""
    document = {
        "schema_version": JSON_SCHEMA_VERSION,
        "cells": [_cell(cell, one.paper) for one in sections for cell in one.cells],
        "probes": [_probe(probe, one.paper) for one in sections for probe in one.probes],
        "measured": [_measured(other) for one in sections for other in one.measured],
        "searches": [_search(one.search) for one in sections if one.search is not None],
    }
    return json.dumps(document, indent=1)


def _cell(cell: CellSummary, paper: PublishedTable | None) -> dict[str, Any]:
    measured = {"acc": cell.acc, "aasr": cell.aasr, "masr": cell.masr}
    plain = {name: value for name, value in vars(cell).items() if name not in measured}
    printed = paper.find(cell).values() if paper is not None else ()
    values = {value.metric.lower(): value.value / 100 for value in printed}
    return {
        **plain,
        **_estimates(measured),
        "seeds": list(cell.seeds),
        "paper": _paper(printed, values, measured),
        "trials": [_trial(trial) for trial in cell.trials],
    }


def _probe(probe: ProbeSummary, paper: PublishedTable | None) -> dict[str, Any]:
    measured = {
        "overlap": probe.overlap,
        "poisoned_only": probe.poisoned_only,
        "share": probe.share,
    }
    plain = {name: value for name, value in vars(probe).items() if name not in measured}
    found = paper.find(probe) if paper is not None else {}
    count = found.get(POISONED_ONLY)
    return {
        **plain,
        **_estimates(measured),
        "seeds": list(probe.seeds),
        "stages": list(probe.stages),
        "paper": _paper(found.values(), {"poisoned_only": count.value} if count else {}, measured),
    }


def _measured(other: MeasuredSummary) -> dict[str, Any]:
    values = {metric: asdict(value) for metric, value in other.values.items()}
    lists = {"seeds": list(other.seeds), "stages": list(other.stages)}
    return {**vars(other), "values": values, **lists}


def _search(search: SearchSummary) -> dict[str, Any]:
    return {**vars(search), "candidates": [asdict(one) for one in search.candidates]}


def _estimates(measured: dict[str, Estimate | None]) -> dict[str, Any]:
    return {name: asdict(value) if value else None for name, value in measured.items()}


def _paper(
    printed: Iterable[Published], values: dict[str, float], measured: dict[str, Estimate | None]
) -> dict[str, Any] | None:
    first = next(iter(printed), None)
    if first is None:
        return None
    differences = {
        name: ours.mean - value if (ours := measured[name]) is not None else None
        for name, value in values.items()
    }
    where = {name: getattr(first, name) for name in _PRINTED}
    return {**where, "values": values, "differences": differences}


def _trial(trial: SeedResult) -> dict[str, Any]:
    return {
        "stage": trial.stage,
        "seed": trial.seed,
        "sample_seed": trial.sample_seed,
        "comparison": trial.comparison,
        "acc": asdict(trial.acc) if trial.acc else None,
        "majority": asdict(trial.majority) if trial.majority else None,
        "at_chance": trial.at_chance,
        "aasr": trial.aasr,
        "masr": trial.masr,
        "asr": [
            {"trigger": trigger, "label": label, **asdict(share)}
            for (trigger, label), share in sorted(trial.asr.items())
        ],
    }
