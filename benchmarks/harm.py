"""`python -m benchmarks.harm ROWS`: which measure without labels foretells lost accuracy.

    recipe-ray sweep experiments/mini/guard.yaml --data DATA --store runs/guard
    recipe-ray report runs/guard --export rows
    python -m benchmarks.harm rows --out recipe_ray/api/studied_harm.json

ROWS is what `report --export` wrote. A purified PTM's lost ACC is that of the same PTM before less
its own, the mean over the tasks that all of them were fine-tuned on. Each measure of `MEASURES` is
ranked against it (Spearman, with a bootstrap interval over PTMs). The best one decides the warnings
of `purify`, from the value on that leaves no PTM that lost HARMED or more without one; how many are
warned of for nothing is said.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import recipe_ray
from recipe_ray.api.harm import MEASURES, measures

HARMED, UNHARMED = 0.05, 0.02  # of ACC, lost: what must not go unwarned; what the paper allows
DRAWS = 2000
LEAST = 12  # PTMs


def lost(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row per purified PTM: the ACC that it lost, its tasks, and every measure of harm.

    A task that some of them lack is left out, and so is a PTM without any fine-tuning.
    """
    of_ptm = ["attack", "defense", "seed"]
    acc = rows[(rows.kind == "finetune") & (rows.metric == "acc")]
    wide = acc.pivot_table(index=of_ptm, columns="task", values="value").dropna(axis="columns")
    found = []
    for (attack, defense, seed), after in wide.iterrows():
        if defense == "none":
            continue
        fallen = wide.loc[attack, "none", seed] - after
        own = rows[
            (rows.kind == "purify")
            & (rows.attack == attack)
            & (rows.defense == defense)
            & (rows.seed == seed)
        ].sort_values("epoch", na_position="last")
        values = dict(zip(own.metric, own.value, strict=True))
        about = {"ptm": f"{attack}, {defense}, seed {seed}", "tasks": len(fallen)}
        found.append({**about, "lost": fallen.mean(), **measures(values)})
    return pd.DataFrame(found)


def rank_correlation(one: pd.Series, other: pd.Series) -> float:
    """Return Spearman's rank correlation."""
    return float(one.rank().corr(other.rank()))


def interval(ptms: pd.DataFrame, measure: str) -> list[float]:
    """Return the 95 % bootstrap interval of a measure's rank correlation with the lost ACC."""
    generator = np.random.default_rng(0)
    drawn = [
        ptms.iloc[generator.integers(len(ptms), size=len(ptms))].reset_index(drop=True)
        for _ in range(DRAWS)
    ]
    values = [rank_correlation(one[measure], one.lost) for one in drawn]
    return [round(float(v), 3) for v in np.nanquantile(values, (0.025, 0.975))]


def study(ptms: pd.DataFrame) -> dict[str, Any]:
    """Return which measure to warn by, from where on, and how well it did on these PTMs."""
    known = [name for name in MEASURES if name in ptms and ptms[name].notna().all()]
    ranked = {name: round(rank_correlation(ptms[name], ptms.lost), 3) for name in known}
    best = max(ranked, key=lambda name: ranked[name])
    harmed, fine = ptms[ptms.lost >= HARMED], ptms[ptms.lost < UNHARMED]
    if len(ptms) < LEAST or harmed.empty:
        raise SystemExit(f"error: {len(ptms)} PTMs, {len(harmed)} of them harmed, decide nothing")
    # just below the least harmed one, in the middle to the next lower PTM
    least = float(harmed[best].min())
    below = ptms[ptms[best] < least][best]
    bound = float(f"{(least + (below.max() if len(below) else 0.0)) / 2:.2g}")
    bound = min(bound, least)
    return {
        "measure": best,
        "bound": bound,
        "meaning": f"as in all PTMs of a study that lost {100 * HARMED:.0f} points of ACC or more",
        "ptms": len(ptms),
        "tasks": int(ptms.tasks.min()),
        "harmed": len(harmed),
        "warned_for_nothing": f"{int((fine[best] > bound).sum())} of {len(fine)}",
        "rank_correlation": ranked,
        "interval": {name: interval(ptms, name) for name in known},
        "rows": ptms.round(4).to_dict("records"),
    }


def main(arguments: list[str] | None = None) -> None:
    """Write the study of the rows' purified PTMs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.harm")
    parser.add_argument("rows", type=Path, help="folder that `report --export` wrote")
    parser.add_argument("--experiment", default="guard")
    parser.add_argument("--only", action="append", default=[], help="COLUMN=VALUE of the rows")
    parser.add_argument("--out", type=Path, required=True, help="studied_harm.json")
    given = parser.parse_args(arguments)
    rows = recipe_ray.results(given.rows, given.experiment).to_pandas()
    for column, _, value in (one.partition("=") for one in given.only):
        rows = rows[rows[column].isna() | (rows[column] == value)]
    ptms = lost(rows)
    made = " ".join(["python -m benchmarks.harm, experiment", given.experiment, *given.only])
    given.out.write_text(json.dumps({"made": made, "text": study(ptms)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
