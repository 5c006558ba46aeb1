"""An experiment file of two small cells, for tests of the commands."""

from pathlib import Path

import yaml
from samples import corpus_file, task_fields, tiny_folder

MODEL = str(tiny_folder())
FIT = {"steps": 3, "batch_size": 6, "max_length": 16, "precision": "fp32"}


def experiment(folder: Path) -> Path:
    """Write an experiment of two small cells; return its file."""
    corpus = {"name": "file", "path": str(corpus_file(folder))}
    grid = {
        "models": [{"name": "bert", "source": MODEL}],
        "attacks": [{"name": "por", "triggers": ["cf", "mn"], "corpus": corpus, "fit": FIT}],
        "defenses": ["none", {"name": "recipe", "fit": FIT}],
        "auxiliaries": [corpus],
        "tasks": [task_fields(folder)],
    }
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump({"name": "small", "grid": grid, "finetuning": FIT}))
    return file
