"""The Triton kernels. A program does some planes, or streams a part of them through registers.

As in the C++ implementation every plane is gated by sigmoid(slope (x - center) + offset), with
slope 0 in the channel branch. The arithmetic is in float32; statistics and sums are stored in
float64, so that a mean comes back to the digits it was computed to.
"""
import triton
import triton.language as tl


@triton.jit
def _block(base, plane_exists, start, area, pixel_stride, BLOCK: tl.constexpr):
    """Pointers to elements start ... of the planes at base, and which of them exist."""
    pixel = start + tl.arange(0, BLOCK)
    exists = plane_exists[:, None] & (pixel < area)[None, :]
    return base[:, None] + (pixel.to(tl.int64) * pixel_stride)[None, :], exists


@triton.jit
def _load(pointers, exists, EVICTION: tl.constexpr):
    return tl.load(pointers, mask=exists, other=0, eviction_policy=EVICTION).to(tl.float32)


@triton.jit
def _parameter(pointer, index, exists):
    return tl.load(pointer + index, mask=exists, other=0).to(tl.float32)


@triton.jit
def _gate(c, exists, p, center, residual, rstd, cweight_ptr, cbias_ptr, sweight_ptr, sbias_ptr,
          gn_weight_ptr, gn_bias_ptr):
    """Slope and offset, for planes of channels c whose mean is center + residual."""
    index = c % p
    spatial = (c // p) % 2 == 1
    sweight = _parameter(sweight_ptr, index, exists)
    slope = sweight * _parameter(gn_weight_ptr, index, exists) * rstd
    shift = (sweight * _parameter(gn_bias_ptr, index, exists)
             + _parameter(sbias_ptr, index, exists) - slope * residual)
    constant = (_parameter(cweight_ptr, index, exists) * (center + residual)
                + _parameter(cbias_ptr, index, exists))
    return tl.where(spatial, slope, 0.0), tl.where(spatial, shift, constant)


@triton.jit
def _sigmoid(x, slope, center, offset):
    """The gate of x, 1 - gate without cancellation, and the deviation of x from the center."""
    deviation = x - center[:, None]
    z = slope[:, None] * deviation + offset[:, None]
    exponential = tl.exp(-tl.where(z < -87.0, -87.0, z))  # where, unlike maximum, keeps a NaN
    gate = 1.0 / (1.0 + exponential)
    return gate, exponential * gate, deviation


@triton.jit
def _shuffled(c, channels):
    return c % (channels // 2) * 2 + c // (channels // 2)


@triton.jit
def forward_kernel(
        x_ptr, y_ptr, stats_ptr, cweight_ptr, cbias_ptr, sweight_ptr, sbias_ptr, gn_weight_ptr,
        gn_bias_ptr, planes, channels, p, area, eps, x_n, x_c, x_pixel, y_n, y_c, y_pixel,
        PLANES: tl.constexpr, BLOCK: tl.constexpr, ONE_BLOCK: tl.constexpr):
    """Statistics and output of PLANES planes, read once if a plane is ONE_BLOCK, else twice.

    The second time they come from the L2 cache: the first pass asks to keep them there.
    """
    plane = tl.program_id(0).to(tl.int64) * PLANES + tl.arange(0, PLANES)
    plane_exists = plane < planes
    n, c = plane // channels, plane % channels
    from_ptr = x_ptr + n * x_n + c * x_c
    to_ptr = y_ptr + n * y_n + _shuffled(c, channels) * y_c

    # Sums of deviations from the first block's mean: the square of the plane's mean's distance to
    # it is at most area / BLOCK variances, so that little cancels below.
    pointers, exists = _block(from_ptr, plane_exists, 0, area, x_pixel, BLOCK)
    x = _load(pointers, exists, 'evict_last')
    first = tl.sum(x, 1) / tl.minimum(area, BLOCK)
    deviation = tl.where(exists, x - first[:, None], 0.0)
    total, squares = deviation, deviation * deviation
    if not ONE_BLOCK:
        for start in range(BLOCK, area, BLOCK):
            pointers, exists = _block(from_ptr, plane_exists, start, area, x_pixel, BLOCK)
            x = _load(pointers, exists, 'evict_last')
            deviation = tl.where(exists, x - first[:, None], 0.0)
            total += deviation
            squares += deviation * deviation
    delta = tl.sum(total, 1) / area
    variance = tl.sum(squares, 1) / area - delta * delta
    variance = tl.where(variance < 0, 0.0, variance)
    rstd = 1.0 / tl.sqrt(variance + eps)
    center = first + delta
    residual = (first - center) + delta

    mean = center.to(tl.float64) + residual.to(tl.float64)
    tl.store(stats_ptr + 2 * plane, mean, mask=plane_exists)
    tl.store(stats_ptr + 2 * plane + 1, rstd.to(tl.float64), mask=plane_exists)

    slope, offset = _gate(c, plane_exists, p, center, residual, rstd, cweight_ptr, cbias_ptr,
                          sweight_ptr, sbias_ptr, gn_weight_ptr, gn_bias_ptr)
    if ONE_BLOCK:
        pointers, exists = _block(to_ptr, plane_exists, 0, area, y_pixel, BLOCK)
        gate, _, _ = _sigmoid(x, slope, center, offset)
        tl.store(pointers, x * gate, mask=exists)
    else:
        for start in range(0, area, BLOCK):
            pointers, exists = _block(from_ptr, plane_exists, start, area, x_pixel, BLOCK)
            x = _load(pointers, exists, 'evict_first')
            gate, _, _ = _sigmoid(x, slope, center, offset)
            pointers, exists = _block(to_ptr, plane_exists, start, area, y_pixel, BLOCK)
            tl.store(pointers, x * gate, mask=exists, eviction_policy='evict_first')


@triton.jit
def backward_kernel(
        dy_ptr, x_ptr, stats_ptr, dx_ptr, sums_ptr, cweight_ptr, cbias_ptr, sweight_ptr, sbias_ptr,
        gn_weight_ptr, gn_bias_ptr, planes, channels, p, area, dy_n, dy_c, dy_pixel, x_n, x_c,
        x_pixel, dx_n, dx_c, dx_pixel, INPUT_GRADIENT: tl.constexpr, PLANES: tl.constexpr,
        BLOCK: tl.constexpr, ONE_BLOCK: tl.constexpr):
    """dx and the sums for the parameters' gradients, of PLANES planes.

    dx = dy s + slope (dz - mean dz - linear (x - center)) + constant, with dz = dy x s (1 - s);
    what cancels is subtracted first, before the slope can magnify it.
    """
    plane = tl.program_id(0).to(tl.int64) * PLANES + tl.arange(0, PLANES)
    plane_exists = plane < planes
    n, c = plane // channels, plane % channels
    x_ptr += n * x_n + c * x_c
    dy_ptr += n * dy_n + _shuffled(c, channels) * dy_c
    dx_ptr += n * dx_n + c * dx_c

    mean = tl.load(stats_ptr + 2 * plane, mask=plane_exists, other=0)
    rstd = tl.load(stats_ptr + 2 * plane + 1, mask=plane_exists, other=0).to(tl.float32)
    center = mean.to(tl.float32)
    residual = (mean - center.to(tl.float64)).to(tl.float32)
    slope, offset = _gate(c, plane_exists, p, center, residual, rstd, cweight_ptr, cbias_ptr,
                          sweight_ptr, sbias_ptr, gn_weight_ptr, gn_bias_ptr)

    pointers, exists = _block(x_ptr, plane_exists, 0, area, x_pixel, BLOCK)
    x = _load(pointers, exists, 'evict_last')
    pointers, exists = _block(dy_ptr, plane_exists, 0, area, dy_pixel, BLOCK)
    dy = _load(pointers, exists, 'evict_last')
    gate, complement, deviation = _sigmoid(x, slope, center, offset)
    dz = dy * x * (gate * complement)
    bias, weight = dz, dz * deviation
    if not ONE_BLOCK:
        for start in range(BLOCK, area, BLOCK):
            pointers, exists = _block(x_ptr, plane_exists, start, area, x_pixel, BLOCK)
            x = _load(pointers, exists, 'evict_last')
            pointers, exists = _block(dy_ptr, plane_exists, start, area, dy_pixel, BLOCK)
            dy = _load(pointers, exists, 'evict_last')
            gate, complement, deviation = _sigmoid(x, slope, center, offset)
            dz = dy * x * (gate * complement)
            bias += dz
            weight += dz * deviation
    bias, weight = tl.sum(bias, 1), tl.sum(weight, 1)
    weight = rstd * (weight - residual * bias)

    spatial = (c // p) % 2 == 1
    of_weight = tl.where(spatial, weight.to(tl.float64), bias.to(tl.float64) * mean)
    tl.store(sums_ptr + 2 * plane, of_weight, mask=plane_exists)
    tl.store(sums_ptr + 2 * plane + 1, bias.to(tl.float64), mask=plane_exists)

    if INPUT_GRADIENT:
        cweight = _parameter(cweight_ptr, c % p, plane_exists)
        linear = (rstd * weight / area)[:, None]
        mean_dz = (bias / area)[:, None] - linear * residual[:, None]
        constant = tl.where(spatial, 0.0, cweight * bias / area)[:, None]
        if ONE_BLOCK:
            dx = dy * gate + slope[:, None] * (dz - mean_dz - linear * deviation) + constant
            pointers, exists = _block(dx_ptr, plane_exists, 0, area, dx_pixel, BLOCK)
            tl.store(pointers, dx, mask=exists)
        else:
            for start in range(0, area, BLOCK):
                pointers, exists = _block(x_ptr, plane_exists, start, area, x_pixel, BLOCK)
                x = _load(pointers, exists, 'evict_first')
                pointers, exists = _block(dy_ptr, plane_exists, start, area, dy_pixel, BLOCK)
                dy = _load(pointers, exists, 'evict_first')
                gate, complement, deviation = _sigmoid(x, slope, center, offset)
                dz = dy * x * (gate * complement)
                dx = dy * gate + slope[:, None] * (dz - mean_dz - linear * deviation) + constant
                pointers, exists = _block(dx_ptr, plane_exists, start, area, dx_pixel, BLOCK)
                tl.store(pointers, dx, mask=exists, eviction_policy='evict_first')
