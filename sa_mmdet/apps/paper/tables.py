"""The paper's tables (Zhang & Yang, arXiv 2102.00240, Tables 1 to 4), as printed."""
import json
from dataclasses import dataclass, field
from pathlib import Path

# The paper's name of a row -> its part of our names.
DETECTORS = {'Faster R-CNN': 'faster-rcnn', 'Mask R-CNN': 'mask-rcnn', 'RetinaNet': 'retinanet'}
BACKBONES = {'ResNet-50': 'r50', 'ResNet-101': 'r101'}
DEPTHS = {'ResNet-50': 50, 'ResNet-101': 101}
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
DATASETS = {'ImageNet': (1, 2), 'COCO': (3, 4)}  # and the tables that are measured on them
TASKS = {1: 'accuracy', 2: 'accuracy', 3: 'bbox', 4: 'segm'}
METRICS = {
    'accuracy': ('top1', 'top5'),
    **dict.fromkeys(('bbox', 'segm'), ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl')),
}
DECIMALS = {'accuracy': 3, 'bbox': 1, 'segm': 1}  # of the metrics, as printed
NAMES = {'accuracy': 'top-1 accuracy', 'bbox': 'box AP', 'segm': 'mask AP'}  # of the first metric

# Cells of the paper that contradict its other cells, by (table, row, cell).
CONTRADICTIONS = {
    (2, 'sa-resnet50', 'params_m'): 'cut, not rounded, unlike all other cells of the table',
    (3, 'retinanet_sa-r101', 'params_m'):
    'less than plain RetinaNet (56.74): attention cannot remove parameters',
}


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        table: 1 to 4.
        detector: the paper's name of the detector; None for a classifier.
        backbone: 'ResNet-50' or 'ResNet-101'.
        attention: 'none', 'SE', 'CBAM', 'SGE', 'ECA' or 'SA'.
        variant: of the attention, in Table 1: 'origin', 'w/o_gn', ...; '' elsewhere.
        params_m: million parameters, None where the table does not tell.
        gflops: billion operations, likewise.
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
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Beginning of its config's file name: 'mask-rcnn_sa-r50', 'sa-resnet50_no-gn', ..."""
        attention = '' if self.attention == 'none' else f'{self.attention.lower()}-'
        if self.detector:
            return f'{DETECTORS[self.detector]}_{attention}{BACKBONES[self.backbone]}'
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
        """Of its ResNet: 50 or 101."""
        return DEPTHS[self.backbone]

    @property
    def dataset(self) -> str:
        """What it is trained and evaluated on: 'ImageNet' or 'COCO'."""
        return next(name for name, tables in DATASETS.items() if self.table in tables)

    def contradiction(self, cell: str) -> str | None:
        """Return why a printed cell ('params_m', 'gflops') cannot be right, if that is known."""
        return CONTRADICTIONS.get((self.table, self.name, cell))


def load_table(table: int) -> list[Row]:
    """Return the rows of a table, in the paper's order.

    Args:
        table: 1 to 4.

    Raises:
        ValueError: the paper has no such table.
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
