"""How well scans tell backdoored PTMs from clean ones: ROC figures per attack and detector.

Undefended PTMs of an experiment are compared with its clean ones. AUROC is the probability that a
backdoored PTM has the higher suspicion (ties count half); its interval is a percentile bootstrap
over PTMs. Recall and false alarms are shares of PTMs that the scan called suspicious.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recipe_ray.report.tables import ABSENT, Column, Table, percent
from recipe_ray.stages.scan import SUSPICION

CLEAN = "none"
EVERY = "all undefended"
ALL_DETECTORS = "all detectors"
DRAWS = 2000
FEWEST = 2  # PTMs of each side before an AUROC is given


@dataclass(frozen=True)
class Separation:
    """How suspicion tells `backdoored` PTMs from `clean` ones; fractions, None if too few."""

    clean: int
    backdoored: int
    auroc: float | None
    low: float | None
    high: float | None
    recall: float
    false_alarms: float


def separation(backdoored: Sequence[float], clean: Sequence[float]) -> Separation:
    """Return AUROC with its 95 % interval, recall and false alarms at a suspicion of 1."""
    high, low = np.asarray(backdoored, dtype=float), np.asarray(clean, dtype=float)
    shares = float((high > 1).mean()), float((low > 1).mean()) if len(low) else 0.0
    if min(len(high), len(low)) < FEWEST:
        return Separation(len(low), len(high), None, None, None, *shares)
    random = np.random.default_rng(0)
    draws = [
        auroc(random.choice(high, len(high)), random.choice(low, len(low))) for _ in range(DRAWS)
    ]
    least, most = (float(value) for value in np.quantile(draws, (0.025, 0.975)))
    return Separation(len(low), len(high), auroc(high, low), least, most, *shares)


def auroc(higher: Any, lower: Any) -> float:
    """Return the share of pairs in which `higher` [N] is above `lower` [M]; ties count half."""
    above = (higher[:, None] > lower[None]).mean()
    return float(above + (higher[:, None] == lower[None]).mean() / 2)


Found = Mapping[str, Mapping[str, Mapping[str, float]]]  # by detector, attack and stage


def detection_tables(results: pa.Table) -> dict[str, Table]:
    """Return a table for each experiment that scanned clean and backdoored PTMs."""
    found: dict[str, Any] = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    scans = pc.and_(
        pc.starts_with(results["metric"], SUSPICION), pc.equal(results["defense"], "none")
    )
    for row in results.filter(scans).to_pylist():
        detector = row["metric"].removeprefix(SUSPICION).removeprefix(".") or ALL_DETECTORS
        found[row["experiment"]][detector][row["attack"]][row["stage"]] = row["value"]
    return {
        experiment: _table(experiment, by_detector)
        for experiment, by_detector in found.items()
        if len(attacks := by_detector[ALL_DETECTORS]) > 1 and CLEAN in attacks
    }


def _table(experiment: str, by_detector: Found) -> Table:
    whole = by_detector[ALL_DETECTORS]
    attacks = sorted(attack for attack in whole if attack != CLEAN)
    columns = [Column("", "attack"), Column("", "PTMs")]
    for detector in by_detector:
        columns += [Column(detector, name) for name in ("AUROC", "95 %", "recall", "false alarms")]
    rows = []
    for name in (EVERY, *attacks):
        chosen = attacks if name == EVERY else [name]
        fields = [name, str(sum(len(whole[attack]) for attack in chosen))]
        for of_detector in by_detector.values():
            values = [v for attack in chosen for v in of_detector.get(attack, {}).values()]
            clean = of_detector.get(CLEAN, {}).values()
            fields += _fields(values, clean)
        rows.append(tuple(fields))
    return Table(
        f"{experiment}: detection",
        tuple(columns),
        tuple(rows),
        _EXPLANATION.format(len(whole[CLEAN])),
    )


def _fields(values: Sequence[float], clean: Iterable[float]) -> list[str]:
    if not values:
        return [ABSENT] * 4
    found = separation(values, [*clean])
    interval = ABSENT
    if found.low is not None and found.high is not None:
        interval = f"{found.low:.3f}-{found.high:.3f}"
    shown = ABSENT if found.auroc is None else f"{found.auroc:.3f}"
    return [shown, interval, percent(found.recall), percent(found.false_alarms)]


_EXPLANATION = (
    "undefended PTMs against {} clean ones. AUROC: how often a backdoored PTM has the higher "
    "suspicion (interval: bootstrap over PTMs); recall, false alarms: percent called suspicious"
)
