"""The shuffle attention operator."""
import torch
from torch import Tensor

from .implementations import (
    HAS_OPERATOR,
    check_arguments,
    implementations,
    is_eager,
    is_formula,
)
from .reference import (
    channel_shuffle,
    shuffle_attention_gates,
    shuffle_attention_reference,
)

__all__ = [
    'channel_shuffle', 'implementations', 'shuffle_attention', 'shuffle_attention_gates',
    'shuffle_attention_reference'
]

if HAS_OPERATOR:
    from .operator import ShuffleAttentionFunction


def shuffle_attention(
    x: Tensor,
    cweight: Tensor,
    cbias: Tensor,
    sweight: Tensor,
    sbias: Tensor,
    gn_weight: Tensor,
    gn_bias: Tensor,
    groups: int,
    eps: float = 1e-5,
    implementation: str | None = None,
) -> Tensor:
    """Shuffle attention (Zhang & Yang, arXiv 2102.00240, section 3) by a fused implementation.

    As ``shuffle_attention_reference`` without its ablations, at the price of a copy: the backward
    pass keeps ``x`` and two numbers for each of its planes. Where a fused implementation takes
    ``x`` (see ``implementations``), and always in torch.compile and torch.export, it is the one
    operator ``torch.ops.sa_mmdet.shuffle_attention``; otherwise, and on the meta device, in
    torch.jit.trace, torch.func and ONNX export, it is the formula. So is double backward; forward
    mode differentiation needs ``implementation='reference'``.

    Every plane (n, c) is computed by itself: a NaN or an infinity may make the whole of its plane
    NaN, in the output and in the gradient of ``x``, but no other; the gradients of the parameters
    that the plane is multiplied with or shifted by become NaN too. In float32 and bfloat16 values
    up to 1e15 are safe: beyond, their squares or the sums of these can leave float32.

    Args:
        x: (N, C, H, W), floating point, C divisible by 2 * groups, N may be 0, H and W not; any
            strides, contiguous and channels_last are the fast ones.
        cweight, cbias, sweight, sbias: (1, p, 1, 1) with p = C / (2 * groups), any floating dtype.
        gn_weight, gn_bias: (p,).
        groups: number of groups.
        eps: added to the variance.
        implementation: 'reference', 'cpu' or 'triton' forces one, as does the environment variable
            SA_MMDET_OPS; None chooses by ``x``.

    Returns:
        (N, C, H, W) in the dtype of ``x``, channels_last if ``x`` is and the operator computes it.

    Raises:
        TypeError: ``x`` or a parameter is no tensor of a floating dtype, or ``groups`` no integer.
        ValueError: ``implementation`` is none of the three, C is not divisible by 2 * groups, H or
            W is 0, or a parameter has not p values or is on another device than ``x``.
        RuntimeError: the forced implementation cannot be used, or not for ``x``.
    """
    parameters = cweight, cbias, sweight, sbias, gn_weight, gn_bias
    if not torch.jit.is_tracing():  # where sizes are tensors, about which Python is not to decide
        check_arguments(x, parameters, groups)
    if is_formula(x, implementation):
        return shuffle_attention_reference(x, *parameters, groups, eps)
    compute = (ShuffleAttentionFunction.apply if is_eager(x) else
               torch.ops.sa_mmdet.shuffle_attention.default)
    return compute(x, *parameters, groups, eps, implementation)[0]
