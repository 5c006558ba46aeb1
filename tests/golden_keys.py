"""The keys that today's code gives to every plugin's defaults and to a few stages.

`python -m tests.golden_keys` writes them to golden_keys.json; `test_keys` compares. A key that
moves makes every finished stage it is part of run again.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # so that it runs as a module, too

from samples import COMMIT, EXAMPLES

from recipe_ray.base.fingerprint import fingerprint
from recipe_ray.cli.options import registries
from recipe_ray.stages.backdoor import BackdoorStage
from recipe_ray.stages.finetune import FinetuneStage
from recipe_ray.stages.pretrain import PretrainStage
from recipe_ray.stages.probe import ProbeStage
from recipe_ray.stages.purify import PurifyStage
from recipe_ray.stages.stage import Stage

FILE = Path(__file__).with_name("golden_keys.json")
# in place of checksums, so that the keys depend on no machine
CONTENT = {"source": "fixed"}


def current_keys() -> dict[str, str]:
    """Return every key by a name that says what it is of."""
    keys = {}
    for kind, registry in registries().items():
        for name in registry:
            component = registry.parse({"name": name, **EXAMPLES.get((kind, name), {})})
            keys[f"{kind}/{name}"] = fingerprint(component.identity())
    return keys | {f"stages/{name}": stage.key for name, stage in some_stages().items()}


def some_stages() -> dict[str, Stage]:
    """Return a lineage of each kind of stage, on a hub model."""
    model = {"name": "bert", "source": "google-bert/bert-base-uncased", "revision": COMMIT}
    common = {"model": model, "seed": 0, "content": CONTENT}
    pretrain = PretrainStage(**common)
    backdoor = BackdoorStage(**common, parent=pretrain, attack="por")
    purify = PurifyStage(**common, parent=backdoor, defense="recipe", corpus="bookcorpus")
    return {
        "pretrain": pretrain,
        "backdoor": backdoor,
        "purify": purify,
        "finetune": FinetuneStage(**common, parent=purify, task="sst2", triggers=("cf",)),
        "finetune-clean": FinetuneStage(**common, task="sst2", triggers=("cf",)),
        "probe": ProbeStage(**common, parent=purify, task="sst2", trigger="cf"),
    }


def moved(golden: dict[str, str], current: dict[str, str]) -> str:
    """Return what to say about keys that are not what they were; nothing where all are."""
    changed = sorted(n for n in golden.keys() & current.keys() if golden[n] != current[n])
    lines = [f"moved: {name}: {golden[name]} -> {current[name]}" for name in changed]
    lines += [f"new: {name}" for name in sorted(current.keys() - golden.keys())]
    lines += [f"gone: {name}" for name in sorted(golden.keys() - current.keys())]
    if changed:
        lines.append(
            "Stores made before will run these stages again. If that is meant (a result can "
            "differ), raise `version` of the component whose meaning changed; if not, undo it."
        )
    if lines:
        lines.append("Then write the keys anew: python -m tests.golden_keys")
    return "\n".join(lines)


if __name__ == "__main__":
    FILE.write_text(json.dumps(current_keys(), indent=1) + "\n")
