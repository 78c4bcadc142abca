"""The check at import, in processes of its own."""
import os
import subprocess
import sys

import pytest


def import_error(code: str, pythonpath='') -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-W', 'always', '-c', f'import sys\n{code}\nimport sa_mmdet'],
        capture_output=True, text=True, env={'PYTHONPATH': str(pythonpath)})


@pytest.mark.parametrize('package', ['torch', 'mmengine', 'mmcv', 'mmdet'])
def test_missing_package(package):
    result = import_error(f'sys.modules[{package!r}] = None')
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f'ImportError: sa_mmdet needs {package} >= ')
    assert 'which is not installed. Install one of the two supported stacks' in last


@pytest.mark.parametrize(('package', 'version', 'minimum'), [
    ('torch', '1.13.1', '2.0'), ('mmcv', '1.7.2', '2.1.0'), ('mmdet', '2.28.2', '3.3.0')])
def test_old_package(tmp_path, package, version, minimum):
    (tmp_path / f'{package}.py').write_text(f'__version__ = {version!r}\n')
    result = import_error('', tmp_path)
    assert f'sa_mmdet needs {package} >= {minimum}, found {version}.' in result.stderr


def test_versions_that_mmdet_refuses(tmp_path):
    (tmp_path / 'mmdet.py').write_text("assert False, 'MMCV==9.9 is used but incompatible.'\n")
    result = import_error('', tmp_path)
    assert 'ImportError: mmdet does not import: MMCV==9.9 is used but incompat' in result.stderr


def test_torchvision_of_another_torch(tmp_path):
    """MMDetection imports MMPretrain, and this torchvision, which then stops both."""
    (tmp_path / 'torchvision.py').write_text("raise RuntimeError('torchvision::nms is missing')")
    (tmp_path / 'mmpretrain.py').write_text('import torchvision')
    result = import_error('', tmp_path)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith('ImportError: MMPretrain imports torchvision, which does not load here '
                           '(torchvision::nms is missing): install that of torch ')
    assert last.endswith('without it there is no need of torchvision')


@pytest.mark.parametrize(('files', 'message'), [
    ({'mmpretrain/__init__.py': '', 'mmpretrain/apis.py': 'import torchvision',
      'torchvision.py': "raise RuntimeError('torchvision::nms is missing')"},
     'MMPretrain imports torchvision, which does not load here (torchvision::nms is missing)'),
    ({'mmpretrain/__init__.py': '', 'mmpretrain/apis.py': "raise ImportError('no einops')"},
     'MMPretrain does not import: no einops'),
    ({'mmpretrain/__init__.py': '', 'mmpretrain/apis.py': ''}, None),
], ids=['torchvision', 'other', 'works'])
def test_mmpretrain(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    code = 'from sa_mmdet.environment import mmpretrain_problem; print(mmpretrain_problem())'
    environment = os.environ | {'PYTHONPATH': str(tmp_path)}
    without = "import sys; sys.modules['mmdet.models.reid'] = type(sys)('reid'); "
    result = subprocess.run([sys.executable, '-c', f'{without}{code}'], capture_output=True,
                            text=True, env=environment)
    assert str(message) in result.stdout


def test_no_mmpretrain(monkeypatch):
    from sa_mmdet import environment
    monkeypatch.setattr(environment, 'find_spec', lambda name: None)
    for stack, package in (('openmmlab', ' mmpretrain,'), ('onedl', ' onedl-mmpretrain,')):
        monkeypatch.setattr(environment, 'stack', lambda stack=stack: stack)
        assert f'which is not installed: pip install{package}' in environment.mmpretrain_problem()


@pytest.mark.parametrize('break_', [
    "sys.modules['mmcv._ext'] = None",
    "open('{0}/_ext.py', 'w').write('raise ImportError(\"_ext.so: undefined symbol\")')\n"
    "import mmcv; mmcv.__path__.insert(0, '{0}')",
], ids=['missing', 'of_another_torch'])
def test_mmcv_without_operators(tmp_path, break_):
    result = import_error(break_.format(tmp_path))
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith('ImportError: mmcv is installed without operators that work')
    assert 'pip install --no-build-isolation' in last
