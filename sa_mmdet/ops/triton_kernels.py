"""The Triton kernels. A program holds some planes, or streams one plane through registers.

The input is z. A batch norm turns it into x = scale (z - center) + shift. Without one, x is z. As
in the C++ implementation, every plane is gated by sigmoid(slope (x - shift) + offset), with slope 0
in the channel branch. With ADD_RELU, the identity is added and a ReLU follows. The arithmetic is in
float32. Statistics and sums are stored in float64, so that a mean keeps all its digits.

Arguments of the kernels, with p = C / (2 groups) and area = H W:

- z, identity, y, out, dy, dz, didentity: (N, C, H, W); planes of contiguous pixels, whose strides
  are <name>_n and <name>_c, in elements
- stats: (N, C, 2) float64, mean and biased variance of the planes of z
- sums: (N, C, 4) float64, or (N, C, 2) without a batch norm: what add_up_kernel adds up
- cweight, cbias, sweight, sbias, gn_weight, gn_bias: (p,); bn_weight, bn_bias, bn_mean,
  bn_variance: (C,); of any floating dtype
- planes = N C, channels = C
"""
import triton
import triton.language as tl

from .triton_launch import INTERPRETED as _INTERPRETED

INTERPRETED = tl.constexpr(_INTERPRETED)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _exist(plane_exists, start, area, BLOCK: tl.constexpr):
    """Return whether the elements start ... start + BLOCK exist in the planes."""
    return plane_exists[:, None] & (start + tl.arange(0, BLOCK) < area)[None, :]


@triton.jit
def _pointers(base, start, BLOCK: tl.constexpr):
    """Return pointers to those elements of the planes at base."""
    return (base + start)[:, None] + tl.arange(0, BLOCK)[None, :]


@triton.jit
def _read(base, plane_exists, start, area, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
          EVICTION: tl.constexpr):
    """Return those elements. WHOLE says that all of them exist."""
    pointers = _pointers(base, start, BLOCK)
    if WHOLE:
        values = tl.load(pointers, eviction_policy=EVICTION)
    else:
        values = tl.load(pointers, mask=_exist(plane_exists, start, area, BLOCK), other=0,
                         eviction_policy=EVICTION)
    return values.to(tl.float32)


@triton.jit
def _write(values, base, plane_exists, start, area, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
           EVICTION: tl.constexpr):
    pointers = _pointers(base, start, BLOCK)
    if WHOLE:
        tl.store(pointers, values, eviction_policy=EVICTION)
    else:
        tl.store(pointers, values, mask=_exist(plane_exists, start, area, BLOCK),
                 eviction_policy=EVICTION)


