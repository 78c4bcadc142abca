"""The operator ``sa_mmdet::shuffle_attention`` of torch.library: one node to compile and export.

With a batch norm and an identity, it is what a bottleneck does after conv3. The kernel chooses an
implementation when it runs, so a compiled or exported program fits the machine that runs it.
"""
import torch
from torch import Tensor

from .dispatch import choose
from .reference import gradient_dtype, memory_format

_ARGUMENTS = (
    'Tensor? bn_weight, Tensor? bn_bias, Tensor? bn_mean, Tensor? bn_var, Tensor cweight, '
    'Tensor cbias, Tensor sweight, Tensor sbias, Tensor gn_weight, Tensor gn_bias, int groups, '
    'float eps, float bn_eps, ')

torch.library.define(
    'sa_mmdet::shuffle_attention',
    f'(Tensor z, Tensor? identity, {_ARGUMENTS} str? implementation) -> (Tensor, Tensor)',
    tags=torch.Tag.pt2_compliant_tag)
torch.library.define(
    'sa_mmdet::shuffle_attention_backward',
    f'(Tensor dout, Tensor z, Tensor? out, Tensor stats, {_ARGUMENTS} bool input_gradients, '
    'str? implementation) -> (Tensor, Tensor, Tensor, Tensor)',
    tags=torch.Tag.pt2_compliant_tag)


def _split(tensors: tuple) -> tuple:
    """Return the batch norm, or None if there is none, and the attention's parameters."""
    return None if tensors[0] is None else tensors[:4], tensors[4:]


def _forward(z, identity, *arguments):
    tensors, (groups, eps, bn_eps, implementation) = arguments[:10], arguments[10:]
    return choose(z, implementation).forward(
        z, identity, *_split(tensors), groups, eps, bn_eps)


def _backward(dout, z, out, stats, *arguments):
    tensors, (groups, eps, bn_eps, input_gradients, implementation) = arguments[:10], arguments[10:]
    return choose(z, implementation).backward(
        dout, z, out, stats, *_split(tensors), groups, eps, bn_eps, input_gradients)


torch.library.impl('sa_mmdet::shuffle_attention', 'default', _forward)
torch.library.impl('sa_mmdet::shuffle_attention_backward', 'default', _backward)


@torch.library.register_fake('sa_mmdet::shuffle_attention')
def _(z, *_):
    return (torch.empty_like(z, memory_format=memory_format(z)),
            z.new_empty(*z.shape[:2], 2, dtype=torch.float64))


@torch.library.register_fake('sa_mmdet::shuffle_attention_backward')
def _(dout, z, out, stats, *arguments):
    (batch_norm, parameters), input_gradients = _split(arguments[:10]), arguments[13]

    def gradient(wanted: bool) -> Tensor:
        return torch.empty_like(z, memory_format=memory_format(z)) if wanted else z.new_empty(0)

    return (gradient(input_gradients), gradient(input_gradients and out is not None),
            z.new_empty(2, z.shape[1], dtype=gradient_dtype(batch_norm and batch_norm[:2])),
            z.new_empty(6, parameters[0].numel(), dtype=gradient_dtype(parameters)))


def _setup_context(ctx, inputs, output):
    z, identity, *tensors, ctx.groups, ctx.eps, ctx.bn_eps, ctx.implementation = inputs
    out, stats = output
    ctx.mark_non_differentiable(stats)
    ctx.set_materialize_grads(False)  # else PyTorch makes one of zeros for stats
    ctx.save_for_backward(z, None if identity is None else out, stats, *tensors)


def _gradients(ctx, dout, _):
    if dout is None:
        return (None, ) * 16
    z, out, stats, *tensors = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    settings = *tensors, ctx.groups, ctx.eps, ctx.bn_eps, wanted[0] or wanted[1]
    if torch.is_grad_enabled() or torch._C._functorch.is_legacy_batchedtensor(dout):
        # create_graph, is_grads_batched: the reference's derivative uses PyTorch's operators
        backward, implementation = _backward, 'reference'
    else:
        implementation = ctx.implementation
        is_plain = type(dout) is Tensor and not torch._C._len_torch_dispatch_stack()
        backward = (_backward if is_plain else
                    torch.ops.sa_mmdet.shuffle_attention_backward.default)
    dz, didentity, of_batch_norm, of_parameters = backward(
        dout, z, out, stats, *settings, implementation)
    return (dz if wanted[0] else None, didentity if wanted[1] else None,
            *_rows(of_batch_norm, tensors[:2], wanted[2:4]), None, None,
            *_rows(of_parameters, tensors[4:], wanted[6:12]), None, None, None, None)


def _rows(gradients: Tensor, tensors: list[Tensor], wanted: tuple[bool, ...]) -> list:
    """Return a gradient for each tensor that wants one, in its shape. Autograd sets the dtype."""
    return [gradient.view_as(tensor) if want else None
            for gradient, tensor, want in zip(gradients.unbind(), tensors, wanted, strict=True)]


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
