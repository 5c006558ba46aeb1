"""A purification that is evaluated after every epoch: by this a search judges its candidates.

A look is a short fine-tuning from the PTM as it is then, or only a look at its representations. It
is the `finetune` or `displacement` stage of that snapshot and is kept under its key. The PTM itself
is not kept, and the purification continues. This is the researcher's side: it needs a task and
triggers, which the defender does not have.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from recipe_ray.data.batches import Workbench
from recipe_ray.defenses.defense import Auxiliary
from recipe_ray.models.family import PTM
from recipe_ray.stages.displacement import DisplacementStage
from recipe_ray.stages.finetune import FinetuneStage
from recipe_ray.stages.learnable import LearnableFeed
from recipe_ray.stages.purify import PurifyStage
from recipe_ray.stages.run import run_stage, scratch
from recipe_ray.stages.stage import Context
from recipe_ray.store.rows import Measurement

PURIFY_S = "purify_s"  # metric of a look: seconds of the purification's epoch before it


def purify_with_looks(
    purify: PurifyStage,
    looks: Sequence[FinetuneStage | DisplacementStage],
    context: Context,
    on_look: Callable[[Any], None],
) -> None:
    """Purify, and commit each look after the epoch that it is a snapshot of.

    All workers call it. On each, `on_look` is called after a look is in the store, and may end it
    all by raising. The purification's own result is discarded.
    """
    ptm = purify.input_ptm(context)
    by_epoch = {look.snapshot: look for look in looks}
    since = time.monotonic()

    def after(epoch: int) -> None:
        nonlocal since
        look = by_epoch.get(epoch)
        if look is not None:
            _take(look, ptm, context, time.monotonic() - since)
            on_look(look)
        since = time.monotonic()

    feed, runtime = LearnableFeed(context.feed, ptm), context.runtime.telling(after)
    bench = Workbench(feed, runtime, purify.seed, context.locations.cache_dir)
    purify.defense.purify(ptm, Auxiliary(purify.corpus), bench)


def _take(
    look: FinetuneStage | DisplacementStage, ptm: PTM, context: Context, purify_s: float
) -> None:
    def measured(where: Context) -> list[Measurement]:
        took = Measurement(PURIFY_S, purify_s, epoch=look.snapshot)
        # every worker's own copy has the weights that a snapshot would; files cannot carry them to
        # all, since transformers writes on rank 0 alone
        return [*look.measure(copy.deepcopy(ptm), where), took]

    # no checkpoints: the slot is the purification's
    alone = context.runtime.without_checkpoints()
    with scratch(context.store) as folder:
        run_stage(look, replace(context, runtime=alone, folder=folder), measured)
