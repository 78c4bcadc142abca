import json
import re
from pathlib import Path

import cv2
import pytest

from logs import iteration, validation, write_lines
from sa_mmdet.apps.paper.runs import read_result
from sa_mmdet.apps.study.report import report_problems, write_study
from sa_mmdet.apps.study.runs import CONTINUED, FROM_SCRATCH, ROWS

AP = dict(zip((row.name for row in (*FROM_SCRATCH, *CONTINUED)),
              (0.40, 0.41, 0.42, 0.40, 0.41, 0.43, 0.50, 0.52, 0.45), strict=True))
MIDDLE = 0.3
ROOT = Path(__file__).parents[3]
KEPT = ROOT / 'benchmarks/study'
STARTS = {'mask-rcnn_r50_continued': 0.4, 'mask-rcnn_sa-r50_converted': 0.4,
          'mask-rcnn_sa-r50_unconverted': 0.01}
SPREAD = (0., 0.02, 0.01)


def result(row, seed, **changes):
    """AP of boxes as in ``AP``, shifted by the seed; AP of masks 0.1 lower."""
    box = AP[row] + SPREAD[seed] + (0.001 * seed if row.startswith('mask-rcnn_s') else 0)
    metrics = {task: dict(AP=box - lower, AP50=0.6, AP75=0.3, APs=0.1, APm=0.2, APl=0.5)
               for task, lower in (('bbox', 0), ('segm', 0.1))}
    return dict(
        row=row, seed=seed, metrics=metrics, epochs=2, batch=8, hours=0.1, gpus=0, device='CPU',
        versions=dict(torch='2.13.0'), commit='abc', cfg_options={},
        checkpoint_sha256=f'{row}{seed}', start_sha256=f'mask-rcnn_r50{seed}',
        evaluated_on=dict(label='500 drawn images', images=500)) | changes


def finished(folder, seeds=3, rows=tuple(ROWS)):
    """Results of finished runs by their folders, with the logs of those that are continued."""
    runs = {}
    for row in rows:
        for seed in range(seeds):
            place = folder / row / f'seed{seed}'
            runs[place] = result(row, seed)
            if row in STARTS and not place.exists():
                write_lines(place, *(
                    line for epoch, ap in enumerate((STARTS[row], MIDDLE)) for line in (
                        [iteration(epoch, 1)] if epoch else []) + [
                            validation(epoch, ap) | {'coco/segm_mAP': ap}]))
    return runs


def line(markdown, start):
    return next(line for line in markdown.splitlines() if line.startswith(f'| {start} |'))


def test_means_and_paired_differences(tmp_path):
    path = write_study(tmp_path / 'report', finished(tmp_path))
    markdown = path.read_text()
    assert '**500 drawn images**' in markdown
    assert line(markdown, 'no attention').startswith('| no attention | 3 | 41.0 ± 1.0 |  | 31.0')
    # seed by seed 3.0, 3.1 and 3.2
    assert '| 44.1 ± 1.1 | **+3.1** [+2.9, +3.3] |' in line(markdown, 'SA')
    assert '**-4.9** [-5.1, -4.7]' in line(markdown, 'SA, not converted')
    assert ('Converted minus not converted, at the start: box AP **+39.0** [+39.0, +39.0], '
            'mask AP **+39.0** [+39.0, +39.0]; at the end: box AP **+7.0** [+7.0, +7.0]'
            ) in markdown
    assert 'This report has 18 intervals' in markdown
    assert '| box AP by epoch | start | 1 | 2 |' in markdown
    assert '| SA, converted | 40.0 ± 0.0 | 30.0 ± 0.0 | 53.1 ± 1.1 |' in markdown
    assert '| SA, not converted | 1.0 ± 0.0 | 30.0 ± 0.0 | 46.1 ± 1.1 |' in markdown
    assert '| 2 | 8 | CPU | torch 2.13.0 | abc | – | 27 | 2.70 |' in markdown
    assert cv2.imread(str(tmp_path / 'report/study.png')) is not None


def test_json_has_every_figure_of_every_seed(tmp_path):
    write_study(tmp_path / 'report', finished(tmp_path))
    content = json.loads((tmp_path / 'report/report.json').read_text())
    assert len(content['runs']) == 27
    assert {run['metrics']['segm']['APs'] for run in content['runs']} == {0.1}
    found = {(d['row'], d['baseline'], d['metric'], d['at']): d for d in content['differences']}
    assert len(found) == 9 * 2
    assert found['mask-rcnn_sa-r50', 'mask-rcnn_r50', 'mask AP', 'end']['excludes_zero']
    assert content['curves']['mask-rcnn_sa-r50_unconverted']['0']['bbox'] == {
        '0': 0.01, '1': 0.3, '2': 0.45}


