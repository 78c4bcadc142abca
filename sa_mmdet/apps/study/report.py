"""The report of the study: what was measured for every seed, and what differs."""
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...checkpoint.files import write_atomically
from ..paper.curves import LogError, read_log
from ..paper.report import labels_of, markdown_table, signed
from ..paper.tables import NAMES, Measured, over_seeds
from .chart import draw_study
from .compare import Difference, paired_difference
from .runs import (
    CONTINUED,
    CONVERTED,
    FROM_SCRATCH,
    PLAIN,
    ROWS,
    UNCONVERTED,
    StudyRow,
)

PICTURE = 'study.png'
TASKS = ('bbox', 'segm')
TABLES = (FROM_SCRATCH, CONTINUED)  # the first row of each is the baseline
OF_RUNS = ('row', 'seed', 'metrics', 'epochs', 'batch', 'hours', 'gpus', 'device', 'versions',
           'commit', 'cfg_options')
INTRODUCTION = (
    'Does attention help? Mask R-CNN R-50 on **{label}**. AP is COCO AP in percent, as mean ± '
    'standard deviation over seeds. Differences are taken seed by seed. Both runs of a seed see '
    'the data in the same order and start from the same weights, apart from the attention. '
    '{intervals}')
INTERVALS = (
    "Brackets hold the 95 % interval of a difference (Student's t). The difference is bold if the "
    'interval excludes 0. This report has {count} intervals. Without any true difference, one in '
    'twenty would exclude 0 by chance. The intervals are not independent: a table shares one '
    'baseline, and boxes and masks share their runs. An interval shows how well the mean over '
    'seeds is known on these test images, not on others.')


@dataclass(frozen=True)
class Study:
    """Results of runs, by row and seed.

    Attributes:
        results: contents of the result.json files.
        curves: AP in [0, 1] by row, seed, task and epoch, for the rows that are validated during
            training. The last epoch's AP comes from the result.
    """

    results: list[dict]
    curves: dict[str, dict[int, dict[str, dict[int, float]]]]

    def values(self, row: StudyRow, task: str, epoch: int | None = None) -> dict[int, float]:
        """Return the AP of a row, in [0, 1], by seed: at the end, or after an epoch."""
        if epoch is not None:
            return {seed: curve[task][epoch] for seed, curve in
                    self.curves.get(row.name, {}).items() if epoch in curve[task]}
        return {result['seed']: result['metrics'][task]['AP'] for result in self.results
                if result['row'] == row.name}

    def measured(self, row: StudyRow, task: str) -> Measured | None:
        """Return the AP of a row over its seeds, in percent; None if it was not run."""
        return over_seeds([*self.values(row, task).values()])

    def difference(self, row: StudyRow, baseline: StudyRow, task: str,
                   epoch: int | None = None) -> Difference | None:
        """Compare two rows seed by seed, in percent; return None if no seed is in both."""
        return paired_difference(*({seed: 100 * value for seed, value in self.values(
            of, task, epoch).items()} for of in (row, baseline)))

    def curve(self, row: StudyRow, task: str) -> dict[int, Measured]:
        """Return the AP of a row, in percent, by epoch; epoch 0 is the start."""
        epochs = sorted({epoch for curve in self.curves.get(row.name, {}).values()
                         for epoch in curve[task]})
        return {epoch: over_seeds([*self.values(row, task, epoch).values()]) for epoch in epochs}

    def differences(self) -> list[tuple[StudyRow, StudyRow, str, int | None, Difference]]:
        """Return all comparisons: row, baseline, task, epoch (None: the end) and difference."""
        compared = [*((row, baseline, None) for baseline, *rows in TABLES for row in rows),
                    (CONVERTED, UNCONVERTED, None), (CONVERTED, UNCONVERTED, 0)]
        return [(row, baseline, task, epoch, found)
                for row, baseline, epoch in compared for task in TASKS
                if (found := self.difference(row, baseline, task, epoch))]


def write_study(folder: Path, runs: dict[Path, dict]) -> Path:
    """Write report.md, report.json and study.png.

    Args:
        folder: folder to write to; made if it does not exist.
        runs: contents of the finished runs' result.json files, by run folder.

    Returns:
        The path of report.md.
    """
    folder.mkdir(parents=True, exist_ok=True)
    study = read_study(runs)
    for name, content in _texts(study).items():
        write_atomically(folder / name, content)
    write_atomically(folder / PICTURE, draw_study(study))
    return folder / 'report.md'


def report_problems(folder: Path, runs: dict[Path, dict]) -> list[str]:
    """Return what is wrong with a report: files that are missing or don't match the runs' files,
    and networks that did not continue the plain one of their seed.
    """
    study = read_study(runs)
    problems = [
        f'{path} does not match the files of the runs: run --report to write it again'
        for path, content in ((folder / name, content.encode()) for name, content in
                              _texts(study).items())
        if not path.is_file() or path.read_bytes() != content]
    if not (folder / PICTURE).is_file():
        problems.append(f'{folder / PICTURE} does not exist: run --report to draw it')
    return [*problems, *_start_problems(runs)]


def _start_problems(runs: dict[Path, dict]) -> Iterator[str]:
    plain = {result['seed']: result['checkpoint_sha256'] for result in runs.values()
             if result['row'] == PLAIN.name}
    for place, result in runs.items():
        row, seed = ROWS.get(result['row']), result['seed']
        if not row or not row.continued:
            continue
        if seed not in plain:
            yield (f'{row.name} seed {seed} continues {PLAIN.name} seed {seed}, which has no '
                   f'result here: copy it from where this was trained, or remove {place} and '
                   'train both')
        elif result.get('start_sha256') != plain[seed]:
            yield (f'{row.name} seed {seed} does not continue the {PLAIN.name} seed {seed} that is '
                   f'here: copy the one that it continues, or remove {place} and train it again')


