"""Which implementation computes: decided once for each device and dtype, then remembered."""
import importlib
import math
import os
import threading
import warnings
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _disable_current_modes

from . import reference

ENVIRONMENT_VARIABLE = 'SA_MMDET_OPS'
IMPLEMENTATIONS = {'reference': 'reference', 'cpu': 'cpp', 'triton': 'triton_launch'}  # modules
BY_DEVICE = {'cpu': 'cpu', 'cuda': 'triton'}

# What registers the operator came with torch 2.4.
HAS_OPERATOR = hasattr(torch.library, 'register_autograd')

_chosen: dict[tuple[str | None, torch.device, torch.dtype], ModuleType] = {}
_problems: dict[tuple[str, torch.device, torch.dtype], str | None] = {}
_warned: set[tuple[str, torch.device]] = set()
_lock = threading.RLock()


def implementations() -> dict[str, str | None]:
    """Return the implementations of ``shuffle_attention``, each with why it cannot be used here.

    The reason is None where it can, which is tried out: 'reference' is PyTorch's own operators, for
    every device and floating dtype; 'cpu' is C++, for CPU tensors in float32, float64, bfloat16 and
    float16; 'triton' is for CUDA tensors in float32, bfloat16 and float16.
    """
    return {'reference': None, 'cpu': problem('cpu', torch.device('cpu')),
            'triton': problem('triton', module_of('triton').device())}


def module_of(name: str) -> ModuleType:
    """Return an implementation by its name; it is imported when it is first asked for."""
    return importlib.import_module(f'.{IMPLEMENTATIONS[name]}', __package__)


def forget_choices() -> None:
    """Choose, and try out, anew from the next call on.

    For a running process in which ``SA_MMDET_OPS`` changed, or what was missing has been installed.
    """
    for remembered in (_chosen, _problems, _warned):
        remembered.clear()


def choose(x: Tensor, implementation: str | None = None) -> ModuleType:
    """Return the implementation for ``x``: the forced one, else its device's, else the reference.

    Where the device's own cannot be used, that is told once, by a warning.

    Args:
        x: the input; only its device and dtype matter.
        implementation: a name that forces one; None leaves it to the environment variable
            SA_MMDET_OPS, and without that to ``x``.

    Raises:
        ValueError: there is no implementation of that name.
        RuntimeError: the forced implementation cannot be used here, or not for ``x``.
    """
    key = implementation, x.device, x.dtype
    if key not in _chosen:
        with _lock:
            _chosen[key] = _choose(*key)
    return _chosen[key]


def is_traced(x: Tensor) -> bool:
    """Return whether ``x`` has no sizes that Python could decide on: torch.fx and torch.jit.trace.
    """
    return isinstance(x, torch.fx.Proxy) or torch.jit.is_tracing()


def route(x: Tensor, implementation: str | None = None) -> ModuleType | None:
    """Return what computes ``x`` at once, or None for the operator of torch.library.

    PyTorch's compilers, torch.fx, modes and subclasses are to see that operator; torch.jit.trace,
    ONNX export, torch.func and forward mode differentiation see the operators of the reference.

    Raises:
        ValueError, RuntimeError: as ``choose``.
    """
    if torch.compiler.is_compiling() or isinstance(x, torch.fx.Proxy):
        return None if HAS_OPERATOR and not torch.onnx.is_in_onnx_export() else reference
    if (torch._C._get_tracing_state() is not None or x.is_meta
            or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0):
        return reference
    # first without a call: once for each block of a network
    chosen = _chosen.get((implementation, x.device, x.dtype)) or choose(x, implementation)
    if chosen is not reference and (torch._C._len_torch_dispatch_stack()
                                    or type(x) not in (Tensor, torch.nn.Parameter)):
        return None
    return chosen


def problem(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str | None:
    """Return why a fused implementation cannot be used, None if it can: once, it is tried out.

    Args:
        name: 'cpu' or 'triton'.
        device, dtype: of tensors that it takes.

    Raises:
        torch.OutOfMemoryError: there is no memory to try it out.
        RuntimeError: a CUDA graph is being captured, in which nothing can be tried.
    """
    with _lock:
        key = name, device, dtype
        if key not in _problems:
            module = module_of(name)
            _problems[key] = (
                f'it needs torch >= 2.4, this is {torch.__version__}.' if not HAS_OPERATOR else
                module.unavailable(device) or _failure(module, device, dtype))
        return _problems[key]


def _choose(name: str | None, device: torch.device, dtype: torch.dtype) -> ModuleType:
    source = 'implementation'
    if name is None:
        source, name = ENVIRONMENT_VARIABLE, os.environ.get(ENVIRONMENT_VARIABLE) or None
    if name is None:
        fused = BY_DEVICE.get(device.type, 'reference')
        if fused == 'reference' or dtype not in module_of(fused).DTYPES:
            return reference
        reason = problem(fused, device, dtype)
        if reason and (fused, device) not in _warned:
            warnings.warn(
                f"on {device} sa_mmdet computes by PyTorch's own operators, several times slower: "
                f'{reason} {ENVIRONMENT_VARIABLE}=reference in the environment chooses them '
                'without this warning.', RuntimeWarning, stacklevel=2)
            _warned.add((fused, device))
        return reference if reason else module_of(fused)
    if name not in IMPLEMENTATIONS:
        raise ValueError(f'{source}={name!r} is no implementation of shuffle attention: use one of '
                         f'{", ".join(IMPLEMENTATIONS)}')
    module = module_of(name)
    if module is reference:
        return module
    what = (f'on {device}' if not module.takes_device(device) else
            f'in {dtype}' if dtype not in module.DTYPES else None)
    refusal = (f'it does not compute {what}; without the name one is chosen for the tensor' if what
               else problem(name, device, dtype))
    if refusal:
        raise RuntimeError(f'{source}={name!r} cannot be used: {refusal}')
    return module


def _failure(module: ModuleType, device: torch.device, dtype: torch.dtype) -> str | None:
    """Compute a small case and compare it with the reference: what goes wrong, if anything."""
    if device.type == 'cuda' and torch.cuda.is_current_stream_capturing():
        raise RuntimeError('the first use of sa_mmdet on a device is tried out, which a CUDA graph '
                           'cannot capture: call the network once before the capture')
    try:
        with _undisturbed(device):
            largest = max(_largest_error(module, device, dtype, layout)
                          for layout in (torch.contiguous_format, torch.channels_last))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler, a linker, a driver: whatever is missing raises its own
        return (f'it was tried out and failed: {type(error).__name__}: '
                f'{" ".join(str(error).split())[:500]} {module.REMEDY}')
    if largest < max(1e-3, 4 * torch.finfo(dtype).eps):
        return None
    return (f'it was tried out and gave wrong numbers, off by {largest:.1g} of the largest: please '
            'report it.')


@contextmanager
def _undisturbed(device: torch.device):
    """What the user's code has set up for its own tensors is not meant for the trial."""
    debug = torch.cuda.get_sync_debug_mode() if device.type == 'cuda' else 0
    with (_disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad(),
          torch.autocast(device.type, enabled=False)):
        try:
            if debug:  # otherwise left alone: setting it warns
                torch.cuda.set_sync_debug_mode(0)
            yield
        finally:
            if debug:
                torch.cuda.set_sync_debug_mode(debug)


def _largest_error(module: ModuleType, device: torch.device, dtype: torch.dtype,
                   layout: torch.memory_format) -> float:
    """Return the largest error, relative, of a forward and backward pass; infinity for a NaN."""
    def some(*shape: int, by: float) -> Tensor:
        """Return numbers in (-1, 1), without drawing any: random numbers are the user's."""
        count = torch.Size(shape).numel()
        return torch.arange(count, device=device).mul(by).sin().float().view(shape)

    z, identity, dout = (some(2, 8, 6, 5, by=by).to(dtype, memory_format=layout)
                         for by in (1.3, 0.7, 2.1))
    batch_norm = some(8, by=1.1), some(8, by=0.9), some(8, by=0.5), some(8, by=0.3) + 1.5
    cweight, cbias, sweight, sbias = (
        some(1, 2, 1, 1, by=by) + by for by in (0.3, 0.5, 0.7, 0.9))
    parameters = cweight, cbias, sweight, sbias, some(2, by=1.7) + 1, some(2, by=0.2)
    settings = batch_norm, parameters, 2, 1e-5, 1e-5

    out, stats = reference.forward(z, identity, *settings)
    expected = out, *reference.backward(dout, z, out, stats, *settings, True)
    actual_out, actual_stats = module.forward(z, identity, *settings)
    actual = actual_out, *module.backward(dout, z, out, actual_stats, *settings, True)
    return max(((a.double() - e).abs().max() / e.abs().max()).nan_to_num(math.inf).item()
               for a, e in zip(actual, expected, strict=True))
