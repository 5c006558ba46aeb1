"""A small sweep on a Ray of its own, for tests that watch it: `python watched_sweep.py FOLDER`.

It reads the node's Prometheus endpoint all the while and leaves what it saw in FOLDER/metrics.txt.
"""

import logging
import sys
import tempfile
import threading
import urllib.request
from dataclasses import replace
from pathlib import Path

import ray
from tiny_cell import FIT, tiny_plan

from recipe_ray.data.sources import Locations
from recipe_ray.distributed.sweep import sweep
from recipe_ray.experiment.plan import Plan
from recipe_ray.experiment.spec import Launch
from recipe_ray.store.store import Store

LONGER = {**FIT, "steps": 600}


def watched_plan(folder: Path) -> Plan:
    """Return one cell, whose purification runs on two workers."""
    corpus = {"name": "file", "path": str(folder / "texts.txt"), "size": None}
    attack = {"name": "por", "triggers": ["cf", "mn"], "corpus": corpus, "fit": LONGER}
    plan = tiny_plan(folder, attacks=[attack], defenses=[{"name": "recipe", "fit": LONGER}])
    return replace(plan, launch=Launch(workers={"purify": 2}))


def scrape(url: str, seen: set[str], over: threading.Event) -> None:
    while not over.wait(0.5):
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                text = answer.read().decode()
        except OSError:
            continue  # the agent starts after the node
        seen |= {line for line in text.splitlines() if line.startswith("ray_recipe_")}


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as short:
        ray.init(
            "local",
            num_cpus=3,
            include_dashboard=False,
            _temp_dir=short,
            object_store_memory=128 * 2**20,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _system_config={"metrics_report_interval_ms": 1000},  # else ten seconds
        )
        (node,) = ray.nodes()
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        seen: set[str] = set()
        over = threading.Event()
        scraping = threading.Thread(target=scrape, args=(url, seen, over))
        scraping.start()
        outcome = sweep(watched_plan(folder), Store.open(folder / "store"), Locations(None, folder))
        over.wait(3)  # the last second's metrics
        over.set()
        scraping.join()
        ray.shutdown()
    (folder / "metrics.txt").write_text("\n".join(sorted(seen)))
    sys.exit(1 if outcome.failed else 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
