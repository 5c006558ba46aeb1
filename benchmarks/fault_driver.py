"""`python -m benchmarks.fault_driver PLAN STORE ADDRESS`: a sweep to be hurt, a line an event."""

import json
import pickle
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

from recipe_ray.distributed.sweep import sweep
from recipe_ray.schedule.sweep_progress import SweepEvent
from recipe_ray.store.store import Store


def _tell(event: SweepEvent) -> None:
    said = {"kind": event.kind, "key": event.stage.key, "message": event.message}
    print(json.dumps({**said, "time": time.time()}), flush=True)


if __name__ == "__main__":
    # a shell starts what it runs in the background with Ctrl-C ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    plan, locations = pickle.loads(Path(sys.argv[1]).read_bytes())
    outcome = sweep(plan, Store.open(sys.argv[2]), locations, address=sys.argv[3], on_event=_tell)
    print(json.dumps({"kind": "outcome", "time": time.time(), **asdict(outcome)}), flush=True)
