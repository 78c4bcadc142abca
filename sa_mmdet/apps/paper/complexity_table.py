"""The Params and GFLOPs columns of the paper's tables, as computed and as printed."""
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config
from rich.table import Table

from ...models.attention import AttentionLayer
from .complexity import Complexity, classifier_complexity, detector_complexity
from .tables import CONTRADICTIONS, Row, load_table

CELLS = ('params_m', 'gflops')
DECIMALS = {1: 3, 2: 3, 3: 2}

ABLATIONS = {
    'origin': {},
    'w/o_gn': dict(gn=False),
    'w/o_shuffle': dict(shuffle=False),
    'w/o_ Fc': dict(fc='none'),
    '1 × 1 Conv': dict(fc='conv'),
}


def compute_table(table: int, configs: Path, mmengine: bool = True) -> Iterator[dict]:
    """Compute the rows of a table, one after another.

    Args:
        table: 1, 2 (classifiers at 224x224) or 3 (detectors at 800x1280).
        configs: folder of the configs. Configs of classifiers are not read.
        mmengine: also count by MMEngine's convention, which takes seconds per detector.

    Yields:
        A dict for each row: 'row', its name; 'detector', 'backbone', 'attention', 'variant';
        'params_m' and 'gflops' by the paper's convention; 'paper_params_m' and 'paper_gflops' as
        printed, None if the table has none; 'mmengine_params_m' and 'mmengine_gflops'; 'match',
        whether every printed cell agrees to its last digit; 'differences', which maps each cell
        that differs to what is wrong with the printed value, None if that is unknown.

    Raises:
        ValueError: The table has no such columns.
    """
    if table not in DECIMALS:
        raise ValueError(f'Table {table} of the paper has no Params or GFLOPs: choose from '
                         f'{sorted(DECIMALS)}')
    for row in load_table(table):
        compared = _compared(row, _count(row, configs, 'paper'))
        if mmengine:
            count = _count(row, configs, 'mmengine')
            compared |= dict(mmengine_params_m=count.params_m, mmengine_gflops=count.gflops)
        yield compared


def _count(row: Row, configs: Path, convention: str) -> Complexity:
    if row.detector:
        return detector_complexity(Config.fromfile(configs / row.config), convention)
    return classifier_complexity(classifier_backbone(row), convention)


def classifier_backbone(row: Row) -> dict:
    """Return the backbone's config for a row of Table 1 or 2, as in ``configs/imagenet``.

    Those configs need MMPretrain. Counting doesn't, so the backbone is repeated here.
    """
    backbone = dict(type='ResNet', depth=row.depth, norm_eval=False)
    if row.attention != 'none':
        layer = next(layer for layer in AttentionLayer.__subclasses__()
                     if layer._abbr_ == row.attention.lower())
        attention = dict(type=layer.__name__, **ABLATIONS.get(row.variant, {}))
        if row.attention == 'SE':
            attention['bias'] = True  # in classifiers
        backbone |= dict(type='AttentionResNet', attention=attention)
    return backbone


def _compared(row: Row, count: Complexity) -> dict:
    differences, decimals = {}, DECIMALS[row.table]
    for cell in CELLS:
        value, printed = getattr(count, cell), getattr(row, cell)
        if printed is not None and f'{value:.{decimals}f}' != f'{printed:.{decimals}f}':
            differences[cell] = CONTRADICTIONS.get((row.table, row.name, cell))
    return dict(
        row=row.name, detector=row.detector, backbone=row.backbone, attention=row.attention,
        variant=row.variant, params_m=count.params_m, gflops=count.gflops,
        paper_params_m=row.params_m, paper_gflops=row.gflops,
        match=not differences, differences=differences)


def unexplained(rows: list[dict]) -> list[str]:
    """Return the cells that differ from the paper for no known reason."""
    return [f'{row["row"]} {cell}' for row in rows
            for cell, reason in row['differences'].items() if reason is None]


def render(table: int, rows: list[dict]) -> Table:
    """Return a table for the terminal: computed, printed and a mark for each cell."""
    decimals = DECIMALS[table]
    rendered = Table(title=f'Table {table}: computed (paper)', title_justify='left')
    for name in ('', 'Params (M)', 'GFLOPs'):
        rendered.add_column(name)
    for name in ('Params (M), MMEngine', 'GFLOPs, MMEngine'):
        rendered.add_column(name, justify='right')
    for row in rows:
        rendered.add_row(
            row['row'], *(_cell(row, cell, decimals) for cell in CELLS),
            *(f'{row[f"mmengine_{cell}"]:.{decimals}f}' for cell in CELLS))
    return rendered


def _cell(row: dict, cell: str, decimals: int) -> str:
    value, printed = row[cell], row[f'paper_{cell}']
    if printed is None:
        return f'{value:.{decimals}f} (not printed)'
    mark = '✓' if cell not in row['differences'] else '≠'
    return f'{value:.{decimals}f} ({printed:.{decimals}f}) {mark}'
