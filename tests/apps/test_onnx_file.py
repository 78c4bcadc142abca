"""tools/export.py: ONNX files with the detections of MMDetection."""
import json
from pathlib import Path

import cv2
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from networks import draw_statistics, give_weights
from openvino_process import outputs_of
from sa_mmdet.apps.export.detectors import ExportError, OneImageDetector
from sa_mmdet.apps.export.onnx_file import (
    BOX,
    SCORE,
    _onnx,
    detections_in,
    detections_of,
    matched,
    verify,
)
from sa_mmdet.models import for_deployment

onnx = pytest.importorskip('onnx', reason='onnx is not installed')
pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')

CONFIGS = Path(__file__).parents[2] / 'configs'
NAMES = 'faster_rcnn/faster-rcnn', 'mask_rcnn/mask-rcnn', 'retinanet/retinanet'
FEW = {'model.test_cfg.rpn.max_per_img': 300}  # proposals, each of which costs time
# other than that of the trace; no multiples of 32; and with less than these proposals
SIZES = (320, 416), (203, 331), (30, 45)

pytestmark = pytest.mark.xdist_group('export')


def build(config):
    init_default_scope('mmdet')
    torch.manual_seed(0)
    detector = MODELS.build(config.model)
    give_weights(detector)
    for name, value in detector.state_dict().items():  # scores far apart, and none is 1
        if name.endswith(('fc_cls.weight', 'rpn_cls.weight', 'retina_cls.weight')):
            value *= 30
        if name.endswith('retina_cls.bias'):
            value.fill_(-1)
    detector.eval()
    return detector


def config_of(name, attention='sa-'):
    config = Config.fromfile(CONFIGS / f'{name}_{attention}r50_fpn_1x_coco.py')
    config.model.backbone.init_cfg = None
    config.merge_from_dict(FEW if 'rpn' in config.model.test_cfg else {})
    return config


def few(config):
    options = [f'{key}={value}' for key, value in FEW.items()]
    return [] if 'retinanet' in config.name else ['--cfg-options', *options]


def pictures(coco_tiny, sizes=SIZES):
    paths = sorted((coco_tiny / 'val2017').glob('*.jpg'))
    for path, (height, width) in zip(paths, sizes, strict=False):
        picture = cv2.resize(cv2.imread(str(path)), (width, height))
        yield torch.from_numpy(picture).permute(2, 0, 1).contiguous()


def assert_same_detections(actual, expected):
    assert len(actual) == len(expected) > 0
    order = matched(actual, expected)
    torch.testing.assert_close(actual.scores[order], expected.scores, rtol=0, atol=SCORE)
    torch.testing.assert_close(actual.bboxes[order], expected.bboxes, rtol=0, atol=BOX)
    assert torch.equal(actual.labels[order], expected.labels)
    if 'masks' in expected:
        different = (actual.masks[order] != expected.masks).sum()
        assert different <= 1e-4 * expected.masks.numel()


@pytest.fixture(scope='module', params=NAMES, ids=lambda name: name.split('/')[0])
def exported(request, tmp_path_factory):
    """A detector, and what the tool made of it."""
    folder = tmp_path_factory.mktemp('export')
    config = config_of(request.param)
    detector = build(config)
    classes = [f'class {i}' for i in range(80)]
    torch.save(dict(state_dict=detector.state_dict(), meta=dict(
        dataset_meta=dict(classes=classes))), folder / 'detector.pth')
    return detector, Path(config.filename), folder


@pytest.fixture
def file(exported, run_tool):
    _, config, folder = exported
    file = folder / 'detector.onnx'
    if not file.exists():
        code, output = run_tool('export', config, folder / 'detector.pth', file, *few(config))
        assert code == 0, output
        assert f'wrote {file}' in output
    return file


def test_same_detections(exported, file, coco_tiny):
    """Of the trained detector, of the deployed one, and of the file in onnxruntime."""
    detector = exported[0]
    deployed = for_deployment(detector)
    for image in pictures(coco_tiny):
        if 'rpn' in detector.test_cfg:
            features = detector.extract_feat(torch.zeros(1, 3, 32, 64))
            border = torch.tensor([45., 30., 45., 30.])
            assert len(OneImageDetector(detector)._proposals(features, border)) < 300
        expected = detections_of(detector, image)
        assert_same_detections(detections_of(deployed, image), expected)
        assert_same_detections(detections_in(file, image), expected)


def test_openvino_gives_the_same_detections(exported, file, coco_tiny, tmp_path):
    image = next(pictures(coco_tiny))
    dets, labels, *_ = map(torch.from_numpy, outputs_of(file, image[None].float().numpy(),
                                                        tmp_path))
    expected = detections_of(exported[0], image)
    assert len(dets) == len(expected)
    torch.testing.assert_close(dets[:, 4], expected.scores, rtol=0, atol=SCORE)
    torch.testing.assert_close(dets[:, :4], expected.bboxes, rtol=0, atol=BOX)
    assert torch.equal(labels, expected.labels)


def test_file_says_what_it_is(exported, file):
    model = onnx.load(file)
    assert {node.domain for node in model.graph.node} == {''}
    assert [input.name for input in model.graph.input] == ['image']
    names = [output.name for output in model.graph.output]
    assert names == ['dets', 'labels', *['masks'] * ('mask' in exported[1].name)]
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(properties['classes'])[79] == 'class 79'
    assert properties['config'] == exported[1].name
    blocks = [node.op_type for node in model.graph.node
              if any(f'layer{stage}' in node.name for stage in range(1, 5))]
    assert blocks.count('ReduceL2') == 16
    assert not {'Transpose', 'Reshape', 'Split', 'Concat', 'Gather', 'Slice'} & set(blocks)


