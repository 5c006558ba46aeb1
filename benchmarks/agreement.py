"""Do the fast paths change what comes out? ACC, AASR and MASR of the same work done both ways.

The quick start's backdoored PTM is fine-tuned, and apart from that purified, by recipe_ray (bf16,
packed texts, own kernels) and by the plain fp32 loop in transformers' own classes: same texts, same
settings, several seeds. Batches, masks and dropout differ, as they do between two seeds. What was
purified both ways is fine-tuned one way (ours), so that the two comparisons do not mix.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertForMaskedLM, BertForSequenceClassification

from benchmarks.contenders import Figure
from benchmarks.reference import plain_finetune, plain_predict, plain_recipe
from recipe_ray.data.sources import Locations
from recipe_ray.experiment.collect import run_inline
from recipe_ray.experiment.files import load_experiment
from recipe_ray.experiment.plan import Cell, make_plan
from recipe_ray.experiment.spec import Experiment
from recipe_ray.learn.metrics import accuracy, attack_success
from recipe_ray.stages.finetune import FinetuneStage
from recipe_ray.stages.purify import PurifyStage
from recipe_ray.stages.stage import MODEL_FOLDER, Stage
from recipe_ray.store.store import Store

ROOT = Path(__file__).parents[1]
STORE = ROOT / "runs" / "demo"  # `make demo` leaves its backdoored PTM there; else it is made
PLAIN = ROOT / "runs" / "agreement"  # what the plain loops made, so that a stopped run goes on
NUM_SEEDS = {"none": 4, "recipe": 2}  # by defense; the plain loop of the latter takes 9 minutes
TASK = {"train_size": 2000, "test_size": 750}
# of fine-tuning: as many steps as the backdoored PTM needs to learn the task at all
FINETUNING = {"batch_size": 16, "learning_rate": 1.0e-4}
METRICS = ("acc", "aasr", "masr")
Values = dict[str, float]
Measured = dict[Any, Values]  # by seed, or by seeds of purification and fine-tuning


def figures() -> Iterator[Figure]:
    """Yield each way's values, and seed by seed what ours minus plain is."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))))
    for work, measure in (("finetune", _finetuned), ("purify", _purified)):
        plain, ours = measure(plainly=True), measure(plainly=False)
        apart = {
            seed: {metric: ours[seed][metric] - plain[seed][metric] for metric in METRICS}
            for seed in plain
        }
        yield from _described(f"agreement_{work}_plain", plain)
        yield from _described(f"agreement_{work}_ours", ours)
        yield from _described(f"agreement_{work}_difference", apart)


def _described(name: str, measured: Measured) -> Iterator[Figure]:
    for metric in METRICS:
        values = [100 * values[metric] for values in measured.values()]
        yield Figure(f"{name}_{metric}", values, "points" if "difference" in name else "%")


def _finetuned(*, plainly: bool) -> Measured:
    """Fine-tune the backdoored PTM as it is."""
    cells = _cells("none")
    return {seed: _plain_cell(cell) if plainly else _cell(cell) for seed, cell in cells}


def _purified(*, plainly: bool) -> Measured:
    """Purify it, and fine-tune what comes out with recipe_ray, with several seeds each."""
    found = {}
    for seed, cell in _cells("recipe"):
        purify = next(stage for stage in cell.stages if isinstance(stage, PurifyStage))
        folder = _plainly_purified(purify, _released(cell)) if plainly else _made(purify)
        for again, finetuned in enumerate(_finetunings(folder)):
            found[seed, again] = _cell(finetuned)
    return found


def _experiment(defense: str) -> Experiment:
    experiment = load_experiment(ROOT / "experiments" / "quickstart.yaml")
    [block] = [block for block in experiment.grid if block.attacks[0].poisons]
    defenses = tuple(one for one in block.defenses if one.name == defense)
    tasks = tuple(task.revised(**TASK) for task in block.tasks)
    only = block.revised(defenses=defenses, tasks=tasks, seeds=tuple(range(NUM_SEEDS[defense])))
    finetuning = experiment.finetuning.revised(**FINETUNING)
    return experiment.revised(name="agreement", grid=(only,), finetuning=finetuning)


