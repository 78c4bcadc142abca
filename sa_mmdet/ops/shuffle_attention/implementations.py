"""Which implementation of shuffle attention computes what."""
import os
from numbers import Integral
from types import ModuleType

import torch
from torch import Tensor

from . import cpu, triton

ENVIRONMENT_VARIABLE = 'SA_MMDET_OPS'

FUSED: dict[str, ModuleType] = {'cpu': cpu, 'triton': triton}
NAMES = ('reference', *FUSED)
PARAMETERS = ('cweight', 'cbias', 'sweight', 'sbias', 'gn_weight', 'gn_bias')
BY_DEVICE = {'cpu': 'cpu', 'cuda': 'triton'}

# What registers the operator came with torch 2.4.
HAS_OPERATOR = hasattr(torch.library, 'register_autograd')


def implementations() -> dict[str, str | None]:
    """The implementations of ``shuffle_attention``: name -> None, or why it cannot be used here.

    'reference' is the formula in PyTorch, for every device and floating dtype; 'cpu' is C++, for
    CPU tensors in float32, float64, bfloat16 and float16; 'triton' is for CUDA tensors in float32,
    bfloat16 and float16.
    """
    return {'reference': None, **{name: _unavailable(name) for name in FUSED}}


def choose(x: Tensor, implementation: str | None = None) -> str:
    """The implementation for ``x``: the forced one, else its device's, else the formula.

    Args:
        x: the input; only its device and dtype matter.
        implementation: a name that forces one; None leaves it to the environment variable
            SA_MMDET_OPS, and without that to ``x``.

    Raises:
        ValueError: there is no implementation of that name.
        RuntimeError: the forced implementation cannot be used here, or not for ``x``.
    """
    source = 'implementation'
    if implementation is None:
        source, implementation = ENVIRONMENT_VARIABLE, os.environ.get(ENVIRONMENT_VARIABLE) or None
    if implementation is None:
        fused = BY_DEVICE.get(x.device.type)
        return fused if fused and _refusal(fused, x) is None else 'reference'
    if implementation not in NAMES:
        raise ValueError(f'{source}={implementation!r} is no implementation of shuffle attention: '
                         f'use one of {", ".join(NAMES)}')
    if implementation != 'reference' and (refusal := _refusal(implementation, x)):
        raise RuntimeError(f'{source}={implementation!r} cannot be used: {refusal}')
    return implementation


def is_formula(x: Tensor, implementation: str | None = None) -> bool:
    """Whether ``x`` is computed by the formula, without the operators of torch.library.

    Raises:
        ValueError, RuntimeError: as ``choose``.
    """
    if torch.onnx.is_in_onnx_export():
        return True
    if HAS_OPERATOR and torch.compiler.is_compiling():
        return False
    if torch.jit.is_tracing() or x.is_meta or torch._C._are_functorch_transforms_active():
        return True
    return choose(x, implementation) == 'reference'


def is_eager(x: Tensor) -> bool:
    """Whether nothing looks at the operators that compute ``x``: no compiler, mode or subclass.

    Then a kernel may be called without PyTorch's dispatcher, which takes longer than the kernel
    where feature maps are small.
    """
    return (type(x) in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling()
            and not torch._C._len_torch_dispatch_stack())


def check_arguments(x: Tensor, parameters: tuple[Tensor, ...], groups: int) -> None:
    """Raise TypeError or ValueError unless the input and the six parameters fit each other."""
    check_floating('x', x)
    if x.dim() != 4:
        raise ValueError(f'x must be (N, C, H, W), got shape {tuple(x.shape)}')
    if 0 in x.shape[2:]:
        raise ValueError('x has planes without pixels, whose mean is not defined: H and W must be '
                         f'at least 1, got shape {tuple(x.shape)}')
    if type(groups) is not int and (type(groups) is bool or not isinstance(groups, Integral)):
        raise TypeError(f'groups must be an integer, got {groups!r}')
    if groups < 1 or x.shape[1] % (2 * groups):
        raise ValueError(f'x has {x.shape[1]} channels, which is not divisible by 2 * groups = '
                         f'{2 * groups}: choose another number of groups')
    p, device = x.shape[1] // (2 * groups), x.device
    for name, parameter in zip(PARAMETERS, parameters, strict=True):
        check_values(name, parameter, p, 'C / (2 * groups)', device)


def check_values(name: str, tensor: Tensor, count: int, meaning: str, device: torch.device) -> None:
    """Raise TypeError or ValueError unless ``tensor`` has ``count`` numbers on ``device``."""
    check_floating(name, tensor)
    if tensor.numel() != count:
        raise ValueError(f'{name} of shape {tuple(tensor.shape)} has not {meaning} = {count} '
                         'values')
    if tensor.device != device:
        raise ValueError(f'{name} must be on the device of the input, {device}, got '
                         f'{tensor.device}: move the module or the input by .to()')


def check_floating(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless ``tensor`` is one of a floating dtype."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f'{name} must be a floating point tensor, got {found}: convert it, by '
                        'torch.as_tensor(...).float() for example')


def _unavailable(name: str) -> str | None:
    if not HAS_OPERATOR:
        return f'it needs torch >= 2.4, this is {torch.__version__}'
    return FUSED[name].unavailable()


def _refusal(name: str, x: Tensor) -> str | None:
    """Why an implementation does not compute ``x``."""
    if not FUSED[name].takes_device(x.device):
        return f'it does not compute on {x.device}; without the name one is chosen for the tensor'
    if x.dtype not in FUSED[name].DTYPES:
        return f'it does not compute in {x.dtype}; without the name one is chosen for the tensor'
    return _unavailable(name)