def test_verify(exported, run_tool, coco_tiny, tmp_path):
    """At one size, which the file then takes alone."""
    _, config, folder = exported
    picture = sorted((coco_tiny / 'val2017').glob('*.jpg'))[0]
    file = tmp_path / 'fixed.onnx'
    code, output = run_tool('export', config, folder / 'detector.pth', file, '--size', 256, 320,
                            '--verify', picture, *few(config))
    assert code == 0, output
    assert ' detections in PyTorch and onnxruntime: boxes differ by' in output
    assert ('masks differ in 0 of' in output) == ('mask' in config.name)
    shape = onnx.load(file).graph.input[0].type.tensor_type.shape.dim
    assert [dimension.dim_value for dimension in shape] == [1, 3, 256, 320]


def test_verify_tells_other_detections(exported, file, coco_tiny):
    other = build(config_of(next(name for name in NAMES if exported[1].stem.startswith(
        name.split('/')[1]))))
    draw_statistics(other)
    image = next(pictures(coco_tiny)).permute(1, 2, 0).numpy()
    with pytest.raises(ExportError, match='please report it'):
        verify(other, file, image)


@pytest.mark.parametrize('name', NAMES)
def test_nothing_found(name, coco_tiny, tmp_path):
    """Scores that are too low leave empty arrays, not an error of the runtime."""
    config = config_of(name)
    config.model.test_cfg.get('rcnn', config.model.test_cfg).score_thr = 1.
    detector = build(config)
    file = tmp_path / 'detector.onnx'
    file.write_bytes(_onnx(OneImageDetector(for_deployment(detector)), None, 17))
    assert len(detections_in(file, next(pictures(coco_tiny)))) == 0


def test_poolings_and_shared_heads_are_refused():
    config = config_of(NAMES[0])
    config.model.roi_head.bbox_roi_extractor.roi_layer.pool_mode = 'max'
    init_default_scope('mmdet')
    with pytest.raises(ExportError, match="pool_mode='max'"):
        OneImageDetector(MODELS.build(config.model))
    config.model.roi_head.bbox_roi_extractor.roi_layer = dict(type='RoIPool', output_size=7)
    with pytest.raises(ExportError, match=r'RoIPool of this FasterRCNN.* RoIAlign'):
        OneImageDetector(MODELS.build(config.model))


def test_operators_of_mmcv_are_named(run_tool, tmp_path):
    config = config_of(NAMES[2])
    config.model.backbone.update(dcn=dict(type='DCNv2', deform_groups=1, fallback_on_stride=False),
                                 stage_with_dcn=(False, False, False, True))
    config.dump(tmp_path / 'config.py')
    torch.save(build(config).state_dict(), tmp_path / 'weights.pth')
    before = sorted(tmp_path.iterdir())
    code, output = run_tool('export', tmp_path / 'config.py', tmp_path / 'weights.pth',
                            tmp_path / 'a.onnx')
    assert 'mmcv::MMCVModulatedDeformConv2d is not a standard operator' in output
    assert code != 0
    assert sorted(tmp_path.iterdir()) == before


def test_plain_and_ablated_detectors(run_tool, coco_tiny, tmp_path):
    """The first is folded; the second is exported as it is, with a warning."""
    name = 'retinanet/retinanet'
    image = next(pictures(coco_tiny))
    for attention, options, told in (('', {}, ''), ('sa-', dict(fc='conv'), "fc='conv'")):
        config = config_of(name, attention)
        if options:
            config.model.backbone.attention = options
        detector = build(config)
        config.dump(tmp_path / f'config{attention}.py')
        torch.save(detector.state_dict(), tmp_path / 'weights.pth')
        file = tmp_path / f'of {attention}.onnx'
        code, output = run_tool('export', tmp_path / f'config{attention}.py',
                                tmp_path / 'weights.pth', file)
        assert code == 0, output
        assert told in output
        assert ('exported as trained' in output) == bool(told)
        assert_same_detections(detections_in(file, image), detections_of(detector, image))


@pytest.mark.parametrize(('changes', 'message'), [
    (dict(type='ATSS'), 'ATSS cannot be exported'),
    (dict(test_cfg=dict(nms=dict(type='soft_nms', iou_threshold=0.5))), 'soft_nms'),
    (dict(test_cfg=dict(nms=dict(max_num=3))), "'max_num': 3"),
    (dict(data_preprocessor=None), 'BaseDataPreprocessor with pad_value=None'),
    (dict(bbox_head=dict(loss_cls=dict(_delete_=True, type='CrossEntropyLoss'))), 'uses a softmax'),
    (dict(bbox_head=dict(bbox_coder=dict(type='TBLRBBoxCoder', _delete_=True))),
     'TBLRBBoxCoder of this RetinaNet'),
])
def test_other_detectors_are_refused(changes, message):
    config = config_of(NAMES[2])
    config.merge_from_dict(dict(model=changes))
    init_default_scope('mmdet')
    with pytest.raises(ExportError, match=message):
        OneImageDetector(MODELS.build(config.model))
