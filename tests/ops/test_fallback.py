"""An implementation that fails is found out at its first use: a warning, and training goes on."""
import re
import subprocess
import sys
import threading
import warnings

import pytest
import torch
from fused import MOVE_TO, require
from torch.overrides import TorchFunctionMode

from sa_mmdet.models import ShuffleAttention
from sa_mmdet.ops import (
    cpp,
    dispatch,
    forget_choices,
    implementations,
    reference,
    triton_launch,
)

DEVICE = torch.empty(0, device=MOVE_TO).device


@pytest.fixture(autouse=True)
def _choose_anew(monkeypatch):
    """Triton is the choice for the device on which it is tested."""
    monkeypatch.setitem(dispatch.BY_DEVICE, DEVICE.type, 'triton')
    forget_choices()
    yield
    forget_choices()


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
    nan: 'wrong numbers, off by inf',
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
                       if 'sa_mmdet computes' in str(warning.message)])
    return warned, [parameter.detach() for parameter in layer.parameters()]


@pytest.mark.parametrize('failure', FAILURES, ids=lambda failure: failure.__name__)
def test_trains_on_with_one_warning(failure, monkeypatch, force_ops):
    if failure is not no_triton:
        require('triton')
        forget_choices()
    failure(monkeypatch)
    ((warning, ), none), weights = train()
    assert none == []
    reason = FAILURES[failure]
    assert re.search(reason, warning), warning
    assert f'on {DEVICE} sa_mmdet' in warning
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
    forget_choices()
    assert train()[0] == [[], []]
    assert dispatch.choose(torch.zeros(1, device=DEVICE)) is triton_launch


def test_random_numbers_are_the_users():
    """The trial draws none: a training is the same with and without it."""
    require('triton')
    forget_choices()
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


def test_each_dtype_is_tried(monkeypatch):
    """What fails in one is computed by the reference in that alone."""
    require('triton')
    forward = triton_launch.forward

    def fails_in_bfloat16(z, *args):
        if z.dtype == torch.bfloat16:
            raise RuntimeError('ptxas: no bf16')
        return forward(z, *args)

    monkeypatch.setattr(triton_launch, 'forward', fails_in_bfloat16)
    forget_choices()
    with pytest.warns(RuntimeWarning, match='no bf16'):
        chosen = dispatch.choose(torch.zeros(1, dtype=torch.bfloat16, device=DEVICE))
    assert chosen is reference
    assert dispatch.choose(torch.zeros(1, dtype=torch.float16, device=DEVICE)) is triton_launch


def test_no_memory_to_try_it_out_is_no_reason(monkeypatch):
    """It is raised, as anywhere else, and the next call tries again."""
    require('triton')
    forget_choices()
    with monkeypatch.context() as patch:
        patch.setattr(triton_launch, 'forward', out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            train()
    assert train()[0] == [[], []]


def out_of_memory(*args):
    raise torch.OutOfMemoryError('out of memory')


def test_threads_try_once(monkeypatch):
    require('triton')
    tried, failure = [], dispatch._failure
    monkeypatch.setattr(dispatch, '_failure', lambda *args: tried.append(args) or failure(*args))
    forget_choices()
    x = torch.zeros(1, device=DEVICE)
    threads = [threading.Thread(target=dispatch.choose, args=(x,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tried) == 1


def test_the_trial_is_not_seen_by_modes():
    class Counts(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, function, types, args=(), kwargs=None):
            Counts.calls += 1
            return function(*args, **(kwargs or {}))

    counts = []
    x = torch.zeros(1, device=DEVICE)
    for forget in (True, False):
        if forget:
            forget_choices()
        Counts.calls = 0
        with Counts():
            dispatch.choose(x)
        counts.append(Counts.calls)
    assert counts[0] <= counts[1] + 20


def test_an_old_torch_has_the_reference(monkeypatch):
    monkeypatch.setattr(dispatch, 'HAS_OPERATOR', False)
    assert 'needs torch >= 2.4' in implementations()['cpu']
    monkeypatch.setitem(dispatch.BY_DEVICE, 'cpu', 'cpu')
    with pytest.warns(RuntimeWarning, match='needs torch >= 2.4'):
        assert dispatch.choose(torch.zeros(1)) is reference


def test_importing_does_not_compile_or_warn():
    """The first use does, so that a program that has none pays nothing."""
    code = ('import sys; import sa_mmdet; from sa_mmdet.ops import dispatch; '
            'sys.exit("sa_mmdet.ops.triton_kernels" in sys.modules or bool(dispatch._problems))')
    done = subprocess.run([sys.executable, '-W', 'error::RuntimeWarning', '-c', code])
    assert done.returncode == 0
