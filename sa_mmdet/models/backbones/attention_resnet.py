"""ResNet with an attention layer at the end of every bottleneck."""
from mmdet.models.backbones.resnet import Bottleneck, ResNet
from mmdet.registry import MODELS
from torch import Tensor

from ...checkpoint import TORCHVISION_MISSING, convert_on_load
from ..attention import AttentionLayer
from .attention_bottleneck import AttentionBottleneck
from .folding import conv_norm


def _find_layer(name: str) -> type:
    layer = MODELS.get(name)
    if layer is None:
        known = sorted(cls.__name__ for cls in AttentionLayer.__subclasses__())
        raise ValueError(f'unknown attention type {name!r}: known are {", ".join(known)}, and any '
                         'plugin layer registered in mmdet.registry.MODELS')
    return layer


@MODELS.register_module()
class AttentionResNet(ResNet):
    """``mmdet.ResNet`` whose bottlenecks hold an attention layer after bn3, before the addition.

    The layer is found in a block under its ``_abbr_``: ``layer1.0.sa``, ``layer1.0.se``, ... The
    network is the same, in its keys and its output, as
    ``ResNet(depth, plugins=[dict(cfg=attention, position='after_conv3')])``.

    A checkpoint of plain ResNet, alone or inside a detector, is converted when it is loaded: the
    network then computes the same function as the ResNet did (docs/weights.md).

    Args:
        depth: 50, 101 or 152.
        attention: the layer's type, or its config: ``dict(type='SqueezeExcitation',
            reduction=8)``.
        plugins: further plugins, as ``mmdet.ResNet`` takes them; those after conv3 follow the
            attention.
        convert_weights: False loads a checkpoint of plain ResNet as it is.
        **kwargs: every other argument of ``mmdet.ResNet``.

    Shape:
        (N, 3, H, W) -> a tuple of (N, 256 * 2^i, H / 2^(i + 2), W / 2^(i + 2)) for i in
        ``out_indices``.

    Raises:
        ValueError: the depth has no bottlenecks, or the attention is unknown or does not fit; on
            loading (``ConversionError``), the checkpoint has a part of the attention's parameters,
            or cannot be converted.
    """

    arch_settings = {
        depth: setting
        for depth, setting in ResNet.arch_settings.items() if setting[0] is Bottleneck
    }

    def __init__(self,
                 depth: int,
                 attention: str | dict,
                 plugins: list[dict] | None = None,
                 convert_weights: bool = True,
                 **kwargs):
        if depth not in self.arch_settings:
            raise ValueError(
                f'{type(self).__name__} needs a ResNet made of bottlenecks: depth must be one of '
                f'{sorted(self.arch_settings)}, got {depth!r}')
        if isinstance(attention, str):
            attention = dict(type=attention)
        if not isinstance(attention, dict) or 'type' not in attention:
            raise ValueError('attention must be the name of a layer or a config with a "type", '
                             f'got {attention!r}')
        layer = attention['type']
        if isinstance(layer, str):
            layer = _find_layer(layer)
        plugin = dict(cfg=dict(attention, type=layer), position='after_conv3')
        super().__init__(depth, plugins=[plugin, *(plugins or [])], **kwargs)
        self.convert_weights = convert_weights

    def make_res_layer(self, **kwargs):
        """Build a stage of ``AttentionBottleneck`` where ``mmdet.ResNet`` asks for its own."""
        return super().make_res_layer(**{**kwargs, 'block': AttentionBottleneck})

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Features of images.

        Args:
            x: (N, 3, H, W).

        Returns:
            As the class says.
        """
        x = self.maxpool(self._stem(x))
        features = []
        for i, name in enumerate(self.res_layers):
            x = getattr(self, name)(x)
            if i in self.out_indices:
                features.append(x)
        return tuple(features)

    def _stem(self, x: Tensor) -> Tensor:
        if self.deep_stem:
            return self.stem(x)
        return self.relu(conv_norm(self.conv1, self.norm1, x))

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if self.convert_weights:
            convert_on_load(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says.

        Raises:
            ImportError: ``init_cfg`` names weights of torchvision, which does not import.
        """
        try:
            super().init_weights()
        except (ImportError, RuntimeError) as error:  # the latter from another torch's torchvision
            if 'torchvision' not in str(error):
                raise
            raise ImportError(TORCHVISION_MISSING, name='torchvision') from error

    def train(self, mode: bool = True) -> 'AttentionResNet':
        """Set the training mode, normalisation and frozen stages excepted; return the module.

        MMDetection's ResNet returns nothing, which breaks PyTorch's ``model.eval()`` idiom.
        """
        super().train(mode)
        return self


@MODELS.register_module()
class SAResNet(AttentionResNet):
    """SA-ResNet (Zhang & Yang, arXiv 2102.00240): ``AttentionResNet`` with shuffle attention.

    Args:
        depth: 50, 101 or 152.
        attention: options of ``ShuffleAttention``, such as ``dict(groups=32)``.
        **kwargs: as for ``AttentionResNet``.

    Raises:
        ValueError: as ``AttentionResNet``; the channels do not divide by 2 * groups.
    """

    def __init__(self, depth: int, attention: dict | None = None, **kwargs):
        attention = dict(type='ShuffleAttention') | (attention or {})
        super().__init__(depth, attention=attention, **kwargs)
