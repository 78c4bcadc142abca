"""ResNet's bottleneck with its tail in one operator."""
import torch.utils.checkpoint as cp
from mmdet.models.backbones.resnet import Bottleneck
from torch import Tensor, nn

from ...ops import bottleneck_tail
from ...ops.shuffle_attention.implementations import is_formula
from ..attention import ShuffleAttention
from .folding import conv_norm, is_frozen, is_watched


class AttentionBottleneck(Bottleneck):
    """``mmdet``'s bottleneck; what follows conv3 is one operator where it can be.

    ``sa_mmdet.ops.bottleneck_tail`` takes the place of bn3, shuffle attention, the addition and
    the ReLU where nothing can tell the difference: bn3 is a batch norm with frozen statistics (or
    folded into conv3, an ``nn.Identity``), attention as the paper has it is the only plugin after
    conv3, none of the three has a hook, and a fused implementation takes the tensor. Otherwise
    they run one after another.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.with_cp and x.requires_grad:
            return cp.checkpoint(self._forward, x, use_reentrant=True)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        out = self.relu(conv_norm(self.conv1, self.norm1, x))
        out = self.forward_plugin(out, self.after_conv1_plugin_names)
        out = self.relu(conv_norm(self.conv2, self.norm2, out))
        out = self.forward_plugin(out, self.after_conv2_plugin_names)
        identity = self._identity(x)
        out = self.conv3(out)
        return self._tail(out, identity)

    def _identity(self, x: Tensor) -> Tensor:
        if self.downsample is None:
            return x
        if type(self.downsample) is not nn.Sequential or is_watched(self.downsample):
            return self.downsample(x)
        *pool, conv, norm = self.downsample
        for layer in pool:
            x = layer(x)
        return conv_norm(conv, norm, x)

    def _tail(self, z: Tensor, identity: Tensor) -> Tensor:
        if not self._is_fusible(z, identity):
            out = self.forward_plugin(self.norm3(z), self.after_conv3_plugin_names)
            out += identity
            return self.relu(out)
        norm, attention = self.norm3, self._attention()
        batch_norm, bn_eps = None, 0.
        if is_frozen(norm):
            batch_norm = norm.weight, norm.bias, norm.running_mean, norm.running_var
            bn_eps = norm.eps
        return bottleneck_tail(z, identity, batch_norm, *attention.operands, attention.groups,
                               attention.eps, bn_eps)

    def _attention(self) -> nn.Module | None:
        """The only plugin after conv3."""
        names = self.after_conv3_plugin_names
        return getattr(self, names[0]) if len(names) == 1 else None

    def _is_fusible(self, z: Tensor, identity: Tensor) -> bool:
        norm, attention = self.norm3, self._attention()
        return (type(attention) is ShuffleAttention and not attention.is_ablated
                and (is_frozen(norm) or type(norm) is nn.Identity) and type(self.relu) is nn.ReLU
                and not any(map(is_watched, (norm, attention, self.relu)))
                and (z.shape, z.dtype, z.device) == (
                    identity.shape, identity.dtype, identity.device)
                and not is_formula(z))
