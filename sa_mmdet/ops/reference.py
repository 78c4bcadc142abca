"""Shuffle attention in PyTorch's own operators (Zhang & Yang, arXiv 2102.00240, section 3).

Every implementation (``cpp``, ``triton_launch``) has ``forward`` and ``backward``. These here take
every device and floating dtype.
"""
import torch
import torch.nn.functional as F
from torch import Tensor

# cweight, cbias, sweight, sbias, each (1, p, 1, 1), and gn_weight and gn_bias, (p,)
Parameters = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
# the same, with None for what an ablation leaves out
AblatedParameters = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None,
                          Tensor | None, Tensor | None]
BatchNorm = tuple[Tensor, Tensor, Tensor, Tensor]  # weight, bias, running mean and variance, (C,)
# parameters of ``gate``: slope, of_mean, constant and center, each (C,)
ChannelParameters = tuple[Tensor, Tensor, Tensor, Tensor]


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of ``groups`` equal blocks.

    ``out[:, groups * i + k] = x[:, k * C / groups + i]``: ShuffleNet's channel shuffle.

    Args:
        x: (N, C, H, W), C divisible by ``groups``.
        groups: number of blocks.

    Returns:
        (N, C, H, W).
    """
    n, c, h, w = x.shape
    return x.reshape(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def shuffle_attention_reference(
        x: Tensor, cweight: Tensor | None, cbias: Tensor | None, sweight: Tensor | None,
        sbias: Tensor | None, gn_weight: Tensor | None, gn_bias: Tensor | None, groups: int,
        eps: float = 1e-5, shuffle: bool = True) -> Tensor:
    """Apply shuffle attention, or an ablation of the paper's Table 1, in plain PyTorch.

    Each branch of each group has p = C / (2 * groups) channels. The first half of a group is gated
    by sigmoid(F_c(mean over H x W)), the second by sigmoid(F_c(GroupNorm(x, p groups))). The
    channels of the result are shuffled with 2 groups. Float16 and bfloat16 input is computed in
    float32.

    Args:
        x: (N, C, H, W), floating point, C divisible by 2 * groups.
        cweight, cbias: F_c of the channel branch. Both (1, p, 1, 1) for scale and shift; a
            (p, p, 1, 1) and a (p,) tensor for a 1x1 convolution (Table 1, "1x1 Conv"); None for
            the identity ("w/o Fc").
        sweight, sbias: F_c of the spatial branch, in the same form.
        gn_weight, gn_bias: (p,). None leaves the spatial branch without group norm ("w/o gn").
        groups: number of groups.
        eps: added to the variance.
        shuffle: False leaves the channels where they are ("w/o shuffle").

    Returns:
        (N, C, H, W) in the dtype of ``x``.
    """
    gate_c, gate_s = shuffle_attention_gates(
        x, cweight, cbias, sweight, sbias, gn_weight, gn_bias, groups, eps)
    x_c, x_s = _branches(x, groups)
    y = torch.cat([x_c * gate_c, x_s * gate_s], dim=1).reshape(x.shape)
    if shuffle:
        y = channel_shuffle(y, 2)
    return y.to(x.dtype)


def shuffle_attention_gates(
        x: Tensor, cweight: Tensor | None, cbias: Tensor | None, sweight: Tensor | None,
        sbias: Tensor | None, gn_weight: Tensor | None, gn_bias: Tensor | None, groups: int,
        eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Return the gates of ``shuffle_attention_reference``, which has the same arguments.

    Returns:
        The gates of the channel branch, (N * groups, p, 1, 1), and of the spatial branch,
        (N * groups, p, H, W), in the dtype of computation.
    """
    x_c, x_s = _branches(x, groups)
    gate_c = torch.sigmoid(_transform(x_c.mean((2, 3), keepdim=True), cweight, cbias))
    normalised = x_s
    if gn_weight is not None:
        # F.group_norm refuses a single value per channel (pytorch issue 19250); a plane of one
        # pixel is legitimate here.
        normalised = torch.group_norm(
            x_s, gn_weight.shape[0], gn_weight.to(x_s.dtype), gn_bias.to(x_s.dtype), eps)
    return gate_c, torch.sigmoid(_transform(normalised, sweight, sbias))


