import json
import os
import time

import pytest

from sa_mmdet.dropin import matrix
from sa_mmdet.dropin.isolation import call
from sa_mmdet.dropin.matrix import MatrixError, run_matrix
from sa_mmdet.dropin.reasons import explain

NAMES = ['a', 'b', 'c']


class Zoo:
    """Three families; nothing is built."""

    def __init__(self):
        self.tried = []
        self.interrupted_at = None

    def try_family(self, name, timeout):
        if name == self.interrupted_at:
            raise KeyboardInterrupt
        self.tried.append(name)
        row = dict(family=name, config=None, backbone=f'try {len(self.tried)}', routes={})
        return row, []


@pytest.fixture
def zoo(monkeypatch):
    zoo = Zoo()
    monkeypatch.setattr(matrix, 'try_family', zoo.try_family)
    monkeypatch.setattr(matrix, 'family_names', lambda: NAMES)
    return zoo


def run(file, *names):
    return run_matrix(list(names), file, jobs=1, timeout=1, report=lambda row, tracebacks: None)


def families(file):
    return [row['family'] for row in json.loads(file.read_text())['rows']]


def test_interrupted_goes_on_and_finished_starts_anew(tmp_path, zoo):
    file = tmp_path / 'results.json'
    zoo.interrupted_at = 'c'
    with pytest.raises(KeyboardInterrupt):
        run(file)
    assert families(file) == ['a', 'b']
    zoo.interrupted_at = None
    run(file)
    assert zoo.tried == NAMES
    assert families(file) == NAMES
    run(file)
    assert zoo.tried == NAMES * 2


def test_named_families_replace_their_rows(tmp_path, zoo):
    file = tmp_path / 'results.json'
    first = run(file)['rows']
    second = run(file, 'b')['rows']
    assert zoo.tried == [*NAMES, 'b']
    assert [row['family'] for row in second] == NAMES
    assert [row in first for row in second] == [True, False, True]


def test_versions_are_never_mixed(tmp_path, zoo):
    file = tmp_path / 'results.json'
    run(file, 'a')
    results = json.loads(file.read_text())
    results['versions']['mmdet'] = '9.9'
    file.write_text(json.dumps(results))
    with pytest.raises(MatrixError, match=r"9\.9.*try all families"):
        run(file, 'b')
    assert families(file) == ['a']
    run(file)
    assert families(file) == NAMES
    assert json.loads(file.read_text())['versions']['mmdet'] != '9.9'


@pytest.mark.parametrize('content', ['', '{"versions": {', '[]', '{"rows": []}'])
def test_damaged_results(tmp_path, zoo, content):
    file = tmp_path / 'results.json'
    file.write_text(content)
    with pytest.raises(MatrixError, match=f'{file} holds no results'):
        run(file)
    assert (zoo.tried, file.read_text()) == ([], content)


def test_another_process():
    assert call(os.path.join, 'a', 'b', timeout=60).value == 'a/b'
    failed = call(int, 'x', timeout=60)
    assert failed.error == "ValueError: invalid literal for int() with base 10: 'x'"
    assert 'Traceback' in failed.traceback
    assert call(time.sleep, 60, timeout=0.2).error == 'no end within 0.2 s'
    assert call(os.abort, timeout=60).error == 'the process was ended by SIGABRT'
    assert call(os._exit, 3, timeout=60).error == 'the process ended with status 3'
    with pytest.raises(KeyboardInterrupt):
        call(_interrupted, timeout=60)


def _interrupted():
    raise KeyboardInterrupt


@pytest.mark.parametrize(('error', 'reason'), [
    ('RuntimeError: carafe_forward_impl: implementation for device cpu not found.\n',
     'mmcv has no CPU code for its operator carafe'),
    ("ModuleNotFoundError: No module named 'torchvision'", 'needs torchvision'),
    ('RuntimeError: skimage is not installed,    please install it by: pip install scikit-image',
     'needs scikit-image'),
    ('RuntimeError: Please run "pip install openmim" and run "mim install mmpretrain" to',
     'needs mmpretrain'),
    ('ValueError: one\ntwo', 'ValueError: one')])
def test_reasons_in_a_line(error, reason):
    assert explain(error) == reason
