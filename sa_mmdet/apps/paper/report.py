"""The report of finished runs: Markdown, CSV, JSON and pictures."""
import csv
import functools
import io
import json
from pathlib import Path

from ...checkpoint.files import write_atomically
from .charts import draw_table
from .complexity_table import CELLS, compute_table
from .complexity_table import DECIMALS as COMPLEXITY_DECIMALS
from .curves import LogError, draw_curves, read_log
from .tables import DATASETS, DECIMALS, METRICS, NAMES, TASKS, Summary, summarize

TITLES = {
    1: 'Table 1: ablations of shuffle attention in ResNet-50 (top-1 and top-5 accuracy, %)',
    2: 'Table 2: image classification (top-1 and top-5 accuracy, %)',
    3: 'Table 3: object detection (box AP, %)',
    4: 'Table 4: instance segmentation (mask AP, %)',
}
ON = {'ImageNet': '50,000 images of ImageNet val', 'COCO': '5,000 images of COCO val2017'}
STARTS = {
    'ImageNet': 'The paper trains once, from random weights. "Runs" shows what these runs started '
                'from.',
    'COCO': 'The paper starts from backbones that were trained on ImageNet with their attention. '
            '"Runs" shows what these runs started from.',
}
NOT_RUN = 'not run'
PICTURE = 'predictions.png'  # detections, in the folder of a run
CURVES, DETECTIONS = 'curves', 'detections'  # folders in the report's folder
CAPTION = ('Losses are as MMEngine logs them: each value is the mean over the last '
           "`log_processor.window_size` iterations (see the config). Validation uses the config's "
           'validation images, after each epoch. Seeds are lines of the same colour.')
DETECTIONS_CAPTION = ('The first images that have objects, with ground truth on the left. On the '
                      'right are the detections with a score of at least 0.3 that the test of the '
                      'first seed saved.')


def write_report(folder: Path, runs: dict[Path, dict], configs: Path,
                 dataset: str = 'COCO') -> Path:
    """Write report.md, .csv and .json, table<N>.png, and <row>.png in curves and detections.

    Args:
        folder: folder to write to; made if it does not exist.
        runs: contents of the finished runs' result.json files, by run folder.
        configs: folder of the rows' configs, for Params and GFLOPs.
        dataset: 'ImageNet' for Tables 1 and 2, 'COCO' for Tables 3 and 4.

    Returns:
        The path of report.md.
    """
    for name in (CURVES, DETECTIONS) if dataset == 'COCO' else (CURVES, ):
        (folder / name).mkdir(parents=True, exist_ok=True)
    results = list(runs.values())
    tables = {table: summarize(table, results) for table in DATASETS[dataset]}
    counts = {table: _complexity(table, configs) for table in tables}
    for table, summaries in tables.items():
        write_atomically(folder / f'table{table}.png', draw_table(table, summaries))
    records = [record for table, summaries in tables.items()
               for summary in summaries for record in _records(table, summary, counts[table])]
    write_atomically(folder / 'report.csv', _csv(records))
    write_atomically(folder / 'report.json', json.dumps(
        dict(evaluated_on=labels_of(results), cells=records, runs=results), indent=1))
    write_atomically(folder / 'report.md', '\n\n'.join([
        _markdown(dataset, tables, results, counts), *_learning_curves(folder, runs),
        *_detections(folder, runs)]) + '\n')
    return folder / 'report.md'


@functools.cache
def _complexity(table: int, configs: Path) -> dict[str, dict]:
    """Return Params and GFLOPs by row; Table 4 prints none and gets those of Table 3."""
    return {row['row']: row for row in compute_table(min(table, 3), configs, mmengine=False)}


def labels_of(results: list[dict]) -> list[str]:
    """Return readable names of what the results were evaluated on."""
    return list(dict.fromkeys(result['evaluated_on']['label'] for result in results))


