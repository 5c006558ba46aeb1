"""The notebook in `examples/` runs from the first cell to the last, and has no stored outputs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from samples import task_fields, tiny_folder
from scan_samples import VOCABULARY, looking_with_little, texts

FILE = Path(__file__).parents[1] / "examples" / "clean_a_model.ipynb"
PARAMETERS = "parameters"  # papermill's name of the cell whose values others may replace


def cells() -> list[dict[str, Any]]:
    """Return the cells of code."""
    notebook = json.loads(FILE.read_text())
    assert notebook["nbformat"] == 4
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_it_shows_no_outputs_that_nobody_computed() -> None:
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells())


def test_its_cells_run_with_a_tiny_model_and_few_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looking_with_little(monkeypatch)
    monkeypatch.chdir(tmp_path)
    fit = {"steps": 3, "batch_size": 6, "max_length": 16, "precision": "fp32"}
    model = shutil.copytree(tiny_folder(), tmp_path / "tiny")
    corpus = {"name": "file", "path": str(texts(tmp_path))}
    small: dict[str, Any] = {
        "MODEL": {"name": "bert", "source": str(model)},
        "TEXTS": corpus,
        "ATTACK_TEXTS": corpus,
        "TASK": task_fields(tmp_path),
        "TRIGGERS": ["cf", "mn"],
        "ATTACK_FIT": fit,
        "HEAD_FIT": fit,
        "TUNING": fit,
        "RECIPE": {"fit.steps": 3, "fit.precision": "fp32"},
        "ACCEPT_HARM": True,
        "DETECTORS": [VOCABULARY],
    }
    names: dict[str, Any] = {}
    for cell in cells():
        exec("".join(cell["source"]), names)
        if PARAMETERS in cell["metadata"].get("tags", []):
            assert small.keys() <= names.keys()
            names |= small
    assert names["compared"].sides.keys() == {"A", "B", "floor"}
    assert "# Purified copy of" in capsys.readouterr().out