def _cells(defense: str) -> Iterator[tuple[int, Cell]]:
    return enumerate(make_plan(_experiment(defense), Locations.from_environment()).cells)


def _cell(cell: Cell) -> Values:
    store = Store.open(str(STORE))
    run_inline(cell.stages, store, Locations.from_environment())
    rows = store.rows(cell.last.artifact).to_pylist()
    return {row["metric"]: row["value"] for row in rows if row["metric"] in METRICS}


def _plain_cell(cell: Cell) -> Values:
    """Fine-tune and measure with the plain loop."""
    finetune = cell.last
    assert isinstance(finetune, FinetuneStage)
    noted = PLAIN / f"finetune-{finetune.key}.json"
    if not noted.exists():
        noted.parent.mkdir(parents=True, exist_ok=True)
        noted.write_text(json.dumps(_plainly(finetune, _released(cell))))
    found: Values = json.loads(noted.read_text())
    return found


def _plainly(finetune: FinetuneStage, folder: Path) -> Values:
    task, locations = finetune.task, Locations.from_environment()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    classifier: Any = BertForSequenceClassification.from_pretrained(
        folder, num_labels=task.num_labels, dtype=torch.float32
    )
    train, test = task.load("train", locations), task.load(task.evaluate_on, locations)
    plain_finetune(classifier, tokenizer, train.samples, train.labels, finetune.fit, finetune.seed)

    def predicted(trigger: str | None) -> Any:
        return plain_predict(classifier, tokenizer, test.samples, trigger, finetune.fit.max_length)

    poisoned = {trigger: predicted(trigger) for trigger in finetune.triggers}
    attacked = attack_success(poisoned, test.labels, task.num_labels, task.classes)
    acc = accuracy(predicted(None), test.labels).value
    return {"acc": acc, "aasr": attacked.aasr, "masr": attacked.masr}


def _finetunings(folder: Path) -> tuple[Cell, ...]:
    """Return cells that fine-tune the PTM in a folder and nothing else."""
    experiment = _experiment("none")
    [block] = experiment.grid
    model = {"name": "bert", "source": str(folder)}
    attack = {"name": "none", "triggers": block.attacks[0].triggers}
    grid = {"models": [model], "attacks": [attack], "tasks": block.tasks, "seeds": block.seeds}
    values = {"name": "agreement", "finetuning": experiment.finetuning, "grid": grid}
    return make_plan(Experiment.model_validate(values), Locations.from_environment()).cells


def _plainly_purified(purify: PurifyStage, released: Path) -> Path:
    folder = PLAIN / f"purify-{purify.key}"
    if not folder.exists():
        _plain_purification(purify, released, folder)
    return folder


def _plain_purification(purify: PurifyStage, released: Path, folder: Path) -> None:
    lm: Any = BertForMaskedLM.from_pretrained(released, dtype=torch.float32)
    texts = list(purify.corpus.samples(Locations.from_environment()))
    tokenizer = AutoTokenizer.from_pretrained(released)
    plain_recipe(lm, tokenizer, texts, purify.defense.fit, purify.seed)
    unfinished = folder.with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(released, unfinished)
    # the released weights hold the pooler too, which a masked LM in transformers does not
    weights = load_file(released / "model.safetensors")
    trained = {name: value for name, value in lm.state_dict().items() if name in weights}
    weights.update({name: value.contiguous() for name, value in trained.items()})
    save_file(weights, unfinished / "model.safetensors", metadata={"format": "pt"})
    unfinished.rename(folder)


def _released(cell: Cell) -> Path:
    """Return the folder of the backdoored PTM."""
    return _made(next(stage for stage in cell.stages if stage.name == "backdoor"))


def _made(stage: Stage) -> Path:
    """Return the folder of a stage's PTM, made first where the store does not have it."""
    store = Store.open(str(STORE))
    run_inline(stage.lineage(), store, Locations.from_environment())
    return store.fetch(stage.artifact) / MODEL_FOLDER