def _records(table: int, summary: Summary, counts: dict) -> list[dict]:
    """Return one record for each metric of a row."""
    row, task = summary.row, TASKS[table]
    records = []
    for metric in METRICS[task]:
        measured = summary.measured.get(metric)
        is_first = metric == METRICS[task][0]
        status = NOT_RUN if not summary.measured else 'measured' if measured else 'no objects'
        records.append(dict(
            table=table, detector=row.detector, backbone=row.backbone, attention=row.attention,
            variant=row.variant,
            metric=metric if task == 'accuracy' else NAMES[task].replace('AP', metric),
            status=status,
            measured=measured and measured.mean, std=measured and measured.std,
            seeds=measured.seeds if measured else 0,
            paper=row.metrics[metric] if summary.comparable else None,
            difference=summary.difference(metric), gain=summary.gain if is_first else None,
            paper_gain=summary.paper_gain if is_first and summary.comparable else None,
            params_m=counts.get(row.name, {}).get('params_m'), paper_params_m=row.params_m,
            gflops=counts.get(row.name, {}).get('gflops'), paper_gflops=row.gflops,
            evaluated_on=summary.evaluated_on, is_papers_images=summary.comparable
            if summary.measured else None))
    return records


def _csv(records: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, records[0].keys(), lineterminator='\n')
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _markdown(dataset: str, tables: dict[int, list[Summary]], results: list[dict],
              counts: dict[int, dict]) -> str:
    comparable = all(result['evaluated_on']['is_papers'] for result in results)
    parts = [f"# SA-Net on {dataset}: measured results and the paper's",
             _introduction(dataset, results, comparable)]
    for table, summaries in tables.items():
        title = TITLES[table]
        parts += [f'## {title}', _table(table, summaries, comparable, counts[table]),
                  f'![{title}](table{table}.png)']
    parts += ['## Runs', _runs(results)]
    return '\n\n'.join(parts)


def _introduction(dataset: str, results: list[dict], comparable: bool) -> str:
    paper = 'Zhang & Yang, arXiv 2102.00240'
    if not results:
        return f'No run is finished yet. The paper is {paper}.'
    labels = '; '.join(labels_of(results))
    lines = [f'Evaluated on **{labels}**.']
    if comparable:
        lines.append('Each cell shows what was measured, with the standard deviation over seeds if '
                     f'there are several. In brackets are the figure that the paper ({paper}) '
                     f'prints and the difference from it. {STARTS[dataset]}')
    else:
        lines.append('**These figures cannot be compared with the paper**, which evaluates on the '
                     f"{ON[dataset]}. The paper's figures are therefore left out.")
    options = dict.fromkeys(f'`{key}={value}`' for result in results
                            for key, value in result['cfg_options'].items())
    if options:
        lines.append(f'Changed settings of the configs: {", ".join(options)}.')
    lines.append("Params and GFLOPs are for the unchanged configs, by the paper's convention "
                 "(`tools/complexity.py`). The paper's figures are in brackets.")
    return ' '.join(lines)


def _table(table: int, summaries: list[Summary], comparable: bool, counts: dict) -> str:
    task = TASKS[table]
    names = _row_names(table)
    cells_of_complexity = [cell for cell in CELLS if getattr(summaries[0].row, cell) is not None]
    complexity = [{'params_m': 'Params (M)', 'gflops': 'GFLOPs'}[c] for c in cells_of_complexity]
    metrics = [metric.replace('top', 'Top-') for metric in METRICS[task]]
    gain = f'Gain in {metrics[0]}' + (' over origin' if table == 1 else '')
    rows = []
    for summary in summaries:
        row = summary.row
        cells = [getattr(row, name).replace('none', '–') for name in names.values()]
        cells += [_complexity_cell(table, counts[row.name], cell) for cell in cells_of_complexity]
        cells += [_cell(summary, metric, comparable) for metric in METRICS[task]]
        rows.append([*cells, _gain(summary, comparable)])
    return markdown_table([*names, *complexity, *metrics, gain], rows)


def _row_names(table: int) -> dict[str, str]:
    """Return the columns that name a row, and their attributes."""
    if table == 1:
        return {'Variant': 'variant'}
    names = {'Backbone': 'backbone', 'Attention': 'attention'}
    return names if table == 2 else {'Detector': 'detector'} | names


