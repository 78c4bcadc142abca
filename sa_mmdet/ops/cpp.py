"""The C++ implementation (csrc/): float32, float64, bfloat16 and float16 on CPU.

setup.py builds a library for each instruction set, ``_cpu_<capability>.so``. Loading it registers
``torch.ops.sa_mmdet.shuffle_attention_{forward,backward,gate}_<capability>``.
"""
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from .reference import BatchNorm, ChannelParameters, Parameters

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# the most demanding first
CAPABILITIES = ('avx512', 'avx2', 'default')

REMEDY = ('Install a C++ compiler, then run `SA_MMDET_BUILD=1 pip install --no-build-isolation '
          '--no-deps -e .` in the clone, which shows what fails.')


def library(name: str) -> Path:
    """Return the path of a capability's library, which only exists if it was built."""
    return Path(__file__).with_name(f'_cpu_{name}.so')


@cache
def capability() -> tuple[str | None, str | None]:
    """Return the capability whose library was loaded, or else why none was."""
    supported = torch.backends.cpu.get_cpu_capability().lower()
    first = CAPABILITIES.index(supported) if supported in CAPABILITIES else -1
    for name in CAPABILITIES[first:]:
        file = library(name)
        if file.exists():
            try:
                torch.ops.load_library(file)
            except OSError as error:
                return None, (f'{file.name} does not load: {error.__cause__ or error}. It was '
                              f'probably built for another torch than {torch.__version__}. '
                              f'{REMEDY}')
            return name, None
    return None, f'the C++ operator has not been built. {REMEDY}'


def unavailable(device: torch.device) -> str | None:
    """Return why this implementation cannot be used, or None if no reason is known."""
    return capability()[1]


def takes_device(device: torch.device) -> bool:
    """Return whether this implementation takes tensors on a device."""
    return device.type == 'cpu'


@cache
def operators() -> tuple[Callable, Callable, Callable]:
    """Return forward, backward and gate of the loaded library."""
    return operators_of(capability()[0])


@cache
def operators_of(name: str) -> tuple[Callable, Callable, Callable]:
    """Return forward, backward and gate of a capability whose library was loaded."""
    forward, backward, gate = (
        getattr(torch.ops.sa_mmdet, f'shuffle_attention_{kind}_{name}').default
        for kind in ('forward', 'backward', 'gate'))
    return forward, backward, gate


def forward(z: Tensor, identity: Tensor | None, batch_norm: BatchNorm | None,
            parameters: Parameters, groups: int, eps: float, bn_eps: float
            ) -> tuple[Tensor, Tensor]:
    """Compute what ``reference.forward`` does. A batch norm needs an identity."""
    return operators()[0](z, identity, batch_norm or [], parameters, groups, eps, bn_eps)


def backward(
        dout: Tensor, z: Tensor, out: Tensor | None, stats: Tensor, batch_norm: BatchNorm | None,
        parameters: Parameters, groups: int, eps: float, bn_eps: float,
        input_gradients: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute what ``reference.backward`` does."""
    return operators()[1](dout, z, out, stats, batch_norm or [], parameters, groups, eps, bn_eps,
                          input_gradients)


def gate_(z: Tensor, identity: Tensor | None, parameters: ChannelParameters, eps: float) -> Tensor:
    """Overwrite ``z`` with what ``sa_mmdet.ops.absorbed.gate`` makes of it, and return it."""
    operators()[2](z, identity, parameters, eps)
    return z
