"""Stage `backdoor`: the attacker's work, a backdoored PTM from a clean one."""

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field

from recipe_ray.attacks.attack import AnyAttack, Attack, NoAttack
from recipe_ray.base.spec import Spec
from recipe_ray.data.batches import Part, Workbench
from recipe_ray.data.corpus import Corpus
from recipe_ray.models.family import Capability
from recipe_ray.stages.kind import Point
from recipe_ray.stages.learnable import LearnableFeed
from recipe_ray.stages.stage import STAGES, Context, Stage, loss_measurements
from recipe_ray.store.rows import Measurement


class BackdoorGrid(Spec):
    """What a block of the grid says of it."""

    attacks: tuple[AnyAttack, ...] = Field((NoAttack(),), min_length=1)


@STAGES.register("backdoor")
class BackdoorStage(Stage):
    """Poisons the PTM with an attack."""

    rank: ClassVar[int] = 20
    grid: ClassVar[type[Spec]] = BackdoorGrid
    axes: ClassVar[tuple[str, ...]] = ("attacks",)

    attack: AnyAttack

    @classmethod
    def planned(cls, point: Point, ptm: Stage | None) -> Iterator[Stage | None]:
        """Yield the stage that poisons, or nothing new if the attack does not."""
        attack: Attack = point.chosen["attacks"]
        if not attack.poisons:
            yield ptm
            return
        content = {corpus.name: point.content(corpus) for corpus in attack.corpora()}
        seed = point.setting("release_seed")
        yield point.make(cls, content=content, parent=ptm, attack=attack, seed=seed)

    def run(self, context: Context) -> list[Measurement]:
        """Return the attack's losses of every epoch."""
        ptm = self.input_ptm(context)
        feed = LearnableFeed(context.feed, ptm)
        bench = Workbench(feed, context.runtime, self.seed, context.locations.cache_dir)
        records = self.attack.poison(ptm, bench)
        context.save(ptm)
        return [*loss_measurements(records), *feed.measured()]

    def corpora(self) -> list[tuple[Corpus, Part]]:
        """Return the attacker's corpora."""
        return [(corpus, Part()) for corpus in self.attack.corpora()]

    def needs(self) -> list[tuple[str, tuple[Capability, ...]]]:
        """Return what the attack needs."""
        return [(f"attack {self.attack.label()!r}", self.attack.needs)]

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
