import csv
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from logs import write_log
from sa_mmdet.apps.paper import report
from sa_mmdet.apps.paper.tables import METRICS, summarize

CONFIGS = Path(__file__).parents[3] / 'configs'
VAL2017 = dict(label='COCO val2017 (5,000 images)', is_papers=True, images=5000)
TINY = dict(label='80 images of val.json in tiny, NOT COCO val2017', is_papers=False,
            images=80)


def result(row, ap, seed=0, evaluated_on=VAL2017, **changes):
    """A finished run whose metrics are ``ap``, ``ap`` + 0.01, ..."""
    tasks = ('bbox', 'segm') if row.startswith('mask') else (
        'accuracy' if 'resnet' in row else 'bbox', )
    metrics = {task: {name: ap + 0.01 * i for i, name in enumerate(METRICS[task])}
               for task in tasks}
    return dict(
        row=row, seed=seed, metrics=metrics, evaluated_on=evaluated_on, cfg_options={}, gpus=8,
        device='GPU X', start='torchvision://resnet50', epochs=12, batch=16, hours=5.25,
        versions=dict(stack='onedl', torch='2.13.0'), commit='abc') | changes


def write(tmp_path, results, monkeypatch, dataset='COCO'):
    monkeypatch.setattr(report, '_complexity', lambda table, configs: {
        row.row.name: dict(params_m=41.534, gflops=207.071, paper_params_m=41.53,
                           paper_gflops=207.07, differences={})
        for row in summarize(min(table, 3), [])})
    runs = {tmp_path / 'work' / result['row'] / f'seed{result["seed"]}': result
            for result in results}
    path = report.write_report(tmp_path, runs, CONFIGS, dataset)
    with (tmp_path / 'report.csv').open() as file:
        rows = list(csv.DictReader(file))
    return path.read_text(), rows, json.loads((tmp_path / 'report.json').read_text())


def line(markdown, *cells):
    start = f'| {" | ".join(cells)} |'
    return next(line for line in markdown.splitlines() if line.startswith(start))


def test_measured_beside_paper(tmp_path, monkeypatch):
    runs = [result('mask-rcnn_r50', 0.370), result('mask-rcnn_sa-r50', 0.390),
            result('mask-rcnn_sa-r50', 0.394, seed=1)]
    markdown, rows, content = write(tmp_path, runs, monkeypatch)
    assert 'Evaluated on **COCO val2017 (5,000 images)**' in markdown
    sa = line(markdown, 'Mask R-CNN', 'ResNet-50', 'SA', '41.53 (41.53)')
    assert '| 39.2 ± 0.3 (39.4, -0.2) | 40.2 ± 0.3 (61.5, -21.3) |' in sa
    assert sa.endswith('| +2.2 (↑2.1) |')
    plain = line(markdown, 'Mask R-CNN', 'ResNet-50', '–', '41.53 (41.53)')
    assert '| 37.0 (37.3, -0.3) |' in plain
    assert 'not run (37.5) |' in line(markdown, 'RetinaNet', 'ResNet-50', 'SA')
    assert line(markdown, 'Mask R-CNN', 'ResNet-50', 'ECA').endswith('| not run (↑1.4) |')
    assert ('| mask-rcnn_sa-r50 | 1 | torchvision://resnet50 | 12 | 16 | 5,000 | COCO val2017 '
            '(5,000 images) | 8 × GPU X | 5.25 h | stack onedl, torch 2.13.0 | abc |') in markdown

    assert len(rows) == len(content['cells']) == (18 + 10) * 6
    cell = next(row for row in rows if (row['detector'], row['attention'], row['metric']) == (
        'Mask R-CNN', 'SA', 'mask AP'))
    assert float(cell['measured']) == pytest.approx(39.2)
    assert float(cell['difference']) == pytest.approx(39.2 - 36.1)
    assert (cell['seeds'], cell['paper'], cell['status']) == ('2', '36.1', 'measured')
    assert [run['seed'] for run in content['runs']] == [0, 0, 1]


