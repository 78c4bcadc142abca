"""The Triton implementation: float32, bfloat16 and float16 on CUDA, computed in float32.

Tested under Triton's interpreter: with TRITON_INTERPRET=1 at import it takes CPU tensors if forced.
Not run on a GPU yet, only compiled for one: neither its speed nor the choice of tiles below is
measured. A channels_last tensor gets 32 channels a program, which leaves most of a GPU idle where
there are few channels and images. Every program writes what is its own and the sums over planes are
PyTorch's: there is no atomic operation in whose order results could differ.
"""
import math
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
# Of a channels_last tensor a program takes COLUMNS channels of a chunk of pixels, a TILE at a time.
COLUMNS, CHUNK_ELEMENTS, TILE, TILE_ELEMENTS_A_WARP = 64, 16384, 1024, 256
# What chunks have in common is merged for so many channels, so many chunks at a time.
MERGED_CHANNELS, MERGED_CHUNKS = 16, 64


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
    layout = memory_format(z)
    y = torch.empty_like(z, memory_format=layout)
    stats = z.new_empty(*z.shape[:2], 2, dtype=torch.float64)
    if z.numel():
        z, identity = (_with_contiguous_planes(tensor, layout) for tensor in (z, identity))
        launch = _Launch(z, parameters, batch_norm, groups, eps, bn_eps)
        with torch.cuda.device_of(z):
            if layout == torch.channels_last:
                launch.forward_channels_last(z, identity, y, stats)
            else:
                launch.forward(z, identity, y, stats)
    return y, stats


