"""Attention in detectors of MMDetection's zoo."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModel

from sa_mmdet.dropin import matrix
from sa_mmdet.dropin.attempt import AttemptError, _check_blocks, _train
from sa_mmdet.dropin.families import Family
from sa_mmdet.dropin.isolation import Outcome
from sa_mmdet.dropin.matrix import CANNOT_RUN, FAILS, WORKS, try_family
from sa_mmdet.models import SAResNet, ShuffleAttention

ROOT = Path(__file__).parents[2]
TIMEOUT = 300
pytestmark = pytest.mark.xdist_group('dropin')  # one server for the processes of the attempts


@pytest.mark.parametrize(('family', 'remarks'), [
    ('atss', []),
    ('dcnv2', []),
    ('detr', []),
    ('panoptic_fpn', []),
    ('qdtrack', []),
    ('regnet', ['groups=8'])])
def test_family(family, remarks):
    """One stage; two stages with masks and DCN; a transformer; panoptic; video; odd widths."""
    row, tracebacks = try_family(family, TIMEOUT)
    expected = dict(outcome=WORKS, remarks=remarks)
    assert row['routes'] == dict.fromkeys(
        ['plugin'] if family == 'regnet' else ['plugin', 'SAResNet'], expected), tracebacks


def try_config(path, routes, monkeypatch):
    """The row of a config outside the zoo."""
    outcome = Outcome(Family('mine', str(path), 'ResNet', routes))
    monkeypatch.setattr(matrix, 'call', lambda function, *args, timeout: (
        outcome if function is matrix.find_family else call(function, *args, timeout=timeout)))
    return try_family('mine', TIMEOUT)


call = matrix.call


def test_failing_config_is_a_row_with_its_reason(tmp_path, monkeypatch):
    path = tmp_path / 'r18.py'
    path.write_text("_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'")
    row, tracebacks = try_config(path, ('plugin', 'SAResNet'), monkeypatch)
    reasons = dict(
        plugin='ValueError: a plugin at after_conv3 needs a backbone made of bottlenecks',
        SAResNet='ValueError: SAResNet needs a ResNet made of bottlenecks: depth must be one of '
        '[50, 101, 152], got 18')
    assert row['routes'] == {route: dict(outcome=FAILS, remarks=[], reason=reason)
                             for route, reason in reasons.items()}
    assert all('Traceback' in traceback for traceback in tracebacks)


def test_config_that_fails_without_attention_too(tmp_path, monkeypatch):
    path = tmp_path / 'broken.py'
    path.write_text("_base_ = 'mmdet::atss/atss_r50_fpn_1x_coco.py'\n"
                    "model = dict(neck=dict(type='NoNeck'))")
    row, _ = try_config(path, ('SAResNet', ), monkeypatch)
    assert row['routes']['SAResNet']['outcome'] == CANNOT_RUN
    assert 'NoNeck is not in' in row['routes']['SAResNet']['reason']


class Toy(BaseModel):
    """A detector whose loss is that of one attention layer."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale
        self.attention = ShuffleAttention(4, groups=2)
        torch.nn.init.ones_(self.attention.sweight)

    def forward(self, inputs, data_samples=None, mode='loss'):
        x = torch.linspace(0, 1, 64).reshape(1, 4, 4, 4)
        return dict(loss=(self.scale * self.attention(x)**2).sum())


@pytest.mark.parametrize(('scale', 'error'), [
    (0., r'attention\.cweight gets no gradient'), (float('nan'), 'the loss is nan')])
def test_useless_gradients(scale, error, monkeypatch):
    monkeypatch.setattr('sa_mmdet.dropin.attempt.training_batch',
                        lambda config, side: dict(inputs=torch.zeros(1)))
    _train(Toy(1.), None, 64)
    with pytest.raises(AttemptError, match=error):
        _train(Toy(scale), None, 64)


def test_bottleneck_without_attention():
    model = torch.nn.Module()
    model.backbone = SAResNet(50)
    _check_blocks(model)
    del model.backbone.layer3[2].sa
    with pytest.raises(AttemptError, match='1 of 16 bottlenecks have no attention'):
        _check_blocks(model)


def run_tool(*arguments):
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    return subprocess.run(
        [sys.executable, ROOT / 'tools/dropin.py', *map(str, arguments)], env=environment,
        capture_output=True, text=True, check=False)


def test_tool_writes_results_and_page(tmp_path):
    done = run_tool('yolox', '--out', tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [  # onedl-mmdetection says something at import
        'yolox: not tried: CSPDarknet', str(tmp_path / 'compatibility.md')]
    results, = (tmp_path / 'dropin').iterdir()
    assert [row['family'] for row in json.loads(results.read_text())['rows']] == ['yolox']
    assert 'yolox (CSPDarknet)' in (tmp_path / 'compatibility.md').read_text()


def test_tool_refuses_an_unknown_family(tmp_path):
    done = run_tool('mask_rcn', '--out', tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "error: MMDetection has no config family 'mask_rcn': did you mean mask_rcnn")
    assert 'Traceback' not in done.stderr
    assert not list(tmp_path.iterdir())
