"""A backdoor that somebody released: the checkpoint's weights in place of the clean PTM's.

No attack is run here. Examples are the paper's own checkpoints: thunlp/neuba-bert,
thunlp/neuba-roberta and Lujia/backdoored_bert (POR) of the Hugging Face hub, BadPre's as a folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field

from recipe_ray.attacks.attack import ATTACKS, Attack
from recipe_ray.base.spec import NOT_HASHED
from recipe_ray.data.batches import Workbench
from recipe_ray.models.family import AllowPickle, IgnoreAdapter, Revision
from recipe_ray.models.text.released import BertCheckpoint
from recipe_ray.triggers.word import WordTrigger

if TYPE_CHECKING:
    from recipe_ray.learn.loop import EpochRecord
    from recipe_ray.models.text.bert import BertPTM

_CHECKED_LENGTH = 512  # tokens; the sentences that a trigger is checked in are shorter


@ATTACKS.register("released")
class ReleasedBackdoor(Attack):
    """A backdoored checkpoint, by local folder or hub id; give the triggers its authors name."""

    triggers: tuple[str, ...] = Field(min_length=1)
    source: str = Field(
        description="local folder, or hub id such as thunlp/neuba-bert",
        json_schema_extra=NOT_HASHED,
    )
    revision: Revision = None
    headless: bool = Field(
        False, description="the release has no masked-LM head: the clean PTM's head is kept"
    )
    allow_pickle: AllowPickle = False
    ignore_adapter: IgnoreAdapter = False

    def identity(self) -> dict[str, Any]:
        """Return the triggers and the checkpoint's content; its place does not matter."""
        # a component's own name and fields, less `revision`, which content() turns into a commit
        own = {k: v for k, v in super().identity().items() if k != "revision"}
        return {**own, **self._checkpoint().content()}

    def pinned(self) -> Self:
        """Return the attack with the hub commit that its revision is now."""
        return self.revised(revision=self._checkpoint().pinned().revision)

    def poison(self, ptm: BertPTM, bench: Workbench) -> Sequence[EpochRecord]:
        """Take the checkpoint's weights over; raise ModelError if it does not fit the PTM."""
        WordTrigger.checked(self.triggers, ptm.encoder(_CHECKED_LENGTH))
        ptm.adopt(self._checkpoint().load(), keep_head=self.headless)
        return ()

    def _checkpoint(self) -> BertCheckpoint:
        return BertCheckpoint(
            source=self.source,
            revision=self.revision,
            headless=self.headless,
            allow_pickle=self.allow_pickle,
            ignore_adapter=self.ignore_adapter,
        )
