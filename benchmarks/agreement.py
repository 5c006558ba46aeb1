"""Do the fast paths change what comes out? ACC, AASR and MASR of the same work done both ways.

The quick start's backdoored PTM is purified and fine-tuned by recipe_ray (bf16, packed texts, own
kernels) and by the plain fp32 loop in transformers' own classes, on the same texts with the same
settings, several seeds each. Batches, masks and dropout differ, as they do between two seeds.
"""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BertForMaskedLM, BertForSequenceClassification

from benchmarks.contenders import Figure
from benchmarks.reference import plain_finetune, plain_predict, plain_recipe
from recipe_ray.data.sources import Locations
from recipe_ray.experiment.files import load_experiment
from recipe_ray.experiment.inline import run_inline
from recipe_ray.experiment.plan import Cell, Plan, make_plan
from recipe_ray.learn.metrics import accuracy, attack_success
from recipe_ray.stages.finetune import FinetuneStage
from recipe_ray.stages.purify import PurifyStage
from recipe_ray.stages.stage import MODEL_FOLDER
from recipe_ray.stages.store import Store

ROOT = Path(__file__).parents[1]
STORE = ROOT / "runs" / "demo"  # `make demo` leaves its backdoored PTM there; else it is made
SEEDS = (0, 1, 2)
STEPS = 200
TASK = {"train_size": 2000, "test_size": 750}
LEARNING_RATE = 1.5e-4  # of fine-tuning, in fewer steps than the quick start's
METRICS = ("acc", "aasr", "masr")
Values = dict[str, float]


def figures() -> list[Figure]:
    """Measure both ways for every seed; differences are ours minus plain, seed by seed."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    plan = _plan()
    store = Store.open(str(STORE))
    locations = Locations.from_environment()
    ours, plain = [], []
    for cell in plan.cells:
        run_inline(cell.stages, store, locations)
        ours.append(_measured(store, cell))
        plain.append(_plainly(cell, store, locations))
    found = []
    for metric in METRICS:
        pairs = [(100 * a[metric], 100 * b[metric]) for a, b in zip(ours, plain, strict=True)]
        found += [
            Figure(f"agreement_{metric}_ours", [a for a, _ in pairs], "%"),
            Figure(f"agreement_{metric}_plain", [b for _, b in pairs], "%"),
            Figure(f"agreement_{metric}_difference", [a - b for a, b in pairs], "points"),
        ]
    return found


def _plan() -> Plan:
    experiment = load_experiment(ROOT / "experiments" / "quickstart.yaml")
    [block] = [block for block in experiment.grid if block.attacks[0].poisons]
    recipes = tuple(
        defense.revised(fit={**defense.fit.fields(), "steps": STEPS})
        for defense in block.defenses
        if defense.acts
    )
    tasks = tuple(task.revised(**TASK) for task in block.tasks)
    only = block.revised(defenses=recipes, tasks=tasks, seeds=SEEDS)
    finetuning = experiment.finetuning.revised(learning_rate=LEARNING_RATE)
    changed = experiment.revised(name="agreement", grid=(only,), finetuning=finetuning)
    return make_plan(changed, Locations.from_environment())


def _measured(store: Store, cell: Cell) -> Values:
    rows = store.rows(cell.last.artifact).to_pylist()
    return {row["metric"]: row["value"] for row in rows if row["metric"] in METRICS}


def _plainly(cell: Cell, store: Store, locations: Locations) -> Values:
    purify = next(stage for stage in cell.stages if isinstance(stage, PurifyStage))
    finetune = cell.last
    assert isinstance(finetune, FinetuneStage)
    assert purify.parent is not None
    folder = store.fetch(purify.parent.artifact) / MODEL_FOLDER
    tokenizer = AutoTokenizer.from_pretrained(folder)
    defense = purify.defense
    lm: Any = BertForMaskedLM.from_pretrained(folder, dtype=torch.float32)
    # from_pretrained leaves out the pooler, which a masked LM does not use
    classifier: Any = BertForSequenceClassification.from_pretrained(
        folder, num_labels=finetune.task.num_labels, dtype=torch.float32
    )
    texts = list(purify.corpus.texts(locations))
    plain_recipe(lm, tokenizer, texts, defense.fit, purify.seed)
    classifier.bert.load_state_dict(lm.bert.state_dict(), strict=False)
    train = finetune.task.load("train", locations)
    test = finetune.task.load(finetune.task.evaluate_on, locations)
    seed = finetune.seed
    plain_finetune(classifier, tokenizer, train.texts, train.labels, finetune.fit, seed)

    def predicted(trigger: str | None) -> Any:
        return plain_predict(classifier, tokenizer, test.texts, trigger, finetune.fit.max_length)

    poisoned = {trigger: predicted(trigger) for trigger in finetune.triggers}
    task = finetune.task
    attacked = attack_success(poisoned, test.labels, task.num_labels, task.classes)
    acc = accuracy(predicted(None), test.labels).value
    return {"acc": acc, "aasr": attacked.aasr, "masr": attacked.masr}
