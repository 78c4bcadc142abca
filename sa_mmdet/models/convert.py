"""Convert the weights of a plain ResNet for the same network with attention.

At its neutral parameters, an attention layer multiplies its input by one constant gate. Shuffle
attention also permutes the channels. The conversion undoes both in the layers before the attention.
The network with attention then computes the same function as the plain network, and its attention
is free to learn from there. The algebra is in docs/weights.md.
"""
from collections.abc import Iterable, Iterator, MutableMapping

from mmdet.models.backbones.resnet import Bottleneck
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .attention import AttentionLayer

StateDict = MutableMapping[str, Tensor]


class ConversionError(ValueError):
    """Raised if a checkpoint cannot be converted for a network. The message says why."""


def listed(names: Iterable, most: int = 3) -> str:
    """Return the first names, and how many more there are."""
    names = [str(name) for name in names]
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + more


def is_deployed(keys: Iterable[str]) -> bool:
    """Return whether a state dict is from a deployed network. Only there, conv3 has a bias."""
    return any(key.endswith('.conv3.bias') for key in keys)


def attention_blocks(model: nn.Module, prefix: str = '') -> Iterator[tuple[str, nn.Module, str]]:
    """Yield the bottlenecks below ``model`` that hold an attention layer after conv3.

    Yields:
        (the block's prefix in the state dict, the block, the name of its attention layer)

    Raises:
        ConversionError: an attention layer is not the first plugin after conv3.
    """
    for name, block in model.named_modules():
        if not isinstance(block, Bottleneck):
            continue
        layers = [key for key, child in block.named_children() if isinstance(child, AttentionLayer)]
        if not layers:
            continue
        if getattr(block, 'after_conv3_plugin_names', [])[:1] != layers:
            raise ConversionError(
                f'{prefix}{name} holds the attention {layers}: weights can be converted only for '
                'one layer, the first plugin after conv3')
        yield f'{prefix}{name}.' if name else prefix, block, layers[0]


def convert_state_dict(model: nn.Module, state_dict: StateDict, prefix: str = '') -> int:
    """Convert, in place, the weights of plain bottlenecks for the attention in ``model``.

    Args:
        model: the network with attention.
        state_dict: weights of the same network without attention. Its tensors do not change.
        prefix: prefix of ``model`` in ``state_dict``, such as 'backbone.'.

    Returns:
        The number of bottlenecks converted: all of them, or 0 if ``state_dict`` already has the
        attention's parameters or has nothing of these bottlenecks.

    Raises:
        ConversionError: ``state_dict`` has only a part of the attention's parameters or of the
            bottlenecks, parameters of another attention, or weights of other shapes. Or the network
            cannot be converted exactly.
    """
    blocks = list(attention_blocks(model, prefix))
    is_plain = _is_plain(blocks, state_dict)
    _check_no_others(blocks, state_dict)
    if not is_plain:
        return 0
    for block_prefix, block, name in blocks:
        _convert_block(block_prefix, block, name, state_dict)
    return len(blocks)


def _is_plain(blocks: list, state_dict: StateDict) -> bool:
    """Return whether ``state_dict`` has all bottlenecks and no parameter of the attention."""
    attention = [f'{prefix}{name}.{key}' for prefix, block, name in blocks
                 for key in getattr(block, name).state_dict()]
    convolutions = [f'{prefix}conv3.weight' for prefix, *_ in blocks]
    missing_attention = [key for key in attention if key not in state_dict]
    missing = [key for key in convolutions if key not in state_dict]
    if not missing_attention or len(missing) == len(convolutions):
        return False
    if len(missing_attention) < len(attention):
        raise ConversionError(
            f'the checkpoint has {len(attention) - len(missing_attention)} of the '
            f"{len(attention)} parameters of the network's attention. Missing: "
            f'{listed(missing_attention)}. {_remedy_for_missing(missing_attention)}')
    if missing:
        raise ConversionError(
            f'the checkpoint has {len(convolutions) - len(missing)} of the '
            f"{len(convolutions)} bottlenecks of the network. Missing: {listed(missing)}. "
            'Give a checkpoint of the same depth')
    return True


def _check_no_others(blocks: list, state_dict: StateDict) -> None:
    for prefix, block, _ in blocks:
        known = block.state_dict().keys()
        others = [key for key in state_dict
                  if key.startswith(prefix) and key.removeprefix(prefix) not in known]
        if others:
            raise ConversionError(f'the checkpoint has {listed(others)}, which the network does '
                                  f'not have. {_remedy(others)}')


def _remedy_for_missing(missing: list[str]) -> str:
    if _are_biases_of_se(missing):
        return ('It is from SE without biases. Give the network none either: --cfg-options '
                'model.backbone.attention.bias=False')
    return 'Give a checkpoint with all of them, or with none'


def _are_biases_of_se(keys: list[str]) -> bool:
    return all(key.endswith(('.se.fc1.bias', '.se.fc2.bias')) for key in keys)


def _remedy(others: list[str]) -> str:
    if is_deployed(others):
        return 'It is deployed. Build the backbone with deploy=True'
    if _are_biases_of_se(others):
        return ('It is from SE with biases. Give the network biases too: --cfg-options '
                'model.backbone.attention.bias=True')
    return 'Give a checkpoint with the same attention'


def _convert_block(prefix: str, block: nn.Module, name: str, state_dict: StateDict) -> None:
    attention = getattr(block, name)
    norm_name = block.norm3_name
    if not isinstance(getattr(block, norm_name), _BatchNorm):
        raise ConversionError(
            f'{prefix}{norm_name} is {type(getattr(block, norm_name)).__name__}: only batch norm, '
            'which treats every channel alone, can be converted')
    norm = {key: f'{prefix}{norm_name}.{key}'
            for key in ('weight', 'bias', 'running_mean', 'running_var')}
    convolution = [f'{prefix}conv3.{key}' for key in block.conv3.state_dict()]
    _check_shapes((*convolution, *norm.values()), state_dict, block, prefix)

    try:
        neutral, gate = attention.neutral_state()
    except ValueError as error:
        raise ConversionError(f'{prefix}{name} cannot be converted: {error}') from error
    source = attention.source_channels()
    for key in (*convolution, *norm.values()):
        state_dict[key] = state_dict[key][source.to(state_dict[key].device)]
    for key in (norm['weight'], norm['bias']):
        state_dict[key] = (state_dict[key].double() / gate).to(state_dict[key].dtype)
    dtype = state_dict[norm['weight']].dtype
    for key, value in neutral.items():
        value = value.to(dtype) if value.is_floating_point() else value
        state_dict[f'{prefix}{name}.{key}'] = value


def _check_shapes(keys: tuple, state_dict: StateDict, block: nn.Module, prefix: str) -> None:
    network = block.state_dict()
    for key in keys:
        if key not in state_dict:
            raise ConversionError(f'the checkpoint lacks {key}')
        found, expected = state_dict[key].shape, network[key.removeprefix(prefix)].shape
        if found != expected:
            raise ConversionError(f'{key} must have shape {tuple(expected)}, as in the network, '
                                  f'got {tuple(found)} in the checkpoint')
