"""The report of finished runs: Markdown, CSV, JSON and pictures."""
import csv
import functools
import io
import json
from pathlib import Path

from ..files import write_atomically
from ..visualization.curves import LogError, draw_curves, read_log
from .charts import KINDS, draw_table
from .complexity_table import CELLS, compute_table
from .paper import METRICS, TASKS
from .summary import Summary, summarize

TITLES = {3: 'Table 3: object detection', 4: 'Table 4: instance segmentation'}
NOT_RUN = 'not run'
PICTURE = 'predictions.png'  # of the detections, in the folder of a run
CURVES, DETECTIONS = 'curves', 'detections'  # folders in the report's
CAPTION = ('Losses are as MMEngine logs them: each value is the mean of the last iterations, whose '
           "number is `log_processor.window_size` of the config. Validation AP is of the config's "
           'validation images, after each epoch. Seeds are lines of the same colour.')
DETECTIONS_CAPTION = ('The first images that have objects: ground truth left; right the detections '
                      'with a score of at least 0.3, as the test saved them, of the first seed.')


def write_report(folder: Path, runs: dict[Path, dict], configs: Path) -> Path:
    """Write report.md, report.csv, report.json, table3.png, table4.png, and <row>.png in curves and
    detections.

    Args:
        folder: to write to; made if it does not exist.
        runs: contents of the result.json files of finished runs, by the runs' folders.
        configs: the folder of the rows' configs, for Params and GFLOPs.

    Returns:
        The path of report.md.
    """
    for name in (CURVES, DETECTIONS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    results = list(runs.values())
    tables = {table: summarize(table, results) for table in TASKS}
    counts = _complexity(configs)
    for table, summaries in tables.items():
        write_atomically(folder / f'table{table}.png', draw_table(table, summaries))
    records = [record for table, summaries in tables.items()
               for summary in summaries for record in _records(table, summary, counts)]
    write_atomically(folder / 'report.csv', _csv(records))
    write_atomically(folder / 'report.json', json.dumps(
        dict(evaluated_on=_labels(results), cells=records, runs=results), indent=1))
    write_atomically(folder / 'report.md', '\n\n'.join([
        _markdown(tables, results, counts), *_learning_curves(folder, runs),
        *_detections(folder, runs)]) + '\n')
    return folder / 'report.md'


@functools.cache
def _complexity(configs: Path) -> dict[str, dict]:
    return {row['row']: row for row in compute_table(3, configs, mmengine=False)}


def _labels(results: list[dict]) -> list[str]:
    return list(dict.fromkeys(result['evaluated_on']['label'] for result in results))


def _records(table: int, summary: Summary, counts: dict) -> list[dict]:
    """One record for each metric of a row."""
    row = summary.row
    records = []
    for metric in METRICS:
        measured = summary.measured.get(metric)
        is_ap = metric == 'AP'
        status = NOT_RUN if not summary.measured else 'measured' if measured else 'no objects'
        records.append(dict(
            table=table, detector=row.detector, backbone=row.backbone, attention=row.attention,
            metric=f'{KINDS[TASKS[table]]} {metric}', status=status,
            measured=measured and measured.mean, std=measured and measured.std,
            seeds=measured.seeds if measured else 0,
            paper=row.metrics[metric] if summary.comparable else None,
            difference=summary.difference(metric), gain=summary.gain if is_ap else None,
            paper_gain=summary.paper_gain if is_ap and summary.comparable else None,
            params_m=counts.get(row.name, {}).get('params_m'), paper_params_m=row.params_m,
            gflops=counts.get(row.name, {}).get('gflops'), paper_gflops=row.gflops,
            evaluated_on=summary.evaluated_on, is_coco_val2017=summary.comparable
            if summary.measured else None))
    return records


def _csv(records: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, records[0].keys(), lineterminator='\n')
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _markdown(tables: dict[int, list[Summary]], results: list[dict], counts: dict) -> str:
    comparable = all(result['evaluated_on']['is_coco_val2017'] for result in results)
    parts = ['# SA-Net on COCO: measured beside the paper', _introduction(results, comparable)]
    for table, summaries in tables.items():
        title = TITLES[table]
        parts += [f'## {title} ({KINDS[TASKS[table]]} AP, %)',
                  _table(table, summaries, comparable, counts), f'![{title}](table{table}.png)']
    parts += ['## Runs', _runs(results)]
    return '\n\n'.join(parts)


def _introduction(results: list[dict], comparable: bool) -> str:
    paper = 'Zhang & Yang, arXiv 2102.00240'
    if not results:
        return f'No run is finished yet. The paper is {paper}.'
    labels = '; '.join(_labels(results))
    lines = [f'Evaluated on **{labels}**.']
    if comparable:
        lines.append('In every cell the measured AP, its standard deviation over seeds if there '
                     f'are several, and in brackets what the paper ({paper}) prints and the '
                     'difference to it. The paper starts from backbones that were trained on '
                     'ImageNet with their attention; "Runs" tells what these started from.')
    else:
        lines.append('**These figures cannot be compared with the paper**, which evaluates on the '
                     "5,000 images of COCO val2017; the paper's AP is left out for that reason.")
    options = dict.fromkeys(f'`{key}={value}`' for result in results
                            for key, value in result['cfg_options'].items())
    if options:
        lines.append(f'Settings of the configs that were changed: {", ".join(options)}.')
    lines.append('Params and GFLOPs are of the configs, by the paper\'s counting '
                 '(`tools/complexity.py`); in brackets the paper\'s.')
    return ' '.join(lines)


def _table(table: int, summaries: list[Summary], comparable: bool, counts: dict) -> str:
    complexity = ['Params (M)', 'GFLOPs'] if table == 3 else []
    header = ['Detector', 'Backbone', 'Attention', *complexity, *METRICS, 'Gain in AP']
    rows = []
    for summary in summaries:
        row = summary.row
        cells = [row.detector, row.backbone, row.attention.replace('none', '–')]
        cells += [_complexity_cell(counts[row.name], cell) for cell in CELLS if complexity]
        cells += [_cell(summary, metric, comparable) for metric in METRICS]
        rows.append([*cells, _gain(summary, comparable)])
    return _markdown_table(header, rows)


def _complexity_cell(count: dict, cell: str) -> str:
    printed = f'{count[f"paper_{cell}"]:.2f}'
    return f'{count[cell]:.2f} ({printed})' + ('' if cell not in count['differences'] else ' ≠')


def _cell(summary: Summary, metric: str, comparable: bool) -> str:
    measured = summary.measured.get(metric)
    text = NOT_RUN if not summary.measured else str(measured) if measured else 'no objects'
    if not comparable:
        return text
    difference = summary.difference(metric)
    beside = f'{summary.row.metrics[metric]:.1f}'
    if difference is not None:
        beside += f', {_signed(difference)}'
    return f'{text} ({beside})'


def _gain(summary: Summary, comparable: bool) -> str:
    if summary.row.attention == 'none':
        return ''
    text = NOT_RUN if summary.gain is None else _signed(summary.gain)
    return f'{text} (↑{summary.paper_gain:.1f})' if comparable else text


def _signed(points: float) -> str:
    return f'{round(points, 1) + 0:+.1f}'  # + 0 turns -0.0 into 0.0


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
    return _markdown_table(header, rows) if rows else 'None.'


def _learning_curves(folder: Path, runs: dict[Path, dict]) -> list[str]:
    """Draw the rows that were trained here; what the report says of them."""
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
    """A section with the picture of each row's first run that has one."""
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


def _markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)