def test_other_images_are_never_compared(tmp_path, monkeypatch):
    options = {'train_cfg.max_epochs': 1}
    runs = [result('retinanet_r50', 0.1, evaluated_on=TINY, cfg_options=options),
            result('retinanet_sa-r50', 0.2, evaluated_on=TINY)]
    markdown, rows, content = write(tmp_path, runs, monkeypatch)
    assert 'cannot be compared with the paper' in markdown
    assert '`train_cfg.max_epochs=1`' in markdown
    assert line(markdown, 'RetinaNet', 'ResNet-50', 'SA', '41.53 (41.53)').endswith(
        '| 20.0 | 21.0 | 22.0 | 23.0 | 24.0 | 25.0 | +10.0 |')
    for paper in ('37.5', '↑', '35.6'):
        assert paper not in markdown
    measured = [row for row in rows if row['status'] == 'measured']
    assert len(measured) == 2 * 6
    assert all(row['evaluated_on'] == TINY['label'] and row['paper'] == row['difference'] == ''
               and row['is_papers_images'] == 'False' for row in measured)
    assert content['evaluated_on'] == [TINY['label']]


def test_classifiers(tmp_path, monkeypatch):
    """To three decimals; ablations beside the whole module, attention beside none."""
    val = dict(label='ImageNet val (50,000 images)', is_papers=True, images=50_000)
    runs = [result(row, accuracy, evaluated_on=val) for row, accuracy in (
        ('resnet50', 0.76384), ('sa-resnet50', 0.777), ('sa-resnet50_no-gn', 0.775))]
    markdown, rows, _ = write(tmp_path, runs, monkeypatch, 'ImageNet')
    assert markdown.startswith('# SA-Net on ImageNet')
    assert line(markdown, 'w/o_gn').endswith(
        '| 77.500 (77.372, +0.128) | 78.500 (93.804, -15.304) | -0.200 (↓0.352) |')
    assert line(markdown, 'origin').endswith('|  |')
    assert '| 77.700 (77.724, -0.024) |' in line(markdown, 'origin', '207.071 (207.070)')
    sa = line(markdown, 'ResNet-50', 'SA', '41.534 (41.530)')
    assert sa.endswith('| +1.316 (↑1.340) |')
    assert line(markdown, 'ResNet-50', 'CBAM').endswith('| not run (↑1.242) |')
    assert len(rows) == (5 + 12) * 2
    cell = next(row for row in rows if row['variant'] == 'w/o_gn' and row['metric'] == 'top1')
    assert float(cell['gain']) == pytest.approx(-0.2)
    for table in (1, 2):
        assert cv2.imread(str(tmp_path / f'table{table}.png')) is not None


