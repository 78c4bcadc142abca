"""The operator ``sa_mmdet::shuffle_attention`` of torch.library, one node to compile and export.

The kernel chooses an implementation when it runs, so that a compiled or exported program fits the
machine on which it runs.
"""
import torch

from .implementations import FUSED, choose, is_eager
from .layout import memory_format
from .reference import reference_backward, reference_forward

_PARAMETERS = ('Tensor cweight, Tensor cbias, Tensor sweight, Tensor sbias, Tensor gn_weight, '
               'Tensor gn_bias, int groups, float eps')

torch.library.define(
    'sa_mmdet::shuffle_attention',
    f'(Tensor x, {_PARAMETERS}, str? implementation=None) -> (Tensor, Tensor)',
    tags=torch.Tag.pt2_compliant_tag)
torch.library.define(
    'sa_mmdet::shuffle_attention_backward',
    f'(Tensor dy, Tensor x, Tensor stats, {_PARAMETERS}, bool input_gradient, '
    'str? implementation=None) -> (Tensor, Tensor)',
    tags=torch.Tag.pt2_compliant_tag)


def _forward(x, cweight, cbias, sweight, sbias, gn_weight, gn_bias, groups, eps,
             implementation=None):
    parameters = cweight, cbias, sweight, sbias, gn_weight, gn_bias
    name = choose(x, implementation)
    if name != 'reference':
        return FUSED[name].forward(x, *parameters, groups=groups, eps=eps)
    y, stats = reference_forward(x, *parameters, groups, eps)
    return y.contiguous(memory_format=memory_format(x)), stats


torch.library.impl('sa_mmdet::shuffle_attention', 'default', _forward)


@torch.library.register_fake('sa_mmdet::shuffle_attention')
def _(x, cweight, cbias, sweight, sbias, gn_weight, gn_bias, groups, eps, implementation=None):
    return (torch.empty_like(x, memory_format=memory_format(x)),
            x.new_empty(*x.shape[:2], 2, dtype=torch.float64))


def _backward(dy, x, stats, cweight, cbias, sweight, sbias, gn_weight, gn_bias, groups, eps,
              input_gradient, implementation=None):
    parameters = cweight, cbias, sweight, sbias, gn_weight, gn_bias
    name = choose(x, implementation)
    if name == 'reference':
        dx, gradients = reference_backward(dy, x, *parameters, groups, eps)
        dx = dx.contiguous(memory_format=memory_format(x)) if input_gradient else x.new_empty(0)
        return dx, gradients.double()
    return FUSED[name].backward(
        dy, x, stats, *parameters, groups=groups, eps=eps, input_gradient=input_gradient)


torch.library.impl('sa_mmdet::shuffle_attention_backward', 'default', _backward)


@torch.library.register_fake('sa_mmdet::shuffle_attention_backward')
def _(dy, x, stats, cweight, cbias, sweight, sbias, gn_weight, gn_bias, groups, eps,
      input_gradient, implementation=None):
    dx = torch.empty_like(x, memory_format=memory_format(x)) if input_gradient else x.new_empty(0)
    return dx, x.new_empty(6, gn_weight.numel(), dtype=torch.float64)


def _setup_context(ctx, inputs, output):
    x, *parameters, ctx.groups, ctx.eps, ctx.implementation = inputs
    stats = output[1]
    ctx.mark_non_differentiable(stats)
    ctx.save_for_backward(x, stats, *parameters)


def _gradients(ctx, dy, _):
    x, stats, *parameters = ctx.saved_tensors
    input_gradient, *wanted = ctx.needs_input_grad[:7]
    if torch.is_grad_enabled():  # create_graph: the formula's derivative can be differentiated
        dx, gradients = reference_backward(dy, x, *parameters, ctx.groups, ctx.eps)
    else:
        backward = (_backward if is_eager(dy) else
                    torch.ops.sa_mmdet.shuffle_attention_backward.default)
        dx, gradients = backward(
            dy, x, stats, *parameters, ctx.groups, ctx.eps, input_gradient, ctx.implementation)
    return (dx if input_gradient else None,
            *(gradient.to(parameter.dtype).view_as(parameter) if want else None
              for gradient, parameter, want in zip(gradients, parameters, wanted, strict=True)),
            None, None, None)


torch.library.register_autograd(
    'sa_mmdet::shuffle_attention', _gradients, setup_context=_setup_context)


class ShuffleAttentionFunction(torch.autograd.Function):
    """The operator without PyTorch's dispatcher, with the same arguments and results."""

    @staticmethod
    def forward(ctx, *inputs):
        output = _forward(*inputs)
        _setup_context(ctx, inputs, output)
        return output

    backward = staticmethod(_gradients)
