"""Resume points that nothing will resume from: their stage is done, or in no plan any more.

A stage has one slot and drops it when it commits. What stays is of stages that were given up: an
experiment was changed, or a command was stopped and never started again.
"""

from collections.abc import Collection

from recipe_ray.stages.store import Store


def stale_checkpoints(store: Store, running: Collection[str]) -> dict[str, int]:
    """Return the bytes of each such resume point by key; those of `running` stages are no such."""
    found = store.checkpoints()
    if not found:
        return {}
    plans = [plan for name in store.experiments() if (plan := store.plan(name)) is not None]
    planned = {key for plan in plans for key in plan["stages"]}
    wanted = (planned - store.committed().keys()) | set(running)
    return {key: size for key, size in found.items() if key not in wanted}


def prune_checkpoints(store: Store, running: Collection[str]) -> dict[str, int]:
    """Delete them and return what was deleted."""
    stale = stale_checkpoints(store, running)
    for key in stale:
        store.drop_checkpoint(key)
    return stale
