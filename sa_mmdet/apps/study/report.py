"""The report of the study: what was measured with every seed, and what differs."""
import json
from dataclasses import dataclass
from pathlib import Path

from ...checkpoint.files import write_atomically
from ..paper.curves import LogError, read_log
from ..paper.report import markdown_table
from ..paper.tables import Measured, over_seeds
from .chart import draw_study
from .compare import Difference, paired_difference
from .runs import (
    CONTINUED,
    CONVERTED,
    FROM_SCRATCH,
    PLAIN,
    ROWS,
    STAYS_PLAIN,
    UNCONVERTED,
    StudyRow,
)

TASKS = {'bbox': 'box AP', 'segm': 'mask AP'}
COMPARISONS = (*((row, PLAIN) for row in FROM_SCRATCH[1:]), (CONVERTED, STAYS_PLAIN),
               (UNCONVERTED, STAYS_PLAIN), (CONVERTED, UNCONVERTED))
OF_RUNS = ('row', 'seed', 'metrics', 'epochs', 'batch', 'hours', 'gpus', 'device', 'versions',
           'commit', 'cfg_options')
INTRODUCTION = (
    "Does attention help? Mask R-CNN R-50 on **{label}**: COCO's AP in percent, mean ± standard "
    'deviation over seeds. Differences are taken seed by seed, between runs with the same order of '
    'the data and the same initial weights but for the attention; in brackets is their 95 % '
    "interval (Student's t). Bold ones exceed it. Where there is no difference at all, one "
    'comparison in twenty exceeds its interval by chance.')


@dataclass(frozen=True)
class Study:
    """Results of runs, by row and seed.

    Attributes:
        results: contents of the result.json files.
        curves: AP in [0, 1] by row, seed, task and epoch, of what was validated in training.
    """

    results: list[dict]
    curves: dict[str, dict[int, dict[str, dict[int, float]]]]

    def values(self, row: StudyRow, task: str) -> dict[int, float]:
        """Return the AP of a row, in [0, 1], by seed."""
        return {result['seed']: result['metrics'][task]['AP'] for result in self.results
                if result['row'] == row.name}

    def measured(self, row: StudyRow, task: str) -> Measured | None:
        """Return the AP of a row over its seeds, in percent; None if it was not run."""
        return over_seeds([*self.values(row, task).values()])

    def difference(self, row: StudyRow, baseline: StudyRow, task: str) -> Difference | None:
        """Compare two rows seed by seed, in percent; None where no seed is in both."""
        return paired_difference(*({seed: 100 * value for seed, value in
                                    self.values(of, task).items()} for of in (row, baseline)))

    def curve(self, row: StudyRow, task: str) -> dict[int, Measured]:
        """Return the AP of a row, in percent, by epoch; epoch 0 is the start."""
        of_seeds = [curve[task] for curve in self.curves.get(row.name, {}).values()]
        epochs = sorted(set.intersection(*map(set, of_seeds))) if of_seeds else []
        return {epoch: over_seeds([curve[epoch] for curve in of_seeds]) for epoch in epochs}


def write_study(folder: Path, runs: dict[Path, dict]) -> Path:
    """Write report.md, report.json and study.png.

    Args:
        folder: to write to; made if it does not exist.
        runs: contents of the result.json files of finished runs, by the runs' folders.

    Returns:
        The path of report.md.
    """
    folder.mkdir(parents=True, exist_ok=True)
    study = read_study(runs)
    for name, content in _texts(study).items():
        write_atomically(folder / name, content)
    write_atomically(folder / 'study.png', draw_study(study))
    return folder / 'report.md'


def report_problems(folder: Path, runs: dict[Path, dict]) -> list[str]:
    """Return which files of a report are not what the files of the runs give."""
    return [f'{folder / name} is not what the files of the runs give: write it again by --report'
            for name, content in _texts(read_study(runs)).items()
            if not (folder / name).is_file() or (folder / name).read_text() != content]


def read_study(runs: dict[Path, dict]) -> Study:
    """Return the results of the study's runs, with their validations from MMEngine's logs."""
    order = list(ROWS)
    ordered = sorted(((place, result) for place, result in runs.items() if result['row'] in ROWS),
                     key=lambda run: (order.index(run[1]['row']), run[1]['seed']))
    curves = {}
    for place, result in ordered:
        if curve := _curve(place):
            curves.setdefault(result['row'], {})[result['seed']] = curve
    return Study([result for _, result in ordered], curves)


