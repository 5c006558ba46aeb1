"""Which measure warns of lost accuracy is decided by the rows of purified PTMs and their tasks."""

from typing import Any

import pandas as pd
import pytest

from benchmarks.harm import lost, study

MEASURED = {
    "drift": lambda harm, number: (number * 7 % 13) / 13,  # tells nothing
    "guard.neighbours_kept": lambda harm, number: 1 - harm,
    "guard.predictability": lambda harm, number: 0.9,
    "guard.effective_rank.before": lambda harm, number: 10.0,
    "guard.effective_rank.after": lambda harm, number: 10.0,
}
HARMS = [round(0.01 * number, 2) for number in range(16)]  # of ACC, lost


def rows() -> list[dict[str, Any]]:
    """Return rows of an undefended PTM and of 16 purified ones that lost more and more."""

    def row(kind: str, defense: str, metric: str, value: float, task: str | None = None) -> Any:
        about = {"kind": kind, "attack": "por", "defense": defense, "seed": 0, "epoch": None}
        return {**about, "metric": metric, "value": value, "task": task}

    found = [row("finetune", "none", "acc", 0.9, task) for task in ("a", "b")]
    for number, harm in enumerate(HARMS):
        name = f"recipe-{number}"
        found += [row("finetune", name, "acc", 0.9 - harm, "a")]
        found += [row("purify", name, m, of(harm, number)) for m, of in MEASURED.items()]
    return found


def test_a_task_that_a_ptm_lacks_counts_for_none() -> None:
    some = rows()
    more = {**some[2], "task": "b", "value": 0.0}  # of one purified PTM only
    ptms = lost(pd.DataFrame([*some, more]))
    assert list(ptms.tasks) == [1] * 16
    assert sorted(ptms.lost) == pytest.approx(HARMS)


def test_the_measure_that_orders_ptms_by_their_loss_warns_of_all_that_are_harmed() -> None:
    ptms = lost(pd.DataFrame(rows()))
    found = study(ptms)
    assert found["measure"] == "neighbours_lost"
    assert found["rank_correlation"]["neighbours_lost"] == pytest.approx(1)
    # 5 points or more were lost by 11: the bound lies between the least of them and the next
    assert (found["ptms"], found["harmed"], found["tasks"]) == (16, 11, 1)
    assert 0.04 < found["bound"] < 0.05
    assert found["warned_for_nothing"] == "0 of 2"


def test_few_ptms_or_none_that_is_harmed_decide_nothing() -> None:
    ptms = lost(pd.DataFrame(rows()))
    for some in (ptms.head(11), ptms[ptms.lost < 0.05]):
        with pytest.raises(SystemExit, match="decide nothing"):
            study(some)
