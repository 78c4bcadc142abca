"""Batch norm with frozen statistics as a part of the convolution before it."""
import torch
import torch.nn.functional as F
import torch.nn.modules.module as torch_module
from torch import Tensor, nn

from ...ops.shuffle_attention.implementations import is_formula

# Subclasses that check their input in their own way compute the same.
BATCH_NORMS = nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward


def conv_norm(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """``norm(conv(x))``, without a pass of its own for the norm where that is cheaper.

    A frozen batch norm scales and shifts each channel, which the convolution does for nothing if
    its weight and bias are scaled and shifted: as ``mmcv.cnn.fuse_conv_bn`` does, but for this one
    call, in training too. Gradients reach all parameters, and the backward pass keeps one tensor
    less. Done in full precision only, and where neither layer has a hook.
    """
    if not (is_frozen(norm) and _is_foldable(conv, norm, x)):
        return norm(conv(x))
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    return F.conv2d(x, conv.weight * scale.view(-1, 1, 1, 1), shift, conv.stride, conv.padding,
                    conv.dilation, conv.groups)


def is_frozen(norm: nn.Module) -> bool:
    """Whether a layer is a batch norm that scales and shifts by numbers of its own.

    Statistics that are not computed need no synchronisation: SyncBatchNorm is one too, and so are
    the layers that MMEngine puts in its place on a single device.
    """
    return (type(norm).forward in BATCH_NORMS and not norm.training
            and norm.weight is not None and norm.bias is not None
            and norm.running_mean is not None)


def is_watched(module: nn.Module) -> bool:
    """Whether somebody hooked into the calls of a module, or replaced its ``forward``."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        or module._backward_pre_hooks or 'forward' in vars(module)
        or torch_module._has_any_global_hook())


def _is_foldable(conv: nn.Module, norm: nn.Module, x: Tensor) -> bool:
    return (type(conv) is nn.Conv2d and _pays(conv, x)
            and conv.bias is None and conv.padding_mode == 'zeros'
            and x.dtype == conv.weight.dtype == norm.weight.dtype == norm.running_var.dtype
            and x.dtype in (torch.float32, torch.float64)
            and not is_watched(conv) and not is_watched(norm)
            and not torch.compiler.is_compiling() and not is_formula(x)
            and not torch.is_autocast_enabled(x.device.type))


def _pays(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether the result is larger than the weight, so that it takes longer to read and write."""
    pixels = x.shape[0] * x.shape[2] * x.shape[3] // (conv.stride[0] * conv.stride[1])
    return pixels >= conv.weight[0].numel()
