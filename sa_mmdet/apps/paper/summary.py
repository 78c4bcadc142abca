"""The results of finished runs as rows of the paper's tables."""
import statistics
from dataclasses import dataclass

from .tables import METRICS, TASKS, Row, load_table


@dataclass(frozen=True)
class Measured:
    """A metric over the seeds of a row, in percent."""

    mean: float
    std: float | None
    seeds: int

    def text(self, decimals: int) -> str:
        """For people: the mean, and the deviation where there are several seeds."""
        deviation = '' if self.std is None else f' ± {self.std:.{decimals}f}'
        return f'{self.mean:.{decimals}f}{deviation}'


@dataclass(frozen=True)
class Summary:
    """A row of a table: what the paper prints, and what was measured.

    Attributes:
        row: of the paper.
        measured: by metric; empty if the row was not run; None for a metric without objects.
        gain: of the first metric, top-1 accuracy or AP, above that of the row without attention, or
            in Table 1 of the whole module; None for that row, or if one of the two was not run.
        paper_gain: the paper's.
        evaluated_on: label of the images; None if the row was not run.
        comparable: whether these are the paper's images, or the row was not run.
    """

    row: Row
    measured: dict[str, Measured | None]
    gain: float | None
    paper_gain: float | None
    evaluated_on: str | None
    comparable: bool

    def difference(self, metric: str) -> float | None:
        """Measured minus paper; None where that would compare different things."""
        measured = self.measured.get(metric)
        return measured.mean - self.row.metrics[metric] if measured and self.comparable else None


def summarize(table: int, results: list[dict]) -> list[Summary]:
    """Put results of runs beside the rows of a table.

    Args:
        table: 1 or 2 (accuracy), 3 (boxes) or 4 (masks).
        results: contents of result.json files, of any rows and seeds.
    """
    task = TASKS[table]
    first = METRICS[task][0]
    rows = load_table(table)
    by_row = {row.name: [result for result in results
                         if result['row'] == row.name and task in result['metrics']]
              for row in rows}
    measured = {name: _measured(task, of_row) for name, of_row in by_row.items()}
    summaries = []
    for row in rows:
        of_row = by_row[row.name]
        labels = dict.fromkeys(result['evaluated_on']['label'] for result in of_row)
        plain = _compared_with(row, rows)
        gain = None
        if row is not plain and measured[row.name].get(first) and measured[plain.name].get(first):
            gain = measured[row.name][first].mean - measured[plain.name][first].mean
        summaries.append(Summary(
            row, measured[row.name], gain,
            None if row is plain else row.metrics[first] - plain.metrics[first],
            '; '.join(labels) or None,
            all(result['evaluated_on']['is_papers'] for result in of_row)))
    return summaries


def _measured(task: str, results: list[dict]) -> dict[str, Measured | None]:
    return {metric: _over_seeds([result['metrics'][task][metric] for result in results])
            for metric in METRICS[task]} if results else {}


def _over_seeds(values: list[float]) -> Measured | None:
    if min(values) < 0:  # COCO's -1: there are no objects of this size
        return None
    percent = [100 * value for value in values]
    std = statistics.stdev(percent) if len(percent) > 1 else None
    return Measured(statistics.fmean(percent), std, len(percent))


def _compared_with(row: Row, rows: list[Row]) -> Row:
    """Return the row without attention of the same network; of an ablation the whole module."""
    if row.variant:
        return next(other for other in rows if other.variant == 'origin')
    return next(other for other in rows if other.attention == 'none'
                and (other.detector, other.backbone) == (row.detector, row.backbone))
