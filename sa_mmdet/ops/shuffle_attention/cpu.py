"""The C++ implementation (csrc/): float32, float64, bfloat16 and float16 on CPU.

There is a library for each instruction set, ``_cpu_<capability>.so``, which setup.py builds.
Loading one registers ``torch.ops.sa_mmdet.shuffle_attention_{forward,backward}_<capability>``.
"""
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# by what they need, the most first
CAPABILITIES = ('avx512', 'avx2', 'default')

HOW_TO_BUILD = ('Install sa_mmdet where torch and a C++ compiler are, by `SA_MMDET_BUILD=1 pip '
                'install --no-build-isolation --no-deps -e .`, which shows what fails.')


def library(name: str) -> Path:
    """The file that a capability is compiled to; it exists where it was built."""
    return Path(__file__).with_name(f'_cpu_{name}.so')


@cache
def capability() -> tuple[str | None, str | None]:
    """The capability whose library was loaded, or else the reason why none was."""
    supported = torch.backends.cpu.get_cpu_capability().lower()
    first = CAPABILITIES.index(supported) if supported in CAPABILITIES else -1
    for name in CAPABILITIES[first:]:
        file = library(name)
        if file.exists():
            try:
                torch.ops.load_library(file)
            except OSError as error:
                return None, (f'{file.name} does not load, it was probably built for another torch '
                              f'than {torch.__version__}: {error.__cause__ or error}. '
                              f'{HOW_TO_BUILD}')
            return name, None
    return None, f'the C++ operator has not been built. {HOW_TO_BUILD}'


def unavailable() -> str | None:
    """Why this implementation cannot be used, None if it can."""
    return capability()[1]


def takes_device(device: torch.device) -> bool:
    """Whether tensors of a device are computed here."""
    return device.type == 'cpu'


def operators() -> tuple[Callable, Callable]:
    """Forward and backward of the loaded library."""
    return operators_of(capability()[0])


@cache
def operators_of(name: str) -> tuple[Callable, Callable]:
    """Forward and backward of a capability whose library was loaded."""
    return (getattr(torch.ops.sa_mmdet, f'shuffle_attention_forward_{name}').default,
            getattr(torch.ops.sa_mmdet, f'shuffle_attention_backward_{name}').default)


def forward(x: Tensor, *parameters: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Output and statistics, as ``reference.reference_forward``."""
    return operators()[0](x, None, [], parameters, groups, eps, 0.)


def backward(dy: Tensor, x: Tensor, stats: Tensor, *parameters: Tensor, groups: int, eps: float,
             input_gradient: bool) -> tuple[Tensor, Tensor]:
    """dx, empty without ``input_gradient``, and (6, p) gradients of the parameters in float64."""
    dx, _, _, gradients = operators()[1](
        dy, x, None, stats, [], parameters, groups, eps, 0., input_gradient)
    return dx, gradients


def tail_forward(z: Tensor, identity: Tensor, batch_norm: tuple[Tensor, ...] | None,
                 *parameters: Tensor, groups: int, eps: float, bn_eps: float
                 ) -> tuple[Tensor, Tensor]:
    """Output and statistics, as ``bottleneck_tail.reference.tail_forward``."""
    return operators()[0](z, identity, batch_norm or [], parameters, groups, eps, bn_eps)


def tail_backward(dout: Tensor, z: Tensor, out: Tensor, stats: Tensor,
                  batch_norm: tuple[Tensor, ...] | None, *parameters: Tensor, groups: int,
                  eps: float, bn_eps: float, input_gradients: bool
                  ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dz and didentity, empty without ``input_gradients``, and gradients in float64.

    These are (2, C), of the batch norm's weight and bias, and (6, p), of the parameters.
    """
    return operators()[1](dout, z, out, stats, batch_norm or [], parameters, groups, eps, bn_eps,
                          input_gradients)
