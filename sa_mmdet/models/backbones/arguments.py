"""What is wrong with a backbone's arguments, said before MMDetection's ResNet is built of them."""
import inspect
from collections import Counter
from numbers import Integral

from mmcv.cnn.bricks.plugin import infer_abbr
from mmdet.registry import MODELS
from torch import nn

from ..attention import AttentionLayer

POSITIONS = ('after_conv1', 'after_conv2', 'after_conv3')
STAGES = 4


def find_layer(cfg: str | dict, what: str = 'attention') -> dict:
    """The config of an attention layer, or another plugin, with its class as type.

    Args:
        cfg: the layer's type, or its config.
        what: it is called in messages.

    Raises:
        TypeError: an option is not one of the layer's.
        ValueError: there is no such layer.
    """
    if isinstance(cfg, str):
        cfg = dict(type=cfg)
    if not isinstance(cfg, dict) or not cfg.get('type'):
        raise ValueError(f'{what} must be the name of a layer or a config with a "type", such as '
                         f"dict(type='ShuffleAttention', groups=32), got {cfg!r}")
    layer = cfg['type']
    if isinstance(layer, str):
        layer = MODELS.get(layer)
    if not isinstance(layer, type) or not issubclass(layer, nn.Module):
        known = sorted(kind.__name__ for kind in AttentionLayer.__subclasses__())
        raise ValueError(f'unknown {what} type {cfg["type"]!r}: known are {", ".join(known)}, '
                         'and any plugin layer registered in mmdet.registry.MODELS')
    signature = inspect.signature(layer)
    try:
        signature.bind(in_channels=0, **{key: value for key, value in cfg.items()
                                         if key not in ('type', 'postfix')})
    except TypeError as error:
        raise TypeError(f'{what} {dict(cfg)}: {error}; {layer.__name__} takes '
                        f'{signature}') from error
    return dict(cfg, type=layer)


def check_plugins(plugins: list[dict], num_stages: int = STAGES) -> None:
    """Raise TypeError or ValueError unless ``mmdet.ResNet`` can put the plugins into its blocks."""
    example = "dict(cfg=dict(type='ShuffleAttention'), position='after_conv3')"
    if not isinstance(plugins, (list, tuple)):
        raise TypeError(f'plugins must be a list of dicts such as {example}, got {plugins!r}')
    for plugin in plugins:
        if not isinstance(plugin, dict) or not isinstance(plugin.get('cfg'), dict):
            raise TypeError(f'a plugin must be a dict such as {example}, got {plugin!r}')
        if plugin.get('position') not in POSITIONS:
            raise ValueError(f'the position of a plugin must be one of {POSITIONS}, got '
                             f'{plugin.get("position")!r}')
        stages = plugin.get('stages')
        if stages is not None and len(stages) != num_stages:
            raise ValueError(f'the stages of a plugin must be {num_stages} times True or False, '
                             f'got {stages!r}')


def check_names(plugins: list[dict], num_stages: int = STAGES) -> None:
    """Raise ValueError where two plugins of a bottleneck would have one name."""
    for stage in range(num_stages):
        names = Counter(_name(plugin['cfg']) for plugin in plugins
                        if plugin.get('stages') is None or plugin['stages'][stage])
        for name, count in names.items():
            if count > 1:
                raise ValueError(f'{count} plugins of a bottleneck are named {name!r}, the '
                                 'attention included: give all but one a postfix, '
                                 "cfg=dict(type=..., postfix='_2')")


def _name(cfg: dict) -> str:
    """Under which a bottleneck holds a plugin."""
    layer = find_layer(cfg, 'plugin')['type']
    return f'{infer_abbr(layer)}{cfg.get("postfix", "")}'


def check_stages(num_stages: int = STAGES, out_indices: tuple[int, ...] = (0, 1, 2, 3),
                 frozen_stages: int = -1, style: str = 'pytorch', **others) -> None:
    """Raise ValueError unless these arguments of ``mmdet.ResNet`` are such as it takes."""
    if num_stages not in range(1, STAGES + 1):
        raise ValueError(f'num_stages must be 1 to {STAGES}, got {num_stages!r}')
    indices = list(range(num_stages))
    if not isinstance(out_indices, (list, tuple)) or not out_indices or any(
            index not in indices for index in out_indices):
        raise ValueError(f'out_indices must be a tuple of stages of {indices}, got {out_indices!r}')
    if not isinstance(frozen_stages, Integral) or not -1 <= frozen_stages <= num_stages:
        raise ValueError('frozen_stages must be an integer from -1, nothing frozen, to '
                         f'num_stages = {num_stages}, got {frozen_stages!r}')
    if style not in ('pytorch', 'caffe'):
        raise ValueError(f"style must be 'pytorch' or 'caffe', got {style!r}")
    norm_cfg = others.get('norm_cfg', dict(type='BN'))
    kind = norm_cfg.get('type') if isinstance(norm_cfg, dict) else None
    if not kind or (isinstance(kind, str) and MODELS.get(kind) is None):
        raise ValueError('norm_cfg must be a dict with the type of a registered norm layer, such '
                         f"as dict(type='BN'), got {norm_cfg!r}")
