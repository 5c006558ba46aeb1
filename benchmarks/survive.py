"""`python -m benchmarks.survive`: a sweep survives what a cluster does, and its rows are the same.

Twelve cells of a two-layer MiniLM, purified on two DDP workers each, on three simulated nodes of
one CPU. In one run a train worker is killed, a node is lost (another joins later), and the driver
is killed and started again; then the same runs undisturbed in another store. The texts are the
embedded ones. SURVIVE_QUICK=1 shortens the stages: to try it.
"""

import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.faults import (
    Driver,
    Nodes,
    checkpoint_time,
    made_at,
    rows_of,
    simulated,
    tell_recovery,
    workers,
)
from recipe_ray.data.sources import Locations
from recipe_ray.experiment.plan import Plan, make_plan
from recipe_ray.experiment.spec import Experiment, Launch

QUICK = bool(os.environ.get("SURVIVE_QUICK"))
STEPS = 60 if QUICK else 200
_TEXTS = {"name": "editorials", "size": 256}
_FIT = {"steps": 20, "batch_size": 8, "max_length": 32}
EXPERIMENT: dict[str, Any] = {
    "name": "survive",
    "pretraining": {"corpus": _TEXTS, "fit": _FIT},
    "finetuning": {**_FIT, "steps": 40},
    "grid": {
        "models": [{"name": "minilm", "layers": 2}],
        "attacks": ["none", {"name": "por", "corpus": _TEXTS, "fit": _FIT}],
        "defenses": ["none", {"name": "recipe", "fit": {**_FIT, "steps": STEPS}}],
        "auxiliaries": [_TEXTS],
        "tasks": [{"name": "snippets", "train_size": 256, "test_size": 200}],
        "seeds": [0, 1, 2],
    },
}
LAUNCH = Launch(workers={"purify": 2}, checkpoint_every_s=1, max_failures=2)


@dataclass
class Ordeal:
    """A sweep under way, and what is done to it."""

    plan: Plan
    locations: Locations
    nodes: Nodes
    store: Path
    folder: Path

    def start(self) -> Driver:
        """Start a driver on the plan."""
        return Driver(self.plan, self.locations, self.store, self.nodes.address, self.folder)

    def kill_a_worker(self, driver: Driver) -> None:
        """Kill one of the two workers of a purification that has a checkpoint."""
        key = self._with_checkpoint(driver)
        pid = driver.until("its second worker", self._second_worker)
        killed = time.time()
        os.kill(pid, signal.SIGKILL)
        driver.until("the loss", lambda: driver.heard("lost"))
        self._recovered("train worker killed", driver, [key], killed)

    def lose_a_node(self, driver: Driver) -> None:
        """Kill a node of a purification; another one joins when the stage has gone on."""
        before = len(driver.heard("lost"))
        self._with_checkpoint(driver)
        node = driver.until("a node at work", self._node_at_work)
        went = time.time()
        self.nodes.lose(node)
        driver.until("the loss", lambda: len(driver.heard("lost")) > before)
        self._recovered("node lost", driver, driver.heard("lost", went), went)
        self.nodes.add()

    def kill_the_driver(self, driver: Driver) -> Driver:
        """Kill -9 the driver in the middle of a purification; return the one that goes on."""
        key = self._with_checkpoint(driver)
        made = made_at(self.store, self.plan)
        driver.kill()
        begun = time.time()
        successor = self.start()
        self._recovered("driver killed and started again", successor, [key], begun)
        assert made.items() <= made_at(self.store, self.plan).items(), "a stage was done twice"
        return successor

    def _with_checkpoint(self, driver: Driver) -> str:
        since = time.time()
        purifications = [key for key, one in self.plan.stages.items() if one.name == "purify"]

        def newer() -> str | None:
            times = {key: checkpoint_time(self.store, key) for key in purifications}
            return next((key for key in times if times[key] > since), None)

        found: str = driver.until("a purification with a checkpoint", newer)
        return found

    def _second_worker(self) -> int | None:
        return next((pid for pid, logs in workers(self.store).items() if not logs), None)

    def _node_at_work(self) -> Any:
        # of a DDP worker: a stage in its trial's own process may be over before the node is
        found = (self.nodes.of(pid) for pid, logs in workers(self.store).items() if not logs)
        return next((node for node in found if node is not None), None)

    def _recovered(self, what: str, driver: Driver, keys: list[str], since: float) -> None:
        seen = time.time()

        def on_its_way() -> bool:
            newer = any(checkpoint_time(self.store, key) > seen for key in keys)
            return newer or bool({*driver.heard("finished", since)} & {*keys})

        driver.until(f"{what}: going on", on_its_way)
        tell_recovery(what, time.time() - since)


def survive(plan: Plan, locations: Locations, folder: Path) -> None:
    """Run a plan disturbed, then undisturbed; raise AssertionError where their rows differ."""
    with simulated(num_nodes=3, cpus=1) as nodes:
        hurt = Ordeal(plan, locations, nodes, folder / "hurt", folder)
        driver = hurt.start()
        hurt.kill_a_worker(driver)
        hurt.lose_a_node(driver)
        outcome = hurt.kill_the_driver(driver).outcome()
        assert not outcome["failed"], outcome["failed"]
        calm = replace(hurt, store=folder / "calm")
        outcome = calm.start().outcome()
        assert not outcome["failed"], outcome["failed"]
    ours, theirs = rows_of(hurt.store, plan), rows_of(calm.store, plan)
    different = [plan.stages[key].artifact.folder for key in ours if ours[key] != theirs[key]]
    assert not different, f"rows differ: {different}"


def main() -> None:
    """Survive, and say how many cells and rows are the same."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        locations = Locations(None, folder / "cache")
        plan = make_plan(Experiment.model_validate(EXPERIMENT), locations)
        plan = replace(plan, launch=LAUNCH)
        begun = time.monotonic()
        survive(plan, locations, folder)
        rows = sum(len(rows) for rows in rows_of(folder / "hurt", plan).values())
    sys.stdout.write(
        f"survived: {len(plan.cells)} cells, {len(plan.stages)} stages, {rows} rows equal to those "
        f"of an undisturbed run; {time.monotonic() - begun:.0f} s in all\n"
    )


if __name__ == "__main__":
    main()
