"""ResNet with an attention layer at the end of every bottleneck."""
from functools import partial

from mmdet.models.backbones.resnet import Bottleneck, ResNet
from mmdet.registry import MODELS
from torch import Tensor

from ...environment import torchvision_problem
from ...ops.dispatch import route
from ..attention import ShuffleAttention
from ..attention.base import check_bool, check_feature_map, find_layer
from ..deploy import deploy_backbone, deploy_on_load
from .attention_bottleneck import AttentionBottleneck
from .channels_last import in_channels_last
from .folding import conv_norm


@MODELS.register_module()
class AttentionResNet(ResNet):
    """``mmdet.ResNet`` with an attention layer after bn3 in every bottleneck, before the addition.

    The layer's name in a block is its ``_abbr_``: ``layer1.0.sa``, ``layer1.0.se``, ... The network
    has the same keys and the same output as
    ``ResNet(depth, plugins=[dict(cfg=attention, position='after_conv3')])``.

    A plain ResNet's checkpoint, alone or inside a detector, is converted when it is loaded. The
    network then computes the same function as the ResNet did (docs/weights.md).

    Args:
        depth: 50, 101 or 152.
        attention: the layer's type, or its config: ``dict(type='SqueezeExcitation',
            reduction=8)``.
        plugins: further plugins, as for ``mmdet.ResNet``. Plugins after conv3 follow the attention.
        convert_weights: False loads a plain ResNet's checkpoint without conversion.
        channels_last: True computes in channels_last, as ``in_channels_last`` does. Images and
            features stay contiguous.
        deploy: True builds what ``for_deployment`` makes of the backbone, for inference. It loads
            deployed weights. It also loads trained weights, or a plain ResNet's, and deploys them.
        **kwargs: every other argument of ``mmdet.ResNet``.

    Shape:
        (N, 3, H, W) -> a tuple of (N, 256 * 2^i, H / 2^(i + 2), W / 2^(i + 2)) for i in
        ``out_indices``.

    Raises:
        TypeError, ValueError: the depth has no bottlenecks, the attention is unknown or does not
            fit, or an output index is not a stage, which ``mmdet.ResNet`` ignores.
        ConversionError: on loading, the checkpoint has only a part of the attention's parameters,
            or cannot be converted.
    """

    # the arguments that ``mmdet.ResNet`` does not have
    own_arguments = ('attention', 'convert_weights', 'channels_last', 'deploy')
    arch_settings = {
        depth: setting
        for depth, setting in ResNet.arch_settings.items() if setting[0] is Bottleneck
    }

    def __init__(self,
                 depth: int,
                 attention: str | dict,
                 plugins: list[dict] | None = None,
                 convert_weights: bool = True,
                 channels_last: bool = False,
                 deploy: bool = False,
                 **kwargs):
        if depth not in list(self.arch_settings):
            raise ValueError(
                f'{type(self).__name__} needs a ResNet made of bottlenecks: depth must be one of '
                f'{sorted(self.arch_settings)}, got {depth!r}')
        check_bool('convert_weights', convert_weights)
        check_bool('channels_last', channels_last)
        check_bool('deploy', deploy)
        plugin = dict(cfg=find_layer(attention), position='after_conv3')
        super().__init__(depth, plugins=[plugin, *(plugins or [])], **kwargs)
        stages = list(range(self.num_stages))
        if not set(self.out_indices) <= set(stages):
            raise ValueError(f'out_indices must be among stages {stages}, got {self.out_indices}')
        self.convert_weights = convert_weights
        self.in_channels = kwargs.get('in_channels', 3)
        if deploy:
            trained = dict(kwargs, depth=depth, attention=attention, plugins=plugins,
                           convert_weights=convert_weights, init_cfg=None)
            deploy_backbone(self.eval())
            deploy_on_load(self, partial(AttentionResNet, **trained))
            self.convert_weights = False  # the trained backbone does that
        if channels_last:
            in_channels_last(self)

    def make_res_layer(self, **kwargs):
        """Build a stage of ``AttentionBottleneck`` instead of ``mmdet.ResNet``'s bottleneck."""
        return super().make_res_layer(**{**kwargs, 'block': AttentionBottleneck})

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the features of images.

        Args:
            x: (N, 3, H, W).

        Returns:
            A tuple of maps, with the shapes in the class's docstring.

        Raises:
            TypeError: ``x`` is not a floating-point tensor.
            ValueError: ``x`` is not 4-D or does not have ``in_channels`` channels.
        """
        check_feature_map(type(self).__name__, x, self.in_channels)
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
        return self.relu(conv_norm(self.conv1, self.norm1, x, route(x)))

    def init_weights(self) -> None:
        """Initialise the weights as ``init_cfg`` says.

        Raises:
            ImportError: ``init_cfg`` names torchvision's weights, but torchvision does not import.
        """
        try:
            super().init_weights()
        except (ImportError, RuntimeError) as error:
            if 'torchvision' in str(error) and (problem := torchvision_problem()):
                raise ImportError(problem, name='torchvision') from error
            raise

    def train(self, mode: bool = True) -> 'AttentionResNet':
        """Set the training mode, except in norms and frozen stages, and return the module.

        MMDetection's ResNet returns None, which breaks PyTorch's ``model.eval()`` idiom.
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
        TypeError, ValueError: as for ``AttentionResNet``. Also, the channels do not divide by
            2 * groups, or the attention is not shuffle attention.
    """

    def __init__(self, depth: int, attention: dict | None = None, **kwargs):
        if attention is None:
            attention = {}
        if not isinstance(attention, dict):
            raise TypeError('attention of SAResNet must be a dict of ShuffleAttention options, '
                            f'such as dict(groups=32), got {attention!r}. For the name of a layer, '
                            'use AttentionResNet')
        attention = dict(type='ShuffleAttention') | attention
        layer = find_layer(attention)['type']
        if not issubclass(layer, ShuffleAttention):
            raise ValueError('the attention of SAResNet must be ShuffleAttention, got '
                             f'{layer.__name__}. Use AttentionResNet for other attention')
        super().__init__(depth, attention=attention, **kwargs)
