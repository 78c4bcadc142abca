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
        channels_last: True computes in channels_last, as ``in_channels_last``; images and features
            are contiguous all the same.
        deploy: True builds what ``for_deployment`` makes of the backbone, for inference. It loads
            deployed weights, and deploys trained ones, or a plain ResNet's, when it loads them.
        **kwargs: every other argument of ``mmdet.ResNet``.

    Shape:
        (N, 3, H, W) -> a tuple of (N, 256 * 2^i, H / 2^(i + 2), W / 2^(i + 2)) for i in
        ``out_indices``.

    Raises:
        TypeError, ValueError: the depth has no bottlenecks, the attention is unknown or does not
            fit, or an output index is no stage, which ``mmdet.ResNet`` passes over.
        ConversionError: on loading, the checkpoint has a part of the attention's parameters, or
            cannot be converted.
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
            raise ValueError(f'out_indices must be of the stages {stages}, got {self.out_indices}')
        self.convert_weights = convert_weights
        self.in_channels = kwargs.get('in_channels', 3)
        if deploy:
            trained = dict(kwargs, depth=depth, attention=attention, plugins=plugins,
                           convert_weights=convert_weights, init_cfg=None)
            deploy_backbone(self.eval())
            deploy_on_load(self, partial(AttentionResNet, **trained))
            self.convert_weights = False  # the trained one does that
        if channels_last:
            in_channels_last(self)

    def make_res_layer(self, **kwargs):
        """Build a stage of ``AttentionBottleneck`` where ``mmdet.ResNet`` asks for its own."""
        return super().make_res_layer(**{**kwargs, 'block': AttentionBottleneck})

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return features of images.

        Args:
            x: (N, 3, H, W).

        Returns:
            As the class says.

        Raises:
            TypeError: ``x`` is no tensor, or not of a floating dtype.
            ValueError: ``x`` is not 4-D or has other than ``in_channels`` channels.
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
        """Initialise as ``init_cfg`` says.

        Raises:
            ImportError: ``init_cfg`` names weights of torchvision, which does not import.
        """
        try:
            super().init_weights()
        except (ImportError, RuntimeError) as error:
            if 'torchvision' in str(error) and (problem := torchvision_problem()):
                raise ImportError(problem, name='torchvision') from error
            raise

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
        TypeError, ValueError: as ``AttentionResNet``; the channels do not divide by 2 * groups; the
            attention is another than shuffle attention.
    """

    def __init__(self, depth: int, attention: dict | None = None, **kwargs):
        if attention is None:
            attention = {}
        if not isinstance(attention, dict):
            raise TypeError('attention of SAResNet must be a dict of options of ShuffleAttention, '
                            f'such as dict(groups=32), got {attention!r}; AttentionResNet takes '
                            'the name of a layer')
        attention = dict(type='ShuffleAttention') | attention
        layer = find_layer(attention)['type']
        if not issubclass(layer, ShuffleAttention):
            raise ValueError('the attention of SAResNet is ShuffleAttention, got '
                             f'{layer.__name__}: use AttentionResNet for others')
        super().__init__(depth, attention=attention, **kwargs)