def fused_bn_sa_add_relu_reference(
        z: Tensor, identity: Tensor, batch_norm: BatchNorm | None, *parameters: *Parameters,
        groups: int, eps: float = 1e-5, bn_eps: float = 1e-5) -> Tensor:
    """Return what MMDetection's bottleneck does after conv3: batch norm, attention, addition, ReLU.

    The arguments and the result are the same as for ``fused_bn_sa_add_relu``.
    """
    x = _normalised(z, batch_norm, bn_eps)
    return F.relu(shuffle_attention_reference(x, *parameters, groups, eps) + identity)


def computed(x: Tensor) -> Tensor:
    """Return ``x`` in the dtype of computation: float32, or its own if that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def memory_format(x: Tensor) -> torch.memory_format:
    """Return the format of the output and of dz: channels_last if ``x`` is, else contiguous."""
    channels_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def gradient_dtype(tensors: tuple[Tensor, ...] | None) -> torch.dtype:
    """Return the dtype of the gradients of ``tensors``: theirs if they share it, else float64."""
    dtypes = {tensor.dtype for tensor in tensors or ()}
    return dtypes.pop() if len(dtypes) == 1 else torch.float64


def _branches(x: Tensor, groups: int) -> tuple[Tensor, ...]:
    """Return the channel and the spatial halves of all groups, each (N * groups, p, H, W)."""
    n, c, h, w = x.shape
    return computed(x).reshape(n * groups, 2, c // (2 * groups), h, w).unbind(1)


def _transform(z: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Apply the paper's F_c: scale and shift, a 1x1 convolution or nothing, as the shape says."""
    if weight is None:
        return z
    weight, bias = weight.to(z.dtype), bias.to(z.dtype)
    if weight.shape[0] == weight.shape[1] > 1:
        return F.conv2d(z, weight, bias.flatten())
    return weight * z + bias.view(1, -1, 1, 1)


def _normalised(z: Tensor, batch_norm: BatchNorm | None, bn_eps: float) -> Tensor:
    if batch_norm is None:
        return z
    dtype = torch.promote_types(z.dtype, torch.float32)
    weight, bias, mean, variance = (tensor.to(dtype) for tensor in batch_norm)
    return F.batch_norm(z, mean, variance, weight, bias, eps=bn_eps)


def forward(
        z: Tensor, identity: Tensor | None, batch_norm: BatchNorm | None,
        parameters: Parameters, groups: int, eps: float, bn_eps: float
        ) -> tuple[Tensor, Tensor]:
    """Apply ``batch_norm``, if there is one, and shuffle attention to ``z``.

    With an ``identity``, add it and apply a ReLU.

    Args:
        z: (N, C, H, W).
        identity: a tensor like ``z``, or None.
        batch_norm: four tensors (C,), or None.
        parameters: cweight, cbias, sweight, sbias, each (1, p, 1, 1), gn_weight, gn_bias, (p,).
        groups: number of groups; p = C / (2 * groups).
        eps, bn_eps: added to the variance in the group norm and in the batch norm.

    Returns:
        The output, (N, C, H, W) in the dtype and memory format of ``z``; and (N, C, 2) float64, the
        mean and biased variance of the planes of ``z``. Only the spatial branch uses the variance.
    """
    if identity is None:
        out = shuffle_attention_reference(
            _normalised(z, batch_norm, bn_eps), *parameters, groups, eps)
    else:
        out = fused_bn_sa_add_relu_reference(
            z, identity, batch_norm, *parameters, groups=groups, eps=eps, bn_eps=bn_eps)
    variance, mean = torch.var_mean(computed(z), (2, 3), correction=0)
    return (out.to(z.dtype).contiguous(memory_format=memory_format(z)),
            torch.stack([mean, variance], dim=-1).double())


