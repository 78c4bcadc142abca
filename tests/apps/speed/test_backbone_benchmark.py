import json

import cv2
import numpy as np
import pytest
import torch
from mmdet.models.backbones.resnet import ResNet
from torch.utils._python_dispatch import TorchDispatchMode

from networks import assert_same_outputs, image
from sa_mmdet.apps.speed import backbone as benchmark
from sa_mmdet.apps.speed.backbone import BackboneCase, build_backbones, measure_backbone
from sa_mmdet.apps.speed.report import comparison_plot
from sa_mmdet.apps.speed.variants import FOLDED, FORMULA, ShuffleAttentionFormula, variants_of
from sa_mmdet.models import AttentionLayer, SAResNet, ShuffleAttention
from sa_mmdet.ops import implementations

NAMES = ['ResNet', 'SAResNet', 'ResNet + formula']
FUSED = implementations()['cpu'] is None
SMALL = dict(height=64, width=64, repeats=1)


class Recorder(TorchDispatchMode):
    """The names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.operators = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operators.add(function.name())
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope='module')
def networks():
    networks = build_backbones(BackboneCase(**SMALL))
    for network in networks.values():
        network.eval()
    return networks


def attention_types(network):
    return [type(module) for module in network.modules() if isinstance(module, AttentionLayer)]


def outputs(network):
    with torch.no_grad():
        return network(image())


def calls_of(monkeypatch, case):
    """The calls of each pass, which are not measured."""
    passes = []

    def keep(calls, *_, **__):
        passes.append(calls)
        return []

    monkeypatch.setattr(benchmark, 'compare', keep)
    assert list(measure_backbone(case)) == []
    return passes


def test_variants_are_what_they_are_called(networks):
    assert list(networks) == NAMES
    plain, fused, formula = networks.values()
    assert type(plain) is type(formula) is ResNet
    assert type(fused) is SAResNet
    assert attention_types(plain) == []
    assert attention_types(fused) == [ShuffleAttention] * 16
    assert attention_types(formula) == [ShuffleAttentionFormula] * 16
    trained = [{name for name, parameter in network.named_parameters()
                if parameter.requires_grad and '.sa.' not in name}
               for network in networks.values()]
    assert trained[0] == trained[1] == trained[2]
    assert {network.norm_eval for network in networks.values()} == {True}


def test_all_compute_the_same_function(networks):
    expected = outputs(networks['ResNet'])
    for name in NAMES[1:]:
        assert_same_outputs(outputs(networks[name]), expected, rtol=1e-3, atol=1e-4)


def test_the_formula_is_that_of_the_fused_attention():
    _, fused, formula = build_backbones(BackboneCase(**SMALL)).values()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in fused.named_parameters():
            if '.sa.' in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    formula.load_state_dict(fused.state_dict())
    for network in (fused, formula):
        network.eval()
    assert_same_outputs(outputs(fused), outputs(formula), rtol=1e-3, atol=1e-4)


def test_the_formula_is_computed_by_pytorch_alone(networks):
    used = {}
    for name in NAMES:
        with Recorder() as recorder:
            outputs(networks[name])
        used[name] = any(operator.startswith('sa_mmdet::') for operator in recorder.operators)
    assert used == {'ResNet': False, 'SAResNet': FUSED, 'ResNet + formula': False}


def test_features_keep_their_magnitude():
    network = build_backbones(BackboneCase(depth=152, formula=False))['ResNet']
    network.eval()
    assert all(0.1 < y.std() < 100 for y in outputs(network))


@pytest.mark.parametrize(('dtype', 'channels_last'), [
    (torch.float32, True), (torch.bfloat16, False)], ids=str)
def test_all_run_alike(monkeypatch, dtype, channels_last):
    case = BackboneCase(dtype=dtype, channels_last=channels_last, **SMALL)
    inference, training = calls_of(monkeypatch, case)
    assert list(inference) == [*NAMES, *FOLDED.values()]
    assert list(training) == NAMES
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for name, call in inference.items():
        features = call()
        assert [y.shape for y in features] == [(1, 256 * 2**i, 16 >> i, 16 >> i) for i in range(4)]
        assert all(y.dtype == dtype and not y.requires_grad for y in features)
        # the formula's layout is its own
        if name != FORMULA and (FUSED or name in ('ResNet', FOLDED['ResNet'])):
            assert all(y.is_contiguous(memory_format=layout) for y in features)
    counts = []
    for call in training.values():
        gradients = call()
        assert all(gradient.dtype == torch.float32 for gradient in gradients)
        assert all(gradient.isfinite().all() for gradient in gradients)
        counts.append(len(gradients))
    assert all(gradient.any() for gradient in training['ResNet']())
    attention = 13 * 6  # of the blocks that train
    assert counts == [counts[0], counts[0] + attention, counts[0] + attention]


def test_folded_norms_are_gone_and_their_function_is_not(monkeypatch):
    inference, _ = calls_of(monkeypatch, BackboneCase(formula=False, **SMALL))
    for name in FOLDED.values():
        with Recorder() as recorder:
            folded = inference[name]()
        assert not any('batch_norm' in operator for operator in recorder.operators)
        assert_same_outputs(folded, inference['ResNet'](), rtol=1e-3, atol=1e-4)


def test_options_of_the_given_backbone_stay():
    given = dict(type='AttentionResNet', depth=101, attention='ShuffleAttention',
                 plugins=[dict(cfg=dict(type='ContextBlock', ratio=1 / 16),
                               position='after_conv3')],
                 norm_eval=True, init_cfg=dict(type='Pretrained', checkpoint='nowhere'),
                 convert_weights=False)
    plain, fused, formula = variants_of(given | dict(channels_last=True)).values()  # the case's
    assert plain == dict(type='ResNet', depth=101, plugins=given['plugins'], norm_eval=True,
                         init_cfg=None)
    assert fused == dict(given, init_cfg=None, convert_weights=True)
    attention, *others = formula['plugins']
    assert attention == dict(cfg=dict(type=ShuffleAttentionFormula), position='after_conv3')
    assert others == given['plugins']


def test_the_formula_is_of_shuffle_attention_alone():
    given = dict(type='AttentionResNet', depth=50, attention=dict(type='CBAM'))
    assert list(variants_of(given)) == ['ResNet', 'AttentionResNet']
    given = dict(type='SAResNet', depth=50, attention=dict(groups=32))
    cfg = variants_of(given)['ResNet + formula']['plugins'][0]['cfg']
    assert cfg == dict(type=ShuffleAttentionFormula, groups=32)


def test_backbone_tool(run_tool, tmp_path):
    out = tmp_path / 'backbone'
    code, output = run_tool('benchmark', 'backbone', '--size', 64, 64, '--repeats', 2, '--out', out)
    assert code == 0
    assert 'inference: SAResNet / ResNet = ' in output
    assert 'training: ResNet + formula / ResNet = ' in output
    assert {path.name for path in tmp_path.iterdir()} == {'backbone.json', 'backbone.png'}
    content = json.loads(out.with_suffix('.json').read_text())
    assert content['command'].startswith('python tools/benchmark.py backbone --size 64 64')
    assert [(row['pass'], row['name']) for row in content['rows']] == [
        *(('inference', name) for name in [*NAMES, *FOLDED.values()]),
        *(('training', name) for name in NAMES)]
    for row in content['rows']:
        assert len(row['round_milliseconds']) == 2
        assert row['peak_bytes'] > 0
        low, high = row['time_ratio_quartiles']
        assert low <= row['time_ratio'] <= high
        if row['name'] == 'ResNet':
            assert row['time_ratio'] == row['memory_ratio'] == 1
    assert cv2.imread(str(out.with_suffix('.png'))) is not None


def test_plot_has_a_panel_for_cuda_graphs_where_there_are_any():
    def shape(graph_ratio):
        rows = [dict(name=name, time_ratio=1., time_ratio_quartiles=(1., 1.), memory_ratio=1.,
                     graph_ratio=graph_ratio, **{'pass': 'inference'}) for name in NAMES]
        return cv2.imdecode(np.frombuffer(comparison_plot(rows, 'title'), np.uint8), 1).shape

    (height, width, _), (graph_height, graph_width, _) = shape(None), shape(0.9)
    assert (graph_height, graph_width) == (height, width * 3 // 2)


@pytest.mark.parametrize(('args', 'message'), [
    (['--dtype', 'float64'], "invalid choice: 'float64'"),
    (['--tf32'], '--tf32 and --no-tf32 are for float32 on CUDA'),
], ids=str)
def test_backbone_tool_refuses(run_tool, args, message):
    code, output = run_tool('benchmark', 'backbone', *args)
    assert code != 0
    assert message in output


def test_backbone_tool_refuses_an_unknown_implementation(run_tool, force_ops):
    force_ops('nonsense')
    code, _ = run_tool('benchmark', 'backbone', '--size', '64', '64')
    assert code.startswith("error: SA_MMDET_OPS='nonsense' is not an implementation")
