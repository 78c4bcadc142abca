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
    n, c, h, w = x.shape
    p = c // (2 * groups)
    dtype = torch.promote_types(x.dtype, torch.float32)
    x_c, x_s = x.to(dtype).reshape(n * groups, 2, p, h, w).unbind(1)

    gate_c = torch.sigmoid(_transform(x_c.mean((2, 3), keepdim=True), cweight, cbias))

    normalised = x_s
    if gn_weight is not None:
        # F.group_norm refuses a single value per channel; a plane of one pixel is legitimate here.
        normalised = torch.group_norm(x_s, p, gn_weight.to(dtype), gn_bias.to(dtype), eps)
    gate_s = torch.sigmoid(_transform(normalised, sweight, sbias))

    y = torch.cat([x_c * gate_c, x_s * gate_s], dim=1).reshape(n, c, h, w)
    if shuffle:
        y = channel_shuffle(y, 2)
    return y.to(x.dtype)
