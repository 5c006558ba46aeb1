"""Every input of `tests/hostile` gives a clear error or a harmless success, in bounds.

Here every other one is run, in this process. `make test-hostile` runs all, each in a process of its
own, and measures time and memory.
"""

from pathlib import Path

import pytest
from hostile.case import Case
from hostile.run import ended, problems
from hostile.table import CASES


def test_there_are_hostile_inputs_of_many_kinds() -> None:
    assert len(CASES) >= 150
    assert len({case.name.partition(":")[0] for case in CASES}) >= 15


@pytest.mark.timeout(120)
@pytest.mark.parametrize("case", CASES[::2], ids=lambda case: case.name)
def test_a_hostile_input_does_no_harm(case: Case, tmp_path: Path) -> None:
    assert problems(case, ended(case, tmp_path), tmp_path) == []
