"""From a search to stages: what comes before it, its candidates, the full grid, the confirmation.

All but the candidates are experiments like any other and run by `sweep`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from recipe_ray.attacks.none import NoAttack
from recipe_ray.base.fingerprint import fingerprint
from recipe_ray.base.spec import explained
from recipe_ray.data.sources import Locations
from recipe_ray.experiment.plan import Plan, make_plan
from recipe_ray.experiment.search.settings import Settings
from recipe_ray.experiment.search.spec import Search
from recipe_ray.experiment.spec import Experiment
from recipe_ray.stages.finetune import FinetuneStage
from recipe_ray.stages.purify import PurifyStage
from recipe_ray.stages.stage import Stage

# what decides which candidates there are and which of them are stopped
_DECIDES = ("space", "sampling", "epochs", "grace", "reduction", "score", "seed")


@dataclass(frozen=True)
class Candidate:
    """A purification and the look after each of its epochs."""

    settings: Settings
    purify: PurifyStage
    looks: tuple[FinetuneStage, ...]


@dataclass(frozen=True)
class SearchPlan:
    """A search with its data resolved; picklable."""

    search: Search
    undefended: Plan
    grid: Plan | None
    template: Candidate

    @property
    def key(self) -> str:
        """The hash of what decides its course; more trials go on with the same search."""
        own = self.search.identity()
        looks = [look.key for look in self.template.looks]
        return fingerprint({**{name: own[name] for name in _DECIDES}, "looks": looks})

    @property
    def reference(self) -> Stage:
        """The undefended fine-tuning whose ACC scores may refer to."""
        return self.undefended.cells[0].last

    def candidate(self, settings: Settings) -> Candidate:
        """Return the stages of a candidate."""
        purify = self.template.purify.revised(defense=settings.put_into(self.search))
        looks = tuple(look.revised(parent=purify) for look in self.template.looks)
        return Candidate(settings, purify, looks)

    def confirmation(self, survivors: Iterable[Settings], locations: Locations) -> Plan:
        """Return the grid of the survivors, the undefended PTM and the clean one, on test."""
        search = self.search
        common = {"tasks": search.confirm.tasks, "seeds": search.confirm.seeds}
        defenses = tuple(settings.put_into(search) for settings in survivors)
        undefended = {"attacks": (NoAttack(), search.attack), **common}
        purified = {"attacks": (search.attack,), "defenses": defenses, **common}
        blocks = [undefended, purified]
        return _plan(search, "confirm", blocks, locations, finetuning=search.finetuning)


def make_search_plan(search: Search, locations: Locations) -> SearchPlan:
    """Resolve the data of a search; nothing is run.

    Raises DataError where data cannot be found, SpecError where model, corpus, task and attack do
    not fit each other.
    """
    common = {"attacks": (search.attack,), "tasks": (search.quick.task,)}
    seeds = {"seeds": (search.seed,)}
    undefended = _plan(search, "undefended", [{**common, **seeds}], locations)
    grid = None
    if search.grid is not None:
        points = [Settings.of({"weight_factor": one}) for one in search.grid.weight_factors]
        defenses = tuple(point.put_into(search) for point in points)
        block = {**common, "defenses": defenses, "seeds": search.grid.seeds}
        grid = _plan(search, "grid", [block], locations)
    # any settings: candidates differ from it in the defense alone
    settings = Settings(search.space.weight_factor.low)
    epochs = tuple(range(1, search.epochs + 1))
    block = {**common, **seeds, "defenses": (settings.put_into(search),), "snapshots": epochs}
    looks = tuple(cell.last for cell in _plan(search, "looks", [block], locations).cells)
    template = Candidate(
        settings, cast("PurifyStage", looks[0].parent), cast("tuple[FinetuneStage, ...]", looks)
    )
    return SearchPlan(search, undefended, grid, template)


def _plan(
    search: Search,
    part: str,
    blocks: list[dict[str, Any]],
    locations: Locations,
    **changes: Any,
) -> Plan:
    name = f"{search.name}.{part}"
    fixed = {"models": (search.model,), "auxiliaries": (search.auxiliary,)}
    with explained(f"search {search.name}"):
        experiment = Experiment.model_validate(
            {
                "name": name,
                "description": f"{search.name}: {part}",
                "grid": tuple({**fixed, **block} for block in blocks),
                "finetuning": search.quick.fit,
                "pretraining": search.pretraining,
                "release_seed": search.release_seed,
                "launch": search.launch,
                **changes,
            }
        )
    return make_plan(experiment, locations)
