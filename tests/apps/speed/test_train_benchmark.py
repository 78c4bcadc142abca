import json
from pathlib import Path

import cv2
import mmengine.optim.optimizer.amp_optimizer_wrapper as amp
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, OptimWrapper

from sa_mmdet.apps.speed.train import (
    TrainCase,
    build_detectors,
    build_optimizer,
    check_config,
    random_batch,
    training_step,
)

CONFIGS = Path(__file__).parents[3] / 'configs'
# slim, and with masks
CONFIG = CONFIGS / 'quickstart/mask-rcnn_sa-r50_fpn_shapes.py'
PAPER = CONFIGS / 'mask_rcnn/mask-rcnn_sa-r50_fpn_1x_coco.py'
NAMES = ['ResNet', 'SAResNet', 'ResNet + formula']


def case_of(config=CONFIG, **options):
    return TrainCase(config=Config.fromfile(config), batch=1, height=64, width=64, **options)


def test_detectors_differ_in_the_attention_alone():
    detectors = build_detectors(case_of(PAPER))
    assert list(detectors) == NAMES
    states = []
    for detector in detectors.values():
        assert detector.training
        backbone = detector.backbone
        assert (backbone.depth, backbone.frozen_stages, backbone.norm_eval) == (50, 1, True)
        assert detector.roi_head.mask_head.num_classes == 80
        states.append({name: value.shape for name, value in detector.state_dict().items()})
    assert states[1] == states[2]
    assert states[0] == {name: shape for name, shape in states[1].items() if '.sa.' not in name}


@pytest.mark.parametrize('channels_last', [False, True])
def test_steps_are_equal_and_leave_the_weights(channels_last):
    case = case_of(channels_last=channels_last)
    batch = random_batch(case)
    losses = []
    for detector in build_detectors(case).values():
        weight = detector.backbone.layer2[0].conv2.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
        before = {name: value.clone() for name, value in detector.named_parameters()}
        step = training_step(detector, build_optimizer(detector, case), batch, case)
        first, second = step(), step()
        for name, value in first.items():
            torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-5)
        for name, parameter in detector.named_parameters():
            assert torch.equal(parameter, before[name]), name
        losses.append({name: value.item() for name, value in first.items()})
    assert losses[0]['loss_mask'] > 0
    if channels_last:
        contiguous = next(iter(build_detectors(case_of()).values()))
        step = training_step(contiguous, build_optimizer(contiguous, case), batch, case)
        losses.append({name: value.item() for name, value in step().items()})
        assert losses[3] == pytest.approx(losses[0], rel=1e-3)
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert losses[2] == pytest.approx(losses[1], rel=1e-2)


def test_a_step_updates_as_the_config_says():
    case = case_of()
    detector = torch.nn.Linear(2, 2)
    wrapper = build_optimizer(detector, case)
    assert type(wrapper) is OptimWrapper
    assert type(wrapper.optimizer) is torch.optim.AdamW
    assert wrapper.clip_grad_kwargs == dict(max_norm=10.)
    assert [group['lr'] for group in wrapper.optimizer.param_groups] == [0]


def test_mixed_precision_is_mmengines_on_a_gpu(monkeypatch):
    monkeypatch.setattr(amp, 'is_cuda_available', lambda: True)
    detector = torch.nn.Linear(2, 2)
    case = case_of(dtype=torch.float16, device=torch.device('cuda'))
    wrapper = build_optimizer(detector, case)
    assert type(wrapper) is AmpOptimWrapper
    assert wrapper.cast_dtype == torch.float16
    case.config.optim_wrapper = dict(case.config.optim_wrapper, type='AmpOptimWrapper',
                                     loss_scale=512.)
    case = TrainCase(config=case.config)
    assert type(build_optimizer(detector, case)) is OptimWrapper


def test_mixed_precision_on_the_cpu():
    case = case_of(CONFIGS / 'retinanet/retinanet_sa-r50_fpn_1x_coco.py', dtype=torch.bfloat16,
                   formula=False)
    detector = build_detectors(case)['SAResNet']
    features = []
    detector.backbone.register_forward_hook(lambda *args: features.extend(args[2]))
    training_step(detector, build_optimizer(detector, case), random_batch(case), case)()
    assert {feature.dtype for feature in features} == {torch.bfloat16}


def test_other_attention_has_no_formula():
    config = Config.fromfile(CONFIGS / 'mask_rcnn/mask-rcnn_se-r50_fpn_1x_coco.py')
    assert list(build_detectors(TrainCase(config=config))) == ['ResNet', 'AttentionResNet']


def test_a_detector_that_cannot_be_built_is_told():
    case = case_of()
    case.config.model.neck.nonsense = 1
    with pytest.raises(ValueError, match='the detector with ResNet cannot be built: '):
        build_detectors(case)


def test_configs_of_the_paper_are_accepted():
    for path in CONFIGS.glob('*/*_sa-r*_1x_coco.py'):
        check_config(Config.fromfile(path))


def test_train_tool(run_tool, tmp_path):
    out = tmp_path / 'train'
    code, output = run_tool('benchmark', 'train', CONFIG, '--batch', 1, '--size', 64, 64,
                            '--repeats', 1, '--channels-last', '--out', out)
    assert code == 0
    assert 'training step: SAResNet / ResNet = ' in output
    assert {path.name for path in tmp_path.iterdir()} == {'train.json', 'train.png'}
    content = json.loads(out.with_suffix('.json').read_text())
    assert content['title'].startswith('mask-rcnn_sa-r50_fpn_shapes, ')
    assert [row['name'] for row in content['rows']] == NAMES
    assert all(row['pass'] == 'training step' and row['peak_bytes'] > 0
               for row in content['rows'])
    assert cv2.imread(str(out.with_suffix('.png'))) is not None


@pytest.mark.parametrize(('text', 'message'), [
    ('model = nonsense', "cannot be read: name 'nonsense' is not defined"),
    ('a = 1', 'it has no model: give the config of a detector'),
    ("model = dict(type='RetinaNet')\noptim_wrapper = dict()",
     'the backbone must be SAResNet or AttentionResNet, got None'),
    ("model = dict(backbone='SAResNet')\noptim_wrapper = dict()",
     'the backbone must be SAResNet or AttentionResNet, got None'),
    ("model = dict(backbone=dict(type='SAResNet', depth=50))",
     'it has no optim_wrapper: give the config of a detector'),
], ids=str)
def test_train_tool_refuses(run_tool, tmp_path, text, message):
    config = tmp_path / 'config.py'
    config.write_text(text)
    code, _ = run_tool('benchmark', 'train', config)
    assert code.startswith(f'error: config {config}')
    assert message in code
    assert len(code.splitlines()) == 1
