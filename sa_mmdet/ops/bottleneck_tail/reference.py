"""The tail of a bottleneck with shuffle attention, written as its formula."""
import torch
import torch.nn.functional as F
from torch import Tensor

from ..shuffle_attention.layout import memory_format
from ..shuffle_attention.reference import (
    computed,
    plane_statistics,
    reference_backward,
    shuffle_attention_reference,
)

BatchNorm = tuple[Tensor, Tensor, Tensor, Tensor]  # weight, bias, running mean and variance


def bottleneck_tail_reference(
        z: Tensor, identity: Tensor, batch_norm: BatchNorm | None, *parameters: Tensor, groups: int,
        eps: float = 1e-5, bn_eps: float = 1e-5) -> Tensor:
    """What MMDetection's bottleneck does after conv3: batch norm, attention, addition, ReLU.

    Arguments and result are those of ``bottleneck_tail``.
    """
    x = z
    if batch_norm is not None:
        dtype = torch.promote_types(z.dtype, torch.float32)
        weight, bias, mean, variance = (tensor.to(dtype) for tensor in batch_norm)
        x = F.batch_norm(z, mean, variance, weight, bias, eps=bn_eps)
    return F.relu(shuffle_attention_reference(x, *parameters, groups, eps) + identity)


def tail_forward(
        z: Tensor, identity: Tensor, batch_norm: BatchNorm | None, *parameters: Tensor, groups: int,
        eps: float, bn_eps: float) -> tuple[Tensor, Tensor]:
    """What every implementation of the operator returns: the output and the planes' statistics.

    Returns:
        (N, C, H, W) in the dtype of ``z``; (N, C, 2) float64, mean and biased variance of the
        planes of ``z``. The variance is only asked for in the spatial branch.
    """
    out = bottleneck_tail_reference(
        z, identity, batch_norm, *parameters, groups=groups, eps=eps, bn_eps=bn_eps)
    return out.to(z.dtype).contiguous(memory_format=memory_format(z)), plane_statistics(z)


def tail_backward(
        dout: Tensor, z: Tensor, out: Tensor, batch_norm: BatchNorm | None, *parameters: Tensor,
        groups: int, eps: float, bn_eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The derivative of the tail, itself differentiable: autograd's double backward.

    Returns:
        dz and didentity in the dtype of ``z``; (2, C) gradients of the batch norm's weight and
        bias and (6, p) of the attention's parameters, in the dtype of computation.
    """
    dy = dout.masked_fill(out <= 0, 0)
    if batch_norm is None:
        dz, gradients = reference_backward(dy, z, *parameters, groups, eps)
        return dz, dy, computed(z.new_zeros(2, z.shape[1])), gradients
    z_computed = computed(z)
    weight, bias, mean, variance = (
        tensor.to(z_computed.dtype).view(1, -1, 1, 1) for tensor in batch_norm)
    rstd = (variance + bn_eps).rsqrt()
    normalised = (z_computed - mean) * rstd
    dx, gradients = reference_backward(
        computed(dy), weight * normalised + bias, *parameters, groups, eps)
    bn_gradients = torch.stack([(dx * normalised).sum((0, 2, 3)), dx.sum((0, 2, 3))])
    return (dx * weight * rstd).to(z.dtype), dy, bn_gradients, gradients
