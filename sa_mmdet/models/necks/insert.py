"""Move the weights of necks to their places next to ``FeatureAttention``.

A list of necks numbers its keys. ``neck.`` becomes ``neck.0.`` if the attention follows, and
``neck.1.`` if it comes first.
"""
from torch import nn

from ..convert import ConversionError, StateDict, listed
from .feature_attention import FeatureAttention


def insert_feature_attention(model: nn.Module, state_dict: StateDict, prefix: str = '') -> int:
    """Convert, in place, the weights of a detector without ``FeatureAttention`` for one with it.

    The weights of other necks move to their new places, and the attention gets its neutral
    parameters. The detector then computes the same function.

    Args:
        model: the detector with attention, or a part of it.
        state_dict: weights of the same detector without attention. Its tensors do not change.
        prefix: prefix of ``model`` in ``state_dict``, such as 'neck.'.

    Returns:
        The number of attention modules that ``state_dict`` did not have.

    Raises:
        ConversionError: ``state_dict`` has only a part of the attention's parameters, more than
            these, or attention in another place.
    """
    return sum(insert_among_children(parent, state_dict, f'{prefix}{name}.' if name else prefix)
               for name, parent in model.named_modules()
               if any(isinstance(child, FeatureAttention) for child in parent.children()))


def insert_among_children(parent: nn.Module, state_dict: StateDict, prefix: str) -> int:
    """Do ``insert_feature_attention`` for the children of one module, such as a list of necks."""
    children = dict(parent.named_children())
    attention = {name: child for name, child in children.items()
                 if isinstance(child, FeatureAttention)}
    others = {name: child for name, child in children.items() if name not in attention}
    theirs = [key for key in state_dict if key.startswith(prefix)]
    if not theirs and any(child.state_dict() for child in others.values()):
        return 0
    own = {f'{prefix}{name}.{key}': value.shape for name, child in attention.items()
           for key, value in child.state_dict().items()}
    of_others = {key for child in others.values() for key in child.state_dict()}

    def is_of_attention(key: str) -> bool:
        child, _, name = key.removeprefix(prefix).partition('.')
        return own.get(key) == state_dict[key].shape or (
            (child.isdigit() or child in attention)
            and name.startswith('layers.') and name not in of_others)

    found = set(filter(is_of_attention, theirs))
    if found and found != own.keys():
        has = f'has {listed(sorted(found - own.keys()))}' if found - own.keys() else (
            f'lacks {listed(sorted(own.keys() - found))}')
        raise ConversionError(
            f'the checkpoint {has}, but the network has '
            f'{", ".join(type(child).__name__ for child in children.values())} here: give the '
            'config that it was trained with, or a checkpoint without FeatureAttention')
    if found:
        return 0
    if isinstance(parent, nn.Sequential):
        _renumber(others, state_dict, prefix, theirs)
    for name, child in attention.items():
        state_dict.update({f'{prefix}{name}.{key}': value
                           for key, value in child.neutral_state().items()})
    return len(attention)


def _renumber(others: dict[str, nn.Module], state_dict: StateDict, prefix: str,
              keys: list[str]) -> None:
    """Move the weights of a neck, or of a list of necks, to their places in this list."""
    places = {f'{prefix}{number}.': name for number, name in enumerate(others)}
    if len(others) == 1:
        (name, neck), = others.items()
        if any(prefix + key in state_dict for key in neck.state_dict()):
            places = {prefix: name}
    moved = {f'{prefix}{name}.{key.removeprefix(start)}': state_dict.pop(key)
             for start, name in places.items() for key in keys if key.startswith(start)}
    state_dict.update(moved)
