"""Shuffle attention as functions of tensors."""
import warnings
from numbers import Integral
from types import ModuleType

import torch
from torch import Tensor

from . import reference
from .dispatch import HAS_OPERATOR, is_traced, route
from .reference import BatchNorm, Parameters

if HAS_OPERATOR:
    from .library import ShuffleAttentionFunction

PARAMETERS = ('cweight', 'cbias', 'sweight', 'sbias', 'gn_weight', 'gn_bias')
BATCH_NORM = tuple(f"the batch norm's {name}" for name in (
    'weight', 'bias', 'running mean', 'running variance'))


def shuffle_attention(
        x: Tensor, cweight: Tensor, cbias: Tensor, sweight: Tensor, sbias: Tensor,
        gn_weight: Tensor, gn_bias: Tensor, groups: int, eps: float = 1e-5,
        implementation: str | None = None) -> Tensor:
    """Apply shuffle attention (Zhang & Yang, arXiv 2102.00240, section 3), fused if possible.

    It computes ``shuffle_attention_reference`` without the ablations, at the price of a copy. The
    backward pass keeps ``x`` and two numbers for each of its planes. If a fused implementation
    takes ``x`` (see ``implementations``), and always in torch.compile and torch.export, it is the
    single operator ``torch.ops.sa_mmdet.shuffle_attention``. Otherwise it is PyTorch's own
    operators. They also serve the meta device, torch.jit.trace, torch.func, ONNX export, double
    backward and forward-mode differentiation.

    Every plane (n, c) is computed by itself. A NaN or an infinity may turn its whole plane into
    NaN, in the output and in the gradient of ``x``, but no other plane. The gradients of the
    parameters that scale or shift the plane become NaN too. In float32 and bfloat16, values up to
    1e15 are safe. Beyond that, their squares, or sums of squares, can overflow float32.

    Args:
        x: (N, C, H, W), floating point, with C divisible by 2 * groups. N may be 0, H and W not.
            Any strides work. Contiguous and channels_last are the fast layouts.
        cweight, cbias, sweight, sbias: (1, p, 1, 1) with p = C / (2 * groups), any floating dtype.
        gn_weight, gn_bias: (p,).
        groups: number of groups.
        eps: added to the variance.
        implementation: 'reference', 'cpu' or 'triton' forces one, as does the environment variable
            SA_MMDET_OPS (call ``forget_choices`` after a change). None chooses one for ``x``.

    Returns:
        (N, C, H, W) in the dtype of ``x``, channels_last if ``x`` is and the operator computes it.

    Raises:
        TypeError: ``x`` or a parameter is not a floating-point tensor, or ``groups`` is not an
            integer.
        ValueError: ``implementation`` is not one of the three, C is not divisible by 2 * groups, H
            or W is 0, or a parameter does not have p values or is on another device than ``x``.
        RuntimeError: the forced implementation cannot be used here, or cannot be used for ``x``.
    """
    parameters = cweight, cbias, sweight, sbias, gn_weight, gn_bias
    if not is_traced(x):
        _check_arguments(x, parameters, groups)
    return compute(route(x, implementation), x, None, None, parameters, groups, eps,
                   implementation=implementation)


def fused_bn_sa_add_relu(
        z: Tensor, identity: Tensor, batch_norm: BatchNorm | None, cweight: Tensor, cbias: Tensor,
        sweight: Tensor, sbias: Tensor, gn_weight: Tensor, gn_bias: Tensor, groups: int,
        eps: float = 1e-5, bn_eps: float = 1e-5, implementation: str | None = None) -> Tensor:
    """Return ReLU(shuffle_attention(batch_norm(z)) + identity), with frozen batch norm statistics.

    This is the end of SA-Net's bottleneck (Zhang & Yang, arXiv 2102.00240, section 3, placed as in
    section 4) in two reads and one write. The backward pass keeps ``z``, the output and two numbers
    for each plane. The same operator as for ``shuffle_attention`` computes it, and it can be
    compiled, exported and differentiated twice in the same way. In 16 bits only the result is
    rounded, while a sequence of layers rounds after each layer.

    Args:
        z: (N, C, H, W), the output of conv3, floating point, with C divisible by 2 * groups.
        identity: the tensor to add, with the shape, dtype and device of ``z``.
        batch_norm: weight, bias, running mean and running variance, each (C,), any floating dtype.
            None for no batch norm. The running statistics get no gradient.
        cweight, cbias, sweight, sbias: (1, p, 1, 1) with p = C / (2 * groups), any floating dtype.
        gn_weight, gn_bias: (p,).
        groups: number of groups.
        eps, bn_eps: added to the variance in the group norm and in the batch norm.
        implementation: as for ``shuffle_attention``.

    Returns:
        (N, C, H, W) in the dtype of ``z``, channels_last if ``z`` is and the operator computes it.

    Raises:
        TypeError, ValueError: as for ``shuffle_attention``. Also, ``identity`` differs from ``z``
            in shape, dtype or device, or ``batch_norm`` is not four tensors of C values on that
            device.
        RuntimeError: the forced implementation cannot be used here, or cannot be used for ``z``.
    """
    parameters = cweight, cbias, sweight, sbias, gn_weight, gn_bias
    if not is_traced(z):
        _check_arguments(z, parameters, groups)
        _check_surroundings(z, identity, batch_norm)
    return compute(route(z, implementation), z, identity, batch_norm, parameters, groups, eps,
                   bn_eps, implementation)


