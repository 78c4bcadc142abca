"""The shuffle attention operator."""
from torch import Tensor

from .reference import channel_shuffle, shuffle_attention_reference

__all__ = ['channel_shuffle', 'shuffle_attention', 'shuffle_attention_reference']


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
) -> Tensor:
    """Shuffle attention by the fastest implementation for ``x`` (today: the reference).

    Args:
        x: (N, C, H, W), floating point, C divisible by 2 * groups.
        cweight, cbias, sweight, sbias: (1, p, 1, 1) with p = C / (2 * groups).
        gn_weight, gn_bias: (p,).
        groups: number of groups.
        eps: added to the variance.

    Returns:
        (N, C, H, W) in the dtype of ``x``.
    """
    return shuffle_attention_reference(
        x, cweight, cbias, sweight, sbias, gn_weight, gn_bias, groups, eps)