def test_noise_is_not_bold(tmp_path):
    runs = finished(tmp_path, rows=('mask-rcnn_r50', 'mask-rcnn_eca-r50'))
    for place, shift in zip([p for p in runs if 'eca' in str(p)], (0.03, -0.03, 0.03), strict=True):
        runs[place]['metrics']['bbox']['AP'] += shift
    eca = line(write_study(tmp_path / 'report', runs).read_text(), 'ECA')
    box, mask = eca.split('|')[4], eca.split('|')[6]
    assert '**' not in box
    assert '**+2.0**' in mask


@pytest.mark.parametrize(('seeds', 'rows', 'parts'), [
    (0, tuple(ROWS), ['No run is finished yet']),
    (1, tuple(ROWS), ['| 43.0 | +3.0 (one seed) |', '| 9 | 0.90 |']),
    (2, ('mask-rcnn_sa-r50', ), ['| SA | 2 | 44.0 ± 1.5 | not run |', '| SE | 0 | not run |']),
    (2, ('mask-rcnn_r50_continued', ), ['| SA, converted | not run | not run | not run |']),
], ids=['nothing', 'one seed', 'no baseline', 'one curve'])
def test_what_is_not_run_is_told(tmp_path, seeds, rows, parts):
    markdown = write_study(tmp_path / 'report', finished(tmp_path, seeds, rows)).read_text()
    for part in parts:
        assert part in markdown


def test_a_report_that_is_not_of_the_runs_is_found(tmp_path):
    runs = finished(tmp_path)
    path = write_study(tmp_path / 'report', runs)
    assert report_problems(tmp_path / 'report', runs) == []
    text = path.read_text()
    path.write_text(text.replace('+3.1', '+3.2'))
    problem, = report_problems(tmp_path / 'report', runs)
    assert 'report.md does not match the files of the runs' in problem
    path.write_text(text)
    runs.popitem()
    assert len(report_problems(tmp_path / 'report', runs)) == 2
    (tmp_path / 'report/study.png').unlink()
    path.write_bytes(b'\xff')
    assert len(report_problems(tmp_path / 'report', runs)) == 3


def test_a_plain_network_that_was_trained_again_or_not_copied_is_found(tmp_path):
    runs = finished(tmp_path, rows=('mask-rcnn_r50', 'mask-rcnn_sa-r50_converted'))
    runs[tmp_path / 'mask-rcnn_r50/seed1']['checkpoint_sha256'] = 'another'
    del runs[tmp_path / 'mask-rcnn_r50/seed2']
    write_study(tmp_path / 'report', runs)
    again, missing = report_problems(tmp_path / 'report', runs)
    assert again.startswith('mask-rcnn_sa-r50_converted seed 1 does not continue the mask-rcnn_r50')
    assert f'remove {tmp_path / "mask-rcnn_sa-r50_converted/seed1"}' in again
    assert missing.startswith('mask-rcnn_sa-r50_converted seed 2 continues mask-rcnn_r50 seed 2, '
                              'which has no result here')


def test_a_difference_over_fewer_seeds_says_so(tmp_path):
    runs = finished(tmp_path, rows=('mask-rcnn_r50', 'mask-rcnn_sa-r50'))
    del runs[tmp_path / 'mask-rcnn_r50/seed1']
    path = write_study(tmp_path / 'report', runs)
    assert '| 44.1 ± 1.1 | **+3.1** [+1.8, +4.4] (2 of 3 seeds) |' in line(path.read_text(), 'SA')
    difference, _ = json.loads(path.with_name('report.json').read_text())['differences']
    assert difference['seeds'] == [0, 2]


def test_nothing_detected_is_an_ap_of_0_and_a_lost_log_hides_no_other_seed(tmp_path):
    row = 'mask-rcnn_sa-r50_unconverted'
    for seed, lines in enumerate([(dict(step=0, time=0.1), iteration(1, 1)), ()]):
        write_lines(tmp_path / row / f'seed{seed}', *lines)
    markdown = write_study(tmp_path / 'report', finished(tmp_path, 2, (row, ))).read_text()
    assert '| SA, not converted | 0.0 (1 of 2 seeds) | 46.0 ± 1.5 |' in markdown


def test_the_order_of_the_files_does_not_matter(tmp_path):
    runs = finished(tmp_path)
    write_study(tmp_path / 'report', runs)
    assert report_problems(tmp_path / 'report', dict(reversed(runs.items()))) == []


def test_the_report_that_is_kept_is_of_the_results_that_are_kept():
    runs = {path.parent: read_result(path) for path in KEPT.glob('*/seed*/result.json')}
    assert runs
    assert report_problems(KEPT / 'report', runs) == []


def test_the_page_has_the_figures_of_the_report():
    report = (KEPT / 'report/report.md').read_text()
    found = (ROOT / 'docs/study.md').read_text().split('## What was found')[1].split('## ')[0]
    tables = [part for part in found.split('\n\n') if part.startswith('|')]
    assert [table.count('\n') for table in tables] == [1 + len(FROM_SCRATCH), 1 + len(CONTINUED)]
    assert all(table in report for table in tables)
    figures = re.findall(r'\d+\.\d', found)
    assert [figure for figure in figures if figure not in report] == []
