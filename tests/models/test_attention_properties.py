"""What holds of every attention layer, for every shape, dtype and layout."""
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from networks import LAYERS, small
from sa_mmdet.models import ShuffleAttention

VARIANTS = {layer.__name__: partial(layer, **small(layer)) for layer in LAYERS} | {
    'without group norm': partial(ShuffleAttention, groups=2, gn=False),
    'convolutions': partial(ShuffleAttention, groups=2, fc='conv')}
FORMATS = [torch.contiguous_format, torch.channels_last]


@dataclass(frozen=True)
class Call:
    """A call of a layer in evaluation mode, its weights and input made of a seed."""
    layer: str
    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    memory_format: torch.memory_format
    seed: int

    def __call__(self, x):
        generator = torch.Generator().manual_seed(self.seed)
        layer = VARIANTS[self.layer](self.shape[1]).eval()
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, generator=generator)
        return layer.to(self.dtype)(x)

    @property
    def x(self):
        generator = torch.Generator().manual_seed(self.seed + 1)
        x = torch.randn(self.shape, generator=generator).to(self.dtype)
        return x.contiguous(memory_format=self.memory_format)


IMAGES = st.integers(1, 3)


@st.composite
def calls(draw, images=IMAGES):
    sizes = st.integers(1, 9)
    return Call(
        draw(st.sampled_from(list(VARIANTS))),
        (draw(images), 4 * draw(st.integers(1, 4)), draw(sizes), draw(sizes)),
        draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16])),
        draw(st.sampled_from(FORMATS)),
        draw(st.integers(0, 2**32 - 1)))


@pytest.mark.filterwarnings('ignore:std_mean')  # of PyTorch, where there is no image
@given(call=calls(images=st.integers(0, 3)))
def test_shape_and_dtype_are_kept(call):
    x = call.x.requires_grad_()
    y = call(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == x.shape
    assert y.dtype == x.dtype
    assert y.isfinite().all()


@given(call=calls(images=st.integers(2, 3)))
def test_a_batch_is_its_images(call):
    x = call.x
    eps = torch.finfo(call.dtype).eps
    for image, y in zip(x.split(1), call(x).split(1), strict=True):
        torch.testing.assert_close(call(image), y, rtol=8 * eps, atol=8 * eps)


@given(call=calls(images=st.integers(2, 3)), image=st.integers(0, 1))
def test_nan_stays_in_its_image(call, image):
    x = call.x
    before = call(x)
    x[image, 0, 0, 0] = torch.nan
    after = call(x)
    assert after[image].isnan().any()
    others = [i for i in range(len(x)) if i != image]
    torch.testing.assert_close(after[others], before[others], rtol=0, atol=0)
