"""What a report shows: each experiment's summaries, and the table of the paper next to it."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from recipe_ray.report.detection import detection_tables
from recipe_ray.report.load import Recorded
from recipe_ray.report.measured import MeasuredSummary, measured_tables, summarise_measured
from recipe_ray.report.paper_comparison import cells_table, probes_table
from recipe_ray.report.published import PublishedTable
from recipe_ray.report.searches import SearchSummary, search_table, summarise_search
from recipe_ray.report.summary import CellSummary, ProbeSummary, summarise, summarise_probes
from recipe_ray.report.tables import Table, tables
from recipe_ray.store.rows import result_schema


@dataclass(frozen=True)
class Section:
    """One experiment of a report."""

    experiment: str
    paper: PublishedTable | None
    cells: tuple[CellSummary, ...]
    probes: tuple[ProbeSummary, ...]
    search: SearchSummary | None = None
    measured: tuple[MeasuredSummary, ...] = ()
    detection: Table | None = None

    def tables(self) -> list[Table]:
        """Return its tables: a search's, or those of fine-tunings, probes and every other kind."""
        if self.search is not None:
            return [search_table(self.search)]
        found = []
        if self.cells and self.paper is not None:
            found.append(cells_table(self.experiment, self.paper, self.cells))
        elif self.cells:
            found += tables(self.cells)
        if self.probes:
            found.append(probes_table(self.experiment, self.paper, self.probes))
        found += measured_tables(self.measured)
        return [*found, self.detection] if self.detection is not None else found


def sections(found: Sequence[Recorded], only: str | None = None) -> list[Section]:
    """Return the experiments in the paper's order, then the others, or only the one of that name.

    Floors are looked for in all of them. Raises UserError if an experiment names a table that
    the paper does not have.
    """
    rows = pa.concat_tables([result_schema().empty_table(), *(one.rows for one in found)])
    cells, probes, measured = summarise(rows), summarise_probes(rows), summarise_measured(rows)
    detection = detection_tables(rows)
    listed = [
        Section(
            one.experiment,
            PublishedTable(one.paper) if one.paper is not None else None,
            tuple(cell for cell in cells if cell.experiment == one.experiment),
            tuple(probe for probe in probes if probe.experiment == one.experiment),
            summarise_search(one),
            tuple(own for own in measured if own.experiment == one.experiment),
            detection.get(one.experiment),
        )
        for one in found
        if only in (None, one.experiment)
    ]
    beside = [one for one in listed if one.paper is not None]
    beside.sort(key=lambda one: one.paper.place if one.paper is not None else (0, ""))
    return [*beside, *(one for one in listed if one.paper is None)]
