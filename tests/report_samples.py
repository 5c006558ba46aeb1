"""What the tests of reports share: hand-made rows, their answers worked out in the comments."""

from typing import Any

import pyarrow as pa

from recipe_ray.store.rows import Measurement, measurement_table, result_rows

Asr = dict[tuple[str, int], tuple[int, int]]  # (trigger, label) -> flipped, tried

# two triggers, two labels, by hand:
#   cf: max(8/10, 2/10) = 0.8    mn: max(1/10, 4/10) = 0.4    AASR 0.6, MASR 0.8
POR: Asr = {("cf", 0): (8, 10), ("cf", 1): (2, 10), ("mn", 0): (1, 10), ("mn", 1): (4, 10)}
# the clean PTM is also tried with NeuBA's trigger, which must not count for POR:
#   cf: max(1/10, 2/10) = 0.2    mn: max(1/10, 0) = 0.1       floor for POR: AASR 0.15, MASR 0.2
#   ≈:  max(9/10, 3/10) = 0.9                                 floor for NeuBA: 0.9
CLEAN: Asr = {
    ("cf", 0): (1, 10),
    ("cf", 1): (2, 10),
    ("mn", 0): (1, 10),
    ("mn", 1): (0, 10),
    ("≈", 0): (9, 10),
    ("≈", 1): (3, 10),
}


def trial(
    stage: str,
    asr: Asr | None = None,
    aasr: float | None = None,
    masr: float | None = None,
    *,
    acc: tuple[int, int] = (9, 10),
    cells: tuple[str | None, ...] = ("c",),
    experiment: str = "table1",
    **columns: Any,
) -> pa.Table:
    """Return the result rows of one fine-tuning, aasr and masr as the test says."""
    rows = [
        Measurement("loss.cross_entropy", 0.3, epoch=1),
        Measurement("acc", acc[0] / acc[1], numerator=acc[0], denominator=acc[1]),
    ]
    for (trigger, label), (flipped, tried) in (asr or {}).items():
        share = flipped / tried
        rows.append(
            Measurement(
                "asr", share, trigger=trigger, label=label, numerator=flipped, denominator=tried
            )
        )
    if aasr is not None and masr is not None:
        rows += [Measurement("aasr", aasr), Measurement("masr", masr)]
    common = {
        "stage": stage,
        "kind": "finetune",
        "model": "bert",
        "attack": "por",
        "defense": "none",
        "task": "sst2",
        "seed": 0,
        "comparison": "as usual",
    }
    table = measurement_table(rows, {**common, **columns})
    return result_rows(table, experiment, list(cells))


def por(stage: str = "p0", **changes: Any) -> pa.Table:
    """Return the rows of a fine-tuning of a PTM that POR backdoored."""
    return trial(stage, **{"asr": POR, "aasr": 0.6, "masr": 0.8, **changes})


def clean(stage: str = "c0", **changes: Any) -> pa.Table:
    """Return the rows of a fine-tuning of the clean PTM."""
    return trial(stage, **{"asr": CLEAN, "aasr": 0.4, "masr": 0.9, "attack": "none", **changes})


def probe(
    stage: str, overlap: float, count: int, *, trigger: str = "cf", **columns: Any
) -> pa.Table:
    """Return the rows of one probe of a PTM that has 1,000 neurons."""
    rows = [
        Measurement("overlap", overlap, trigger=trigger),
        Measurement(
            "poisoned_only_neurons", count, trigger=trigger, numerator=count, denominator=1000
        ),
    ]
    common = {"kind": "probe", "model": "bert", "attack": "por", "defense": "none", "seed": 0}
    about = {"stage": stage, "task": "sst2", **common, **columns}
    return result_rows(measurement_table(rows, about), "probed", ["c"])