def backward(
        dout: Tensor, z: Tensor, out: Tensor | None, stats: Tensor, batch_norm: BatchNorm | None,
        parameters: Parameters, groups: int, eps: float, bn_eps: float,
        input_gradients: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the derivative of ``forward``. It is differentiable too, for double backward.

    Args:
        dout: the gradient of the output.
        out: the output if there was an identity, else None.
        stats: the statistics that ``forward`` returned.
        input_gradients: whether dz and didentity are wanted.

    Returns:
        dz and didentity in the dtype and memory format of ``z``, empty if they are not wanted or
        there is no identity; (2, C) gradients of the batch norm's weight and bias, zero without a
        batch norm; and (6, p) gradients of the parameters. The last two have the ``gradient_dtype``
        of their tensors.
    """
    dy = dout if out is None else dout.masked_fill(out <= 0, 0)
    wide = computed(z)
    if batch_norm is None:
        dx, gradients = _attention_backward(dy, wide, parameters, groups, eps)
        dz, of_batch_norm = dx, wide.new_zeros(2, z.shape[1])
    else:
        weight, bias, mean, variance = (
            tensor.to(wide.dtype).view(1, -1, 1, 1) for tensor in batch_norm)
        rstd = (variance + bn_eps).rsqrt()
        normalised = (wide - mean) * rstd
        dx, gradients = _attention_backward(
            dy, weight * normalised + bias, parameters, groups, eps)
        dz = dx * weight * rstd
        of_batch_norm = torch.stack([(dx * normalised).sum((0, 2, 3)), dx.sum((0, 2, 3))])
    wanted = input_gradients, input_gradients and out is not None
    dz, didentity = (
        gradient.to(z.dtype).contiguous(memory_format=memory_format(z)) if want else z.new_empty(0)
        for gradient, want in zip((dz, dy), wanted, strict=True))
    return (dz, didentity, of_batch_norm.to(gradient_dtype(batch_norm and batch_norm[:2])),
            gradients.to(gradient_dtype(parameters)))


def _attention_backward(
        dy: Tensor, x: Tensor, parameters: Parameters, groups: int, eps: float
        ) -> tuple[Tensor, Tensor]:
    """Return the gradient of ``x`` and the (6, p) gradients of the parameters.

    With a gate s and dz = dy x s (1 - s), dx is dy s plus the terms through the statistics: the
    mean of dz for the plane's mean, and the group norm's own derivative.
    """
    n, c, h, w = x.shape
    p = c // (2 * groups)
    shape = n * groups, 2, p, h, w
    dy = channel_shuffle(dy.to(x.dtype), c // 2)  # back to where the channels came from
    x_c, x_s = x.reshape(shape).unbind(1)
    dy_c, dy_s = dy.reshape(shape).unbind(1)
    cweight, cbias, sweight, sbias, gn_weight, gn_bias = (
        parameter.to(x.dtype).reshape(1, p, 1, 1) for parameter in parameters)

    mean = x_c.mean((2, 3), keepdim=True)
    gate = torch.sigmoid(cweight * mean + cbias)
    dz_c = (dy_c * x_c).sum((2, 3), keepdim=True) * gate * (1 - gate)
    dx_c = dy_c * gate + dz_c * cweight / (h * w)

    variance, mean_s = torch.var_mean(x_s, (2, 3), correction=0, keepdim=True)
    rstd = (variance + eps).rsqrt()
    normalised = (x_s - mean_s) * rstd
    gate = torch.sigmoid(sweight * (gn_weight * normalised + gn_bias) + sbias)
    dz_s = dy_s * x_s * gate * (1 - gate)
    mean_dz = dz_s.mean((2, 3), keepdim=True)
    mean_dz_x = (dz_s * normalised).mean((2, 3), keepdim=True)
    dx_s = dy_s * gate + sweight * gn_weight * rstd * (dz_s - mean_dz - normalised * mean_dz_x)

    dx = torch.stack([dx_c, dx_s], dim=1).reshape(n, c, h, w)
    through_c, of_cbias, of_xs, of_sbias = (
        sums.sum((0, 2, 3)) for sums in (dz_c * mean, dz_c, h * w * mean_dz_x, h * w * mean_dz))
    sweight, gn_weight, gn_bias = sweight.flatten(), gn_weight.flatten(), gn_bias.flatten()
    return dx, torch.stack([
        through_c, of_cbias, gn_weight * of_xs + gn_bias * of_sbias, of_sbias, sweight * of_xs,
        sweight * of_sbias])
