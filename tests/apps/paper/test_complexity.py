import copy
import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.analysis import get_model_complexity_info
from mmengine.config import Config
from mmengine.registry import init_default_scope

from sa_mmdet.apps.paper import complexity_table as tables
from sa_mmdet.apps.paper.complexity import (
    PROPOSALS,
    Complexity,
    _CountedDetector,
    classifier_complexity,
    detector_complexity,
)
from sa_mmdet.apps.paper.complexity_table import compute_table
from sa_mmdet.apps.paper.tables import load_table
from sa_mmdet.models.attention import (
    CBAM,
    EfficientChannelAttention,
    ShuffleAttention,
    SpatialGroupEnhance,
    SqueezeExcitation,
)
from zoo.families import ZOO

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / 'configs'


def config(name):
    return Config.fromfile(CONFIGS / name)


def test_table3_is_as_printed_but_for_the_papers_own_contradictions():
    rows = list(compute_table(3, CONFIGS, mmengine=False))
    assert len(rows) == 18
    assert [row['row'] for row in rows if 'gflops' in row['differences']] == []
    differing = {row['row']: round(row['params_m'], 2) for row in rows if not row['match']}
    assert differing == {'retinanet_sa-r101': 56.74}
    assert tables.unexplained(rows) == []


def test_tables_1_and_2_are_as_printed_but_for_one_cell():
    rows = [row for table in (1, 2) for row in compute_table(table, CONFIGS, mmengine=False)]
    assert len(rows) == 5 + 12
    assert [(row['row'], *row['differences']) for row in rows if not row['match']] == [
        ('sa-resnet50', 'params_m')]
    assert tables.unexplained(rows) == []


def test_an_unknown_difference_is_reported(monkeypatch):
    monkeypatch.setattr(tables, 'detector_complexity', lambda *args: Complexity(41.53, 207.08))
    rows = list(compute_table(3, CONFIGS, mmengine=False))[:2]
    assert [row['match'] for row in rows] == [False, False]
    assert tables.unexplained(rows) == [
        'faster-rcnn_r50 gflops', 'faster-rcnn_se-r50 params_m', 'faster-rcnn_se-r50 gflops']


def test_printed_tables_are_the_shared_ones():
    shared = ROOT.parent / 'shared/paper/tables.json'
    if not shared.exists():
        pytest.skip('../shared/paper/tables.json is absent')
    ours = ROOT / 'sa_mmdet/apps/paper/tables.json'
    assert json.loads(ours.read_text()) == json.loads(shared.read_text())
    assert [len(load_table(table)) for table in (1, 2, 3, 4)] == [5, 12, 18, 10]


def test_there_is_no_table_5():
    with pytest.raises(ValueError, match='not 5'):
        load_table(5)
    with pytest.raises(ValueError, match='Table 4 of the paper has no'):
        list(compute_table(4, CONFIGS))


@pytest.mark.parametrize(('layer', 'expected'), [
    (ShuffleAttention(256), dict(pool=128 * 63, group_norm=128 * 63, gate=256 * 63)),
    (ShuffleAttention(256, gn=False, fc='conv'),
     dict(pool=128 * 63, gate=256 * 63, conv=64 * (2 * 2 + 2) * (63 + 1))),
    (SqueezeExcitation(64), dict(pool=64 * 63, linear=2 * 64 * 4, gate=64 * 63)),
    (EfficientChannelAttention(64), dict(pool=64 * 63, conv1d=64 * 3, gate=64 * 63)),
    (SpatialGroupEnhance(128),
     dict(pool=128 * 63, similarity=128 * 63, group_norm=64 * 63, gate=128 * 63)),
    (CBAM(64), dict(pool=2 * 64 * 63, channel_pool=2 * 64 * 63, linear=4 * 64 * 4,
                    conv=2 * 49 * 63, batch_norm=63, gate=2 * 64 * 63)),
], ids=lambda value: type(value).__name__)
def test_operations_of_the_layers(layer, expected):
    assert layer.operations(7, 9) == expected


@pytest.mark.parametrize('convention', ['paper', 'mmengine'])
def test_count_does_not_depend_on_the_implementation(convention, monkeypatch):
    """A fused operator, which no counter knows, changes nothing."""
    cfg = config('retinanet/retinanet_sa-r50_fpn_1x_coco.py')
    expected = detector_complexity(cfg, convention, (64, 96))
    monkeypatch.setattr('sa_mmdet.models.attention.shuffle_attention.compute',
                        lambda chosen, x, *args: x.clone())
    assert detector_complexity(cfg, convention, (64, 96)) == expected


def test_mmengine_convention_is_mmengines_own_without_attention():
    """The same figures as MMEngine's function gives for the same forward."""
    cfg = config('retinanet/retinanet_r50_fpn_1x_coco.py')
    init_default_scope('mmdet')
    model = _CountedDetector(MODELS.build(cfg.model)).eval()
    info = get_model_complexity_info(
        model, inputs=torch.zeros(1, 3, 64, 96), show_table=False, show_arch=False)
    ours = detector_complexity(cfg, 'mmengine', (64, 96))
    assert (ours.params_m, ours.gflops) == (info['params'] / 1e6, info['flops'] / 1e9)


def test_sa_adds_its_share_alone():
    """2.5 operations for each element after the 16 bottlenecks in the paper's count."""
    plain, attention = (
        detector_complexity(config(f'faster_rcnn/faster-rcnn_{name}_fpn_1x_coco.py'))
        for name in ('r50', 'sa-r50'))
    pixels = 800 * 1280
    elements = sum(blocks * 256 * 2**stage * pixels / 16 / 4**stage
                   for stage, blocks in enumerate((3, 4, 6, 3)))
    assert attention.gflops - plain.gflops == pytest.approx(2.5 * elements / 1e9, rel=1e-9)
    # layer1 is frozen, its attention included
    assert (attention.params_m - plain.params_m) * 1e6 == pytest.approx(
        6 * sum(blocks * p for blocks, p in ((4, 4), (6, 8), (3, 16))))


