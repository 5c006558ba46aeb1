"""`python -m tests.hostile [PART]`: every case in a process of its own; time and memory measured.

PART: cases whose name holds it. Ends with code 1 if anything is not as it must be.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from hostile.run import ended, problems
from hostile.table import CASES

LIMIT_S = 120


def one(name: str) -> None:
    """Run a case here, and print what was wrong and what it took."""
    case = next(case for case in CASES if case.name == name)
    with tempfile.TemporaryDirectory() as folder:
        end = ended(case, Path(folder))
        said = {"problems": problems(case, end, Path(folder)), "code": end.code}
        said |= {"seconds": end.seconds, "bytes": end.bytes, "said": end.err[-500:]}
    print("\n" + json.dumps(said))


def apart(name: str) -> dict[str, Any]:
    """Run a case in a process of its own."""
    words = [sys.executable, "-m", "tests.hostile", "--one", name]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        # what libraries print past Python
        found["problems"] += [word for word in ("panicked", "Traceback") if word in done.stderr]
    except subprocess.TimeoutExpired:
        return {"problems": [f"no end after {LIMIT_S} s"], "seconds": LIMIT_S, "bytes": 0}
    except (IndexError, ValueError):
        said = f"the process ended with {done.returncode}: {done.stderr[-500:]}"
        return {"problems": [said], "seconds": 0, "bytes": 0}
    return found


def main(part: str) -> int:
    """Run all cases whose name holds `part`, and print a line of each and a sum."""
    chosen = [case for case in CASES if part in case.name]
    found = {}
    for case in chosen:
        found[case.name] = ran = apart(case.name)
        state = "BAD " if ran["problems"] else "good"
        print(f"{state} {ran['seconds']:6.1f} s {ran['bytes'] / 1e6:7.0f} MB  {case.name}")
        for problem in ran["problems"]:
            print(f"     {problem}\n     {ran.get('said', '')}")
        sys.stdout.flush()
    bad = sum(bool(ran["problems"]) for ran in found.values())
    print(
        f"{len(found)} cases, {bad} bad; at most {max(r['seconds'] for r in found.values()):.1f} s "
        f"and {max(r['bytes'] for r in found.values()) / 1e6:.0f} MB over the base"
    )
    return int(bad > 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2])
    else:
        sys.exit(main(" ".join(sys.argv[1:])))