def _complexity_cell(table: int, count: dict, cell: str) -> str:
    decimals = COMPLEXITY_DECIMALS[table]
    printed = f'{count[f"paper_{cell}"]:.{decimals}f}'
    differs = '' if cell not in count['differences'] else ' ≠'
    return f'{count[cell]:.{decimals}f} ({printed}){differs}'


def _cell(summary: Summary, metric: str, comparable: bool) -> str:
    decimals = DECIMALS[TASKS[summary.row.table]]
    measured = summary.measured.get(metric)
    text = NOT_RUN if not summary.measured else (
        measured.text(decimals) if measured else 'no objects')
    if not comparable:
        return text
    difference = summary.difference(metric)
    beside = f'{summary.row.metrics[metric]:.{decimals}f}'
    if difference is not None:
        beside += f', {signed(difference, decimals)}'
    return f'{text} ({beside})'


def _gain(summary: Summary, comparable: bool) -> str:
    if summary.paper_gain is None:
        return ''
    decimals = DECIMALS[TASKS[summary.row.table]]
    text = NOT_RUN if summary.gain is None else signed(summary.gain, decimals)
    if not comparable:
        return text
    arrow = '↓' if summary.paper_gain < 0 else '↑'
    return f'{text} ({arrow}{abs(summary.paper_gain):.{decimals}f})'


def signed(points: float, decimals: int) -> str:
    """Return a difference as text with its sign."""
    return f'{round(points, decimals) + 0:+.{decimals}f}'  # + 0 turns -0.0 into 0.0


def _runs(results: list[dict]) -> str:
    header = ['Row', 'Seed', 'Start weights', 'Epochs', 'Batch', 'Images', 'Evaluated on', 'Device',
              'Training', 'Versions', 'Commit']
    rows = []
    for result in sorted(results, key=lambda result: (result['row'], result['seed'])):
        versions = result['versions']
        device = f'{max(result["gpus"], 1)} × {result["device"]}'
        rows.append([
            result['row'], str(result['seed']), result['start'], _or_dash(result['epochs']),
            _or_dash(result['batch']), f'{result["evaluated_on"]["images"]:,}',
            result['evaluated_on']['label'], device,
            _or_dash(result['hours'] and f'{result["hours"]:.2f} h'),
            ', '.join(f'{name} {version}' for name, version in versions.items()),
            result['commit']])
    return markdown_table(header, rows) if rows else 'None.'


def _learning_curves(folder: Path, runs: dict[Path, dict]) -> list[str]:
    """Draw the curves of rows that were trained here, and return the report's section on them."""
    logs, problems = {}, []
    for place, result in sorted(runs.items(), key=lambda run: (run[1]['row'], run[1]['seed'])):
        if result['epochs'] is None:  # not trained here
            continue
        try:
            logs.setdefault(result['row'], {})[result['seed']] = read_log(place)
        except LogError as error:
            problems.append(f'{result["row"]} seed {result["seed"]} has no curves: {error}.')
    pictures = []
    for row, by_seed in logs.items():
        title = f'{row}, {"seed" if len(by_seed) == 1 else "seeds"} {", ".join(map(str, by_seed))}'
        write_atomically(folder / CURVES / f'{row}.png', draw_curves([*by_seed.values()], title))
        pictures.append(f'![{title}]({CURVES}/{row}.png)')
    return ['## Learning curves', CAPTION, *pictures, *problems] if pictures or problems else []


def _detections(folder: Path, runs: dict[Path, dict]) -> list[str]:
    """Return a section with a picture for each row, from its first run that has one."""
    pictures = {}
    for run, result in sorted(runs.items(), key=lambda item: item[1]['seed']):
        if (run / PICTURE).is_file():
            pictures.setdefault(result['row'], run / PICTURE)
    for row, picture in pictures.items():
        write_atomically(folder / DETECTIONS / f'{row}.png', picture.read_bytes())
    lines = [f'{row}:\n\n![{row}]({DETECTIONS}/{row}.png)' for row in pictures]
    return ['## Detections', DETECTIONS_CAPTION, *lines] if lines else []


def _or_dash(value) -> str:
    return '–' if value is None else str(value)


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)
