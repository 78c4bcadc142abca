"""Tables 1 to 4 of the paper (Zhang & Yang, arXiv 2102.00240), as printed and as measured."""
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path

# From the paper's names to the parts of our row names.
DETECTORS = {'Faster R-CNN': 'faster-rcnn', 'Mask R-CNN': 'mask-rcnn', 'RetinaNet': 'retinanet'}
CLASSIFIERS = {'ResNet': 'none', 'SENet': 'SE', 'CBAM': 'CBAM', 'SGE-Net': 'SGE',
               'ECA-Net': 'ECA', 'SA-Net': 'SA'}
VARIANTS = {'': '', 'origin': '', 'w/o_gn': '_no-gn', 'w/o_shuffle': '_no-shuffle',
            'w/o_ Fc': '_no-fc', '1 × 1 Conv': '_conv'}  # Table 1's
TABLE_KEYS = {
    1: 'table1_ablation_sa_resnet50_imagenet',
    2: 'table2_imagenet',
    3: 'table3_detection_coco_val2017',
    4: 'table4_instance_segmentation_coco_val2017',
}
DATASETS = {'ImageNet': (1, 2), 'COCO': (3, 4)}  # with the tables that are measured on them
TASKS = {1: 'accuracy', 2: 'accuracy', 3: 'bbox', 4: 'segm'}
METRICS = {
    'accuracy': ('top1', 'top5'),
    **dict.fromkeys(('bbox', 'segm'), ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl')),
}
DECIMALS = {'accuracy': 3, 'bbox': 1, 'segm': 1}  # of the metrics, as printed
NAMES = {'accuracy': 'top-1 accuracy', 'bbox': 'box AP', 'segm': 'mask AP'}  # of the first metric

# Why a printed cell contradicts the others, by (table, row, cell).
CONTRADICTIONS = {
    (2, 'sa-resnet50', 'params_m'): 'truncated, not rounded, unlike all other cells of the table',
    (3, 'retinanet_sa-r101', 'params_m'):
    'less than plain RetinaNet (56.74): attention cannot remove parameters',
}


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        table: 1 to 4, or 0 for a row in none of them.
        detector: the paper's name of the detector; None for a classifier.
        backbone: 'ResNet-50' or 'ResNet-101'.
        attention: 'none', 'SE', 'CBAM', 'SGE', 'ECA' or 'SA'.
        variant: variant of the attention in Table 1: 'origin', 'w/o_gn', ...; otherwise ''.
        params_m: parameters in millions, None if the table doesn't print them.
        gflops: operations in billions, None if the table doesn't print them.
        metrics: percentages by metric: AP, AP50, ... of boxes (Table 3) or masks (Table 4), top1
            and top5 (Tables 1 and 2).
    """

    table: int
    detector: str | None
    backbone: str
    attention: str
    variant: str = ''
    params_m: float | None = None
    gflops: float | None = None
    metrics: dict[str, float] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """The start of its config's file name: 'mask-rcnn_sa-r50', 'sa-resnet50_no-gn', ..."""
        attention = '' if self.attention == 'none' else f'{self.attention.lower()}-'
        if self.detector:
            return f'{DETECTORS[self.detector]}_{attention}r{self.depth}'
        return f'{attention}resnet{self.depth}{VARIANTS[self.variant]}'

    @property
    def config(self) -> Path:
        """Its config file, under ``configs/``."""
        if not self.detector:
            return Path('imagenet') / f'{self.name}_8xb32_in1k.py'
        folder = DETECTORS[self.detector].replace('-', '_')
        return Path(folder) / f'{self.name}_fpn_1x_coco.py'

    @property
    def depth(self) -> int:
        """Depth of its ResNet: 50 or 101."""
        return int(self.backbone.removeprefix('ResNet-'))

    @property
    def dataset(self) -> str:
        """What it is trained and evaluated on: 'ImageNet' or 'COCO'."""
        return next(name for name, tables in DATASETS.items() if self.table in tables)


def load_table(table: int) -> list[Row]:
    """Return the rows of a table, in the paper's order.

    Args:
        table: 1 to 4.

    Raises:
        ValueError: The paper has no such table.
    """
    if table not in TABLE_KEYS:
        raise ValueError(f'the paper has Tables {", ".join(map(str, TABLE_KEYS))}, not {table}')
    tables = json.loads(Path(__file__).with_name('tables.json').read_text())
    return [_row(table, cells) for cells in tables[TABLE_KEYS[table]]]


def _row(table: int, cells: dict) -> Row:
    method = 'SA-Net' if table == 1 else cells.get('method')
    task = TASKS[table]
    return Row(
        table=table,
        detector=cells.get('detector'),
        backbone=cells.get('backbone', 'ResNet-50'),
        attention=CLASSIFIERS[method] if method else cells['attention'],
        variant=cells.get('variant', ''),
        params_m=cells.get('params_m'),
        gflops=cells.get('gflops'),
        metrics=cells.get(task) or {metric: cells[metric] for metric in METRICS[task]})


@dataclass(frozen=True)
class Measured:
    """A metric over the seeds of a row, in percent."""

    mean: float
    std: float | None
    seeds: int

    def text(self, decimals: int) -> str:
        """Return the mean as text, with the standard deviation if there are several seeds."""
        deviation = '' if self.std is None else f' ± {self.std:.{decimals}f}'
        return f'{self.mean:.{decimals}f}{deviation}'


@dataclass(frozen=True)
class Summary:
    """A row of a table: what the paper prints, and what was measured.

    Attributes:
        row: row of the paper.
        measured: what was measured, by metric. It is empty if the row was not run. A metric
            without objects is None.
        gain: gain in the first metric, top-1 accuracy or AP, over the row without attention; in
            Table 1, over the whole module. None for that row, or if one of the two was not run.
        paper_gain: the paper's gain.
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
        """Return measured minus printed; None if the two cannot be compared."""
        measured = self.measured.get(metric)
        return measured.mean - self.row.metrics[metric] if measured and self.comparable else None


def summarize(table: int, results: list[dict]) -> list[Summary]:
    """Combine the rows of a table with the results of runs.

    Args:
        table: 1 or 2 (accuracy), 3 (boxes) or 4 (masks).
        results: contents of result.json files, for any rows and seeds.
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
    return {metric: over_seeds([result['metrics'][task][metric] for result in results])
            for metric in METRICS[task]} if results else {}


def over_seeds(values: list[float]) -> Measured | None:
    """Return a metric over seeds in percent, from values in [0, 1]; None if there are none."""
    if not values or min(values) < 0:  # COCO's -1: there are no objects of this size
        return None
    percent = [100 * value for value in values]
    std = statistics.stdev(percent) if len(percent) > 1 else None
    return Measured(statistics.fmean(percent), std, len(percent))


def _compared_with(row: Row, rows: list[Row]) -> Row:
    """Return the row of the same network without attention; for an ablation, the whole module."""
    if row.variant:
        return next(other for other in rows if other.variant == 'origin')
    return next(other for other in rows if other.attention == 'none'
                and (other.detector, other.backbone) == (row.detector, row.backbone))
