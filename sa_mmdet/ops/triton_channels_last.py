"""The kernels for channels_last tensors: (N, pixels, C) in memory.

A program takes some channels of a chunk of an image's pixels. The moments kernel takes all these
pixels at once, the others ROWS at a time. A middle kernel sums up what needs a whole plane. The
kernels are moments, statistics, output in the forward pass, and gradient_moments, gradient_sums,
gradient in the backward pass. Only moments is compiled for sizes, two sizes of chunks.

The shuffle interleaves the two halves of the channels. So a program takes CHANNELS neighbours of
each half and interleaves them when it reads z. From there on, its columns are in the order of the
output. So is ``affine``, which kernels leave for each other: (N, 8, C), the rows center, scale,
shift, slope, offset, mean_dlogit, linear, constant. The arithmetic is as in triton_kernels.

The kernels' arguments are the same as in triton_kernels, except that z, identity, y, out, dy, dz,
didentity are (N, pixels, C) without gaps. moments is float32, (N, chunks, 3, C) in the forward and
(N, chunks, 4, C) in the backward pass. The kernels that write it describe it. A chunk has
chunk_pixels pixels.
"""
import triton
import triton.language as tl

from .triton_kernels import (
    affine,
    gated,
    gradient,
    gradient_sums,
    load_statistics,
    mean_of,
    relu,
    shuffled,
    through,
)


@triton.jit
def _load(base, columns_exist, pixel, area, channels, ROWS: tl.constexpr):
    """Return pixels pixel ... pixel + ROWS of the channels at base."""
    rows = pixel + tl.arange(0, ROWS)
    return tl.load(base[None, :] + rows[:, None].to(tl.int64) * channels, other=0,
                   mask=(rows < area)[:, None] & columns_exist[None, :])


@triton.jit
def _store(values, base, columns_exist, pixel, area, channels, ROWS: tl.constexpr):
    rows = pixel + tl.arange(0, ROWS)
    tl.store(base[None, :] + rows[:, None].to(tl.int64) * channels, values,
             mask=(rows < area)[:, None] & columns_exist[None, :])