def _curve(place: Path) -> dict[str, dict[int, float]]:
    """AP by task and epoch; empty where nothing was validated."""
    try:
        validation = read_log(place).validation
    except LogError:
        return {}
    curve = {task: {epoch: metrics[f'coco/{task}_mAP'] for epoch, metrics in validation.items()
                    if f'coco/{task}_mAP' in metrics} for task in TASKS}
    return curve if all(curve.values()) else {}


def _texts(study: Study) -> dict[str, str]:
    """Return the contents of the report's files, by their names."""
    return {'report.md': _markdown(study), 'report.json': json.dumps(_content(study), indent=1)}


def _content(study: Study) -> dict:
    differences = [
        dict(row=row.name, baseline=baseline.name, metric=name, mean=found.mean,
             margin=found.margin, seeds=found.seeds, exceeds_interval=found.exceeds_interval)
        for row, baseline in COMPARISONS for task, name in TASKS.items()
        if (found := study.difference(row, baseline, task))]
    return dict(study='shapes', evaluated_on=_labels(study), differences=differences,
                curves=study.curves,
                runs=[{key: result[key] for key in OF_RUNS} for result in study.results])


def _labels(study: Study) -> list[str]:
    return list(dict.fromkeys(result['evaluated_on']['label'] for result in study.results))


def _markdown(study: Study) -> str:
    if not study.results:
        return '# The study\n\nNo run is finished yet.\n'
    return '\n\n'.join([
        '# Shuffle attention on drawn shapes', INTRODUCTION.format(label='; '.join(_labels(study))),
        '## From scratch', _table(study, FROM_SCRATCH, COMPARISONS[:5]),
        '## Going on from the plain network', _table(study, CONTINUED, COMPARISONS[5:7]),
        _conversion(study), *_by_epoch(study), '![differences, and AP by epoch](study.png)',
        '## Runs', _runs(study)]) + '\n'


def _table(study: Study, rows: tuple[StudyRow, ...], comparisons: tuple) -> str:
    baselines = dict(comparisons)
    baseline = next(iter(baselines.values()))
    header = ['', 'seeds', *(f'{name}{more}' for name in TASKS.values()
                             for more in ('', f' minus {baseline.label}'))]
    lines = []
    for row in rows:
        cells = [row.label, str(len(study.values(row, 'bbox')))]
        for task in TASKS:
            measured = study.measured(row, task)
            cells.append(measured.text(1) if measured else 'not run')
            cells.append(told(study.difference(row, baselines[row], task))
                         if row in baselines else '')
        lines.append(cells)
    return markdown_table(header, lines)


def told(difference: Difference | None) -> str:
    """For people: a difference and its interval, with a mark where 0 is outside it."""
    if difference is None:
        return 'not run'
    if difference.margin is None:
        return f'{difference.mean:+.1f} (one seed)'
    low, high = difference.mean - difference.margin, difference.mean + difference.margin
    mark = '**' if difference.exceeds_interval else ''
    return f'{mark}{difference.mean:+.1f}{mark} [{low:+.1f}, {high:+.1f}]'


def _conversion(study: Study) -> str:
    row, baseline = COMPARISONS[-1]
    differences = ', '.join(f'{name} {told(study.difference(row, baseline, task))}'
                            for task, name in TASKS.items())
    return f'At the end, converted minus as they are: {differences}.'


def _by_epoch(study: Study) -> list[str]:
    """Return tables of the AP that the continued networks start from, and go through."""
    parts = []
    for task, name in TASKS.items():
        curves = {row: study.curve(row, task) for row in CONTINUED}
        epochs = sorted({epoch for curve in curves.values() for epoch in curve})
        if epochs:
            lines = [[row.label, *(curve[e].text(1) if e in curve else 'not run' for e in epochs)]
                     for row, curve in curves.items()]
            header = [f'{name} by epoch', *('start' if e == 0 else str(e) for e in epochs)]
            parts.append(markdown_table(header, lines))
    return parts


def _runs(study: Study) -> str:
    """Return how many runs were made in which way, and their time."""
    ways = {}
    for result in study.results:
        versions = ', '.join(f'{name} {value}' for name, value in result['versions'].items())
        options = ' '.join(f'{key}={value}' for key, value in result['cfg_options'].items())
        way = (str(result['epochs']), str(result['batch']), result['device'], versions,
               result['commit'], options or '–')
        ways.setdefault(way, []).append(result['hours'])
    header = ['Epochs', 'Batch', 'Device', 'Versions', 'Commit', 'Options', 'Runs', 'Hours']
    return markdown_table(header, [[*way, str(len(hours)), f'{sum(hours):.2f}']
                                   for way, hours in ways.items()])