def bottleneck_tail(*args, **kwargs) -> Tensor:
    """Call ``fused_bn_sa_add_relu``. The next release drops this former name."""
    warnings.warn('sa_mmdet.ops.bottleneck_tail is now called fused_bn_sa_add_relu',
                  DeprecationWarning, stacklevel=2)
    return fused_bn_sa_add_relu(*args, **kwargs)


def compute(chosen: ModuleType | None, z: Tensor, identity: Tensor | None,
            batch_norm: BatchNorm | None, parameters: Parameters, groups: int, eps: float,
            bn_eps: float = 0., implementation: str | None = None) -> Tensor:
    """Compute either function above with what ``route`` chose for ``z``. Check nothing."""
    if chosen is reference:
        if identity is None:
            return reference.shuffle_attention_reference(z, *parameters, groups, eps)
        return reference.fused_bn_sa_add_relu_reference(
            z, identity, batch_norm, *parameters, groups=groups, eps=eps, bn_eps=bn_eps)
    if chosen and not torch.is_grad_enabled():
        return chosen.forward(z, identity, batch_norm, parameters, groups, eps, bn_eps)[0]
    function = (ShuffleAttentionFunction.apply if chosen else
                torch.ops.sa_mmdet.shuffle_attention.default)
    return function(z, identity, *(batch_norm or (None, ) * 4), *parameters, groups, eps, bn_eps,
                    implementation)[0]


def _check_arguments(x: Tensor, parameters: Parameters, groups: int) -> None:
    """Raise TypeError or ValueError unless the input and the six parameters fit each other."""
    _check_floating('x', x)
    if x.dim() != 4:
        raise ValueError(f'x must be (N, C, H, W), got shape {tuple(x.shape)}')
    if 0 in x.shape[2:]:
        raise ValueError('x has planes without pixels: H and W must be at least 1, got shape '
                         f'{tuple(x.shape)}')
    if isinstance(groups, bool) or not isinstance(groups, Integral):
        raise TypeError(f'groups must be an integer, got {groups!r}')
    if groups < 1 or x.shape[1] % (2 * groups):
        raise ValueError(f'x has {x.shape[1]} channels, which is not divisible by 2 * groups = '
                         f'{2 * groups}: choose another number of groups')
    _check_values(PARAMETERS, parameters, x.shape[1] // (2 * groups), 'C / (2 * groups)', x.device)


def _check_surroundings(z: Tensor, identity: Tensor, batch_norm: BatchNorm | None) -> None:
    _check_floating('identity', identity)
    for what in ('shape', 'dtype', 'device'):
        found, expected = getattr(identity, what), getattr(z, what)
        if found != expected:
            raise ValueError(f'identity must have the {what} of z, {expected}, got {found}')
    if batch_norm is None:
        return
    if not isinstance(batch_norm, (tuple, list)) or len(batch_norm) != 4:
        found = (f'{len(batch_norm)} of them' if isinstance(batch_norm, (tuple, list)) else
                 type(batch_norm).__name__)
        raise TypeError('batch_norm must be None or four tensors (weight, bias, running mean and '
                        f'running variance), got {found}')
    _check_values(BATCH_NORM, batch_norm, z.shape[1], 'C', z.device)


def _check_values(names: tuple[str, ...], tensors: tuple[Tensor, ...], count: int, meaning: str,
                  device: torch.device) -> None:
    """Raise TypeError or ValueError unless each tensor has ``count`` numbers on ``device``."""
    for name, tensor in zip(names, tensors, strict=True):
        _check_floating(name, tensor)
        if tensor.numel() != count:
            raise ValueError(f'{name} must have {meaning} = {count} values, got shape '
                             f'{tuple(tensor.shape)}')
        if tensor.device != device:
            raise ValueError(f'{name} must be on the device of the input, {device}, got '
                             f'{tensor.device}. Move the module or the input with .to()')


def _check_floating(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless ``tensor`` is a floating-point tensor."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f'{name} must be a floating-point tensor, got {found}. Convert it, for '
                        'example by torch.as_tensor(...).float()')