def read_study(runs: dict[Path, dict]) -> Study:
    """Return the results of the study's runs, with the validations in MMEngine's logs."""
    order = list(ROWS)
    ordered = sorted(((place, result) for place, result in runs.items() if result['row'] in ROWS),
                     key=lambda run: (order.index(run[1]['row']), run[1]['seed']))
    curves = {}
    for place, result in ordered:
        if ROWS[result['row']].continued:
            curves.setdefault(result['row'], {})[result['seed']] = _curve(place, result)
    return Study([result for _, result in ordered], curves)


def _curve(place: Path, result: dict) -> dict[str, dict[int, float]]:
    """Return AP by task and epoch; if the log is lost, only the AP at the end.

    CocoMetric logs nothing if nothing is detected, which is an AP of 0.
    """
    try:
        validation = read_log(place).validation
    except LogError:
        validation = {}
    return {task: {epoch: metrics.get(f'coco/{task}_mAP', 0.) for epoch, metrics in
                   validation.items()} | {result['epochs']: result['metrics'][task]['AP']}
            for task in TASKS}


def _texts(study: Study) -> dict[str, str]:
    """Return the contents of the report's files, by their names."""
    return {'report.md': _markdown(study), 'report.json': json.dumps(_content(study), indent=1)}


def _content(study: Study) -> dict:
    differences = [
        dict(row=row.name, baseline=baseline.name, metric=NAMES[task],
             at='end' if epoch is None else 'start', seeds=sorted(found.by_seed),
             mean=round(found.mean, 6),
             margin=found.margin and round(found.margin, 6), excludes_zero=found.excludes_zero)
        for row, baseline, task, epoch, found in study.differences()]
    return dict(study='shapes', evaluated_on=labels_of(study.results), differences=differences,
                curves=study.curves,
                runs=[{key: result[key] for key in OF_RUNS} for result in study.results])


def _markdown(study: Study) -> str:
    if not study.results:
        return '# The study\n\nNo run is finished yet.\n'
    count = sum(found.margin is not None for *_, found in study.differences())
    return '\n\n'.join([
        '# Shuffle attention on drawn shapes', INTRODUCTION.format(
            label='; '.join(labels_of(study.results)),
            intervals=INTERVALS.format(count=count) if count else 'One seed gives no interval.'),
        '## From scratch', _table(study, *FROM_SCRATCH),
        '## Continued from the plain network', _table(study, *CONTINUED),
        _conversion(study), *_by_epoch(study), '![differences, and AP by epoch](study.png)',
        '## Runs', _runs(study)]) + '\n'


def _table(study: Study, baseline: StudyRow, *others: StudyRow) -> str:
    header = ['', 'seeds', *(f'{NAMES[task]}{more}' for task in TASKS
                             for more in ('', f' minus {baseline.label}'))]
    lines = []
    for row in (baseline, *others):
        cells = [row.label, str(len(study.values(row, 'bbox')))]
        for task in TASKS:
            measured = study.measured(row, task)
            cells.append(measured.text(1) if measured else 'not run')
            cells.append('' if row is baseline else told(study, row, baseline, task))
        lines.append(cells)
    return markdown_table(header, lines)


def told(study: Study, row: StudyRow, baseline: StudyRow, task: str, epoch: int | None = None
         ) -> str:
    """Return a difference and its interval as text, bold if the interval excludes 0."""
    difference = study.difference(row, baseline, task, epoch)
    if difference is None:
        return 'not run'
    if difference.margin is None:
        return f'{signed(difference.mean, 1)} (one seed)'
    mean, low, high = (signed(difference.mean + part * difference.margin, 1) for part in (0, -1, 1))
    mark = '**' if difference.excludes_zero else ''
    pairs, seeds = len(difference.by_seed), len(study.values(row, task))
    return f'{mark}{mean}{mark} [{low}, {high}]' + (
        f' ({pairs} of {seeds} seeds)' if pairs < seeds else '')


def _conversion(study: Study) -> str:
    """Return a sentence on what conversion changes, before the first iteration and at the end."""
    start, end = (', '.join(
        f'{NAMES[task]} {told(study, CONVERTED, UNCONVERTED, task, epoch)}'
        for task in TASKS) for epoch in (0, None))
    return f'Converted minus not converted, at the start: {start}; at the end: {end}.'


def _by_epoch(study: Study) -> list[str]:
    """Return tables of the continued networks' AP at the start and after each epoch."""
    parts = []
    for task in TASKS:
        curves = {row: study.curve(row, task) for row in CONTINUED}
        epochs = sorted({epoch for curve in curves.values() for epoch in curve})
        if epochs:
            lines = [[row.label, *(_point(study, row, task, curve.get(epoch)) for epoch in epochs)]
                     for row, curve in curves.items()]
            header = [f'{NAMES[task]} by epoch', *('start' if e == 0 else str(e) for e in epochs)]
            parts.append(markdown_table(header, lines))
    return parts


def _point(study: Study, row: StudyRow, task: str, point: Measured | None) -> str:
    seeds = len(study.values(row, task))
    if point is None:
        return 'lost' if seeds else 'not run'
    return point.text(1) + (f' ({point.seeds} of {seeds} seeds)' if point.seeds < seeds else '')


def _runs(study: Study) -> str:
    """Return a table with the settings of the runs, their number and their hours."""
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
