"""The tail of a bottleneck, from the last convolution to its output, as one operator."""
import torch
from torch import Tensor

from ..shuffle_attention.implementations import (
    HAS_OPERATOR,
    check_arguments,
    check_floating,
    check_values,
    is_eager,
    is_formula,
)
from .reference import BatchNorm, bottleneck_tail_reference

__all__ = ['bottleneck_tail', 'bottleneck_tail_reference']

BATCH_NORM = ('weight', 'bias', 'running mean', 'running variance')

if HAS_OPERATOR:
    from .operator import BottleneckTailFunction


def bottleneck_tail(
    z: Tensor,
    identity: Tensor,
    batch_norm: BatchNorm | None,
    cweight: Tensor,
    cbias: Tensor,
    sweight: Tensor,
    sbias: Tensor,
    gn_weight: Tensor,
    gn_bias: Tensor,
    groups: int,
    eps: float = 1e-5,
    bn_eps: float = 1e-5,
    implementation: str | None = None,
) -> Tensor:
    """ReLU(shuffle_attention(batch_norm(z)) + identity), with frozen statistics of the batch norm.

    The end of SA-Net's bottleneck (Zhang & Yang, arXiv 2102.00240, section 3, in the place that
    section 4 gives it) in two reads and one write; the backward pass keeps ``z``, the output and
    two numbers for each plane. Computed, compiled, exported and differentiated twice as
    ``shuffle_attention`` is, by the same implementations. In 16 bits only the result is rounded,
    where the sequence of layers rounds after each.

    Args:
        z: (N, C, H, W), the output of conv3, floating point, C divisible by 2 * groups.
        identity: what is added, of the shape, dtype and device of ``z``.
        batch_norm: (C,) weight, bias, running mean and running variance, any floating dtype; None
            for none. The running statistics get no gradient.
        cweight, cbias, sweight, sbias: (1, p, 1, 1) with p = C / (2 * groups), any floating dtype.
        gn_weight, gn_bias: (p,).
        groups: number of groups.
        eps, bn_eps: added to the variance in the group norm and in the batch norm.
        implementation: as for ``shuffle_attention``.

    Returns:
        (N, C, H, W) in the dtype of ``z``, channels_last if ``z`` is and the operator computes it.

    Raises:
        TypeError, ValueError: as ``shuffle_attention``; ``identity`` differs from ``z`` in shape,
            dtype or device; ``batch_norm`` is not four tensors of C values on that device.
        RuntimeError: the forced implementation cannot be used, or not for ``z``.
    """
    parameters = cweight, cbias, sweight, sbias, gn_weight, gn_bias
    if not torch.jit.is_tracing():  # where sizes are tensors, about which Python is not to decide
        check_arguments(z, parameters, groups)
        _check(z, identity, batch_norm)
    if is_formula(z, implementation):
        return bottleneck_tail_reference(
            z, identity, batch_norm, *parameters, groups=groups, eps=eps, bn_eps=bn_eps)
    compute = (BottleneckTailFunction.apply if is_eager(z) else
               torch.ops.sa_mmdet.bottleneck_tail.default)
    return compute(
        z, identity, *(batch_norm or (None, ) * 4), *parameters, groups, eps, bn_eps,
        implementation)[0]


def _check(z: Tensor, identity: Tensor, batch_norm: BatchNorm | None) -> None:
    check_floating('identity', identity)
    for what in ('shape', 'dtype', 'device'):
        found, expected = getattr(identity, what), getattr(z, what)
        if found != expected:
            raise ValueError(f'identity must have the {what} of z, {expected}, got {found}')
    if batch_norm is None:
        return
    if not isinstance(batch_norm, (tuple, list)) or len(batch_norm) != len(BATCH_NORM):
        found = (f'{len(batch_norm)} of them' if isinstance(batch_norm, (tuple, list)) else
                 type(batch_norm).__name__)
        raise TypeError(f'batch_norm must be None or four tensors, {", ".join(BATCH_NORM)}; got '
                        f'{found}')
    for name, tensor in zip(BATCH_NORM, batch_norm, strict=True):
        check_values(f"the batch norm's {name}", tensor, z.shape[1], 'C', z.device)