@triton.jit
def _load_shuffled(base, exist, pixel, area, channels, ROWS: tl.constexpr):
    """Return the channels at base, interleaved with the channels half of all channels further."""
    return tl.interleave(_load(base, exist, pixel, area, channels, ROWS),
                         _load(base + channels // 2, exist, pixel, area, channels, ROWS))


@triton.jit
def _place(program, channels, chunks, COLUMNS: tl.constexpr):
    """Return a program's image, chunk and first column.

    Neighbouring programs take the columns of the same pixels, so that what is read at one time is
    close together in memory.
    """
    blocks = tl.cdiv(channels, COLUMNS)
    chunk = program // blocks
    return (chunk // chunks).to(tl.int64), chunk % chunks, program % blocks * COLUMNS


@triton.jit
def _columns(start, channels, CHANNELS: tl.constexpr):
    """Return a program's channels in the first half and in the output, and which of them exist."""
    source = start // 2 + tl.arange(0, CHANNELS)
    column = start + tl.arange(0, 2 * CHANNELS)
    return source, column, source < channels // 2, column < channels


@triton.jit
def _store_affine(affine_ptr, n, column, exists, channels, center, scale, shift, slope, offset):
    affine_ptr += n * 8 * channels + column
    tl.store(affine_ptr, center, mask=exists)
    tl.store(affine_ptr + channels, scale, mask=exists)
    tl.store(affine_ptr + 2 * channels, shift, mask=exists)
    tl.store(affine_ptr + 3 * channels, slope, mask=exists)
    tl.store(affine_ptr + 4 * channels, offset, mask=exists)


@triton.jit
def _load_affine(affine_ptr, n, column, exists, channels):
    affine_ptr += n * 8 * channels + column
    center = tl.load(affine_ptr, mask=exists, other=0)[None, :]
    scale = tl.load(affine_ptr + channels, mask=exists, other=0)[None, :]
    shift = tl.load(affine_ptr + 2 * channels, mask=exists, other=0)[None, :]
    slope = tl.load(affine_ptr + 3 * channels, mask=exists, other=0)[None, :]
    offset = tl.load(affine_ptr + 4 * channels, mask=exists, other=0)[None, :]
    return center, scale, shift, slope, offset


@triton.jit(do_not_specialize=['area', 'chunks'])
def moments_kernel(z_ptr, moments_ptr, channels, area, chunks, CHUNK: tl.constexpr,
                   CHANNELS: tl.constexpr):
    """Write (N, chunks, 3, C): a center, and sums of deviations from it and of their squares."""
    n, chunk, start = _place(tl.program_id(0), channels, chunks, CHANNELS)
    c = start + tl.arange(0, CHANNELS)
    exists = c < channels
    pixel = chunk.to(tl.int64) * CHUNK
    pixels = tl.minimum(area - chunk * CHUNK, CHUNK)
    z_ptr += (n * area + pixel) * channels + c
    # As in triton_kernels: deviations from the mean, computed from deviations from one pixel.
    one = tl.load(z_ptr, mask=exists, other=0)
    rows = tl.arange(0, CHUNK)
    exist = (rows < pixels)[:, None]
    z = tl.load(z_ptr[None, :] + rows[:, None] * channels, mask=exist & exists[None, :],
                other=one[None, :]).to(tl.float32)
    one = one.to(tl.float32)
    center = one + mean_of(tl.sum(z - one[None, :], 0), pixels)
    deviation = tl.where(exist, z - center[None, :], 0.0)
    moments_ptr += (n * chunks + chunk) * 3 * channels + c
    tl.store(moments_ptr, center, mask=exists)
    tl.store(moments_ptr + channels, tl.sum(deviation, 0), mask=exists)
    tl.store(moments_ptr + 2 * channels, tl.sum(deviation * deviation, 0), mask=exists)


@triton.jit(do_not_specialize=['p', 'area', 'chunks', 'chunk_pixels'])
def statistics_kernel(
        moments_ptr, stats_ptr, affine_ptr, cweight_ptr, cbias_ptr, sweight_ptr, sbias_ptr,
        gn_weight_ptr, gn_bias_ptr, bn_weight_ptr, bn_bias_ptr, bn_mean_ptr, bn_variance_ptr,
        channels, p, area, chunks, chunk_pixels, eps, bn_eps, BATCH_NORM: tl.constexpr,
        CHUNKS: tl.constexpr, CHANNELS: tl.constexpr):
    """Write (N, C, 2), mean and variance of the planes, CHUNKS chunks at a time; and affine."""
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    exists = c < channels
    moments_ptr += n * chunks * 3 * channels + c
    first_center = tl.load(moments_ptr, mask=exists, other=0).to(tl.float64)
    total = tl.zeros([CHANNELS], tl.float64)
    squares = tl.zeros([CHANNELS], tl.float64)
    for first in range(0, chunks, CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)
        exist = (chunk < chunks)[:, None] & exists[None, :]
        at = moments_ptr[None, :] + (chunk * 3 * channels)[:, None]
        pixels = tl.minimum(area - chunk * chunk_pixels, chunk_pixels).to(tl.float64)[:, None]
        distance = tl.load(at, mask=exist, other=0).to(tl.float64) - first_center[None, :]
        distance = tl.where(exist, distance, 0.0)
        deviation = tl.load(at + channels, mask=exist, other=0).to(tl.float64)
        square = tl.load(at + 2 * channels, mask=exist, other=0).to(tl.float64)
        total += tl.sum(deviation + pixels * distance, 0)
        squares += tl.sum(square + distance * (2 * deviation + pixels * distance), 0)
    mean = total / area
    variance = squares / area - mean * mean
    mean += first_center
    variance = tl.where(variance < 0, 0.0, variance)
    stats_ptr += 2 * (n * channels + c)
    tl.store(stats_ptr, mean, mask=exists)
    tl.store(stats_ptr + 1, variance, mask=exists)
    center, _residual, scale, shift, slope, offset, _rstd, _bn_rstd, distance = affine(
        mean, variance, c, exists, p, eps, bn_eps, cweight_ptr, cbias_ptr, sweight_ptr, sbias_ptr,
        gn_weight_ptr, gn_bias_ptr, bn_weight_ptr, bn_bias_ptr, bn_mean_ptr, bn_variance_ptr,
        BATCH_NORM)
    _store_affine(affine_ptr, n, shuffled(c, channels), exists, channels, center, scale, shift,
                  slope, offset)


@triton.jit(do_not_specialize=['area', 'chunks', 'chunk_pixels'])
def output_kernel(
        z_ptr, identity_ptr, y_ptr, affine_ptr, channels, area, chunks, chunk_pixels,
        BATCH_NORM: tl.constexpr, ADD_RELU: tl.constexpr, ROWS: tl.constexpr,
        CHANNELS: tl.constexpr):
    """Write y. A program has CHANNELS neighbours of each half."""
    program = tl.num_programs(0) - 1 - tl.program_id(0)  # what was read last is in the cache
    n, chunk, start = _place(program, channels, chunks, 2 * CHANNELS)
    source, column, source_exists, exists = _columns(start, channels, CHANNELS)
    center, scale, shift, slope, offset = _load_affine(affine_ptr, n, column, exists, channels)
    z_ptr += n * area * channels + source
    y_ptr += n * area * channels + column
    if ADD_RELU:
        identity_ptr += n * area * channels + column
    for row in range(0, tl.maximum(chunk_pixels, ROWS), ROWS):  # once at least: saves registers
        pixel = chunk * chunk_pixels + row
        z = _load_shuffled(z_ptr, source_exists, pixel, area, channels, ROWS).to(tl.float32)
        x, gate, _complement, _deviation = gated(
            z, center, scale, shift, slope, offset, BATCH_NORM)
        if ADD_RELU:
            identity = _load(identity_ptr, exists, pixel, area, channels, ROWS).to(tl.float32)
            y = relu(tl.fma(x, gate, identity))
        else:
            y = x * gate
        _store(y, y_ptr, exists, pixel, area, channels, ROWS)


@triton.jit
def _source(column, channels):
    """Return the channels of z from which columns of the output come."""
    return column // 2 + column % 2 * (channels // 2)


@triton.jit(do_not_specialize=['p', 'area', 'chunks', 'chunk_pixels'])
def gradient_moments_kernel(
        dy_ptr, z_ptr, out_ptr, stats_ptr, didentity_ptr, moments_ptr, cweight_ptr, cbias_ptr,
        sweight_ptr, sbias_ptr, gn_weight_ptr, gn_bias_ptr, bn_weight_ptr, bn_bias_ptr, bn_mean_ptr,
        bn_variance_ptr, channels, p, area, chunks, chunk_pixels, eps, bn_eps,
        BATCH_NORM: tl.constexpr, ADD_RELU: tl.constexpr, INPUT_GRADIENT: tl.constexpr,
        ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Write didentity, and (N, chunks, 4, C): bias, weight, total and moment of gradient_sums.

    The latter are in the order of the output.
    """
    n, chunk, start = _place(tl.program_id(0), channels, chunks, 2 * CHANNELS)
    source, column, source_exists, exists = _columns(start, channels, CHANNELS)
    c = _source(column, channels)
    mean, variance = load_statistics(stats_ptr + 2 * (n * channels + c), exists)
    center, _residual, scale, shift, slope, offset, _rstd, _bn_rstd, _distance = affine(
        mean, variance, c, exists, p, eps, bn_eps, cweight_ptr, cbias_ptr, sweight_ptr, sbias_ptr,
        gn_weight_ptr, gn_bias_ptr, bn_weight_ptr, bn_bias_ptr, bn_mean_ptr, bn_variance_ptr,
        BATCH_NORM)
    center, scale, shift = center[None, :], scale[None, :], shift[None, :]
    slope, offset = slope[None, :], offset[None, :]
    z_ptr += n * area * channels + source
    dy_ptr += n * area * channels + column
    if ADD_RELU:
        out_ptr += n * area * channels + column
        if INPUT_GRADIENT:
            didentity_ptr += n * area * channels + column
    bias = tl.zeros([ROWS, 2 * CHANNELS], tl.float32)
    weight, total, moment = bias, bias, bias
    for row in range(0, tl.maximum(chunk_pixels, ROWS), ROWS):  # once at least: saves registers
        pixel = chunk * chunk_pixels + row
        dy = _load(dy_ptr, exists, pixel, area, channels, ROWS).to(tl.float32)
        if ADD_RELU:
            out = _load(out_ptr, exists, pixel, area, channels, ROWS).to(tl.float32)
            dy = tl.where(out <= 0, 0.0, dy)
            if INPUT_GRADIENT:
                _store(dy, didentity_ptr, exists, pixel, area, channels, ROWS)
        z = _load_shuffled(z_ptr, source_exists, pixel, area, channels, ROWS).to(tl.float32)
        direct, dlogit, deviation = through(
            dy, z, center, scale, shift, slope, offset, BATCH_NORM)
        bias += dlogit
        weight = tl.fma(dlogit, deviation, weight)
        if BATCH_NORM:
            total += direct
            moment = tl.fma(direct, deviation, moment)

    moments_ptr += (n * chunks + chunk) * 4 * channels + column
    tl.store(moments_ptr, tl.sum(bias, 0), mask=exists)
    tl.store(moments_ptr + channels, tl.sum(weight, 0), mask=exists)
    if BATCH_NORM:
        tl.store(moments_ptr + 2 * channels, tl.sum(total, 0), mask=exists)
        tl.store(moments_ptr + 3 * channels, tl.sum(moment, 0), mask=exists)


@triton.jit(do_not_specialize=['p', 'area', 'chunks'])
def gradient_sums_kernel(
        moments_ptr, stats_ptr, affine_ptr, sums_ptr, cweight_ptr, cbias_ptr, sweight_ptr,
        sbias_ptr, gn_weight_ptr, gn_bias_ptr, bn_weight_ptr, bn_bias_ptr, bn_mean_ptr,
        bn_variance_ptr, channels, p, area, chunks, eps, bn_eps, BATCH_NORM: tl.constexpr,
        CHUNKS: tl.constexpr, CHANNELS: tl.constexpr):
    """Write the sums for the parameters' gradients, and affine."""
    n = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    exists = column < channels
    moments_ptr += n * chunks * 4 * channels + column
    # summed up after the loop: Triton 3.0 and 3.1 abort on a sum with two uses in it
    bias = tl.zeros([CHUNKS, CHANNELS], tl.float32)
    weight, total, moment = bias, bias, bias
    for first in range(0, chunks, CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)
        exist = (chunk < chunks)[:, None] & exists[None, :]
        at = moments_ptr[None, :] + (chunk * 4 * channels)[:, None]
        bias += tl.load(at, mask=exist, other=0)
        weight += tl.load(at + channels, mask=exist, other=0)
        if BATCH_NORM:
            total += tl.load(at + 2 * channels, mask=exist, other=0)
            moment += tl.load(at + 3 * channels, mask=exist, other=0)

    c = _source(column, channels)
    plane = n * channels + c
    mean, variance = load_statistics(stats_ptr + 2 * plane, exists)
    center, residual, scale, shift, slope, offset, rstd, bn_rstd, distance = affine(
        mean, variance, c, exists, p, eps, bn_eps, cweight_ptr, cbias_ptr, sweight_ptr, sbias_ptr,
        gn_weight_ptr, gn_bias_ptr, bn_weight_ptr, bn_bias_ptr, bn_mean_ptr, bn_variance_ptr,
        BATCH_NORM)
    mean_dlogit, linear, constant = gradient_sums(
        tl.sum(bias, 0), tl.sum(weight, 0), tl.sum(total, 0), tl.sum(moment, 0),
        sums_ptr + (4 if BATCH_NORM else 2) * plane, c, exists, p, area, eps, residual, scale,
        shift, slope, rstd, bn_rstd, distance, cweight_ptr, BATCH_NORM)
    _store_affine(affine_ptr, n, column, exists, channels, center, scale, shift, slope, offset)
    affine_ptr += n * 8 * channels + column
    tl.store(affine_ptr + 5 * channels, mean_dlogit, mask=exists)
    tl.store(affine_ptr + 6 * channels, linear, mask=exists)
    tl.store(affine_ptr + 7 * channels, constant, mask=exists)


@triton.jit(do_not_specialize=['area', 'chunks', 'chunk_pixels'])
def gradient_kernel(
        dy_ptr, z_ptr, affine_ptr, dz_ptr, channels, area, chunks, chunk_pixels,
        BATCH_NORM: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    """Write dz. dy is didentity if there is one."""
    program = tl.num_programs(0) - 1 - tl.program_id(0)  # what was read last is in the cache
    n, chunk, start = _place(program, channels, chunks, 2 * CHANNELS)
    source, column, source_exists, exists = _columns(start, channels, CHANNELS)
    center, scale, shift, slope, offset = _load_affine(affine_ptr, n, column, exists, channels)
    affine_ptr += n * 8 * channels + column
    mean_dlogit = tl.load(affine_ptr + 5 * channels, mask=exists, other=0)[None, :]
    linear = tl.load(affine_ptr + 6 * channels, mask=exists, other=0)[None, :]
    constant = tl.load(affine_ptr + 7 * channels, mask=exists, other=0)[None, :]
    z_ptr += n * area * channels + source
    dz_ptr += n * area * channels + source
    dy_ptr += n * area * channels + column
    for row in range(0, tl.maximum(chunk_pixels, ROWS), ROWS):  # once at least: saves registers
        pixel = chunk * chunk_pixels + row
        dy = _load(dy_ptr, exists, pixel, area, channels, ROWS).to(tl.float32)
        z = _load_shuffled(z_ptr, source_exists, pixel, area, channels, ROWS).to(tl.float32)
        direct, dlogit, deviation = through(
            dy, z, center, scale, shift, slope, offset, BATCH_NORM)
        dz = gradient(direct, dlogit, deviation, scale, slope, mean_dlogit, linear, constant,
                      BATCH_NORM)
        first, second = tl.split(tl.reshape(dz, [ROWS, CHANNELS, 2]))
        _store(first, dz_ptr, source_exists, pixel, area, channels, ROWS)
        _store(second, dz_ptr + channels // 2, source_exists, pixel, area, channels, ROWS)
