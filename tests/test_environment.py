"""The check at import, in processes of its own."""
import os
import shlex
import subprocess
import sys
import warnings
from importlib.util import find_spec

import mmcv.ops
import pytest
import torch

from sa_mmdet import environment


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
    assert_can_be_run(last.split('then mmcv: ')[1])


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
                           '(torchvision::nms is missing). Install the torchvision for torch ')
    assert last.endswith('and does not need torchvision without it')


def problem_of(folder) -> str:
    """What is said of the MMPretrain that is imported where this folder comes first."""
    code = 'from sa_mmdet.environment import mmpretrain_problem; print(mmpretrain_problem())'
    return subprocess.run(
        [sys.executable, '-c', code], text=True, stdout=subprocess.PIPE,
        env=os.environ | {'PYTHONPATH': str(folder)}).stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(('datasets', 'message'), [
    ("raise RuntimeError('torchvision::nms is missing')",
     'MMPretrain imports torchvision, which does not load here (torchvision::nms is missing)'),
    ("raise ImportError('no einops')",
     'MMPretrain does not import (no einops). Install it with its requirements: `make install`'),
    ('', 'None'),
], ids=['torchvision', 'other', 'works'])
def test_mmpretrain(tmp_path, datasets, message):
    package = tmp_path / 'mmpretrain'
    package.mkdir()
    for name in ('__init__', 'models', 'evaluation', 'engine'):
        (package / f'{name}.py').touch()
    (package / 'datasets.py').write_text(datasets)
    assert problem_of(tmp_path).startswith(message)


def test_mmpretrain_itself_without_torchvision(tmp_path):
    """It needs torchvision for what registers its classes, not for all of it."""
    if not find_spec('mmpretrain'):
        pytest.skip('MMPretrain is not installed')
    (tmp_path / 'torchvision.py').write_text("raise ImportError('No module named torchvision')")
    assert 'MMPretrain imports torchvision, which does not load here' in problem_of(tmp_path)


def test_no_mmpretrain(monkeypatch):
    monkeypatch.setattr(environment, 'find_spec', lambda name: None)
    for stack, package in (('openmmlab', 'mmpretrain'), ('onedl', 'onedl-mmpretrain')):
        monkeypatch.setattr(environment, 'stack', lambda stack=stack: stack)
        problem = environment.mmpretrain_problem()
        assert f'which is not installed. Run `pip install --no-deps {package}`' in problem


LIBRARY = 'libc10_cuda.so: cannot open shared object file: No such file or directory'


@pytest.mark.parametrize('error', [
    'ImportError("_ext.so: undefined symbol")',
    f'ImportError("{LIBRARY}", name="_ext", path="mmcv/_ext.cpython-311.so")',
    'ModuleNotFoundError("No module named \'mmcv._ext\'")',
], ids=['of_another_torch', 'with_cuda_under_a_torch_for_the_cpu', 'lite'])
def test_mmcv_without_operators(tmp_path, error):
    (tmp_path / '_ext.py').write_text(f'raise {error}')
    result = import_error(f"import mmcv; mmcv.__path__.insert(0, '{tmp_path}')")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith('ImportError: mmcv is installed without operators that work')
    assert_can_be_run(last.split('Reinstall it: ')[1])


def assert_can_be_run(command):
    python, script, *requirement = shlex.split(command)
    assert requirement in ([], ['mmcv==2.1.0'])
    assert os.access(python, os.X_OK)
    assert script.endswith('/tools/install_mmcv.py')
    assert os.path.exists(script)


@pytest.mark.parametrize(('cuda', 'available', 'compiled_with', 'warns'), [
    ('13.0', True, 'not available', True),
    ('13.0', True, '13.0', False),
    ('13.0', False, 'not available', False),
    (None, True, 'not available', False),  # ROCm
], ids=['cpu_alone', 'with_cuda', 'no_gpu', 'rocm'])
def test_mmcv_for_the_cpu_where_there_is_a_gpu(
        monkeypatch, cuda, available, compiled_with, warns):
    monkeypatch.setattr(torch.version, 'cuda', cuda)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: available)
    monkeypatch.setattr(mmcv.ops, 'get_compiling_cuda_version', lambda: compiled_with)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        environment.check_environment()
    said = [str(warning.message) for warning in caught
            if warning.category is RuntimeWarning and 'for the CPU only' in str(warning.message)]
    assert len(said) == warns
    if warns:
        assert_can_be_run(said[0].split('Reinstall mmcv with CUDA: ')[1])