def test_a_small_loss_is_in_the_picture(tmp_path, monkeypatch):
    """A gain below zero, of less than one point, is drawn as far as it goes."""
    orange = (0, 94, 213)

    def height(loss):
        runs = [result('sa-resnet50', 0.7, evaluated_on=TINY),
                result('sa-resnet50_no-gn', 0.7 - loss, evaluated_on=TINY)]
        write(tmp_path / str(loss), runs, monkeypatch, 'ImageNet')
        picture = cv2.imread(str(tmp_path / str(loss) / 'table1.png'))
        lower = picture[picture.shape[0] // 2 + 20:]
        return int(np.all(lower == orange, axis=2).any(1).sum())

    assert height(0.003) > 200


def test_nothing_was_run(tmp_path, monkeypatch):
    markdown, rows, _ = write(tmp_path, [], monkeypatch)
    assert 'No run is finished yet' in markdown
    assert {row['status'] for row in rows} == {'not run'}


def test_objects_of_a_size_may_be_absent(tmp_path, monkeypatch):
    run = result('retinanet_r50', 0.1, evaluated_on=TINY)
    run['metrics']['bbox']['APs'] = -1
    markdown, _, _ = write(tmp_path, [run], monkeypatch)
    assert '| 12.0 | no objects | 14.0 |' in line(markdown, 'RetinaNet', 'ResNet-50', '–')


def test_pictures_show_what_is_measured(tmp_path, monkeypatch):
    """Bars for measured rows only, the paper's lines only beside COCO val2017."""
    orange, black = (0, 94, 213), (0, 0, 0)  # SA, in OpenCV's order

    def count(name, results, colour):
        write(tmp_path / name, results, monkeypatch)
        picture = cv2.imread(str(tmp_path / name / 'table3.png'))
        plot = picture[:, picture.shape[1] // 8:]
        return int(np.all(plot == colour, axis=2).sum())

    nothing = count('nothing', [], orange)
    assert count('sa', [result('mask-rcnn_sa-r50', 0.4)], orange) > nothing + 3000
    paper = count('paper', [result('retinanet_sa-r50', 0.4)], black)
    tiny = count('tiny', [result('retinanet_sa-r50', 0.4, evaluated_on=TINY)], black)
    assert paper > tiny + 1000


def test_learning_curves_of_the_rows_that_were_trained_here(tmp_path, monkeypatch):
    """One picture a row, whatever its seeds; a row that was only tested has none."""
    row, tested = 'mask-rcnn_sa-r50', dict(epochs=None, batch=None, hours=None)
    runs = [result(row, 0.39), result(row, 0.39, seed=1), result('retinanet_r50', 0.3, **tested)]
    for seed in range(2):
        write_log(tmp_path / 'work' / row / f'seed{seed}', epochs=2)
    markdown, _, _ = write(tmp_path, runs, monkeypatch)
    section = markdown.split('## Learning curves')[1]
    assert f'![{row}, seeds 0, 1](curves/{row}.png)' in section
    assert section.count('![') == 1
    assert [path.name for path in (tmp_path / 'curves').iterdir()] == [f'{row}.png']
    assert cv2.imread(str(tmp_path / f'curves/{row}.png')) is not None


def test_a_lost_log_is_told_and_hides_no_other(tmp_path, monkeypatch):
    row = 'mask-rcnn_sa-r50'
    write_log(tmp_path / 'work' / row / 'seed1', epochs=2)
    markdown, _, _ = write(tmp_path, [result(row, 0.39), result(row, 0.39, seed=1)], monkeypatch)
    section = markdown.split('## Learning curves')[1]
    assert f'![{row}, seed 1](curves/{row}.png)' in section
    assert re.search(rf'{row} seed 0 has no curves: {re.escape(str(tmp_path))}\S* has no training '
                     'log', section)


def test_detections_of_the_first_seed_that_has_a_picture(tmp_path, monkeypatch):
    runs = [result('mask-rcnn_r50', 0.3, seed=seed) for seed in (2, 0, 1)]
    for seed in (1, 2):
        folder = tmp_path / f'work/mask-rcnn_r50/seed{seed}'
        folder.mkdir(parents=True)
        (folder / 'predictions.png').write_bytes(b'picture of %d' % seed)
    markdown, _, _ = write(tmp_path, [*runs, result('retinanet_r50', 0.3)], monkeypatch)
    section = markdown.split('## Detections')[1]
    assert re.findall(r'!\[.*\]\((.*)\)', section) == ['detections/mask-rcnn_r50.png']
    assert (tmp_path / 'detections/mask-rcnn_r50.png').read_bytes() == b'picture of 1'


def test_no_pictures_where_nothing_was_trained_or_drawn(tmp_path, monkeypatch):
    tested = result('retinanet_r50', 0.3, epochs=None, batch=None, hours=None)
    markdown, _, _ = write(tmp_path, [tested], monkeypatch)
    assert '## Learning curves' not in markdown
    assert '## Detections' not in markdown
