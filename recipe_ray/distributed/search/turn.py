"""Whose turn it is: of several drivers with one search on one store, one runs its candidates."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from recipe_ray.distributed.neighbours import LOOK_EVERY_S
from recipe_ray.stages.claims import Claims
from recipe_ray.stages.store import Store


@contextmanager
def turn(store: Store, key: str, lease_s: float, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Hold a search's candidates; wait while another living driver does, and say which, once."""
    with store.claims(lease_s) as claims:
        told = ""
        while (other := _other(claims, key)) is not None:
            if other != told:
                on_wait(other)
                told = other
            time.sleep(LOOK_EVERY_S)
        yield


def _other(claims: Claims, key: str) -> str | None:
    """Return who holds it, None once it is ours."""
    holder = claims.held().get(key)
    if holder is None and not claims.take(key):
        holder = claims.held().get(key, "another driver")
    return holder