def test_feature_attention_adds_its_share_alone():
    """In a backbone that cannot be built without memory, too."""
    plain = Config.fromfile(ZOO / 'swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py')
    changed = copy.deepcopy(plain)
    channels = [96, 192, 384, 768]
    changed.model.neck = [dict(type='FeatureAttention', in_channels=channels, attention=dict(
        type='ShuffleAttention', groups='auto')), plain.model.neck]
    before, after = (detector_complexity(config, 'paper', (320, 320))
                     for config in (plain, changed))
    elements = sum(c * (80 // 2**level)**2 for level, c in enumerate(channels))
    assert after.gflops - before.gflops == pytest.approx(2.5 * elements / 1e9)
    assert after.params_m - before.params_m == pytest.approx(6 * (1 + 2 + 3 + 6) / 1e6)


def test_classifier_shape_matters():
    backbone = dict(type='SAResNet', depth=50)
    small, large = (classifier_complexity(backbone, shape=(size, size)) for size in (64, 128))
    assert 3.9 < large.gflops / small.gflops < 4
    with pytest.raises(ValueError, match="got 'ours'"):
        classifier_complexity(backbone, 'ours')


def test_proposals_are_a_thousand():
    cfg = config('mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py')
    plain = detector_complexity(cfg, shape=(64, 64))
    cfg.model.roi_head.bbox_head.fc_out_channels = 1025
    more = detector_complexity(cfg, shape=(64, 64))
    # one more unit: in shared_fc1 and shared_fc2, and 81 + 4 * 81 outputs that read it
    units = 256 * 49 + (1024 + 1025) + 81 * 5
    assert (more.gflops - plain.gflops) * 1e9 == pytest.approx(
        PROPOSALS * (units + 2), abs=PROPOSALS * 2)


def test_tool_on_a_config(run_tool, tmp_path):
    out = tmp_path / 'rows.json'
    code, printed = run_tool(
        'complexity', CONFIGS / 'retinanet/retinanet_sa-r50_fpn_1x_coco.py', '--shape', 64, 64,
        '--json', out)
    assert code == 0
    rows = json.loads(out.read_text())
    assert [row['convention'] for row in rows] == ['paper', 'mmengine']
    assert all(f'{row["gflops"]:.3f} GFLOPs' in printed for row in rows)


def test_tool_on_a_classifier(run_tool, tmp_path):
    """Its counts are those of the row in Table 1, without importing MMPretrain."""
    if not find_spec('mmpretrain'):
        pytest.skip('MMPretrain is not installed, on whose configs this one stands')
    out = tmp_path / 'rows.json'
    code, _ = run_tool(
        'complexity', CONFIGS / 'imagenet/sa-resnet50_conv_8xb32_in1k.py', '--json', out)
    assert code == 0
    paper, mmengine = json.loads(out.read_text())
    row = next(row for row in compute_table(1, CONFIGS) if row['variant'] == '1 × 1 Conv')
    assert (paper['params_m'], paper['gflops']) == (row['params_m'], row['gflops'])
    assert mmengine['gflops'] == row['mmengine_gflops']
    assert paper['shape'] == [224, 224]

    config = tmp_path / 'config.py'
    config.write_text("_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'\n")
    code, _ = run_tool('complexity', config)
    assert 'expected a classifier with a backbone of MMDetection' in code
    config.write_text("default_scope = 'mmpretrain'\n")
    assert 'found None, None, None' in run_tool('complexity', config)[0]
    code, _ = run_tool('complexity', CONFIGS / 'imagenet/sa-resnet50_8xb32_in1k.py',
                       '--cfg-options', 'model.backbone.attention.shuffle=3')
    assert code.startswith('error: mmdet.SAResNet cannot be counted')
    assert 'shuffle must be True or False, got 3' in code


@pytest.mark.parametrize(('args', 'message'), [
    (['missing.py'], 'error: config missing.py does not exist'),
    (['--table', '4'], 'invalid choice: 4'),
    (['--table', '3', '--shape', '8', '8'], '--shape and --cfg-options are for a config'),
    ([], 'one of the arguments config --table is required'),
    (['--table', '3', '--json', 'no/such/folder/x.json'], 'no/such/folder does not exist'),
], ids=str)
def test_tool_refuses(run_tool, args, message):
    code, output = run_tool('complexity', *args)
    assert code != 0
    assert message in output


def test_tool_on_a_table(run_tool, tmp_path, monkeypatch):
    out = tmp_path / 'rows.json'
    code, printed = run_tool('complexity', '--table', 1, 2, '--json', out)
    assert code == 0
    assert 'gflops: 5 of 5 as printed' in printed
    assert 'gflops: 12 of 12 as printed' in printed
    assert len(json.loads(out.read_text())) == 5 + 12
    assert {'detector', 'backbone', 'attention', 'params_m', 'gflops', 'paper_params_m',
            'paper_gflops', 'match', 'mmengine_gflops'} <= json.loads(out.read_text())[0].keys()
    monkeypatch.setattr(tables, 'ABLATIONS', tables.ABLATIONS | {'1 × 1 Conv': {}})
    code, printed = run_tool('complexity', '--table', 1)
    assert code == 1
    assert 'differs from the paper: sa-resnet50_conv gflops' in printed
