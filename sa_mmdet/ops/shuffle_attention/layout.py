"""How tensors lie in memory."""
import torch
from torch import Tensor


def memory_format(x: Tensor) -> torch.memory_format:
    """That of the output and of dx: channels_last where ``x`` is in it, else contiguous."""
    channels_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format
