"""What is changed in a detector's config, to give it attention and to try it on a CPU."""
import math
from collections.abc import Iterator

from mmdet.models.backbones.resnet import Bottleneck
from mmdet.registry import MODELS
from mmengine.config import ConfigDict

PLUGIN, BACKBONE, UNCHANGED = 'plugin', 'SAResNet', 'unchanged'
MAX_GROUPS = 64
# Boxes before and after non-maximum suppression, those that a head is trained with, and layers with
# gradient checkpoints (by fairscale).
LIMITS = dict(nms_pre=200, max_per_img=100, num=64, num_cp=0)


def change_backbone(backbone: ConfigDict, route: str) -> list[str]:
    """Put shuffle attention into a backbone's config, in place.

    Args:
        backbone: the config of a backbone that takes plugins.
        route: PLUGIN adds the attention to its plugins, BACKBONE makes it an ``SAResNet``,
            UNCHANGED leaves it as it is.

    Returns:
        Remarks on what had to be chosen.

    Raises:
        ValueError: the backbone has no bottlenecks.
    """
    if route == BACKBONE:
        backbone.type = 'SAResNet'
    if route != PLUGIN:
        return []
    channels = block_channels(backbone)
    if not channels:
        raise ValueError('a plugin at after_conv3 needs a backbone made of bottlenecks')
    groups = fitting_groups(channels)
    plugin = dict(cfg=dict(type='ShuffleAttention', groups=groups), position='after_conv3')
    backbone.plugins = [*(backbone.get('plugins') or []), plugin]
    return [f'groups={groups}'] if groups != MAX_GROUPS else []


def routes_of(backbone: ConfigDict) -> tuple[str, ...]:
    """The ways that attention can go into a backbone that takes plugins."""
    return (PLUGIN, BACKBONE) if backbone.type in ('ResNet', 'mmdet.ResNet') else (PLUGIN, )


def block_channels(backbone: ConfigDict) -> list[int]:
    """The channels at the end of every bottleneck."""
    modules = MODELS.build(backbone).modules()
    return [block.conv3.out_channels for block in modules if isinstance(block, Bottleneck)]


def fitting_groups(channels: list[int]) -> int:
    """The largest power of two, up to the paper's 64, that is a number of groups for them all."""
    groups, common = MAX_GROUPS, math.gcd(*channels)
    while groups > 1 and common % (2 * groups):
        groups //= 2
    return groups


def adapt(model: ConfigDict) -> list[str]:
    """Let a model's config, in place, work alone, on a CPU and with small images.

    No teacher's weights from the network, no images enlarged to those of training, few boxes, and
    no batch norm over processes.

    Returns:
        Remarks on what then differs from the model.
    """
    remarks = {}
    for node in dicts(model):
        for key in ('teacher_ckpt', 'batch_augments'):
            node.pop(key, None)
        for key, most in LIMITS.items():
            if isinstance(node.get(key), int):
                node[key] = min(node[key], most)
        if node.get('type') in ('SyncBN', 'MMSyncBN'):
            node['type'] = 'BN'
            remarks['SyncBN as BN'] = None
    return list(remarks)


def dicts(node) -> Iterator[dict]:
    """All dictionaries in a config."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from dicts(item)
