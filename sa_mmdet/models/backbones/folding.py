"""Fold a batch norm with frozen statistics into the convolution before it."""
from types import ModuleType

import torch
import torch.nn.functional as F
import torch.nn.modules.module as torch_module
from torch import Tensor, nn

from ...ops import reference

# Subclasses may check their input differently, but compute the same.
BATCH_NORMS = nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward


def has_hooks(*layers: nn.Module) -> bool:
    """Return whether a layer's calls have a hook, or its ``forward`` was replaced."""
    for layer in layers:
        if (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks
                or layer._backward_pre_hooks or 'forward' in layer.__dict__):
            return True
    return torch_module._has_any_global_hook()


def conv_norm(conv: nn.Module, norm: nn.Module, x: Tensor, chosen: ModuleType | None) -> Tensor:
    """Return ``norm(conv(x))``, without a separate pass for the norm if that is cheaper.

    A frozen batch norm scales and shifts each channel. The convolution does so at no cost if its
    weight and bias are scaled and shifted, as by ``mmcv.cnn.fuse_conv_bn``. Here this is for one
    call only, in training too. Gradients reach all parameters, and the backward pass keeps one
    tensor less.

    The norm is folded in full precision only, if the result is larger than the weight, neither
    layer has a hook, and a fused implementation was ``chosen`` for ``x``. (PyTorch's compilers and
    tracing must see the layers.) On a GPU the bias is a pass of its own. There, folding only saves
    memory in the backward pass, and is only done for that.
    """
    if not is_foldable(conv, norm, x, chosen):
        return norm(conv(x))
    weight, bias = folded(conv, norm)
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def is_foldable(conv: nn.Module, norm: nn.Module, x: Tensor, chosen: ModuleType | None) -> bool:
    """Return whether ``conv_norm`` folds the norm, or whether it was folded before."""
    if (chosen is None or chosen is reference or type(conv) is not nn.Conv2d
            or torch.is_autocast_enabled(x.device.type)
            or (x.is_cuda and not (torch.is_grad_enabled() and conv.weight.requires_grad))):
        return False
    weight, (down, right) = conv.weight, conv.stride
    pixels = x.shape[0] * x.shape[2] * x.shape[3] // (down * right)
    if (pixels < weight[0].numel() or conv.padding_mode != 'zeros'
            or x.dtype not in (torch.float32, torch.float64) or x.dtype != weight.dtype
            or has_hooks(conv, norm)):
        return False
    if type(norm) is nn.Identity:
        return conv.bias is not None
    return (conv.bias is None and type(norm).forward in BATCH_NORMS and not norm.training
            and norm.weight is not None and norm.bias is not None and norm.running_mean is not None
            and weight.dtype == norm.weight.dtype == norm.running_var.dtype)


def folded(conv: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of a convolution with its batch norm folded in."""
    assert isinstance(conv, nn.Conv2d)
    if type(norm) is nn.Identity:
        assert conv.bias is not None
        return conv.weight, conv.bias
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return conv.weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale
