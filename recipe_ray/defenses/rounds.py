"""What is kept between the rounds of `unlearn`: an interrupted one goes on at the next scan.

The state after a round's training takes the place of a training's own resume points: a round
trains for a minute or two, and what takes long are the scans. It is read without unpickling code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from recipe_ray.data.batches import Workbench
from recipe_ray.detectors.detector import Suspect

if TYPE_CHECKING:
    from recipe_ray.learn.loop import EpochRecord

PHASE = "unlearn, between rounds"


@dataclass(frozen=True)
class Kept:
    """Rounds done, the losses so far, and what stood out in them."""

    rounds: int
    records: Sequence[EpochRecord]
    known: tuple[Suspect, ...]


def keep(kept: Kept, ptm: Any, bench: Workbench) -> None:
    """Save the state after a round, if the runtime has a slot (rank 0 only).

    What a detector from outside puts in may not be readable without its code: then nothing is kept.
    """
    slot = bench.runtime.checkpoints
    if slot is None or bench.runtime.rank != 0 or not all(map(_is_plain, kept.known)):
        return
    slot.save(
        {
            "phase": PHASE,
            "rounds": kept.rounds,
            "records": [asdict(record) for record in kept.records],
            "known": [_plain(one) for one in kept.known],
            "metrics": [list(one) for one in bench.kept],
            "weights": {name: t.detach().cpu() for name, t in ptm.module.state_dict().items()},
        }
    )


def kept_by(ptm: Any, bench: Workbench) -> Kept | None:
    """Put the PTM and `bench.kept` into the state that an interrupted run left, None: it left none.

    A state that is not of this PTM is dropped.
    """
    slot = bench.runtime.checkpoints
    saved: Any = slot.load() if slot is not None else None
    if slot is None or not isinstance(saved, dict) or saved.get("phase") != PHASE:
        return None  # a training's own, which it looks at itself
    try:
        found, metrics = _read(saved)
        own = ptm.module.state_dict()
        weights = saved["weights"]
        if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in weights.items()}:
            raise ValueError("it is of another model")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        slot.drop(f"what was kept between rounds is of another form: {error}")
        return None
    ptm.module.load_state_dict(weights)
    bench.kept[:] = metrics
    return found


def _read(saved: dict[str, Any]) -> tuple[Kept, list[tuple[str, float, int]]]:
    from recipe_ray.learn.loop import EpochRecord

    rounds, metrics = saved["rounds"], [(str(n), float(v), int(r)) for n, v, r in saved["metrics"]]
    if not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"rounds is {rounds!r}")
    records = [EpochRecord(**one) for one in saved["records"]]
    return Kept(rounds, records, tuple(_suspect(one) for one in saved["known"])), metrics


def _plain(suspect: Suspect) -> dict[str, Any]:
    scores = {name: float(value) for name, value in suspect.scores.items()}
    about = {"shown": suspect.shown, "scores": scores, "ids": [int(one) for one in suspect.ids]}
    put = suspect.put
    if type(put) in _stamps().values():
        put = {"kind": type(put).__name__, **{f.name: getattr(put, f.name) for f in fields(put)}}
    return {**about, "group": suspect.group, "put": put}


def _is_plain(suspect: Suspect) -> bool:
    from torch import Tensor

    return isinstance(suspect.put, (type(None), Tensor, *_stamps().values()))


def _suspect(saved: dict[str, Any]) -> Suspect:
    put = saved["put"]
    if isinstance(put, dict):
        own = {name: value for name, value in put.items() if name != "kind"}
        put = _stamps()[put["kind"]](**own)
    return Suspect(**{**saved, "ids": tuple(saved["ids"]), "put": put})


def _stamps() -> dict[str, Any]:
    from recipe_ray.detectors.insertion import RandomPatch
    from recipe_ray.detectors.patches import Blend, Patch

    return {kind.__name__: kind for kind in (RandomPatch, Patch, Blend)}
