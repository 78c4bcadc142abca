"""The operator ``sa_mmdet::bottleneck_tail`` of torch.library.

As that of shuffle attention, it chooses an implementation when it runs.
"""
import torch

from ..shuffle_attention.implementations import FUSED, choose, is_eager
from ..shuffle_attention.layout import memory_format
from .reference import tail_backward, tail_forward

_ARGUMENTS = (
    'Tensor? bn_weight, Tensor? bn_bias, Tensor? bn_mean, Tensor? bn_var, Tensor cweight, '
    'Tensor cbias, Tensor sweight, Tensor sbias, Tensor gn_weight, Tensor gn_bias, int groups, '
    'float eps, float bn_eps')

torch.library.define(
    'sa_mmdet::bottleneck_tail',
    f'(Tensor z, Tensor identity, {_ARGUMENTS}, str? implementation=None) -> (Tensor, Tensor)',
    tags=torch.Tag.pt2_compliant_tag)
torch.library.define(
    'sa_mmdet::bottleneck_tail_backward',
    f'(Tensor dout, Tensor z, Tensor out, Tensor stats, {_ARGUMENTS}, bool input_gradients, '
    'str? implementation=None) -> (Tensor, Tensor, Tensor, Tensor)',
    tags=torch.Tag.pt2_compliant_tag)


def _split(tensors: tuple) -> tuple:
    """The batch norm, None where there is none, and the attention's parameters."""
    return None if tensors[0] is None else tensors[:4], tensors[4:]


def _forward(z, identity, bn_weight, bn_bias, bn_mean, bn_var, cweight, cbias, sweight, sbias,
             gn_weight, gn_bias, groups, eps, bn_eps, implementation=None):
    batch_norm, parameters = _split(
        (bn_weight, bn_bias, bn_mean, bn_var, cweight, cbias, sweight, sbias, gn_weight, gn_bias))
    name = choose(z, implementation)
    forward = tail_forward if name == 'reference' else FUSED[name].tail_forward
    return forward(z, identity, batch_norm, *parameters, groups=groups, eps=eps, bn_eps=bn_eps)


torch.library.impl('sa_mmdet::bottleneck_tail', 'default', _forward)


@torch.library.register_fake('sa_mmdet::bottleneck_tail')
def _(z, *_):
    return (torch.empty_like(z, memory_format=memory_format(z)),
            z.new_empty(*z.shape[:2], 2, dtype=torch.float64))


def _backward(dout, z, out, stats, bn_weight, bn_bias, bn_mean, bn_var, cweight, cbias, sweight,
              sbias, gn_weight, gn_bias, groups, eps, bn_eps, input_gradients,
              implementation=None):
    batch_norm, parameters = _split(
        (bn_weight, bn_bias, bn_mean, bn_var, cweight, cbias, sweight, sbias, gn_weight, gn_bias))
    name = choose(z, implementation)
    options = dict(groups=groups, eps=eps, bn_eps=bn_eps)
    if name == 'reference':
        *inputs, bn_gradients, gradients = tail_backward(
            dout, z, out, batch_norm, *parameters, **options)
        layout = memory_format(z)
        inputs = [gradient.contiguous(memory_format=layout) if input_gradients else z.new_empty(0)
                  for gradient in inputs]
        return *inputs, bn_gradients.double(), gradients.double()
    return FUSED[name].tail_backward(
        dout, z, out, stats, batch_norm, *parameters, **options, input_gradients=input_gradients)


torch.library.impl('sa_mmdet::bottleneck_tail_backward', 'default', _backward)


@torch.library.register_fake('sa_mmdet::bottleneck_tail_backward')
def _(dout, z, out, stats, *arguments):
    gn_bias, input_gradients = arguments[9], arguments[13]

    def input_gradient():
        return (torch.empty_like(z, memory_format=memory_format(z)) if input_gradients
                else z.new_empty(0))

    return (input_gradient(), input_gradient(), z.new_empty(2, z.shape[1], dtype=torch.float64),
            z.new_empty(6, gn_bias.numel(), dtype=torch.float64))


def _setup_context(ctx, inputs, output):
    z, _, *tensors, ctx.groups, ctx.eps, ctx.bn_eps, ctx.implementation = inputs
    out, stats = output
    ctx.mark_non_differentiable(stats)
    ctx.save_for_backward(z, out, stats, *tensors)


def _gradients(ctx, dout, _):
    z, out, stats, *tensors = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    if torch.is_grad_enabled():  # create_graph: the formula's derivative can be differentiated
        batch_norm, parameters = _split(tuple(tensors))
        dz, didentity, bn_gradients, gradients = tail_backward(
            dout, z, out, batch_norm, *parameters, groups=ctx.groups, eps=ctx.eps,
            bn_eps=ctx.bn_eps)
    else:
        backward = (_backward if is_eager(dout) else
                    torch.ops.sa_mmdet.bottleneck_tail_backward.default)
        dz, didentity, bn_gradients, gradients = backward(
            dout, z, out, stats, *tensors, ctx.groups, ctx.eps, ctx.bn_eps,
            wanted[0] or wanted[1], ctx.implementation)
    of_tensors = [*bn_gradients, None, None, *gradients]
    return (dz if wanted[0] else None, didentity if wanted[1] else None,
            *(gradient.to(tensor.dtype).view_as(tensor) if want else None
              for gradient, tensor, want in zip(of_tensors, tensors, wanted[2:12], strict=True)),
            None, None, None, None)


torch.library.register_autograd(
    'sa_mmdet::bottleneck_tail', _gradients, setup_context=_setup_context)


class BottleneckTailFunction(torch.autograd.Function):
    """The operator without PyTorch's dispatcher, with the same arguments and results."""

    @staticmethod
    def forward(ctx, *inputs):
        output = _forward(*inputs)
        _setup_context(ctx, inputs, output)
        return output

    backward = staticmethod(_gradients)
