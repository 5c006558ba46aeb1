"""`python -m benchmarks.soak [--minutes 60]`: small stages for an hour, with kills at random.

Three sweeps (two of the same experiment) and two different searches work on one store and one
cluster of three simulated nodes of one CPU. Workers, nodes and drivers are killed at random; a
killed driver's command is started again. What could grow is sampled twice a minute: the memory,
file handles and threads of drivers and of Ray's processes, shared memory, temporary files, and what
the store holds besides results. At the end the drivers are asked to stop, the store is verified,
and what should be gone has to be.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.faults import ENVIRONMENT, ROOT, Nodes, simulated, workers

SAMPLE_EVERY_S = 30.0
MEAN_S = {"worker": 60.0, "node": 300.0, "driver": 420.0}  # from one kill to the next
PATIENCE_S = 120.0
MIB = 2**20
_TEXTS = {"name": "editorials", "size": 128}
_FIT = {"steps": 4, "batch_size": 8, "max_length": 16}
_TASK = {"name": "snippets", "train_size": 64, "test_size": 64}
_COMMON: dict[str, Any] = {
    "pretraining": {"corpus": _TEXTS, "fit": _FIT},
    "finetuning": {**_FIT, "steps": 8},
}
_POR = {"name": "por", "corpus": _TEXTS, "fit": _FIT}


def _sweep(name: str, first_seed: int) -> dict[str, Any]:
    grid = {
        "models": [{"name": "minilm", "layers": 1}],
        "attacks": ["none", _POR],
        "defenses": ["none", {"name": "recipe", "fit": _FIT}],
        "auxiliaries": [_TEXTS],
        "tasks": [_TASK],
        "seeds": list(range(first_seed, first_seed + 600)),
    }
    return {"name": name, **_COMMON, "grid": grid, "launch": {"checkpoint_every_s": 1}}


def _search(name: str, high: float) -> dict[str, Any]:
    return {
        "name": name,
        **_COMMON,
        "model": {"name": "minilm", "layers": 1},
        "attack": _POR,
        "defense": {"name": "recipe", "fit": _FIT},
        "auxiliary": _TEXTS,
        "space": {"weight_factor": {"low": 0.01, "high": high}},
        "trials": 200,
        "epochs": 4,
        "reduction": 2,
        "quick": {"task": {**_TASK, "evaluate_on": "dev"}, "fit": _FIT},
        "confirm": {"survivors": 1, "tasks": [_TASK]},
    }


# the third sweep shares PTM and backdoor with the others, and half of its seeds
COMMANDS = {
    "sweep-a": ("sweep", _sweep("soak", 0)),
    "sweep-b": ("sweep", _sweep("soak", 0)),
    "sweep-c": ("sweep", _sweep("other", 300)),
    "search-a": ("search", _search("first", 10)),
    "search-b": ("search", _search("second", 100)),
}


@dataclass
class Role:
    """A command that is started again whenever something ends it but its own end."""

    name: str
    argv: list[str]
    folder: Path
    process: psutil.Popen | None = None
    started: float = 0.0
    ends: list[int] = field(default_factory=list)

    def start(self) -> None:
        """Start the command, unless it has reached its own end."""
        environment = {**os.environ, **ENVIRONMENT, "TMPDIR": str(self.folder / "temporary")}
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = psutil.Popen(
                self.argv, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.started = time.monotonic()

    def look_after(self) -> None:
        """Start the command again if it has ended by anything but its own end."""
        if self.process is None or self.process.poll() is None or (self.ends and not self.ends[-1]):
            return
        self.ends.append(self.process.wait())
        if self.ends[-1]:
            self.start()

    def living(self) -> list[psutil.Popen]:
        """Return the command's process if it runs, else nothing."""
        return [one for one in (self.process,) if one is not None and one.poll() is None]


class Soak:
    """The cluster, the commands on it, and what was seen of them."""

    def __init__(self, nodes: Nodes, folder: Path, seed: int) -> None:
        self.nodes, self.folder, self.store = nodes, folder, folder / "store"
        self.random = random.Random(seed)
        self.samples: list[dict[str, float]] = []
        self.kills = dict.fromkeys(MEAN_S, 0)
        (folder / "temporary").mkdir()
        self.roles = [self._role(name, *what) for name, what in COMMANDS.items()]

    def _role(self, name: str, verb: str, spec: dict[str, Any]) -> Role:
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(spec))
        words = [sys.executable, "-m", "recipe_ray", verb, str(path), "--quiet"]
        return Role(
            name, [*words, "--store", str(self.store), "--address", self.nodes.address], self.folder
        )

    def run(self, seconds: float) -> None:
        """Work for so long, killing and sampling."""
        begun = time.monotonic()
        kill = {"worker": self.kill_worker, "node": self.kill_node, "driver": self.kill_driver}
        due = {what: begun + 60 + self._pause(what) for what in kill}
        next_sample = begun
        for role in self.roles:
            role.start()
        while (now := time.monotonic()) < begun + seconds:
            for role in self.roles:
                role.look_after()
            for what in [what for what, at in due.items() if at <= now]:
                self.kills[what] += kill[what]()
                due[what] = now + self._pause(what)
            if now >= next_sample:
                self.samples.append({"minute": (now - begun) / 60, **self.look()})
                next_sample = now + SAMPLE_EVERY_S
            time.sleep(0.5)

    def _pause(self, what: str) -> float:
        return self.random.expovariate(1 / MEAN_S[what])

    def kill_worker(self) -> bool:
        """Kill -9 a process that builds an artifact."""
        found = sorted(workers(self.store))
        if found:
            os.kill(self.random.choice(found), signal.SIGKILL)
        return bool(found)

    def kill_node(self) -> bool:
        """Kill a node at once; another one joins."""
        self.nodes.lose(self.random.choice(self.nodes.living()))
        self.nodes.add()
        return True

    def kill_driver(self) -> bool:
        """Kill -9 a command."""
        living = [process for role in self.roles for process in role.living()]
        if living:
            self.random.choice(living).kill()
        return bool(living)

    def look(self) -> dict[str, float]:
        """Return what could grow, now."""
        seen: dict[str, float] = {}
        for role in self.roles:
            for process in role.living():
                seen |= _of_processes(role.name, [process])
                seen[f"{role.name}: age (min)"] = (time.monotonic() - role.started) / 60
        raylets = [psutil.Process(pid) for pid in self.nodes.raylets()]
        under = [child for one in raylets for child in one.children(recursive=True)]
        seen |= _of_processes("workers", under)
        seen |= _of_processes("raylets", raylets)
        seen["shared memory (MiB)"] = shutil.disk_usage("/dev/shm").used / MIB
        seen["temporary files"] = len(list((self.folder / "temporary").iterdir()))
        for name in ("tmp", "claims", "checkpoints", "drivers", "progress", "failures"):
            seen[f"store: {name}"] = len(_entries(self.store / name))
        seen["stages done"] = len(list(self.store.glob("*/*/manifest.json")))
        return seen

    def stop(self) -> None:
        """Ask every command to stop, as a batch system does, and wait."""
        for role in self.roles:
            for process in role.living():
                process.terminate()
        for role in self.roles:
            if role.process is not None:
                role.ends.append(role.process.wait(PATIENCE_S))

    def left_behind(self) -> dict[str, list[str]]:
        """Return what the commands left though they had time to clean up."""
        places = {name: self.store / name for name in ("claims", "drivers")}
        places["temporary"] = self.folder / "temporary"
        return {name: found for name, at in places.items() if (found := _entries(at))}

    def verify(self) -> subprocess.CompletedProcess[str]:
        """Return how `store verify` ended."""
        words = [sys.executable, "-m", "recipe_ray", "store", "verify", "--store", str(self.store)]
        return subprocess.run(words, capture_output=True, text=True, check=False)


def _of_processes(name: str, processes: Iterable[psutil.Process]) -> dict[str, float]:
    memory = handles = threads = number = 0
    for process in processes:
        try:
            with process.oneshot():
                memory += process.memory_info().rss
                handles += process.num_fds()
                threads += process.num_threads()
            number += 1
        except psutil.Error:
            continue  # it ended meanwhile
    return {
        f"{name}: processes": number,
        f"{name}: memory (MiB)": memory / MIB,
        f"{name}: file handles": handles,
        f"{name}: threads": threads,
    }


def _entries(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir()) if folder.is_dir() else []


def thirds(samples: list[dict[str, float]]) -> dict[str, tuple[float, float, float, float]]:
    """Return for each quantity its median in each third of the time, and the highest of all."""
    end = samples[-1]["minute"]
    table = {}
    for name in sorted({name for sample in samples for name in sample} - {"minute"}):
        seen = [(s["minute"], s[name]) for s in samples if name in s]
        parts = [[v for at, v in seen if i <= 3 * at / end < i + 1 + (i == 2)] for i in range(3)]
        medians = [statistics.median(part) if part else float("nan") for part in parts]
        table[name] = (medians[0], medians[1], medians[2], max(v for _, v in seen))
    return table


def main(arguments: list[str] | None = None) -> int:
    """Soak, print the table, and return 1 if something is damaged or was left behind."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=Path, help="write every sample here, a JSON line each")
    given = parser.parse_args(arguments)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as name, simulated(num_nodes=3, cpus=1) as nodes:
        soak = Soak(nodes, Path(name), given.seed)
        soak.run(60 * given.minutes)
        soak.stop()
        left, verified = soak.left_behind(), soak.verify()
        logs = {role.name: (soak.folder / f"{role.name}.log").read_text() for role in soak.roles}
    if given.samples:
        given.samples.write_text("".join(json.dumps(one) + "\n" for one in soak.samples))
    for what, values in thirds(soak.samples).items():
        print(f"{what:<34}" + "".join(f"{value:>10.1f}" for value in values))
    print("kills:", soak.kills, "exit codes:", {role.name: role.ends for role in soak.roles})
    print("left behind:", left or "nothing")
    print(f"store verify: exit code {verified.returncode}: {verified.stdout.strip()[-300:]}")
    tracebacks = [name for name, log in logs.items() if "Traceback" in log]
    for name in tracebacks:
        print(f"{name} printed a traceback:\n{logs[name][-3000:]}")
    return int(bool(left or verified.returncode or tracebacks))


if __name__ == "__main__":
    sys.exit(main())
