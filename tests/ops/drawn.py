"""Calls of the operators for property tests to draw, each told by a line that makes it again."""
from dataclasses import dataclass

import torch
from fused import (
    DTYPES,
    LAYOUTS,
    LIBRARIES,
    Operands,
    attend,
    forced,
    gradients,
    random_batch_norm,
    random_input,
    random_parameters,
    refusal,
)
from hypothesis import strategies as st

NOT_EXPANDED = tuple(LAYOUTS)
LAYOUTS = {**LAYOUTS, 'expanded row': lambda x: x[:, :, :1].expand(x.shape)}
FUSED = [name for name in (*LIBRARIES, 'triton') if refusal(name) is None]
ALL = ['reference', *FUSED]

IMAGES = st.integers(1, 3)
SIZES = st.integers(1, 9) | st.sampled_from([16, 17, 33])
SEEDS = st.integers(0, 2**32 - 1)


@dataclass(frozen=True)
class Call:
    """A call of shuffle attention, its tensors made of a seed."""
    implementation: str
    shape: tuple[int, int, int, int]
    groups: int
    dtype: torch.dtype
    layout: str
    scale: float
    shift: float
    seed: int

    @property
    def p(self):
        return self.shape[1] // (2 * self.groups)

    def values(self, offset=0):
        """Random ones, contiguous; others for another ``offset`` of the seed."""
        return random_input(self.shape, self.dtype, 'contiguous', self.scale, self.shift,
                            self.seed + offset)

    def lay(self, values):
        return LAYOUTS[self.layout](values)

    @property
    def x(self):
        return self.lay(self.values())

    @property
    def dy(self):
        return self.lay(random_input(self.shape, self.dtype, seed=self.seed + 1))

    @property
    def parameters(self):
        return random_parameters(self.p, self.wide_dtype, self.seed + 2)

    @property
    def batch_norm(self):
        return random_batch_norm(self.shape[1], self.wide_dtype, self.shift, self.seed + 3)

    @property
    def wide_dtype(self):
        return torch.promote_types(self.dtype, torch.float32)

    def operands(self, x, identity=None, parameters=None):
        """With an identity, those of a bottleneck."""
        batch_norm = None if identity is None else self.batch_norm
        return Operands(x, identity, batch_norm, parameters or self.parameters, self.groups)

    def attend(self, x, identity=None, parameters=None, eps=1e-5):
        with forced(self.implementation) as name:
            return attend(self.operands(x, identity, parameters), name, eps=eps)

    def results(self, x, dy, identity=None):
        """The output, and the gradients of the operands, by name."""
        with forced(self.implementation) as name:
            return gradients(
                lambda operands: attend(operands, name), self.operands(x, identity), dy)

    def same(self, actual, expected):
        """Bit for bit, of an implementation of ours; PyTorch's sums depend on what is around."""
        if self.implementation != 'reference' or not actual.numel():
            return torch.equal(actual, expected)
        tolerance = 8 * torch.finfo(self.dtype).eps
        return torch.allclose(actual, expected, tolerance, tolerance * abs(expected).max().item())


@st.composite
def calls(draw, implementations=ALL, layouts=tuple(LAYOUTS), images=IMAGES,
          sizes=SIZES, scales=(1., 1e-3, 100.), shifts=(0., 3., -100.)):
    implementation = draw(st.sampled_from(implementations))
    dtypes = [dtype for dtype in DTYPES
              if implementation != 'triton' or dtype != torch.float64]
    groups, p = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    largest = 9 if implementation == 'triton' else 33  # its interpreter takes its time
    height, width = (min(draw(sizes), largest) for _ in range(2))
    return Call(
        implementation,
        (draw(images), 2 * p * groups, height, width),
        groups,
        draw(st.sampled_from(dtypes)),
        draw(st.sampled_from(layouts)),
        draw(st.sampled_from(scales)),
        draw(st.sampled_from(shifts)),
        draw(SEEDS))
