"""Choose the implementation, once for each device and dtype, and remember the choice."""
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

# torch 2.4 brought what registers the operator.
HAS_OPERATOR = hasattr(torch.library, 'register_autograd')

_chosen: dict[tuple[str | None, torch.device, torch.dtype], ModuleType] = {}
_problems: dict[tuple[str, torch.device, torch.dtype], str | None] = {}
_warned: set[tuple[str, torch.device]] = set()
_lock = threading.RLock()


def implementations() -> dict[str, str | None]:
    """Return the implementations of ``shuffle_attention``, each with why it cannot be used here.

    The reason is None if a trial succeeds. 'reference' is PyTorch's own operators, for every device
    and floating dtype. 'cpu' is C++, for CPU tensors in float32, float64, bfloat16 and float16.
    'triton' is for CUDA tensors in float32, bfloat16 and float16.
    """
    return {'reference': None, 'cpu': problem('cpu', torch.device('cpu')),
            'triton': problem('triton', module_of('triton').device())}


def module_of(name: str) -> ModuleType:
    """Import an implementation by its name and return it."""
    return importlib.import_module(f'.{IMPLEMENTATIONS[name]}', __package__)


def forget_choices() -> None:
    """Choose implementations, and try them out, again from the next call on.

    Call it in a running process after you change ``SA_MMDET_OPS`` or install what was missing.
    """
    for remembered in (_chosen, _problems, _warned):
        remembered.clear()


def choose(x: Tensor, implementation: str | None = None) -> ModuleType:
    """Return the implementation for ``x``: the forced one, else its device's, else the reference.

    If the device's own cannot be used, a warning says so once.

    Args:
        x: the input. Only its device and dtype matter.
        implementation: the name of the implementation to force. None takes the name from the
            environment variable SA_MMDET_OPS. If that is unset, ``x`` decides.

    Raises:
        ValueError: there is no implementation with that name.
        RuntimeError: the forced implementation cannot be used here, or cannot be used for ``x``.
    """
    key = implementation, x.device, x.dtype
    if key not in _chosen:
        with _lock:
            _chosen[key] = _choose(*key)
    return _chosen[key]


def is_traced(x: Tensor) -> bool:
    """Return whether torch.fx or torch.jit.trace traces ``x``, whose sizes Python cannot see."""
    return isinstance(x, torch.fx.Proxy) or torch.jit.is_tracing()


def route(x: Tensor, implementation: str | None = None) -> ModuleType | None:
    """Return what computes ``x`` directly, or None for the operator of torch.library.

    PyTorch's compilers, torch.fx, modes and subclasses must see that operator. torch.jit.trace,
    ONNX export, torch.func and forward-mode differentiation see the reference's operators.

    Raises:
        ValueError, RuntimeError: as for ``choose``.
    """
    if torch.compiler.is_compiling() or isinstance(x, torch.fx.Proxy):
        return None if HAS_OPERATOR and not torch.onnx.is_in_onnx_export() else reference
    if (torch._C._get_tracing_state() is not None or x.is_meta
            or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0):
        return reference
    # looked up without a call at first, as every block of a network does it
    chosen = _chosen.get((implementation, x.device, x.dtype)) or choose(x, implementation)
    if chosen is not reference and (torch._C._len_torch_dispatch_stack()
                                    or type(x) not in (Tensor, torch.nn.Parameter)):
        return None
    return chosen


def problem(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str | None:
    """Return why a fused implementation cannot be used, or None. The first call tries it out.

    Args:
        name: 'cpu' or 'triton'.
        device, dtype: device and dtype of tensors that it takes.

    Raises:
        torch.OutOfMemoryError: there is no memory to try it out.
        RuntimeError: a CUDA graph is being captured, which allows no trial.
    """
    with _lock:
        key = name, device, dtype
        if key not in _problems:
            module = module_of(name)
            _problems[key] = (
                f'it needs torch >= 2.4, found {torch.__version__}.' if not HAS_OPERATOR else
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
                f"on {device} sa_mmdet computes with PyTorch's own operators, several times "
                f"slower: {reason} To use PyTorch's own operators without this warning, set "
                f'{ENVIRONMENT_VARIABLE}=reference in the environment.', RuntimeWarning,
                stacklevel=2)
            _warned.add((fused, device))
        return reference if reason else module_of(fused)
    if name not in IMPLEMENTATIONS:
        raise ValueError(f'{source}={name!r} is not an implementation of shuffle attention: use '
                         f'one of {", ".join(IMPLEMENTATIONS)}')
    module = module_of(name)
    if module is reference:
        return module
    what = (f'on {device}' if not module.takes_device(device) else
            f'in {dtype}' if dtype not in module.DTYPES else None)
    refusal = (f'it does not compute {what}. Leave {source} unset, and sa_mmdet chooses for you'
               if what else problem(name, device, dtype))
    if refusal:
        raise RuntimeError(f'{source}={name!r} cannot be used: {refusal}')
    return module


def _failure(module: ModuleType, device: torch.device, dtype: torch.dtype) -> str | None:
    """Compute a small case, compare it with the reference, and return what is wrong, or None."""
    if device.type == 'cuda' and torch.cuda.is_current_stream_capturing():
        raise RuntimeError('sa_mmdet tries itself out on its first use on a device, which a CUDA '
                           'graph cannot capture: call the network once before the capture')
    try:
        with _undisturbed(device):
            largest = max(_largest_error(module, device, dtype, layout)
                          for layout in (torch.contiguous_format, torch.channels_last))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a missing compiler, linker or driver: each raises its own error
        return (f'it was tried out and failed: {type(error).__name__}: '
                f'{" ".join(str(error).split())[:500]} {module.REMEDY}')
    if largest < max(1e-3, 4 * torch.finfo(dtype).eps):
        return None
    return (f'it was tried out and gave wrong numbers, off by {largest:.1g} of the largest. Please '
            'report it.')


@contextmanager
def _undisturbed(device: torch.device):
    """Hide from the trial what the user's code has set up for its own tensors."""
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
    """Return the largest relative error of a forward and backward pass, or infinity for a NaN."""
    def some(*shape: int, by: float) -> Tensor:
        """Return numbers in (-1, 1), without drawing any from the user's generators."""
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
