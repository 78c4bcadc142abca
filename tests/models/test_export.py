"""Out of PyTorch, or to its graphs: at other sizes than those of the example, the same values."""
import io
import warnings

import pytest
import torch
import torch.fx
from torch import nn

from networks import LAYERS, randomised, small
from sa_mmdet.models import AttentionResNet, FeatureAttention, SAResNet, ShuffleAttention


class OnTwoMaps(nn.Module):
    """FeatureAttention on what is made of one input."""

    def __init__(self):
        super().__init__()
        attention = dict(type='ShuffleAttention', groups=2)
        self.attention = FeatureAttention(attention, [16, 16])

    def forward(self, x):
        return self.attention((x, -x))


ABLATIONS = [dict(gn=False), dict(shuffle=False), dict(fc='none'), dict(fc='conv'),
             dict(fc='conv', groups=8)]
# with what an example has, and what it is then computed with
LAYER_SIZES = (2, 16, 8, 12), (3, 16, 9, 7)
BACKBONE_SIZES = (2, 3, 64, 64), (3, 3, 96, 128)
MODULES = [
    *(pytest.param(lambda layer=layer: layer(16, **small(layer)), LAYER_SIZES, id=layer.__name__)
      for layer in LAYERS),
    *(pytest.param(lambda options=options: ShuffleAttention(16, **dict(groups=2) | options),
                   LAYER_SIZES, id=str(options)) for options in ABLATIONS),
    pytest.param(OnTwoMaps, LAYER_SIZES, id='FeatureAttention'),
    pytest.param(lambda: SAResNet(50, dict(groups=4), base_channels=16), BACKBONE_SIZES,
                 id='SAResNet'),
    pytest.param(lambda: AttentionResNet(50, 'SpatialGroupEnhance', base_channels=16),
                 BACKBONE_SIZES, id='AttentionResNet'),
]


@pytest.fixture
def module(request):
    return randomised(request.param())


def outputs(module: nn.Module, x: torch.Tensor) -> tuple:
    with torch.no_grad():
        result = module(x)
    return result if isinstance(result, tuple) else (result, )


def drawn(size: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(0))


def assert_near(actual, expected, tolerance):
    for a, e in zip(actual, expected, strict=True):
        assert (a - e).abs().max() <= tolerance * e.abs().max()


@pytest.mark.parametrize(('module', 'sizes'), MODULES, indirect=['module'])
@pytest.mark.parametrize('free', [(0, ), (0, 2, 3)], ids=['batch', 'batch and size'])
def test_onnx_with_dynamic_axes(module, sizes, free):
    """By the exporter that mmdeploy uses."""
    runtime = pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    pytest.importorskip('onnx', reason='onnx is not installed')
    example, other = sizes
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.onnx.export(module, (drawn(example), ), file, dynamo=False, input_names=['x'],
                          dynamic_axes={'x': {dimension: f'd{dimension}' for dimension in free}})
    session = runtime.InferenceSession(file.getvalue(), providers=['CPUExecutionProvider'])
    x = drawn(tuple(other[i] if i in free else example[i] for i in range(4)))
    actual = [torch.from_numpy(output) for output in session.run(None, {'x': x.numpy()})]
    assert_near(actual, outputs(module, x), 1e-4)


@pytest.mark.parametrize(('module', 'sizes'), MODULES, indirect=['module'])
def test_torch_fx(module, sizes):
    """It sees the layers of a network, and shuffle attention as one node."""
    traced = torch.fx.symbolic_trace(module.double())
    nodes = [node for node in traced.graph.nodes if 'shuffle_attention' in str(node.target)]
    assert len(nodes) == sum(isinstance(layer, ShuffleAttention) for layer in module.modules())
    for x in (drawn(size).double() for size in sizes):
        assert_near(outputs(traced, x), outputs(module, x), 1e-12)


@pytest.mark.parametrize(('module', 'sizes'), MODULES, indirect=['module'])
def test_torch_export_with_dynamic_shapes(module, sizes):
    example, other = (drawn(size).double() for size in sizes)
    step = 32 if sizes == BACKBONE_SIZES else 1
    shapes = {0: torch.export.Dim('n', min=2, max=64), **{
        dimension: step * torch.export.Dim(name, min=2, max=64)
        for dimension, name in ((2, 'h'), (3, 'w'))}}
    program = torch.export.export(module.double(), (example, ), dynamic_shapes=(shapes, ))
    assert_near(outputs(program.module(), other), outputs(module, other), 1e-12)


def test_torch_fx_trains():
    """Gradients are those of the module."""
    module = randomised(SAResNet(50, dict(groups=4), base_channels=16)).double()
    gradients = []
    for network in (module, torch.fx.symbolic_trace(module)):
        module.zero_grad()
        sum(output.mean() for output in network(drawn((1, 3, 64, 64)).double())).backward()
        gradients.append([parameter.grad for parameter in module.parameters()
                          if parameter.grad is not None])
    assert_near(*gradients, 1e-9)
