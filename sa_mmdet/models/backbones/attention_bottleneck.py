"""ResNet's bottleneck, with one operator for all that follows conv3."""
from types import ModuleType

import torch
import torch.nn.functional as F
import torch.utils.checkpoint as cp
from mmdet.models.backbones.resnet import Bottleneck
from torch import Tensor, nn

from ...ops import reference
from ...ops.absorbed import gate
from ...ops.dispatch import is_traced, route
from ...ops.functional import compute
from ..attention import ShuffleAttention
from ..gated_conv import GatedConv2d, absorb
from .folding import BATCH_NORMS, conv_norm, folded, has_hooks, is_foldable


class AttentionBottleneck(Bottleneck):
    """``mmdet``'s bottleneck, which runs all that follows conv3 as one operator if possible.

    ``sa_mmdet.ops.fused_bn_sa_add_relu`` replaces bn3, shuffle attention, the addition and the ReLU
    if nothing can notice. For this, bn3 is a batch norm with frozen statistics, or an
    ``nn.Identity`` since it was folded into conv3. The paper's attention is the only plugin after
    conv3. None of the three has a hook, and a fused implementation takes the tensor. Otherwise they
    run one after another. In inference on a CPU, conv3 also absorbs the shuffle, for one call. In a
    deployed network it does so for good: conv3 is a ``GatedConv2d``.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.with_cp and x.requires_grad:
            return cp.checkpoint(self._forward, x, use_reentrant=True)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        chosen = route(x)
        out = self.relu(conv_norm(self.conv1, self.norm1, x, chosen))
        if self.after_conv1_plugin_names:
            out = self.forward_plugin(out, self.after_conv1_plugin_names)
        out = self.relu(conv_norm(self.conv2, self.norm2, out, chosen))
        if self.after_conv2_plugin_names:
            out = self.forward_plugin(out, self.after_conv2_plugin_names)
        identity = x
        if self.downsample is not None:
            identity = self._downsampled(x, chosen)
        if self._is_deployed():
            return self.conv3(out, identity)
        if not torch.is_grad_enabled() and (attention := self._absorbable(out, identity, chosen)):
            center = getattr(self.norm3, 'bias', None)
            weight, bias, parameters = absorb(*folded(self.conv3, self.norm3), center, attention)
            return gate(F.conv2d(out, weight, bias), identity, parameters, attention.eps)
        out = self.conv3(out)  # which frees the convolution's input
        if chosen is not None and out.dtype != x.dtype:
            chosen = route(out)
        return self._after_conv3(out, identity, chosen)

    def _is_deployed(self) -> bool:
        """Return whether conv3 also does all that follows it."""
        return (type(self.conv3) is GatedConv2d and not self.after_conv3_plugin_names
                and type(self.relu) is nn.ReLU and not has_hooks(self.conv3, self.norm3, self.relu))

    def _absorbable(self, x: Tensor, identity: Tensor, chosen: ModuleType | None
                    ) -> ShuffleAttention | None:
        """Return the attention if conv3 can absorb its shuffle in inference, else None."""
        if not hasattr(chosen, 'gate_') or not is_foldable(self.conv3, self.norm3, x, chosen):
            return None
        attention = self._fusible_attention(identity, identity)
        return attention if attention is not None and attention.operands is not None else None

    def _downsampled(self, x: Tensor, chosen: ModuleType | None) -> Tensor:
        downsample = self.downsample
        if type(downsample) is not nn.Sequential or has_hooks(downsample):
            return downsample(x)
        *pool, conv, norm = downsample
        for layer in pool:
            x = layer(x)
        return conv_norm(conv, norm, x, chosen)

    def _after_conv3(self, z: Tensor, identity: Tensor, chosen: ModuleType | None) -> Tensor:
        norm = self.norm3
        unfused = chosen is reference or is_traced(z)
        attention = None if unfused else self._fusible_attention(z, identity)
        operands = attention.operands if attention is not None else None
        if attention is None or operands is None:
            out = self.forward_plugin(norm(z), self.after_conv3_plugin_names)
            out += identity
            return self.relu(out)
        batch_norm, bn_eps = None, 0.
        if type(norm) is not nn.Identity:
            batch_norm = norm.weight, norm.bias, norm.running_mean, norm.running_var
            bn_eps = norm.eps
        return compute(chosen, z, identity, batch_norm, operands, attention.groups, attention.eps,
                       bn_eps)

    def _fusible_attention(self, z: Tensor, identity: Tensor) -> ShuffleAttention | None:
        """Return the attention if it can be one operator with what surrounds it, else None."""
        names, norm, relu = self.after_conv3_plugin_names, self.norm3, self.relu
        attention = getattr(self, names[0]) if len(names) == 1 else None
        if (type(attention) is not ShuffleAttention or type(relu) is not nn.ReLU
                or (z.shape, z.dtype, z.device) != (
                    identity.shape, identity.dtype, identity.device)):
            return None
        is_frozen = (type(norm).forward in BATCH_NORMS and not norm.training
                     and norm.weight is not None and norm.bias is not None
                     and norm.running_mean is not None)
        if not (is_frozen or type(norm) is nn.Identity) or has_hooks(norm, attention, relu):
            return None
        return attention
