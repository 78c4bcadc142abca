"""Shuffle attention written as its formula (Zhang & Yang, arXiv 2102.00240, section 3)."""
import torch
import torch.nn.functional as F
from torch import Tensor


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


def computed(x: Tensor) -> Tensor:
    """In the dtype of computation: float32, or that of ``x`` if it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _transform(z: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """The paper's F_c: scale and shift, a 1x1 convolution, or nothing, by the weight's shape."""
    if weight is None:
        return z
    weight, bias = weight.to(z.dtype), bias.to(z.dtype)
    if weight.shape[0] == weight.shape[1] > 1:
        return F.conv2d(z, weight, bias.flatten())
    return weight * z + bias.view(1, -1, 1, 1)


def shuffle_attention_reference(
    x: Tensor,
    cweight: Tensor | None,
    cbias: Tensor | None,
    sweight: Tensor | None,
    sbias: Tensor | None,
    gn_weight: Tensor | None,
    gn_bias: Tensor | None,
    groups: int,
    eps: float = 1e-5,
    shuffle: bool = True,
) -> Tensor:
    """Shuffle attention in plain PyTorch, and the ablations of the paper's Table 1.

    With p = C / (2 * groups) channels for each branch of each group: the first half of a group is
    gated by sigmoid(F_c(mean over H x W)), the second by sigmoid(F_c(GroupNorm(x, p groups))),
    and the channels of the result are shuffled with 2 groups. Float16 and bfloat16 input is
    computed in float32.

    Args:
        x: (N, C, H, W), floating point, C divisible by 2 * groups.
        cweight, cbias: F_c of the channel branch. Both (1, p, 1, 1) for scale and shift; a
            (p, p, 1, 1) and a (p,) tensor for a 1x1 convolution (Table 1, "1x1 Conv"); None for
            the identity ("w/o Fc").
        sweight, sbias: F_c of the spatial branch, likewise.
        gn_weight, gn_bias: (p,); None for a spatial branch that is not normalised ("w/o gn").
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
    x: Tensor,
    cweight: Tensor | None,
    cbias: Tensor | None,
    sweight: Tensor | None,
    sbias: Tensor | None,
    gn_weight: Tensor | None,
    gn_bias: Tensor | None,
    groups: int,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """The gates of ``shuffle_attention_reference``, whose arguments it takes.

    Returns:
        Those of the channel branch, (N * groups, p, 1, 1), and of the spatial branch,
        (N * groups, p, H, W), in the dtype of computation.
    """
    x_c, x_s = _branches(x, groups)
    gate_c = torch.sigmoid(_transform(x_c.mean((2, 3), keepdim=True), cweight, cbias))
    normalised = x_s
    if gn_weight is not None:
        # F.group_norm refuses a single value per channel; a plane of one pixel is legitimate here.
        normalised = torch.group_norm(
            x_s, x_s.shape[1], gn_weight.to(x_s.dtype), gn_bias.to(x_s.dtype), eps)
    return gate_c, torch.sigmoid(_transform(normalised, sweight, sbias))


def _branches(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The channel and the spatial halves of all groups, each (N * groups, p, H, W)."""
    n, c, h, w = x.shape
    return computed(x).reshape(n * groups, 2, c // (2 * groups), h, w).unbind(1)


def reference_forward(
        x: Tensor, cweight: Tensor, cbias: Tensor, sweight: Tensor, sbias: Tensor,
        gn_weight: Tensor, gn_bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """What every implementation of the operator returns: the output and the planes' statistics.

    Returns:
        (N, C, H, W) in the dtype of ``x``; (N, C, 2) float64, each plane's mean and biased
        variance. The second is only asked for in the spatial branch.
    """
    y = shuffle_attention_reference(
        x, cweight, cbias, sweight, sbias, gn_weight, gn_bias, groups, eps)
    return y, plane_statistics(x)


def plane_statistics(x: Tensor) -> Tensor:
    """(N, C, 2) float64: mean and biased variance of each plane."""
    variance, mean = torch.var_mean(computed(x), (2, 3), correction=0)
    return torch.stack([mean, variance], dim=-1).double()


def reference_backward(
        dy: Tensor, x: Tensor, cweight: Tensor, cbias: Tensor, sweight: Tensor, sbias: Tensor,
        gn_weight: Tensor, gn_bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """The derivative of shuffle attention, itself differentiable: autograd's double backward.

    With a gate s and dz = dy x s (1 - s), dx is dy s and what goes through the statistics: the
    mean of dz for the plane's mean, and for the group norm its own derivative.

    Returns:
        dx in the dtype of ``x``; (6, p) gradients of the parameters, in the order of the
        arguments, in the dtype of computation.
    """
    n, c, h, w = x.shape
    p = c // (2 * groups)
    shape = n * groups, 2, p, h, w
    dy = channel_shuffle(computed(dy), c // 2)  # back to where the channels came from
    x_c, x_s = computed(x).reshape(shape).unbind(1)
    dy_c, dy_s = dy.reshape(shape).unbind(1)
    cweight, cbias, sweight, sbias, gn_weight, gn_bias = (
        parameter.to(dy.dtype).reshape(1, p, 1, 1)
        for parameter in (cweight, cbias, sweight, sbias, gn_weight, gn_bias))

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
    sums = [dz_c * mean, dz_c, h * w * mean_dz_x, h * w * mean_dz]
    return dx.to(x.dtype), parameter_gradients(
        *(plane_sums.sum((0, 2, 3)) for plane_sums in sums),
        sweight.flatten(), gn_weight.flatten(), gn_bias.flatten())


def parameter_gradients(
        dcweight: Tensor, dcbias: Tensor, dz_x: Tensor, dz: Tensor, sweight: Tensor,
        gn_weight: Tensor, gn_bias: Tensor) -> Tensor:
    """(6, p) gradients from the sums of dz x^ and dz over all planes of the spatial branch.

    All arguments are (p,). The scale and shift of the group norm and those after it see the same
    two sums; those of the channel branch are gradients already.
    """
    return torch.stack([
        dcweight, dcbias, gn_weight * dz_x + gn_bias * dz, dz, sweight * dz_x, sweight * dz
    ])


def gradients_of_sums(
        sums: Tensor, groups: int, sweight: Tensor, sbias: Tensor, gn_weight: Tensor,
        gn_bias: Tensor) -> Tensor:
    """(6, p) gradients of the parameters from the (N, C, 2) sums over planes, float64.

    A plane's sums are those of ``parameter_gradients``: dz times what the plane's weight multiplies
    (its mean; the normalised x), and dz.
    """
    n, c, _ = sums.shape
    channel, spatial = sums.reshape(n * groups, 2, c // (2 * groups), 2).sum(0)
    return parameter_gradients(
        *channel.unbind(-1), *spatial.unbind(-1),
        *(parameter.flatten().double() for parameter in (sweight, gn_weight, gn_bias)))
