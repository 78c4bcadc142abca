"""An implementation that fails is found out at its first use: a warning, and training goes on."""
import re
import subprocess
import sys
import warnings

import pytest
import torch
from fused import MOVE_TO, require

from sa_mmdet.models import ShuffleAttention
from sa_mmdet.ops import cpp, dispatch, forget_choices, implementations, triton_launch

DEVICE = torch.device(MOVE_TO or 'cpu')


@pytest.fixture(autouse=True)
def _choose_anew(monkeypatch):
    """Triton is the choice for the device on which it is tested."""
    monkeypatch.setitem(dispatch.BY_DEVICE, DEVICE.type, 'triton')
    forget_everything()
    yield
    forget_everything()


def forget_everything():
    """Also what has been tried out."""
    forget_choices()
    dispatch._problems.clear()


class Fails:
    """A kernel that raises when it is launched."""

    def __init__(self, error):
        self.error = error

    def __getitem__(self, grid):
        raise self.error


def fail_at_launch(monkeypatch, error):
    from sa_mmdet.ops import triton_kernels
    monkeypatch.setattr(triton_kernels, 'backward_kernel', Fails(error))


def no_triton(monkeypatch):
    monkeypatch.setattr(triton_launch, 'find_spec', lambda name: None)


def no_c_compiler(monkeypatch):
    fail_at_launch(monkeypatch, RuntimeError(
        'Failed to find C compiler. Please specify via CC environment variable.'))


def error_of_ptxas(monkeypatch):
    fail_at_launch(monkeypatch, subprocess.CalledProcessError(255, ['ptxas']))


def wrong_numbers(monkeypatch):
    forward = triton_launch.forward

    def wrong(*args):
        y, stats = forward(*args)
        y[..., 0, 0] *= 1.01
        return y, stats

    monkeypatch.setattr(triton_launch, 'forward', wrong)


def nan(monkeypatch):
    backward = triton_launch.backward

    def unwritten(*args):
        dz, *others = backward(*args)
        return dz.fill_(torch.nan), *others

    monkeypatch.setattr(triton_launch, 'backward', unwritten)


def rocm(monkeypatch):
    monkeypatch.setattr(triton_launch, 'INTERPRETED', False)
    monkeypatch.setattr(torch.version, 'hip', '6.4')


def an_old_gpu(monkeypatch):
    monkeypatch.setattr(triton_launch, 'INTERPRETED', False)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 0)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (6, 0))


FAILURES = {
    no_triton: 'pip install triton',
    no_c_compiler: r'Failed to find C compiler.*apt-get install gcc',
    error_of_ptxas: r"CalledProcessError: Command '\['ptxas'\]'",
    wrong_numbers: r'wrong numbers, off by 0\.0\d+',
    nan: 'wrong numbers, off by nan',
    rocm: r'torch for ROCm 6\.4',
    an_old_gpu: r'compute capability 7\.0 or more, this has 6\.0',
}


def train():
    """Two steps of a layer, with the warnings of each and the weights that come out."""
    torch.manual_seed(0)
    layer, x = ShuffleAttention(16, groups=2).to(DEVICE), torch.randn(2, 16, 5, 4, device=DEVICE)
    optimizer, warned = torch.optim.SGD(layer.parameters(), lr=0.1), []
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            layer(x).square().mean().backward()
        optimizer.step()
        warned.append([str(warning.message) for warning in caught
                       if 'shuffle attention' in str(warning.message)])
    return warned, [parameter.detach() for parameter in layer.parameters()]


@pytest.mark.parametrize('failure', FAILURES, ids=lambda failure: failure.__name__)
def test_trains_on_with_one_warning(failure, monkeypatch, force_ops):
    if failure is not no_triton:
        require('triton')
        forget_everything()
    failure(monkeypatch)
    ((warning, ), none), weights = train()
    assert none == []
    reason = FAILURES[failure]
    assert re.search(reason, warning), warning
    assert 'on ' + str(DEVICE) in warning
    assert re.search(reason, implementations()['triton'])
    force_ops('reference')
    warned, expected = train()
    assert warned == [[], []]
    torch.testing.assert_close(weights, expected, rtol=0, atol=0)


@pytest.mark.parametrize('failure', FAILURES, ids=lambda failure: failure.__name__)
def test_forced_it_raises(failure, monkeypatch, force_ops):
    if failure in (rocm, an_old_gpu) and DEVICE.type == 'cpu':
        pytest.skip('without the interpreter Triton takes no CPU tensors')
    failure(monkeypatch)
    force_ops('triton')
    with pytest.raises(RuntimeError, match=f"SA_MMDET_OPS='triton' cannot.*{FAILURES[failure]}"):
        train()


def test_what_works_is_not_warned_about():
    require('triton')
    assert train()[0] == [[], []]
    assert dispatch.choose(torch.zeros(1, device=DEVICE)) is triton_launch


def test_random_numbers_are_the_users():
    """The trial draws none: a training is the same with and without it."""
    require('triton')
    forget_everything()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    dispatch.choose(torch.zeros(1, device=DEVICE))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize('content', [None, b'not a library'])
def test_without_the_cpp_operator_python_says_so(content, monkeypatch, tmp_path):
    monkeypatch.setitem(dispatch.BY_DEVICE, 'cpu', 'cpu')
    for name in cpp.CAPABILITIES:
        if content:
            (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(cpp, 'library', lambda name: tmp_path / name)
    monkeypatch.setattr(cpp, 'capability', cpp.capability.__wrapped__)
    x = torch.zeros(1, 4, 2, 2)
    layer = ShuffleAttention(4, groups=1)
    with pytest.warns(RuntimeWarning, match='several times slower.*pip install'):
        layer(x)
    with warnings.catch_warnings(action='error'):
        layer(x)


def test_importing_does_not_compile_or_warn():
    """The first use does, so that a program that has none pays nothing."""
    code = ('import sys; import sa_mmdet; '
            'sys.exit("triton" in sys.modules and "sa_mmdet.ops.triton_kernels" in sys.modules)')
    done = subprocess.run([sys.executable, '-W', 'error::RuntimeWarning', '-c', code])
    assert done.returncode == 0