def _backward(
        dy: Tensor, z: Tensor, out: Tensor | None, stats: Tensor,
        batch_norm: tuple[Tensor, ...] | None, parameters: tuple[Tensor, ...], groups: int,
        eps: float, bn_eps: float, input_gradient: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Of the attention, or of the tail where there is an ``out``."""
    layout, tail = memory_format(z), out is not None
    dz, didentity = (
        torch.empty_like(z, memory_format=layout) if wanted else z.new_empty(0)
        for wanted in (input_gradient, input_gradient and tail))
    columns = 4 if tail else 2
    if not z.numel():
        return dz, didentity, stats.new_zeros(*z.shape[:2], columns)
    new = stats.new_empty if batch_norm is not None or not tail else stats.new_zeros
    sums = new(*z.shape[:2], columns)
    dy, z, out = (_with_contiguous_planes(tensor, layout) for tensor in (dy, z, out))
    launch = _Launch(z, parameters, batch_norm, groups, eps, bn_eps)
    with torch.cuda.device_of(z):
        if layout == torch.channels_last:
            launch.backward_channels_last(dy, z, out, stats, dz, didentity, sums)
        else:
            launch.backward(dy, z, out, stats, dz, didentity, sums)
    return dz, didentity, sums


class _Launch:
    """Launches the kernels for tensors of one shape, with one set of parameters."""

    def __init__(self, z: Tensor, parameters: tuple[Tensor, ...],
                 batch_norm: tuple[Tensor, ...] | None, groups: int, eps: float, bn_eps: float):
        self.images, self.channels, h, w = z.shape
        self.area = h * w
        self.p = self.channels // (2 * groups)
        self.eps, self.bn_eps = eps, bn_eps
        self.parameters = [tensor.contiguous() for tensor in (*parameters, *(batch_norm or ()))]
        if batch_norm is None:
            self.parameters += [None] * 4
        # fusion would round differently what is written to cancel
        self.options = dict(BATCH_NORM=batch_norm is not None, enable_fp_fusion=False)

    def forward(self, z: Tensor, identity: Tensor | None, y: Tensor, stats: Tensor) -> None:
        from .triton_kernels import forward_kernel
        self._launch(forward_kernel, (z, identity, y, stats), (z, identity, y),
                     TAIL=identity is not None)

    def backward(self, dy: Tensor, z: Tensor, out: Tensor | None, stats: Tensor, dz: Tensor,
                 didentity: Tensor, sums: Tensor) -> None:
        from .triton_kernels import backward_kernel
        self._launch(backward_kernel, (dy, z, out, stats, dz, didentity, sums),
                     (dy, z, out, dz, didentity), TAIL=out is not None,
                     INPUT_GRADIENT=dz.numel() > 0)

    def _launch(self, kernel, tensors: tuple[Tensor | None, ...],
                strides_of: tuple[Tensor | None, ...], **constants) -> None:
        power = 1 << (self.area - 1).bit_length()
        block = min(power, BLOCK)
        planes = max(1, SHARED // block)
        strides = [stride for tensor in strides_of for stride in _strides(tensor)]
        unit = math.gcd(16, self.area, *strides)
        number = self.images * self.channels
        kernel[(-(-number // planes), )](
            *tensors, *self.parameters, number, self.channels, self.p, self.area, self.eps,
            self.bn_eps, *strides, **constants, **self.options, PLANES=planes, BLOCK=block,
            ONE_BLOCK=self.area <= block, UNIT=unit,
            num_warps=max(1, planes * block // ELEMENTS_A_WARP))

    def _plan_channels_last(self):
        """Pixels and columns that a program takes, and how many of either at a time."""
        columns = min(COLUMNS, 1 << (self.channels - 1).bit_length())
        rows = TILE // columns
        chunk = max(rows, min(CHUNK_ELEMENTS // columns, 1 << (self.area - 1).bit_length()))
        chunks = -(-self.area // chunk)
        grid = self.images * chunks, -(-self.channels // columns)
        tile = dict(CHUNK=chunk, ROWS=rows, num_warps=TILE // TILE_ELEMENTS_A_WARP)
        merge = dict(CHUNKS=min(MERGED_CHUNKS, 1 << (chunks - 1).bit_length()),
                     CHANNELS=MERGED_CHANNELS, num_warps=4)
        merge_grid = self.images, -(-self.channels // MERGED_CHANNELS)
        return columns, chunks, grid, tile, merge_grid, merge

    def forward_channels_last(self, z: Tensor, identity: Tensor | None, y: Tensor,
                              stats: Tensor) -> None:
        from . import triton_channels_last as kernels
        columns, chunks, grid, tile, merge_grid, merge = self._plan_channels_last()
        moments = z.new_empty(self.images * chunks * 3 * self.channels, dtype=torch.float32)
        affine = z.new_empty(self.images * 8 * self.channels, dtype=torch.float32)
        numbers = self.channels, self.area, chunks
        kernels.moments_kernel[grid](z, moments, *numbers, CHANNELS=columns, **tile,
                                     enable_fp_fusion=False)
        kernels.statistics_kernel[merge_grid](
            moments, stats, affine, *self.parameters, self.channels, self.p, self.area, chunks,
            self.eps, self.bn_eps, CHUNK=tile['CHUNK'], **merge, **self.options)
        kernels.output_kernel[grid](z, identity, y, affine, *numbers, TAIL=identity is not None,
                                    CHANNELS=columns // 2, **tile, **self.options)

    def backward_channels_last(self, dy: Tensor, z: Tensor, out: Tensor | None, stats: Tensor,
                               dz: Tensor, didentity: Tensor, sums: Tensor) -> None:
        from . import triton_channels_last as kernels
        columns, chunks, grid, tile, merge_grid, merge = self._plan_channels_last()
        moments = z.new_empty(self.images * chunks * 4 * self.channels, dtype=torch.float32)
        affine = z.new_empty(self.images * 8 * self.channels, dtype=torch.float32)
        numbers, tail = (self.channels, self.area, chunks), out is not None
        kernels.affine_kernel[merge_grid](
            stats, affine, *self.parameters, self.channels, self.p, self.eps, self.bn_eps,
            CHANNELS=merge['CHANNELS'], num_warps=1, **self.options)
        kernels.gradient_moments_kernel[grid](
            dy, z, out, affine, didentity, moments, *numbers, TAIL=tail,
            INPUT_GRADIENT=dz.numel() > 0, CHANNELS=columns // 2, **tile, **self.options)
        kernels.gradient_sums_kernel[merge_grid](
            moments, stats, affine, sums, *self.parameters, self.channels, self.p, self.area,
            chunks, self.eps, self.bn_eps, TAIL=tail, **merge, **self.options)
        if dz.numel():
            kernels.gradient_kernel[grid](
                didentity if tail else dy, z, affine, dz, *numbers, CHANNELS=columns // 2, **tile,
                **self.options)


def _with_contiguous_planes(x: Tensor | None, layout: torch.memory_format) -> Tensor | None:
    if x is None:
        return None
    h, w = x.shape[2:]
    rows = w == 1 or x.stride(3) == 1
    columns = h == 1 or x.stride(2) == w
    if layout == torch.contiguous_format and rows and columns:
        return x
    return x.contiguous(memory_format=layout)


def _strides(x: Tensor | None) -> tuple[int, int]:
    """Of image and channel; 0 where there is nothing to read or write."""
    return (0, 0) if x is None or not x.numel() else (x.stride(0), x.stride(1))
