"""tools/visualize.py draws what was asked for, of files and of data sets."""
import re

import cv2
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from coco import CONFIGS
from sa_mmdet.apps.datasets.shapes import generate_shapes

CONFIG = CONFIGS / 'quickstart/mask-rcnn_sa-r50_fpn_shapes.py'

pytestmark = pytest.mark.xdist_group('visualize')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """With the quickstart's detector and one with plain ResNet, both untrained, and images."""
    root = tmp_path_factory.mktemp('visualize')
    generate_shapes(root / 'data/shapes', train=2, val=3, size=64)
    init_default_scope('mmdet')
    for name, backbone in (('sa', dict(type='SAResNet')), ('plain', dict(type='ResNet')),
                           ('unshuffled', dict(type='SAResNet', attention=dict(shuffle=False)))):
        torch.manual_seed(0)
        config = Config.fromfile(CONFIG)
        config.model.backbone.update(backbone)
        torch.save(dict(state_dict=MODELS.build(config.model).state_dict(), meta={}),
                   root / f'{name}.pth')
    (root / 'plain.py').write_text(
        f"_base_ = {str(CONFIG)!r}\nmodel = dict(backbone=dict(type='ResNet'))\n")
    (root / 'twice.py').write_text(f'''
_base_ = {str(CONFIG)!r}
once = {{{{_base_.test_dataloader.dataset}}}}
test_dataloader = dict(
    dataset=dict(_delete_=True, type='ConcatDataset', datasets=[once, once]))''')
    return root


@pytest.fixture
def draw(folder, monkeypatch, tmp_path, run_tool):
    """Run the tool: the page, the names of the pictures, and what was printed."""

    def run(mode, *arguments, config=CONFIG, checkpoint='sa.pth'):
        monkeypatch.chdir(folder)
        out = tmp_path / 'out'
        code, printed = run_tool('visualize', mode, config, checkpoint, *arguments, '--out-dir',
                                 out, '--pred-score-thr', '0.2')
        assert code == 0, printed
        page = (out / f'{mode}.html').read_text()
        files = {path.stem for path in out.glob('*.png')}
        assert page.count('<img') == len(files)
        assert all(cv2.imread(str(out / f'{name}.png')) is not None for name in files)
        return page, files, printed

    return run


def test_predict_of_the_data_set(draw, tmp_path):
    page, files, printed = draw('predict')
    assert files == {'predict_000001', 'predict_000002'}
    assert page.count('Left: ground truth, ') == 2
    assert re.search(r'with a score of at least 0.2: 0 (circle|square|triangle) 0\.[2-9]', page)
    assert f'<dd>{CONFIG}</dd>' in page
    assert f'all on one page: {tmp_path}/out/predict.html\n' in printed


def test_predict_of_images_of_the_same_name(draw):
    """Of two folders, or of two formats in one: no picture takes another's place."""
    page, files, _ = draw('predict', '--images', 6, config='twice.py')
    assert files == {f'predict_00000{i}{again}' for i in (1, 2, 3) for again in ('', '_2')}
    assert page.count('Left: ground truth, ') == 6


def test_predict_of_a_folder_has_no_ground_truth(draw):
    page, files, _ = draw('predict', 'data/shapes/val', '--images', 3)
    assert files == {f'predict_00000{i}' for i in (1, 2, 3)}
    assert 'ground truth' not in page


def test_cam_of_classes_differ(draw, tmp_path):
    _, files, _ = draw('cam', 'data/shapes/val/000001.png', '--layer', 'backbone.layer2.3',
                       '--classes', 'circle', 'square', 'triangle',
                       '--cfg-options', 'model.test_cfg.rcnn.max_per_img=500')
    first, second, *_ = (cv2.imread(str(tmp_path / f'out/{name}.png')) for name in files)
    maps = [drawn[:, drawn.shape[1] // 2:] for drawn in (first, second)]
    assert (maps[0] != maps[1]).mean() > 0.1


def test_cam_of_boxes_of_two_models(draw):
    page, files, printed = draw(
        'cam', 'data/shapes/val/000001.png', '--boxes', 0, 0, 500, '--compare', 'plain.py',
        'plain.pth')
    assert len(files) == 1
    assert re.fullmatch(r'cam_000001_0-(circle|square|triangle)', *files)
    assert 'there is no detection 500: found 20, numbered from 0' in printed
    assert 'there is no detection 500' in page
    assert 'plain.py plain.pth' in page


def test_gates(draw):
    _, files, _ = draw('gates', 'data/shapes/val/000002.png')
    assert files == {'gates_000002', *(f'gates_000002_layer{i}' for i in (1, 2, 3, 4))}


@pytest.mark.parametrize('with_cp', [False, True])
def test_groups(draw, with_cp):
    _, files, _ = draw('groups', '--images', 1, '--cfg-options',
                       f'model.backbone.with_cp={with_cp}')
    assert files == {'groups_000001'}


def test_groups_without_shuffle(draw):
    page, files, _ = draw('groups', '--images', 1, '--cfg-options',
                          'model.backbone.attention.shuffle=False', checkpoint='unshuffled.pth')
    assert files == {'groups_000001'}
    assert 'backbone.layer4.2.sa does not shuffle (shuffle=False)' in page


def test_nothing_is_detected(draw):
    """It is said, on the page too, and there is no picture."""
    page, files, printed = draw('cam', 'data/shapes/val/000001.png', '--cfg-options',
                                'model.test_cfg.rcnn.score_thr=0.99')
    assert not files
    assert 'nothing is detected with a score of at least 0.2' in page
    assert 'nothing is detected' in printed


def test_a_class_that_is_not_detected(draw):
    page, files, _ = draw('groups', 'data/shapes/val/000001.png', '--classes', 'circle',
                          '--cfg-options', 'model.test_cfg.rcnn.score_thr=0.99')
    assert not files
    assert 'no circle is detected with a score of at least 0.2' in page


def test_a_plain_checkpoint_is_converted(draw):
    _, files, _ = draw('predict', '--images', 1, checkpoint='plain.pth')
    assert files == {'predict_000001'}


def test_a_page_that_cannot_be_written(folder, run_tool, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    (tmp_path / 'predict.html').mkdir()
    code, _ = run_tool('visualize', 'predict', CONFIG, 'sa.pth', '--images', 1, '--out-dir',
                       tmp_path)
    assert re.fullmatch(r'error: .*predict\.html.* choose another --out-dir', code)
