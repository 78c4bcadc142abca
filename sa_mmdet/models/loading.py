"""Convert the weights of a network without attention when one with attention loads them.

A module cannot see the weights of its siblings. So the backbone around the attention, and the list
of necks around ``FeatureAttention``, get a hook that runs before they load anything. PyTorch's own
hook for registering submodules adds it, whoever builds them.
"""
import logging
from collections.abc import Callable

from mmdet.models.backbones.resnet import ResNet
from mmengine.logging import print_log
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from .attention import AttentionLayer
from .backbones import AttentionResNet
from .convert import ConversionError, StateDict, convert_state_dict
from .necks import FeatureAttention
from .necks.insert import insert_among_children


def convert_weights_on_load() -> None:
    """Make every module that is built from now on convert what it loads."""
    register_module_module_registration_hook(_watch)


def _watch(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    """Make ``parent`` convert plain weights that it loads if ``child`` needs it.

    PyTorch does not call this for ``nn.Sequential.insert`` and ``nn.ModuleList.insert``.
    """
    if isinstance(child, FeatureAttention):
        _add_hook(parent, _insert_feature_attention)
    elif isinstance(parent, ResNet) and isinstance(child, nn.Module) and any(
            isinstance(module, AttentionLayer) for module in child.modules()):
        _add_hook(parent, _convert_bottlenecks)


def _add_hook(module: nn.Module, hook: Callable) -> None:
    hooks = module._load_state_dict_pre_hooks.values()
    if not any(getattr(known, 'hook', known) is hook for known in hooks):
        module._register_load_state_dict_pre_hook(hook, with_module=True)


def _convert_bottlenecks(backbone: ResNet, state_dict: StateDict, prefix: str, *_) -> None:
    is_own = isinstance(backbone, AttentionResNet)
    if not getattr(backbone, 'convert_weights', True):
        return
    try:
        converted = convert_state_dict(backbone, state_dict, prefix)
    except ConversionError as error:
        if is_own:
            raise
        if _is_of_another(backbone, state_dict, prefix):  # a plugin's backbone has no switch
            print_log(f'The weights of {prefix.removesuffix(".") or "the backbone"} are loaded '
                      f'without conversion. {type(backbone).__name__} does not compute what they '
                      f'were trained for: {error}', logger='current', level=logging.WARNING)
        return
    if converted:
        switch = ' (convert_weights=False turns this off)' if is_own else ''
        print_log(
            f'The checkpoint is from a network without attention. Its {converted} bottlenecks were '
            f'converted, so that {type(backbone).__name__} computes the same function{switch}.',
            logger='current')


def _is_of_another(backbone: nn.Module, state_dict: StateDict, prefix: str) -> bool:
    """Return whether there are weights of a backbone, but not all of this attention's."""
    attention = {f'{prefix}{name}.{key}' for name, layer in backbone.named_modules()
                 if isinstance(layer, AttentionLayer) for key in layer.state_dict()}
    return any(key.startswith(f'{prefix}layer') for key in state_dict) and not (
        attention <= state_dict.keys())


def _insert_feature_attention(parent: nn.Module, state_dict: StateDict, prefix: str, *_) -> None:
    if insert_among_children(parent, state_dict, prefix):
        print_log('The checkpoint is from a detector without FeatureAttention, which starts as the '
                  'identity. The detections are the same.', logger='current')
