"""Which implementation computes: decided once for each device and dtype, then remembered."""
import os
import warnings
from types import ModuleType

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from . import cpp, reference, triton_launch

ENVIRONMENT_VARIABLE = 'SA_MMDET_OPS'
IMPLEMENTATIONS: dict[str, ModuleType] = {
    'reference': reference, 'cpu': cpp, 'triton': triton_launch}
BY_DEVICE = {'cpu': 'cpu', 'cuda': 'triton'}

# What registers the operator came with torch 2.4.
HAS_OPERATOR = hasattr(torch.library, 'register_autograd')

_chosen: dict[tuple[str | None, torch.device, torch.dtype], ModuleType] = {}
_problems: dict[tuple[str, torch.device], str | None] = {}


def implementations() -> dict[str, str | None]:
    """Return the implementations of ``shuffle_attention``, each with why it cannot be used here.

    The reason is None where it can, which is tried out: 'reference' is PyTorch's own operators, for
    every device and floating dtype; 'cpu' is C++, for CPU tensors in float32, float64, bfloat16 and
    float16; 'triton' is for CUDA tensors in float32, bfloat16 and float16.
    """
    return {'reference': None, 'cpu': problem('cpu', torch.device('cpu')),
            'triton': problem('triton', triton_launch.device())}


def forget_choices() -> None:
    """Choose anew from the next call on: after ``SA_MMDET_OPS`` changed in a running process."""
    _chosen.clear()


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
    chosen = _chosen.get(key)
    if chosen is None:
        chosen = _chosen[key] = _choose(*key)
    return chosen


def route(x: Tensor, implementation: str | None = None) -> ModuleType | None:
    """Return what computes ``x`` at once, or None for the operator of torch.library.

    PyTorch's compilers, modes and subclasses are to see that operator; tracing, ONNX export and
    torch.func see the operators of the reference.

    Raises:
        ValueError, RuntimeError: as ``choose``.
    """
    if torch.compiler.is_compiling():
        return None if HAS_OPERATOR and not torch.onnx.is_in_onnx_export() else reference
    if (torch._C._get_tracing_state() is not None or x.is_meta
            or torch._C._are_functorch_transforms_active()):
        return reference
    chosen = _chosen.get((implementation, x.device, x.dtype)) or choose(x, implementation)
    if chosen is not reference and (torch._C._len_torch_dispatch_stack()
                                    or type(x) not in (Tensor, torch.nn.Parameter)):
        return None
    return chosen


def problem(name: str, device: torch.device) -> str | None:
    """Return why an implementation cannot be used on its device, None if it can; tried out once."""
    if name == 'reference':
        return None
    key = name, device
    if key not in _problems:
        module = IMPLEMENTATIONS[name]
        _problems[key] = module.unavailable(device) or _failure(module, device)
    return _problems[key]


def _choose(name: str | None, device: torch.device, dtype: torch.dtype) -> ModuleType:
    source = 'implementation'
    if name is None:
        source, name = ENVIRONMENT_VARIABLE, os.environ.get(ENVIRONMENT_VARIABLE) or None
    if name is None:
        fused = BY_DEVICE.get(device.type, 'reference')
        if fused == 'reference' or dtype not in IMPLEMENTATIONS[fused].DTYPES:
            return reference
        warned = (fused, device) in _problems
        reason = problem(fused, device)
        if reason and not warned:
            warnings.warn(
                f'shuffle attention on {device} is computed by PyTorch\'s own operators, several '
                f'times slower: {reason} {ENVIRONMENT_VARIABLE}=reference in the environment '
                'chooses them without this warning.', RuntimeWarning, stacklevel=2)
        return reference if reason else IMPLEMENTATIONS[fused]
    if name not in IMPLEMENTATIONS:
        raise ValueError(f'{source}={name!r} is no implementation of shuffle attention: use one of '
                         f'{", ".join(IMPLEMENTATIONS)}')
    module, refusal = IMPLEMENTATIONS[name], None
    if module is not reference:
        if not module.takes_device(device):
            refusal = f'it does not compute on {device}'
        elif dtype not in module.DTYPES:
            refusal = f'it does not compute in {dtype}'
        if refusal:
            refusal += '; without the name one is chosen for the tensor'
    if refusal := refusal or problem(name, device):
        raise RuntimeError(f'{source}={name!r} cannot be used: {refusal}')
    return module


def _failure(module: ModuleType, device: torch.device) -> str | None:
    """Compute a small case and compare it with the reference: what goes wrong, if anything."""
    try:
        with _disable_current_modes(), torch.no_grad():
            for layout in (torch.contiguous_format, torch.channels_last):
                error = _largest_error(module, device, layout)
                if not error < 1e-3:
                    return (f'it was tried out and gave wrong numbers, off by {error:.1g} of the '
                            'largest: please report it, with your GPU and versions.')
    except Exception as error:  # a compiler, a linker, a driver: whatever is missing raises its own
        return (f'it was tried out and failed: {type(error).__name__}: '
                f'{" ".join(str(error).split())[:500]} {module.REMEDY}')
    return None


def _largest_error(module: ModuleType, device: torch.device, layout: torch.memory_format) -> float:
    """Of all results of a forward and backward pass."""
    def some(*shape: int, by: float) -> Tensor:
        """Numbers in (-1, 1), without drawing any: random numbers are the user's."""
        count = torch.Size(shape).numel()
        return torch.arange(count, device=device).mul(by).sin().float().view(shape)

    z, identity, dout = (some(2, 8, 6, 5, by=by).contiguous(memory_format=layout)
                         for by in (1.3, 0.7, 2.1))
    batch_norm = some(8, by=1.1), some(8, by=0.9), some(8, by=0.5), some(8, by=0.3) + 1.5
    parameters = (*(some(1, 2, 1, 1, by=by) + by for by in (0.3, 0.5, 0.7, 0.9)),
                  some(2, by=1.7) + 1, some(2, by=0.2))
    settings = batch_norm, parameters, 2, 1e-5, 1e-5

    out, stats = reference.forward(z, identity, *settings)
    expected = out, *reference.backward(dout, z, out, stats, *settings, True)
    actual_out, actual_stats = module.forward(z, identity, *settings)
    actual = actual_out, *module.backward(dout, z, out, actual_stats, *settings, True)
    return torch.stack([((a - e).abs().max() / e.abs().max()).double()
                        for a, e in zip(actual, expected, strict=True)]).max().item()