@triton.jit
def _folded(values, SUMS: tl.constexpr):
    """Return SUMS sums of a plane's values, each over values that one thread holds."""
    if values.shape[1] == SUMS:
        return values
    return tl.sum(tl.reshape(values, [values.shape[0], values.shape[1] // SUMS, SUMS]), 1)


@triton.jit
def _parameter(pointer, index, exists):
    return tl.load(pointer + index, mask=exists, other=0).to(tl.float32)


@triton.jit
def _batch_norm(c, exists, center, eps, weight_ptr, bias_ptr, mean_ptr, variance_ptr,
                BATCH_NORM: tl.constexpr):
    """Return scale, shift, 1 / deviation, and the center's distance from the running mean."""
    if BATCH_NORM:
        rstd = 1.0 / tl.sqrt(_parameter(variance_ptr, c, exists) + eps)
        distance = center - _parameter(mean_ptr, c, exists)
        scale = _parameter(weight_ptr, c, exists) * rstd
        shift = scale * distance + _parameter(bias_ptr, c, exists)
    else:
        rstd = tl.full(center.shape, 1.0, tl.float32)
        distance, scale, shift = center, rstd, center
    return scale, shift, rstd, distance


@triton.jit
def _gate(c, exists, p, center, residual, rstd, cweight_ptr, cbias_ptr, sweight_ptr, sbias_ptr,
          gn_weight_ptr, gn_bias_ptr):
    """Return slope and offset for planes of channels c whose mean is center + residual."""
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
def load_statistics(stats_ptr, exists):
    """Return mean and variance, float64."""
    return (tl.load(stats_ptr, mask=exists, other=0),
            tl.load(stats_ptr + 1, mask=exists, other=0))


@triton.jit
def affine(
        mean, variance, c, exists, p, eps, bn_eps, cweight_ptr, cbias_ptr, sweight_ptr, sbias_ptr,
        gn_weight_ptr, gn_bias_ptr, bn_weight_ptr, bn_bias_ptr, bn_mean_ptr, bn_variance_ptr,
        BATCH_NORM: tl.constexpr):
    """Return how the mean and variance (float64) of planes of channels c transform z.

    These are the center of the deviations, and the mean's distance from it; scale and shift, which
    make x; slope and offset, which make the gate's logit; 1 / deviation of x and of the batch norm;
    and the center's distance from the running mean.
    """
    center, variance = mean.to(tl.float32), variance.to(tl.float32)
    residual = (mean - center.to(tl.float64)).to(tl.float32)
    scale, shift, bn_rstd, distance = _batch_norm(
        c, exists, center, bn_eps, bn_weight_ptr, bn_bias_ptr, bn_mean_ptr, bn_variance_ptr,
        BATCH_NORM)
    rstd = 1.0 / tl.sqrt(scale * scale * variance + eps)
    slope, offset = _gate(c, exists, p, shift, scale * residual, rstd, cweight_ptr, cbias_ptr,
                          sweight_ptr, sbias_ptr, gn_weight_ptr, gn_bias_ptr)
    return center, residual, scale, shift, slope, offset, rstd, bn_rstd, distance


@triton.jit
def _reciprocal(x):
    """Return 1 / x to one unit, for x from 1 to 2^126. Division takes five more instructions."""
    if INTERPRETED:
        return 1.0 / x
    return tl.inline_asm_elementwise('rcp.approx.ftz.f32 $0, $1;', '=f,f', [x], dtype=tl.float32,
                                     is_pure=True, pack=1)


@triton.jit
def gated(z, center, scale, shift, slope, offset, BATCH_NORM: tl.constexpr):
    """Return x, its gate, 1 - gate without cancellation, and z's deviation from the center."""
    deviation = z - center
    # Constants second: to the interpreter of Triton 3.7 a constexpr times a tensor is a constexpr.
    power = tl.fma(slope * -LOG2_E * scale, deviation, offset * -LOG2_E)
    # A power of 2, limited so that the gate is not 0. NaN stays NaN.
    power = tl.minimum(power, 125.5, propagate_nan=tl.PropagateNan.ALL)
    exponential = tl.exp2(power)
    gate = _reciprocal(1.0 + exponential)
    x = z
    if BATCH_NORM:
        x = tl.fma(scale, deviation, shift)
    return x, gate, exponential * gate, deviation


@triton.jit
def relu(x):
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def shuffled(c, channels):
    return c % (channels // 2) * 2 + c // (channels // 2)


@triton.jit
def mean_of(total, count):
    """Return the mean, rounded to nearest. A slope may magnify the two units of error of `/`."""
    return tl.div_rn(total, count.to(tl.float32) + tl.zeros_like(total))


@triton.jit
def _add_moments(total, squares, first, z_ptr, plane_exists, start, area, SUMS: tl.constexpr,
                 BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    """Return the sums of the deviations from first and of their squares, with one more block."""
    z = _read(z_ptr, plane_exists, start, area, BLOCK, WHOLE, 'evict_last')
    deviation = z - first[:, None]
    if not WHOLE:
        deviation = tl.where(_exist(plane_exists, start, area, BLOCK), deviation, 0.0)
    return total + _folded(deviation, SUMS), squares + _folded(deviation * deviation, SUMS)


@triton.jit
def _statistics(z, z_ptr, plane_exists, area, SUMS: tl.constexpr, BLOCK: tl.constexpr,
                ONE_BLOCK: tl.constexpr):
    """Return the mean, as center + residual, and variance of the planes whose first block is z."""
    # Sum deviations from the first block's mean. Its squared distance from the plane's mean is at
    # most area / BLOCK variances, so little cancels below.
    # Compute it from deviations from one element: a constant plane then leaves nothing to round.
    exist = _exist(plane_exists, 0, area, BLOCK)
    one = tl.load(z_ptr, mask=plane_exists, other=0).to(tl.float32)
    first = one + mean_of(tl.sum(tl.where(exist, z - one[:, None], 0.0), 1),
                          tl.minimum(area, BLOCK))
    deviation = tl.where(exist, z - first[:, None], 0.0)
    total, squares = _folded(deviation, SUMS), _folded(deviation * deviation, SUMS)
    if not ONE_BLOCK:
        rest = area // BLOCK * BLOCK
        for start in range(BLOCK, rest, BLOCK):
            total, squares = _add_moments(total, squares, first, z_ptr, plane_exists, start, area,
                                          SUMS, BLOCK, True)
        if rest < area:
            total, squares = _add_moments(total, squares, first, z_ptr, plane_exists, rest, area,
                                          SUMS, BLOCK, False)
    delta = mean_of(tl.sum(total, 1), area)
    variance = mean_of(tl.sum(squares, 1), area) - delta * delta
    center = first + delta
    return center, (first - center) + delta, tl.where(variance < 0, 0.0, variance)


@triton.jit
def _write_output(
        z, identity_ptr, y_ptr, plane_exists, start, area, center, scale, shift, slope, offset,
        ADD_RELU: tl.constexpr, BATCH_NORM: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
        EVICTION: tl.constexpr):
    x, gate, _, _ = gated(z, center[:, None], scale[:, None], shift[:, None], slope[:, None],
                          offset[:, None], BATCH_NORM)
    if ADD_RELU:
        identity = _read(identity_ptr, plane_exists, start, area, BLOCK, WHOLE, EVICTION)
        y = relu(tl.fma(x, gate, identity))
    else:
        y = x * gate
    _write(y, y_ptr, plane_exists, start, area, BLOCK, WHOLE, EVICTION)


@triton.jit(do_not_specialize=['planes', 'p', 'area', 'z_n', 'z_c', 'identity_n', 'identity_c',
                               'y_n', 'y_c'])
def forward_kernel(
        z_ptr, identity_ptr, y_ptr, stats_ptr, cweight_ptr, cbias_ptr, sweight_ptr, sbias_ptr,
        gn_weight_ptr, gn_bias_ptr, bn_weight_ptr, bn_bias_ptr, bn_mean_ptr, bn_variance_ptr,
        planes, channels, p, area, eps, bn_eps, z_n, z_c, identity_n, identity_c,
        y_n, y_c, BATCH_NORM: tl.constexpr, ADD_RELU: tl.constexpr, UNIT: tl.constexpr,
        PLANES: tl.constexpr, SUMS: tl.constexpr, BLOCK: tl.constexpr, ONE_BLOCK: tl.constexpr):
    """Write statistics and output of PLANES planes, read once if ONE_BLOCK, else twice.

    The second time, they come from the L2 cache. The first pass asks to keep them there.
    """
    tl.static_assert(ONE_BLOCK or PLANES == 1, 'blocks that lie whole in a plane have no mask')
    plane = tl.program_id(0).to(tl.int64) * PLANES + tl.arange(0, PLANES)
    plane_exists = plane < planes
    n, c = plane // channels, plane % channels
    column = shuffled(c, channels)
    area = area // UNIT * UNIT  # shows the compiler how wide accesses may be
    z_ptr += tl.multiple_of(n * z_n + c * z_c, UNIT)
    y_ptr += tl.multiple_of(n * y_n + column * y_c, UNIT)
    if ADD_RELU:
        identity_ptr += tl.multiple_of(n * identity_n + column * identity_c, UNIT)

    z = _read(z_ptr, plane_exists, 0, area, BLOCK, not ONE_BLOCK, 'evict_last')
    center, residual, variance = _statistics(z, z_ptr, plane_exists, area, SUMS, BLOCK, ONE_BLOCK)
    mean = center.to(tl.float64) + residual.to(tl.float64)
    tl.store(stats_ptr + 2 * plane, mean, mask=plane_exists)
    tl.store(stats_ptr + 2 * plane + 1, variance.to(tl.float64), mask=plane_exists)

    scale, shift, _, _ = _batch_norm(c, plane_exists, center, bn_eps, bn_weight_ptr, bn_bias_ptr,
                                     bn_mean_ptr, bn_variance_ptr, BATCH_NORM)
    rstd = 1.0 / tl.sqrt(scale * scale * variance + eps)
    slope, offset = _gate(c, plane_exists, p, shift, scale * residual, rstd, cweight_ptr,
                          cbias_ptr, sweight_ptr, sbias_ptr, gn_weight_ptr, gn_bias_ptr)
    if ONE_BLOCK:
        _write_output(z, identity_ptr, y_ptr, plane_exists, 0, area, center, scale, shift, slope,
                      offset, ADD_RELU, BATCH_NORM, BLOCK, False, '')
    else:
        rest = area // BLOCK * BLOCK
        if rest < area:
            z = _read(z_ptr, plane_exists, rest, area, BLOCK, False, 'evict_first')
            _write_output(z, identity_ptr, y_ptr, plane_exists, rest, area, center, scale, shift,
                          slope, offset, ADD_RELU, BATCH_NORM, BLOCK, False, 'evict_first')
        for done in range(BLOCK, rest + BLOCK, BLOCK):
            start = rest - done
            z = _read(z_ptr, plane_exists, start, area, BLOCK, True, 'evict_first')
            _write_output(z, identity_ptr, y_ptr, plane_exists, start, area, center, scale, shift,
                          slope, offset, ADD_RELU, BATCH_NORM, BLOCK, True, 'evict_first')


@triton.jit
def through(dy, z, center, scale, shift, slope, offset, BATCH_NORM: tl.constexpr):
    """Return what goes to x directly, what goes to the gate's logit, and z's deviation."""
    x, gate, complement, deviation = gated(z, center, scale, shift, slope, offset, BATCH_NORM)
    direct = dy * gate
    return direct, direct * (x * complement), deviation


@triton.jit
def gradient_sums(
        bias, weight, total, moment, sums_ptr, c, exists, p, area, eps, residual, scale, shift,
        slope, rstd, bn_rstd, distance, cweight_ptr, BATCH_NORM: tl.constexpr):
    """Store the sums for the parameters' gradients, and return what dz needs of them.

    bias and weight are a plane's sums of dlogit and of dlogit times the deviation. total and moment
    are the same sums of what goes to x directly.
    """
    dlogit_dot_deviation = weight - residual * bias
    weight = rstd * scale * dlogit_dot_deviation

    spatial = (c // p) % 2 == 1
    mean = shift.to(tl.float64) + (scale * residual).to(tl.float64)
    of_weight = tl.where(spatial, weight.to(tl.float64), bias.to(tl.float64) * mean)
    tl.store(sums_ptr, of_weight, mask=exists)
    tl.store(sums_ptr + 1, bias.to(tl.float64), mask=exists)

    through_mean = tl.where(spatial, 0.0, _parameter(cweight_ptr, c % p, exists) * bias)
    if BATCH_NORM:
        total += through_mean
        through_norm = slope * (eps * rstd * rstd) * dlogit_dot_deviation
        moment += residual * through_mean + through_norm
        of_weight = bn_rstd * (moment + distance * total)
        tl.store(sums_ptr + 2, of_weight.to(tl.float64), mask=exists)
        tl.store(sums_ptr + 3, total.to(tl.float64), mask=exists)
    linear = mean_of(rstd * scale * weight, area)
    return mean_of(bias, area) - linear * residual, linear, mean_of(through_mean, area)


@triton.jit
def gradient(direct, dlogit, deviation, scale, slope, mean_dlogit, linear, constant,
             BATCH_NORM: tl.constexpr):
    """Return dz from what ``through`` and ``gradient_sums`` return."""
    # what cancels is subtracted first, before the slope can magnify it
    through_norm = tl.fma(-linear, deviation, dlogit - mean_dlogit)
    dz = tl.fma(slope, through_norm, direct) + constant
    if BATCH_NORM:
        dz *= scale
    return dz


@triton.jit
def _read_through(
        dy_ptr, z_ptr, out_ptr, didentity_ptr, plane_exists, start, area, center, scale, shift,
        slope, offset, ADD_RELU: tl.constexpr, BATCH_NORM: tl.constexpr,
        INPUT_GRADIENT: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr,
        EVICTION: tl.constexpr):
    """Do ``through`` for a block. With ADD_RELU, also write didentity."""
    z = _read(z_ptr, plane_exists, start, area, BLOCK, WHOLE, EVICTION)
    dy = _read(dy_ptr, plane_exists, start, area, BLOCK, WHOLE, EVICTION)
    if ADD_RELU:
        out = _read(out_ptr, plane_exists, start, area, BLOCK, WHOLE, 'evict_first')
        dy = tl.where(out <= 0, 0.0, dy)
        if INPUT_GRADIENT:
            _write(dy, didentity_ptr, plane_exists, start, area, BLOCK, WHOLE, '')
    return through(dy, z, center[:, None], scale[:, None], shift[:, None], slope[:, None],
                   offset[:, None], BATCH_NORM)


@triton.jit
def _add_gradient_moments(
        bias, weight, total, moment, dy_ptr, z_ptr, out_ptr, didentity_ptr, plane_exists, start,
        area, center, scale, shift, slope, offset, ADD_RELU: tl.constexpr, BATCH_NORM: tl.constexpr,
        INPUT_GRADIENT: tl.constexpr, SUMS: tl.constexpr, BLOCK: tl.constexpr,
        WHOLE: tl.constexpr):
    """Return the four sums, before they are summed over lanes, with one more block."""
    direct, dlogit, deviation = _read_through(
        dy_ptr, z_ptr, out_ptr, didentity_ptr, plane_exists, start, area, center, scale, shift,
        slope, offset, ADD_RELU, BATCH_NORM, INPUT_GRADIENT, BLOCK, WHOLE, 'evict_last')
    return (bias + _folded(dlogit, SUMS), weight + _folded(dlogit * deviation, SUMS),
            total + _folded(direct, SUMS), moment + _folded(direct * deviation, SUMS))


@triton.jit
def _write_gradient(
        dy_ptr, z_ptr, dz_ptr, plane_exists, start, area, center, scale, shift, slope, offset,
        mean_dlogit, linear, constant, BATCH_NORM: tl.constexpr, BLOCK: tl.constexpr,
        WHOLE: tl.constexpr):
    """Write dz of a block. dy is the gradient of the attention's output."""
    direct, dlogit, deviation = _read_through(
        dy_ptr, z_ptr, None, None, plane_exists, start, area, center, scale, shift, slope, offset,
        False, BATCH_NORM, False, BLOCK, WHOLE, 'evict_first')
    dz = gradient(direct, dlogit, deviation, scale[:, None], slope[:, None], mean_dlogit[:, None],
                  linear[:, None], constant[:, None], BATCH_NORM)
    _write(dz, dz_ptr, plane_exists, start, area, BLOCK, WHOLE, 'evict_first')


@triton.jit(do_not_specialize=['planes', 'p', 'area', 'dy_n', 'dy_c', 'z_n', 'z_c', 'out_n',
                               'out_c', 'dz_n', 'dz_c', 'didentity_n', 'didentity_c'])
def backward_kernel(
        dy_ptr, z_ptr, out_ptr, stats_ptr, dz_ptr, didentity_ptr, sums_ptr, cweight_ptr, cbias_ptr,
        sweight_ptr, sbias_ptr, gn_weight_ptr, gn_bias_ptr, bn_weight_ptr, bn_bias_ptr, bn_mean_ptr,
        bn_variance_ptr, planes, channels, p, area, eps, bn_eps, dy_n, dy_c, z_n, z_c, out_n, out_c,
        dz_n, dz_c, didentity_n, didentity_c, BATCH_NORM: tl.constexpr, ADD_RELU: tl.constexpr,
        INPUT_GRADIENT: tl.constexpr, UNIT: tl.constexpr, PLANES: tl.constexpr,
        SUMS: tl.constexpr, BLOCK: tl.constexpr, ONE_BLOCK: tl.constexpr):
    """Write dz, didentity and the sums for the parameters' gradients, of PLANES planes.

    dx = dy s + slope (dlogit - mean dlogit - linear (z - center)) + constant, and dz = scale dx,
    with dlogit = dy x s (1 - s).
    """
    tl.static_assert(ONE_BLOCK or PLANES == 1, 'blocks that lie whole in a plane have no mask')
    plane = tl.program_id(0).to(tl.int64) * PLANES + tl.arange(0, PLANES)
    plane_exists = plane < planes
    n, c = plane // channels, plane % channels
    column = shuffled(c, channels)
    area = area // UNIT * UNIT
    z_ptr += tl.multiple_of(n * z_n + c * z_c, UNIT)
    dy_ptr += tl.multiple_of(n * dy_n + column * dy_c, UNIT)
    if ADD_RELU:
        out_ptr += tl.multiple_of(n * out_n + column * out_c, UNIT)
    if INPUT_GRADIENT:
        dz_ptr += tl.multiple_of(n * dz_n + c * dz_c, UNIT)
        if ADD_RELU:
            didentity_ptr += tl.multiple_of(n * didentity_n + column * didentity_c, UNIT)

    mean, variance = load_statistics(stats_ptr + 2 * plane, plane_exists)
    center, residual, scale, shift, slope, offset, rstd, bn_rstd, distance = affine(
        mean, variance, c, plane_exists, p, eps, bn_eps, cweight_ptr, cbias_ptr, sweight_ptr,
        sbias_ptr, gn_weight_ptr, gn_bias_ptr, bn_weight_ptr, bn_bias_ptr, bn_mean_ptr,
        bn_variance_ptr, BATCH_NORM)

    direct, dlogit, deviation = _read_through(
        dy_ptr, z_ptr, out_ptr, didentity_ptr, plane_exists, 0, area, center, scale, shift, slope,
        offset, ADD_RELU, BATCH_NORM, INPUT_GRADIENT, BLOCK, not ONE_BLOCK, 'evict_last')
    bias, weight = _folded(dlogit, SUMS), _folded(dlogit * deviation, SUMS)
    total, moment = _folded(direct, SUMS), _folded(direct * deviation, SUMS)
    rest = area // BLOCK * BLOCK
    if not ONE_BLOCK:
        for start in range(BLOCK, rest, BLOCK):
            bias, weight, total, moment = _add_gradient_moments(
                bias, weight, total, moment, dy_ptr, z_ptr, out_ptr, didentity_ptr, plane_exists,
                start, area, center, scale, shift, slope, offset, ADD_RELU, BATCH_NORM,
                INPUT_GRADIENT, SUMS, BLOCK, True)
        if rest < area:
            bias, weight, total, moment = _add_gradient_moments(
                bias, weight, total, moment, dy_ptr, z_ptr, out_ptr, didentity_ptr, plane_exists,
                rest, area, center, scale, shift, slope, offset, ADD_RELU, BATCH_NORM,
                INPUT_GRADIENT, SUMS, BLOCK, False)
    mean_dlogit, linear, constant = gradient_sums(
        tl.sum(bias, 1), tl.sum(weight, 1), tl.sum(total, 1), tl.sum(moment, 1),
        sums_ptr + (4 if BATCH_NORM else 2) * plane, c, plane_exists, p, area, eps, residual, scale,
        shift, slope, rstd, bn_rstd, distance, cweight_ptr, BATCH_NORM)

    if INPUT_GRADIENT:
        if ONE_BLOCK:
            dz = gradient(direct, dlogit, deviation, scale[:, None], slope[:, None],
                          mean_dlogit[:, None], linear[:, None], constant[:, None], BATCH_NORM)
            _write(dz, dz_ptr, plane_exists, 0, area, BLOCK, False, '')
        else:
            if ADD_RELU:  # read back what was written above, not the two tensors it is made of
                tl.debug_barrier()
                dy_ptr = didentity_ptr
            if rest < area:
                _write_gradient(
                    dy_ptr, z_ptr, dz_ptr, plane_exists, rest, area, center, scale, shift, slope,
                    offset, mean_dlogit, linear, constant, BATCH_NORM, BLOCK, False)
            for done in range(BLOCK, rest + BLOCK, BLOCK):
                _write_gradient(
                    dy_ptr, z_ptr, dz_ptr, plane_exists, rest - done, area, center, scale, shift,
                    slope, offset, mean_dlogit, linear, constant, BATCH_NORM, BLOCK, True)


@triton.jit
def _store_sum(pointer, value, exists=None):
    if pointer.dtype.element_ty != tl.float64:  # float64 has no conversion to 16 bits
        value = value.to(tl.float32)
    tl.store(pointer, value, mask=exists)


@triton.jit(do_not_specialize=['images', 'channels', 'p', 'groups'])
def add_up_kernel(
        sums_ptr, of_parameters_ptr, of_batch_norm_ptr, sweight_ptr, gn_weight_ptr, gn_bias_ptr,
        images, channels, p, groups, BATCH_NORM: tl.constexpr, ROWS: tl.constexpr,
        CHANNELS: tl.constexpr):
    """Add up the planes' sums: (6, p) gradients of the parameters, (2, C) of the batch norm.

    groups counts the groups of all images. Each of the first p programs does one of the p channels
    of each branch. Each of the others does the batch norm of CHANNELS channels.
    """
    of: tl.constexpr = 4 if BATCH_NORM else 2
    program = tl.program_id(0)
    if program < p:
        zero = tl.zeros([ROWS], tl.float64)
        cweight, cbias, x, one = zero, zero, zero, zero
        for first in range(0, groups, ROWS):
            group = first + tl.arange(0, ROWS)
            exists = group < groups
            at = sums_ptr + (group.to(tl.int64) * 2 * p + program) * of
            cweight += tl.load(at, mask=exists, other=0)
            cbias += tl.load(at + 1, mask=exists, other=0)
            x += tl.load(at + p * of, mask=exists, other=0)
            one += tl.load(at + p * of + 1, mask=exists, other=0)
        # scale and shift of the group norm and those after it see the same two sums
        x, one = tl.sum(x, 0), tl.sum(one, 0)
        sweight = tl.load(sweight_ptr + program).to(tl.float64)
        gn_weight = tl.load(gn_weight_ptr + program).to(tl.float64)
        gn_bias = tl.load(gn_bias_ptr + program).to(tl.float64)
        of_parameters_ptr += program
        _store_sum(of_parameters_ptr, tl.sum(cweight, 0))
        _store_sum(of_parameters_ptr + p, tl.sum(cbias, 0))
        _store_sum(of_parameters_ptr + 2 * p, gn_weight * x + gn_bias * one)
        _store_sum(of_parameters_ptr + 3 * p, one)
        _store_sum(of_parameters_ptr + 4 * p, sweight * x)
        _store_sum(of_parameters_ptr + 5 * p, sweight * one)
    elif BATCH_NORM:
        c = (program - p) * CHANNELS + tl.arange(0, CHANNELS)
        exists = c < channels
        weight = tl.zeros([CHANNELS], tl.float64)
        bias = weight
        at = sums_ptr + c * of
        for _ in range(0, images):
            weight += tl.load(at + 2, mask=exists, other=0)
            bias += tl.load(at + 3, mask=exists, other=0)
            at += channels * of
        _store_sum(of_batch_norm_ptr + c, weight, exists)
        _store_sum(of_batch_norm_ptr + channels + c, bias, exists)
