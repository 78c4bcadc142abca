"""tools/benchmark.py deploy."""
import json
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch

from sa_mmdet.apps.speed import deployed

ROOT = Path(__file__).parents[3]


def test_networks_compute_the_same_function():
    networks = deployed.build_networks(deployed.DeployCase(height=64, width=64))
    assert list(networks) == ['ResNet', 'SAResNet', 'SAResNet deployed']
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected, *others = (network(x) for network in networks.values())
    for actual in others:
        for a, e in zip(actual, expected, strict=True):
            assert (a - e).abs().max() < 1e-4 * e.abs().max()


def test_tool(tmp_path):
    for package in ('onnx', 'onnxruntime', 'openvino'):
        pytest.importorskip(package, reason=f'{package} is not installed')
    out = tmp_path / 'deploy'
    runtimes = 'eager', 'onnxruntime', 'openvino'
    command = ['deploy', '--size', '64', '64', '--repeats', '2', '--runtimes', *runtimes,
               '--out', str(out)]  # in a process of its own, which the runtimes' threads leave with
    done = subprocess.run([sys.executable, ROOT / 'tools/benchmark.py', *command], text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    output = done.stdout
    assert 'openvino: SAResNet deployed / ResNet = ' in output
    assert 'onnxruntime: file sizes: ResNet ' in output
    rows = json.loads(out.with_suffix('.json').read_text())['rows']
    names = 'ResNet', 'SAResNet', 'SAResNet deployed'
    assert [(row['pass'], row['name']) for row in rows] == [
        (runtime, name) for runtime in runtimes for name in names]
    for row in rows:
        assert row['peak_bytes'] > 1e6
        assert 9e7 < row['file_bytes'] < 1.1e8
    assert cv2.imread(str(out.with_suffix('.png'))) is not None


def test_a_runtime_that_is_not_installed_is_named(run_tool, monkeypatch):
    monkeypatch.setattr(deployed, 'find_spec', lambda name: None if name == 'openvino' else name)
    code, output = run_tool('benchmark', 'deploy', '--runtimes', 'openvino')
    assert code != 0
    assert 'pip install openvino' in output
