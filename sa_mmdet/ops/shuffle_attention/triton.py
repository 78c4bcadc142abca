"""The Triton implementation: float32, bfloat16 and float16 on CUDA, computed in float32.

Tested under Triton's interpreter: with TRITON_INTERPRET=1 at import it takes CPU tensors if forced.
Not run on a GPU yet, only compiled for one: neither its speed nor the choice of tiles below is
measured. A channels_last tensor gets 32 channels a program, which leaves most of a GPU idle where
there are few channels and images. Every program writes what is its own and the sums over planes are
PyTorch's: there is no atomic operation in whose order results could differ.
"""
import os
from importlib.util import find_spec

import torch
from torch import Tensor

from .layout import memory_format
from .reference import gradients_of_sums

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'

# Elements of a plane that a program holds, 16 a thread. A plane up to this size is read once.
BLOCK = 8192
ELEMENTS_A_WARP = 512
# Planes smaller than this share a program.
SHARED = 2048
# Neighbouring channels of a channels_last tensor, which are read together, and pixels. 8 elements
# a thread: each has an address of its own.
CHANNELS, PIXELS = 32, 64
CHANNELS_LAST_ELEMENTS_A_WARP = 256


def unavailable() -> str | None:
    """Why this implementation cannot be used, None if it can."""
    if find_spec('triton') is None:
        return 'triton is not installed; it comes with torch for CUDA'
    if not (INTERPRETED or torch.cuda.is_available()):
        return 'there is no CUDA device'
    return None


def takes_device(device: torch.device) -> bool:
    """As ``cpu.takes_device``: CUDA, or the CPU in Triton's interpreter."""
    return device.type == ('cpu' if INTERPRETED else 'cuda')


def forward(x: Tensor, *parameters: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Output and statistics, as ``reference.reference_forward``."""
    return _forward(x, None, None, parameters, groups, eps, 0.)


def backward(dy: Tensor, x: Tensor, stats: Tensor, *parameters: Tensor, groups: int, eps: float,
             input_gradient: bool) -> tuple[Tensor, Tensor]:
    """dx and gradients, as ``cpu.backward``."""
    dx, _, sums = _backward(
        dy, x, None, stats, None, parameters, groups, eps, 0., input_gradient)
    return dx, gradients_of_sums(sums, groups, *parameters[2:])


def tail_forward(
        z: Tensor, identity: Tensor, batch_norm: tuple[Tensor, ...] | None, *parameters: Tensor,
        groups: int, eps: float, bn_eps: float) -> tuple[Tensor, Tensor]:
    """Output and statistics, as ``bottleneck_tail.reference.tail_forward``."""
    return _forward(z, identity, batch_norm, parameters, groups, eps, bn_eps)


def tail_backward(
        dout: Tensor, z: Tensor, out: Tensor, stats: Tensor, batch_norm: tuple[Tensor, ...] | None,
        *parameters: Tensor, groups: int, eps: float, bn_eps: float,
        input_gradients: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dz, didentity and gradients, as ``cpu.tail_backward``."""
    dz, didentity, sums = _backward(
        dout, z, out, stats, batch_norm, parameters, groups, eps, bn_eps, input_gradients)
    return (dz, didentity, sums[..., 2:].sum(0).t().contiguous(),
            gradients_of_sums(sums[..., :2], groups, *parameters[2:]))


def _forward(
        z: Tensor, identity: Tensor | None, batch_norm: tuple[Tensor, ...] | None,
        parameters: tuple[Tensor, ...], groups: int, eps: float,
        bn_eps: float) -> tuple[Tensor, Tensor]:
    """Of the attention, or of the tail where there is an ``identity``."""
    from .triton_kernels import forward_kernel
    layout = memory_format(z)
    y = torch.empty_like(z, memory_format=layout)
    stats = z.new_zeros(*z.shape[:2], 2, dtype=torch.float64)
    if z.numel():
        z, identity = (_with_contiguous_planes(tensor, layout) for tensor in (z, identity))
        _launch(forward_kernel, z, (z, identity, y, stats), parameters, batch_norm, groups, eps,
                bn_eps, strides_of=(z, identity, y), TAIL=identity is not None)
    return y, stats


def _backward(
        dy: Tensor, z: Tensor, out: Tensor | None, stats: Tensor,
        batch_norm: tuple[Tensor, ...] | None, parameters: tuple[Tensor, ...], groups: int,
        eps: float, bn_eps: float, input_gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Of the attention, or of the tail where there is an ``out``."""
    from .triton_kernels import backward_kernel
    layout, tail = memory_format(z), out is not None
    dz, didentity = (
        torch.empty_like(z, memory_format=layout) if wanted else z.new_empty(0)
        for wanted in (input_gradient, input_gradient and tail))
    sums = stats.new_zeros(*z.shape[:2], 4 if tail else 2)
    if z.numel():
        dy, z, out = (_with_contiguous_planes(tensor, layout) for tensor in (dy, z, out))
        _launch(backward_kernel, z, (dy, z, out, stats, dz, didentity, sums), parameters,
                batch_norm, groups, eps, bn_eps, strides_of=(dy, z, out, dz, didentity),
                TAIL=tail, INPUT_GRADIENT=input_gradient)
    return dz, didentity, sums


def _launch(kernel, z: Tensor, tensors: tuple[Tensor | None, ...], parameters: tuple[Tensor, ...],
            batch_norm: tuple[Tensor, ...] | None, groups: int, *numbers: float,
            strides_of: tuple[Tensor | None, ...], **constants) -> None:
    n, c, h, w = z.shape
    area = h * w
    power = 1 << (area - 1).bit_length()
    if memory_format(z) == torch.channels_last:
        planes, block = CHANNELS, min(power, PIXELS)
        warps = max(1, planes * block // CHANNELS_LAST_ELEMENTS_A_WARP)
    else:
        block = min(power, BLOCK)
        planes = max(1, SHARED // block)
        warps = max(1, planes * block // ELEMENTS_A_WARP)
    parameters = [tensor.contiguous() for tensor in (*parameters, *(batch_norm or ()))]
    if batch_norm is None:
        parameters += [None] * 4
    strides = [stride for tensor in strides_of for stride in _strides(tensor)]
    with torch.cuda.device_of(z):
        # fusion would round differently what is written to cancel
        kernel[(-(-n * c // planes), )](
            *tensors, *parameters, n * c, c, c // (2 * groups), area, *numbers, *strides,
            **constants, BATCH_NORM=batch_norm is not None, PLANES=planes, BLOCK=block,
            ONE_BLOCK=area <= block, num_warps=warps, enable_fp_fusion=False)


def _with_contiguous_planes(x: Tensor | None, layout: torch.memory_format) -> Tensor | None:
    if x is None:
        return None
    h, w = x.shape[2:]
    rows = w == 1 or x.stride(3) == 1
    columns = h == 1 or x.stride(2) == w
    if layout == torch.contiguous_format and rows and columns:
        return x
    return x.contiguous(memory_format=layout)


def _strides(x: Tensor | None) -> tuple[int, int, int]:
    """Of image, channel and pixel; 0 where there is nothing to read or write."""
    if x is None or not x.numel():
        return 0, 0, 0
    pixel = x.shape[1] if memory_format(x) == torch.channels_last else 1
    return x.stride(0), x.stride(1), pixel
