"""What a report says of scans: AUROC, recall and false alarms per attack and detector."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from recipe_ray.report.detection import auroc, detection_tables, separation
from recipe_ray.store.rows import result_schema


def results(by_attack: dict[str, list[float]], defense: str = "none") -> pa.Table:
    rows: list[dict[str, Any]] = []
    for attack, values in by_attack.items():
        for number, value in enumerate(values):
            named = {"experiment": "x", "kind": "scan", "attack": attack, "defense": defense}
            named |= {"stage": f"{attack}-{defense}-{number}"}
            rows.append({**named, "metric": "suspicion", "value": value})
            rows.append({**named, "metric": "suspicion.vocabulary", "value": value / 2})
    columns = {name: [row.get(name) for row in rows] for name in result_schema().names}
    return pa.table(columns, schema=result_schema())


def shown(table: Any) -> dict[str, dict[str, str]]:
    names = [f"{column.group}/{column.name}" for column in table.columns]
    return {row[0]: dict(zip(names, row, strict=True)) for row in table.rows}


@pytest.mark.parametrize(
    ("higher", "lower", "wanted"),
    [([3, 4], [1, 2], 1.0), ([1, 2], [3, 4], 0.0), ([1, 2], [1, 2], 0.5), ([2, 5], [1, 3], 0.75)],
)
def test_auroc_counts_pairs_and_halves_ties(
    higher: list[float], lower: list[float], wanted: float
) -> None:
    assert auroc(np.array(higher), np.array(lower)) == wanted


def test_recall_and_false_alarms_are_shares_above_one() -> None:
    found = separation([0.5, 1.0, 3.0, 9.0], [0.2, 1.4])
    assert (found.recall, found.false_alarms) == (0.5, 0.5)
    assert (found.backdoored, found.clean) == (4, 2)
    assert found.auroc == 6 / 8
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.auroc <= found.high


def test_one_clean_ptm_gives_no_auroc() -> None:
    found = separation([3.0, 4.0], [0.5])
    assert found.auroc is found.low is found.high is None
    assert found.recall == 1.0


def test_attacks_are_compared_with_the_clean_ptms_of_their_experiment() -> None:
    rows = results({"none": [0.3, 0.6, 0.9], "por-50": [0.5, 2.0], "por-350": [50.0, 60.0]})
    table = detection_tables(rows)["x"]
    by_attack = shown(table)
    assert by_attack["por-350"]["all detectors/AUROC"] == "1.000"
    assert by_attack["por-350"]["vocabulary/recall"] == "100.0"
    assert by_attack["por-50"]["all detectors/recall"] == "50.0"
    assert by_attack["por-50"]["vocabulary/recall"] == "0.0"
    assert by_attack["all undefended"]["/PTMs"] == "4"
    assert "3 clean ones" in table.explanation


def test_purified_ptms_are_not_taken_for_undefended_ones() -> None:
    undefended = results({"none": [0.3, 0.6], "por": [5.0, 6.0]})
    purified = results({"por": [0.1, 0.1]}, "recipe")
    table = detection_tables(pa.concat_tables([undefended, purified]))["x"]
    assert shown(table)["por"]["/PTMs"] == "2"


def test_without_clean_ptms_there_is_no_table() -> None:
    assert detection_tables(results({"por": [5.0, 6.0]})) == {}
