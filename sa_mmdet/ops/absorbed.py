"""Shuffle attention after the layer before has absorbed its shuffle: planes are gated in place.

The rest of the attention (Zhang & Yang, arXiv 2102.00240, section 3) is the same for both branches:
y = x sigmoid(s x + t), with two numbers s and t for each plane (docs/deploy.md).
"""
import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import is_traced, route
from .reference import ChannelParameters, computed


def gate(z: Tensor, identity: Tensor | None, parameters: ChannelParameters, eps: float | None
         ) -> Tensor:
    """Return x sigmoid(s x + t) of x = z + center. With an identity, add it and apply a ReLU.

    The result may overwrite ``z``. Do not use ``z`` afterwards.

    Args:
        z: (N, C, H, W), floating point.
        identity: None, or a tensor like ``z``.
        parameters: slope, of_mean, constant and center, each (C,): s = slope / sqrt(variance + eps)
            and t = of_mean * mean + constant - s * mean, with mean and variance of the plane of x.
            The nearer the center is to the mean, the fewer digits the variance loses.
        eps: added to the variance. None for attention without group norm, with s = slope and
            t = of_mean * mean + constant.

    Returns:
        (N, C, H, W) in the dtype of ``z``.
    """
    chosen = route(z)
    if (hasattr(chosen, 'gate_') and eps is not None and not z.requires_grad
            and (identity is None or (not identity.requires_grad and identity.dtype == z.dtype))):
        return chosen.gate_(z, identity, parameters, eps)
    y = gate_reference(z, parameters, eps)
    return y if identity is None else F.relu(y + identity)


def gate_reference(z: Tensor, parameters: ChannelParameters, eps: float | None) -> Tensor:
    """Return what ``gate`` does without an identity, in operators that every runtime has.

    They were measured as the cheapest in OpenVINO, and an exported graph gathers no sizes.
    """
    channels = parameters[0].numel()
    wide = computed(z)
    slope, of_mean, constant, center = (p.to(wide.dtype).view(1, -1, 1, 1) for p in parameters)
    mean = wide.mean((2, 3), keepdim=True)
    # s x + t as a function of z: the terms without z become constants of an exported graph
    if eps is None:
        minus_s = -slope
        minus_t = -(of_mean * mean + (constant + (slope + of_mean) * center))
    else:
        area = wide.numel() / mean.numel() if is_traced(z) else z.shape[2] * z.shape[3]
        # divided before it is squared, as the square may overflow float16
        size = torch.linalg.vector_norm(wide, dim=(2, 3), keepdim=True) / area**0.5
        rstd = torch.rsqrt(F.relu(size * size - mean * mean) + eps)
        # as a convolution, or OpenVINO computes it again for every pixel
        minus_s = F.conv2d(rstd, -slope.view(-1, 1, 1, 1), groups=channels)
        minus_t = -(of_mean * mean + (constant + of_mean * center)) - minus_s * mean
    power = wide * minus_s + minus_t
    if torch.is_grad_enabled():  # the division's derivative is NaN if exp overflows
        return ((wide + center) * torch.sigmoid(-power)).to(z.dtype)
    return ((wide + center) / (1 + torch.exp(power))).to(z.dtype)
