"""Stage `backdoor`: the attacker's work, a backdoored PTM from a clean one."""

from typing import Any

from recipe_ray.attacks.attack import AnyAttack
from recipe_ray.data.batches import Part
from recipe_ray.data.corpus import Corpus
from recipe_ray.stages.learnable import LearnableFeed
from recipe_ray.stages.stage import STAGES, Context, Stage, loss_measurements
from recipe_ray.store.rows import Measurement


@STAGES.register("backdoor")
class BackdoorStage(Stage):
    """Poisons the PTM with an attack."""

    attack: AnyAttack

    def run(self, context: Context) -> list[Measurement]:
        """Return the attack's losses of every epoch."""
        ptm = self.input_ptm(context)
        feed = LearnableFeed(context.feed, ptm)
        records = self.attack.poison(
            ptm, feed, context.runtime, self.seed, context.locations.cache_dir
        )
        context.save(ptm)
        return [*loss_measurements(records), *feed.measured()]

    def corpora(self) -> list[tuple[Corpus, Part]]:
        """Return the attacker's corpora."""
        return [(corpus, Part()) for corpus in self.attack.corpora()]

    def reads(self) -> list[tuple[str, str]]:
        """Return what carries the attack's trigger."""
        kind = self.attack.poisons_what
        return [] if kind is None else [(f"attack {self.attack.label()!r} poisons {kind}s", kind)]

    def own_columns(self) -> dict[str, Any]:
        """Return the attack."""
        return {"attack": self.attack.label()}

    def default_label(self) -> str:
        """Return model and attack."""
        return f"{self.model.label()}.{self.attack.label()}"
