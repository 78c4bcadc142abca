"""Networks and inputs that several tests share."""
import torch
from torch import Tensor, nn


def randomised(model: nn.Module) -> nn.Module:
    """Random weights and batch statistics, always the same, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            random = torch.randn(value.shape, generator=generator)
            if 'running_var' in name:
                value.copy_(1 + random.abs())
            else:
                value.copy_(random * (2 / max(1, value[0].numel()))**0.5)
    model.eval()
    return model


def image(size: int = 64, dtype: torch.dtype = torch.float32) -> Tensor:
    """A random image, always the same."""
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)


def assert_same_outputs(a, b, **tolerance):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, **tolerance)
