"""Deploy trained networks: fold the batch norms and absorb the channel shuffle.

Shuffle attention permutes the channels after conv3. conv3 can compute them in that order itself.
Then every channel is gated in place, by parameters of its own. The algebra is in docs/deploy.md.
"""
import copy
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import cast

import torch
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fuse_conv_bn_eval

from .attention import ShuffleAttention
from .convert import ConversionError, StateDict, is_deployed, listed
from .gated_conv import GatedConv2d


def for_deployment(model: nn.Module) -> nn.Module:
    """Return a copy of a network for deployment, with the same function in evaluation mode.

    It covers every ResNet in the network: ``SAResNet``, and MMDetection's subclasses of ResNet with
    the attention as a plugin. Batch norms are folded into the convolutions before them. If shuffle
    attention follows conv3, the two become one ``GatedConv2d``, without shuffle, split,
    concatenation, reshape or transpose. Nothing outside the bottlenecks changes, and other
    attention stays the same.

    Args:
        model: a trained backbone or detector, which does not change.

    Returns:
        A copy whose parameters need no gradients.

    Raises:
        ConversionError: attention cannot be absorbed, as its F_c is not a scale and shift, bn3 is
            not a batch norm, or conv3 is not a plain convolution. The message names the module.
        ValueError: the model has no ResNet.
    """
    model = copy.deepcopy(model)
    model.eval()
    networks = [(name, module) for name, module in model.named_modules()
                if isinstance(module, ResNet)]
    if not networks:
        raise ValueError(f'{type(model).__name__} has no ResNet, whose bottlenecks can be '
                         'deployed: give a backbone or a detector with one')
    for name, network in networks:
        deploy_backbone(network, f'{name}.' if name else '')
    return model


def deploy_backbone(backbone: nn.Module, prefix: str = '') -> None:
    """Do with one backbone, in place, what ``for_deployment`` does.

    Args:
        backbone: in evaluation mode.
        prefix: prefix of the names in messages, such as 'backbone.'.
    """
    blocks = []
    for name, block in backbone.named_modules():
        first = (getattr(block, 'after_conv3_plugin_names', None) or [''])[0]
        attention = getattr(block, first, None)
        if isinstance(block, Bottleneck) and type(attention) is ShuffleAttention:
            _check(f'{prefix}{name}', block, attention)
            blocks.append((block, attention, first, getattr(block, block.norm3_name).bias))
    _fold_batch_norms(backbone)
    for block, attention, first, center in blocks:
        block.conv3 = GatedConv2d.absorbing(block.conv3, center, attention)
        delattr(block, first)
        block.after_conv3_plugin_names = block.after_conv3_plugin_names[1:]
    backbone.requires_grad_(False)


def _check(name: str, block: Bottleneck, attention: ShuffleAttention) -> None:
    """Raise ConversionError unless the attention of a bottleneck can be absorbed."""
    norm, conv = getattr(block, block.norm3_name), block.conv3
    if attention.fc != 'affine':
        raise ConversionError(
            f"{name}.{attention._abbr_} has fc={attention.fc!r}: only attention with fc='affine', "
            "the paper's, can be absorbed. Use or export the network as trained")
    if not _is_foldable(conv, norm):
        unfit = block.norm3_name if type(conv) is nn.Conv2d else 'conv3'
        raise ConversionError(
            f'{name}.{unfit} is {type(getattr(block, unfit)).__name__}: only a plain convolution '
            'with batch norm can absorb shuffle attention. Use or export the network as trained')


def _is_foldable(conv: nn.Module, norm: nn.Module) -> bool:
    return (type(conv) is nn.Conv2d and isinstance(norm, _BatchNorm)
            and norm.running_mean is not None)


def _fold_batch_norms(network: nn.Module) -> None:
    """Fold the batch norms of the stem, the bottlenecks and their downsampling branches."""
    for module in list(network.modules()):
        if not isinstance(module, (ResNet, BasicBlock, Bottleneck, nn.Sequential)):
            continue
        children = list(module.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            if _is_foldable(conv, norm):
                setattr(module, conv_name, fuse_conv_bn_eval(cast(nn.Conv2d, conv),
                                                             cast(_BatchNorm, norm)))
                setattr(module, norm_name, nn.Identity())


def deploy_on_load(backbone: nn.Module, build: Callable[[], nn.Module]) -> None:
    """Make a deployed backbone deploy trained weights when it loads them.

    Args:
        backbone: a backbone after ``deploy_backbone``.
        build: returns the trained backbone's network.
    """
    backbone._register_load_state_dict_pre_hook(partial(_deploy_weights, build))


def _deploy_weights(build: Callable[[], nn.Module], state_dict: StateDict, prefix: str, *_) -> None:
    own = {key.removeprefix(prefix): value for key, value in state_dict.items()
           if key.startswith(prefix)}
    if is_deployed(own) or not any(key.startswith('layer') for key in own):
        return
    with torch.random.fork_rng(devices=[]):  # building draws random numbers
        trained = build().double()  # rounds once, when the network copies the result
        missing, unexpected = trained.load_state_dict(own, strict=False)
        missing = [key for key in missing if not key.endswith('num_batches_tracked')]
        if missing:
            raise ConversionError(
                f'the checkpoint lacks {listed(missing)} of the trained backbone: give weights of '
                'the same backbone, or a file that convert_checkpoint.py --deploy wrote')
        deploy_backbone(trained.eval())
    for key in own.keys() - set(unexpected):
        del state_dict[prefix + key]
    state_dict.update({prefix + key: value for key, value in trained.state_dict().items()})
