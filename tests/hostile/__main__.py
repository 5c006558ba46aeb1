"""`python -m tests.hostile [PART...]`: every case in a process of its own, measured.

PART: only cases whose name holds one of these. Ends with code 1 if anything is not as it must be.
Each process is a fork of this one, which has imported what commands need: so its memory is what the
case adds, and what a library prints past Python, or a crash, is seen, too.
"""

import multiprocessing
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from hostile.case import Case
from hostile.good import tiny
from hostile.run import ended, problems
from hostile.table import CASES

LIMIT_S = 120.0
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Ran:
    """What a case came to; `seconds` of a processor, `bytes` over those at its beginning."""

    problems: list[str]
    seconds: float = 0.0
    bytes: int = 0
    said: str = ""


def _here(case: Case, folder: Path, answer: Connection) -> None:
    past_python = os.open(folder / "home", os.O_CREAT | os.O_WRONLY)
    os.dup2(past_python, 2)
    (folder / "place").mkdir()
    end = ended(case, folder / "place")
    wrong = problems(case, end, folder / "place")
    wrong += [w for w in ("panicked", "Traceback") if w in (folder / "home").read_text()]
    answer.send(Ran(wrong, end.seconds, end.bytes, end.err[-500:]))


def apart(case: Case) -> Ran:
    """Run a case in a process of its own."""
    here, there = FORK.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        process = FORK.Process(target=_here, args=(case, Path(folder), there))
        process.start()
        there.close()
        try:
            if not here.poll(LIMIT_S * _load()):
                return Ran([f"no end after {LIMIT_S} s"], LIMIT_S)
            return here.recv()
        except EOFError:
            process.join()
            return Ran([f"its process ended with {process.exitcode}"])
        finally:
            process.kill()
            process.join()


def _load() -> float:
    # others may use the machine
    return max(1.0, os.getloadavg()[0])


def main(parts: list[str]) -> int:
    """Run the cases, print a line for each that is wrong or slow, and a sum."""
    chosen = [one for one in CASES if not parts or any(part in one.name for part in parts)]
    tiny()
    began, found = time.monotonic(), {}
    for case in chosen:
        found[case.name] = ran = apart(case)
        if ran.problems or ran.seconds > 5:
            state = "BAD " if ran.problems else "slow"
            print(f"{state} {ran.seconds:5.1f} s {ran.bytes / 1e6:6.0f} MB  {case.name}")
            print("".join(f"     {problem}\n" for problem in [*ran.problems, ran.said]), flush=True)
    bad = sum(bool(ran.problems) for ran in found.values())
    slowest = max(found, key=lambda name: found[name].seconds)
    largest = max(found, key=lambda name: found[name].bytes)
    print(
        f"{len(found)} cases, {bad} bad, in {time.monotonic() - began:.0f} s; slowest: {slowest}, "
        f"{found[slowest].seconds:.1f} s; largest: {largest}, {found[largest].bytes / 1e6:.0f} MB"
    )
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
