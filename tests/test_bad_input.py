"""What users get wrong is told at once, with the value that is wrong and what to do.

Each row of the tables is one mistake and what its message has to name: the value found and, where
that alone says too little, its argument or file. The wording is left to the messages.
"""
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from mmdet.models.backbones import ResNet
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from coco import CONFIGS, drawn_coco
from sa_mmdet.models import (
    CBAM,
    AttentionResNet,
    ConversionError,
    FeatureAttention,
    SAResNet,
    ShuffleAttention,
)
from sa_mmdet.models import EfficientChannelAttention as ECA
from sa_mmdet.models import SpatialGroupEnhance as SGE
from sa_mmdet.models import SqueezeExcitation as SE
from sa_mmdet.ops import fused_bn_sa_add_relu, shuffle_attention

TOOLS = CONFIGS.parent / 'tools'
SA = CONFIGS / 'retinanet/retinanet_sa-r50_fpn_1x_coco.py'
PLAIN = CONFIGS / 'retinanet/retinanet_r50_fpn_1x_coco.py'
ROW = SA.name.removesuffix('_fpn_1x_coco.py')
SMALL = dict(base_channels=16, attention=dict(groups=4))
zeros = torch.zeros
maps, image = zeros(1, 256, 4, 4), zeros(1, 3, 64, 64)

# Words by which a remedy is known: what is taken, what to do, or a guess at what was meant.
REMEDY = re.compile(
    r'\b(must|expects|expected|takes|required|assert|not allowed|usage|did you|give|use|choose|make'
    r'|fix|copy|download|install|complete|put|remove|add|check|(?<!data )set(?! of)|pass|write'
    r'|run (?:pip|python|make|this|the (?:same )?command)|you (?:may|can))\b', re.I)


def assert_told(message, values):
    """The message has each value, not as a part of a word or number, and a remedy beside them."""
    rest = message
    for value in values:
        whole = rf'(?<![\w-]){re.escape(value)}(?![\w-])'
        assert re.search(whole, message), f'{value} is missing: {message}'
        rest = re.sub(whole, '', rest)
    assert REMEDY.search(rest), f'the remedy is missing: {message}'


def bad(what, do, error, *values):
    return pytest.param(do, error, values, id=what)


def attend(**change):
    """The operator with two channels in each half of each group; ``change``, of its arguments."""
    arguments = dict(x=zeros(1, 8, 4, 4), cweight=zeros(2), cbias=zeros(2), sweight=zeros(2),
                     sbias=zeros(2), gn_weight=zeros(2), gn_bias=zeros(2), groups=2)
    return shuffle_attention(**arguments | change)


def fused(batch_norm=None, identity=maps):
    return fused_bn_sa_add_relu(maps, identity, batch_norm, *[zeros(64)] * 6, 2)


def net(**change):
    return SAResNet(50, **SMALL | change)


def se_weights():
    return AttentionResNet(50, 'SqueezeExcitation', base_channels=16).state_dict()


LAYERS = [
    bad('groups None', lambda: ShuffleAttention(256, None), TypeError, 'groups', 'None'),
    bad('groups too many', lambda: ShuffleAttention(256, 2**70), ValueError, f'{2**70}', '256'),
    bad('groups of SGE', lambda: SGE(96), ValueError, 'groups=64', 'in_channels=96'),
    bad('gn yes', lambda: ShuffleAttention(256, gn='yes'), TypeError, 'gn', "'yes'"),
    bad('gn False as text', lambda: ShuffleAttention(256, gn='False'), TypeError, 'gn', "'False'"),
    bad('shuffle None', lambda: ShuffleAttention(256, shuffle=None), TypeError, 'shuffle', 'None'),
    bad('bias of SE', lambda: SE(256, bias='no'), TypeError, 'bias', "'no'"),
    bad('fc empty', lambda: ShuffleAttention(256, fc=''), ValueError, 'fc', "''"),
    bad('eps as text', lambda: ShuffleAttention(256, eps='1e-5'), TypeError, 'eps', "'1e-5'"),
    bad('eps negative', lambda: ShuffleAttention(256, eps=-1e-5), ValueError, 'eps', '-1e-05'),
    bad('eps NaN', lambda: SGE(256, eps=float('nan')), ValueError, 'eps', 'nan'),
    bad('gamma as text', lambda: ECA(256, gamma='2'), TypeError, 'gamma', "'2'"),
    bad('b infinite', lambda: ECA(256, b=float('inf')), ValueError, 'b', 'inf'),
    bad('kernel sizes', lambda: CBAM(256, kernel_size=(7, 7)), TypeError, 'kernel_size', '(7, 7)'),
    bad('integers', lambda: ShuffleAttention(256)(maps.long()), TypeError,
        'ShuffleAttention', 'torch.int64'),
    bad('bytes', lambda: SGE(256)(maps.byte()), TypeError, SGE.__name__, 'torch.uint8'),
    bad('complex', lambda: CBAM(256)(maps + 0j), TypeError, 'CBAM', 'torch.complex64'),
    bad('an array', lambda: SE(256)(maps.numpy()), TypeError, SE.__name__, 'ndarray'),
    bad('channels last in the shape', lambda: ShuffleAttention(256)(maps.permute(0, 2, 3, 1)),
        ValueError, 'ShuffleAttention', '(1, 4, 4, 256)', '(N, 256, H, W)'),
]

OPERATORS = [
    bad('input of integers', lambda: attend(x=maps.int()), TypeError, 'x', 'torch.int32'),
    bad('input None', lambda: attend(x=None), TypeError, 'x', 'NoneType'),
    bad('a larger parameter', lambda: attend(gn_bias=zeros(5)), ValueError, 'gn_bias', '(5,)'),
    bad('a parameter None', lambda: attend(cbias=None), TypeError, 'cbias', 'NoneType'),
    bad('a complex parameter', lambda: attend(sweight=zeros(2) + 0j), TypeError,
        'sweight', 'torch.complex64'),
    bad('a parameter elsewhere', lambda: attend(gn_weight=zeros(2, device='meta')), ValueError,
        'gn_weight', 'meta', 'cpu'),
    bad('groups as text', lambda: attend(groups='2'), TypeError, 'groups', "'2'"),
    bad('groups as a fraction', lambda: attend(groups=2.), TypeError, 'groups', '2.0'),
    bad('CPU in capitals', lambda: attend(implementation='CPU'), ValueError, "'CPU'", 'cpu'),
    bad('no identity', lambda: fused(identity=None), TypeError, 'identity', 'NoneType'),
    bad('a batch norm of three', lambda: fused([zeros(256)] * 3), TypeError, 'batch_norm', '3'),
    bad('a module as batch norm', lambda: fused(nn.BatchNorm2d(256)), TypeError,
        'batch_norm', 'BatchNorm2d'),
    bad('a batch norm without weight', lambda: fused([None, None, zeros(256), zeros(256)]),
        TypeError, 'weight', 'NoneType'),
    bad('a batch norm elsewhere', lambda: fused([zeros(256, device='meta')] * 4), ValueError,
        'weight', 'meta', 'cpu'),
]

BACKBONES = [
    bad('depth in a list', lambda: SAResNet([50]), ValueError, 'depth', '[50]'),
    bad('attention empty', lambda: AttentionResNet(50, ''), ValueError, "{'type': ''}"),
    bad('type None', lambda: AttentionResNet(50, dict(type=None)), ValueError, "{'type': None}"),
    bad('an abbreviation', lambda: AttentionResNet(50, 'SE'), ValueError, "'SE'", SE.__name__),
    bad('an option misspelt', lambda: net(attention=dict(group=32)), TypeError,
        'ShuffleAttention', "'group'"),
    bad('no attention at all', lambda: AttentionResNet(50, 'FPN'), TypeError, "{'type': 'FPN'}"),
    bad('the name for SAResNet', lambda: net(attention='ShuffleAttention'), TypeError,
        'SAResNet', "'ShuffleAttention'"),
    bad('SE for SAResNet', lambda: net(attention=dict(type='SqueezeExcitation')), ValueError,
        'SAResNet', 'SqueezeExcitation'),
    bad('channels that do not fit', lambda: SAResNet(50, base_channels=60), ValueError,
        'in_channels=240', 'groups=64'),
    bad('the last output', lambda: net(out_indices=(-1, )), ValueError, 'out_indices', '(-1,)'),
    bad('convert_weights as text', lambda: net(convert_weights='no'), TypeError,
        'convert_weights', "'no'"),
    bad('a grey image', lambda: net()(image[:, :1]), ValueError, '(1, 1, 64, 64)', '(N, 3, H, W)'),
    bad('an image alone', lambda: net()(image[0]), ValueError, '(3, 64, 64)', '(N, 3, H, W)'),
    bad('an image of bytes', lambda: net()(image.byte()), TypeError, 'SAResNet', 'torch.uint8'),
    bad('too few maps', lambda: FeatureAttention(in_channels=[256] * 3)([maps] * 2), ValueError,
        'in_channels=[256, 256, 256]', '2'),
    bad('maps of other channels', lambda: FeatureAttention(in_channels=512)([maps]), ValueError,
        'in_channels=512', '[256]'),
    bad('a map alone', lambda: FeatureAttention()(maps), TypeError, 'FeatureAttention', 'Tensor'),
    bad('a level that is not there', lambda: FeatureAttention(in_channels=[256], levels=[1]),
        ValueError, 'levels', '[1]'),
    bad('an unknown layer', lambda: FeatureAttention('SA'), ValueError, "'SA'", 'ShuffleAttention'),
    bad('a layer that is not neutral', lambda: FeatureAttention(dict(
        type='ShuffleAttention', fc='none')), ValueError, "fc='none'", 'FeatureAttention'),
    bad('weights of another place', lambda: nn.Sequential(FeatureAttention(), nn.ReLU())
        .load_state_dict(nn.Sequential(nn.ReLU(), FeatureAttention()).state_dict()),
        ConversionError, '1.layers.0.cbias', 'FeatureAttention'),
    bad('weights of another attention', lambda: net().load_state_dict(se_weights(), strict=False),
        ConversionError, 'layer1.0.se.fc1.weight'),
]


@pytest.mark.parametrize(('do', 'error', 'values'), [*LAYERS, *OPERATORS, *BACKBONES])
def test_python(do, error, values):
    with pytest.raises(error) as raised:
        do()
    assert type(raised.value) is error
    assert_told(str(raised.value), values)


FILES = {
    'empty.py': '',
    'syntax.py': 'model = dict(\n',
    'name.py': 'model = nonsense',
    'missing_base.py': "_base_ = 'nowhere.py'",
    'missing_import.py': "custom_imports = dict(imports=['nowhere_to_be_found'])",
    'binary.py': b'\xff\xfe\x00',
    'list.json': '[1]',
    'notes.txt': 'hello',
    'text_model.py': "model = 'RetinaNet'",
    'no_backbone.py': "model = dict(type='RetinaNet')\ndefault_scope = 'mmdet'",
    'no_scope.py': "model = dict(type='RetinaNet')",
    'classifier.py': "model = dict(type='ImageClassifier')",
    'plain_position.py': f'''
_base_ = {str(PLAIN)!r}
plugin = dict(cfg=dict(type='ShuffleAttention'), position='after_conv4')
model = dict(backbone=dict(plugins=[plugin]))''',
    'plugin_groups.py': f'''
_base_ = {str(PLAIN)!r}
plugin = dict(cfg=dict(type='ShuffleAttention', groups=48), position='after_conv3')
model = dict(backbone=dict(plugins=[plugin]))''',
    'small.py': f'''
_base_ = {str(SA)!r}
model = dict(backbone=dict(init_cfg=None, **{SMALL!r}), neck=dict(in_channels=[64, 128, 256, 512]))
''',
    'other_classes.py': '''
_base_ = 'small.py'
model = dict(bbox_head=dict(num_classes=2))
metainfo = dict(classes=('person', 'dog'))
train_dataloader = dict(dataset=dict(metainfo=metainfo))
test_dataloader = dict(dataset=dict(metainfo=metainfo))
''',
    'no_data.py': "_base_ = 'small.py'\ntest_dataloader = None",
    'empty.jpg': b'',
    'empty.pth': b'',
    'text.pth': 'hello',
    'settings/settings.json': '[1]',
    'damaged/a/seed0/result.json': '{}',
    'of_mask_rcnn/mask-rcnn.py': "model = dict(type='MaskRCNN', backbone=dict(type='ResNet'))",
    'of_mask_rcnn/last_checkpoint': 'epoch_1.pth',
}


def checkpoints() -> dict:
    """What somebody could take for the weights of ``small.py``'s backbone, by file name."""
    plain = dict(ResNet(50, base_channels=16).state_dict())
    attention = net().state_dict()
    return {
        'plain.pth': plain,
        'optimizer.pth': dict(optimizer=dict(state={}), meta={}),
        'list.pth': dict(state_dict=[1, 2]),
        'numbers.pth': {0: zeros(2), 1: zeros(2)},
        'tensor.pth': zeros(3),
        'shape.pth': plain | {'layer1.0.bn3.weight': zeros(5)},
        'stem.pth': plain | {'conv1.weight': zeros(5)},
        'integers.pth': plain | {'conv1.weight': plain['conv1.weight'].long()},
        'groups.pth': net(attention=dict(groups=8)).state_dict(),
        'half.pth': {key: value for key, value in attention.items() if 'layer4' not in key
                     or '.sa.' not in key},
        'se.pth': se_weights(),
        'detector.pth': {f'encoder.{key}': value for key, value in plain.items()},
    }


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with all that is given to the tools."""
    root = tmp_path_factory.mktemp('bad') / 'inputs'
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for name, content in checkpoints().items():
        torch.save(content, root / name)
    for name in ('small', 'other_classes'):
        init_default_scope('mmdet')
        model = MODELS.build(Config.fromfile(root / f'{name}.py').model)
        torch.save(model.state_dict(), root / f'{name}.pth')
    (root / 'truncated.pth').write_bytes((root / 'plain.pth').read_bytes()[:-1000])
    (root / 'folder.py').mkdir()
    drawn_coco(root / 'data/coco')
    return root


def contents(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob('*')}


def told(name, tool, *values):
    """A row: a tool's command line, on files of ``folder``, and what the message names."""
    return pytest.param(tool.split(), values, id=name)


REPRODUCE = f'reproduce.py --rows {ROW} --gpus 0 --work-dir runs --dry-run'
RANDOM = '--cfg-options model.backbone.init_cfg=None'
NO_ROW = 'reproduce.py --gpus 0 --dry-run'
OPTION = f'complexity.py {SA} --cfg-options'
BACKBONE = f'{OPTION} model.backbone'
PREDICT = 'visualize.py predict small.py small.pth'
CAM = 'visualize.py cam small.py small.pth'
CLASSIFIER = CONFIGS / 'imagenet/sa-resnet50_8xb32_in1k.py'

CONFIG_FILES = [
    told('missing', 'complexity.py nowhere.py', 'nowhere.py'),
    told('folder', 'convert_checkpoint.py folder.py plain.pth out.pth', 'folder.py'),
    told('this folder', 'train.py .', 'inputs'),
    told('empty', 'train.py empty.py', 'empty.py'),
    told('syntax', 'quickstart.py --config syntax.py', 'syntax.py', "'('"),
    told('undefined name', 'test.py name.py plain.pth', 'name.py', "'nonsense'"),
    told('missing base', 'complexity.py missing_base.py', 'missing_base.py', 'nowhere.py'),
    told('no import', 'train.py missing_import.py', 'missing_import.py', 'nowhere_to_be_found'),
    told('binary', 'complexity.py binary.py', 'binary.py', '0xff'),
    told('a list', 'benchmark.py train list.json', 'list.json'),
    told('no config', 'complexity.py notes.txt', 'notes.txt'),
    told('swapped', f'convert_checkpoint.py plain.pth {SA} out.pth', 'plain.pth'),
    told('swapped in a test', f'test.py plain.pth {SA}', 'plain.pth'),
    told('model as text', 'complexity.py text_model.py', 'text_model.py', "'RetinaNet'"),
    told('no backbone', 'train.py no_backbone.py', 'no_backbone.py', "'backbone'"),
    told('no scope', 'train.py no_scope.py', 'RetinaNet', "default_scope='mmdet'"),
    told('of a classifier', 'complexity.py classifier.py', 'classifier.py', 'ImageClassifier'),
    told("position in MMDetection's ResNet", 'train.py plain_position.py',
         'plain_position.py', "'position'"),
    told('groups of a plugin', 'complexity.py plugin_groups.py', 'plugin_groups.py', '48'),
    told('attention for none', f'convert_checkpoint.py {PLAIN} se.pth out.pth',
         'layer1.0.se.fc1.weight'),
    told('a classifier for a detector', f'convert_checkpoint.py {CLASSIFIER} plain.pth out.pth',
         CLASSIFIER.name),
    told('no training', f'quickstart.py --config {CONFIGS}/_base_/sa_mmdet.py',
         'sa_mmdet.py', 'train_dataloader'),
]

OVERRIDES = [
    told('no value', f'{BACKBONE}.depth', '--cfg-options', "'model.backbone.depth'"),
    told('below a number', f'{BACKBONE}.depth.x=1', '--cfg-options', "{'x': 1}"),
    told('misspelt', f'{BACKBONE}.depht=50', "'depht'", 'depth'),
    told('depth', f'{BACKBONE}.depth=18', 'depth', '18'),
    told('attention', f'{BACKBONE}.attention=SE', 'attention', "'SE'"),
    told('yes', f'{BACKBONE}.attention.gn=yes', 'gn', "'yes'"),
    told('no model', f'{OPTION} model=None', 'model=None'),
    told('of the neck', f'{OPTION} model.neck.in_channels=1', 'fpn.py', 'in_channels'),
    told('no data', f'train.py {SA} --cfg-options train_dataloader=None',
         'train_dataloader', 'None'),
]

TOOL_OPTIONS = [
    told('work dir is a file', f'train.py {SA} --work-dir notes.txt', '--work-dir', 'notes.txt'),
    told('work dir in a file', 'quickstart.py --work-dir notes.txt/w', '--work-dir', 'notes.txt'),
    told('work dir of another model', 'quickstart.py --work-dir of_mask_rcnn', 'of_mask_rcnn'),
    told('AP over one', 'quickstart.py --min-ap 50', '--min-ap', '50.0'),
    told('AP that is none', 'quickstart.py --min-ap nan', '--min-ap', 'nan'),
    told('no epoch', 'quickstart.py --cfg-options train_cfg.max_epochs=0',
         'train_cfg.max_epochs', '0'),
    told('place of the data', 'quickstart.py --cfg-options '
         'train_dataloader.dataset.data_root=notes.txt/a', 'data_root=notes.txt/a'),
    told('shape', f'complexity.py {SA} --shape -5 3', '--shape', '-5 3'),
    told('JSON into a folder', f'complexity.py {SA} --json folder.py', '--json', 'folder.py'),
    told('JSON below a file', f'complexity.py {SA} --json notes.txt/a.json', '--json', 'notes.txt'),
    told('output in no folder', 'benchmark.py op --out nowhere/a', '--out', 'nowhere'),
    told('output without a name', 'benchmark.py op --out .', '--out .'),
    told('size', 'benchmark.py op --size 33 64', '--size', '33 64'),
    told('a size beyond memory', 'benchmark.py backbone --size 3200000 3200000 --repeats 1',
         '122880000000000 bytes'),
    told('device', 'benchmark.py op --device meta', '--device', 'meta'),
    told('depth of a benchmark', 'benchmark.py backbone --depth 18', '--depth', '18'),
    told('plain backbone', f'benchmark.py train {PLAIN}', 'ResNet'),
    told('an output that exists', f'convert_checkpoint.py {SA} plain.pth notes.txt', 'notes.txt'),
    told('an output below a file', f'convert_checkpoint.py {SA} plain.pth notes.txt/out.pth',
         'notes.txt'),
    told('one file of two', f'convert_checkpoint.py {SA} plain.pth', 'out'),
    told('an export that exists', 'export.py small.py small.pth notes.txt', 'notes.txt'),
    told('an export below a file', 'export.py small.py small.pth notes.txt/a.onnx', 'notes.txt'),
    told('size of an export', 'export.py small.py small.pth a.onnx --size 8 64', '--size', '8 64'),
    told('an old opset', 'export.py small.py small.pth a.onnx --opset 11', '16', '11'),
    told('no picture', 'export.py small.py small.pth a.onnx --verify no.jpg', 'no.jpg'),
    told('a text as a picture', 'export.py small.py small.pth a.onnx --verify notes.txt',
         'notes.txt'),
    told('weights of another', f'export.py {SA} se.pth a.onnx', 'se.pth', 'RetinaNet'),
    told('a classifier to export', f'export.py {CLASSIFIER} plain.pth a.onnx', CLASSIFIER.name),
    told('runtime', 'benchmark.py deploy --runtimes tensorrt', "'tensorrt'"),
    told('layout of a runtime', 'benchmark.py deploy --channels-last', '--channels-last'),
]

REPRODUCTION = [
    told('row', f'{NO_ROW} --rows {ROW}0', f"'{ROW}0'", ROW),
    told("another table's row", f'{NO_ROW} --table 3 --rows mask-rcnn_eca-r50',
         'mask-rcnn_eca-r50', '--table 4'),
    told('start without files', f'{NO_ROW} --init imagenet=', '--init', 'imagenet='),
    told('files without start', f'{NO_ROW} --init resnet plain.pth', '--init', 'resnet plain.pth'),
    told('start of another attention', f'{NO_ROW} --rows {ROW} --init imagenet=plain.pth',
         '--init', 'ResNet-50 with SA'),
    told('no partition', f'{REPRODUCE} --slurm=', '--slurm'),
    told('below a number for all', f'{REPRODUCE} --cfg-options model.backbone.depth.x=1',
         'model.backbone.depth.x=1'),
    told('a loop without epochs', f'{REPRODUCE} --cfg-options train_cfg=None',
         'train_cfg.max_epochs', 'None'),
    told('a data set without annotations', f'{REPRODUCE} {RANDOM} '
         'test_dataloader.dataset.ann_file=None', 'test_dataloader.dataset.ann_file', 'None'),
    told('data that is a file', f'{REPRODUCE} --data-root notes.txt {RANDOM}',
         '--data-root', 'notes.txt/annotations/instances_train2017.json'),
    told('work dir with other settings', f'{REPRODUCE} --work-dir settings {RANDOM}',
         'settings.json', '[1]'),
    told('results that are none', 'reproduce.py --report --work-dir damaged',
         'a/seed0/result.json', 'row, seed'),
    told('work dir that is no folder', 'reproduce.py --check --work-dir notes.txt',
         '--work-dir', 'notes.txt'),
    told('two checkpoints of a row', f'{NO_ROW} --eval-only {ROW}=plain.pth {ROW}=half.pth',
         ROW, 'plain.pth', 'half.pth'),
    told('the weights of a backbone', f'{NO_ROW} --eval-only {ROW}=plain.pth',
         'plain.pth', 'backbone.conv1.weight'),
]


def converted(name, *values):
    return told(name, f'convert_checkpoint.py small.py {name}.pth out.pth', *values)


CHECKPOINTS = [
    *(converted(name, f'{name}.pth') for name in (
        'empty', 'text', 'truncated', 'optimizer', 'list', 'numbers', 'tensor')),
    converted('shape', 'layer1.0.bn3.weight', '(5,)', '(64,)'),
    converted('stem', 'conv1.weight', '(5,)', '(16, 3, 7, 7)'),
    converted('integers', 'conv1.weight', 'torch.int64', 'torch.float32'),
    converted('groups', 'layer1.0.sa.cweight', '(1, 4, 1, 1)', '(1, 8, 1, 1)'),
    converted('half', '78', '96'),
    converted('se', 'layer1.0.se.fc1.weight'),
    converted('detector', 'encoder.conv1.weight'),
]

VISUALIZATION = [
    told('no mode', 'visualize.py', 'MODE'),
    told('another mode', 'visualize.py attention small.py small.pth', "'attention'"),
    told('no test data', 'visualize.py predict no_data.py small.pth',
         'no_data.py', 'test_dataloader'),
    told('predict, no such image', f'{PREDICT} nowhere.jpg', 'nowhere.jpg'),
    told('predict, text', f'{PREDICT} notes.txt', 'notes.txt', '5 bytes'),
    told('predict, empty image', f'{PREDICT} empty.jpg', 'empty.jpg', '0 bytes'),
    told('predict, no images', f'{PREDICT} settings', 'settings'),
    told('predict, no count', f'{PREDICT} --images 0', '--images', '0'),
    told('predict, threshold', f'{PREDICT} --pred-score-thr 30', '--pred-score-thr', '30'),
    told('predict, below a file', f'{PREDICT} --out-dir notes.txt/out', '--out-dir', 'notes.txt'),
    told('predict, GPU', f'{PREDICT} --device cuda:9', 'device', 'cuda:9'),
    told('predict, device', f'{PREDICT} --device gpu', 'device gpu'),
    told('predict, no checkpoint', 'visualize.py predict small.py nowhere.pth', 'nowhere.pth'),
    told('predict, damaged', 'visualize.py predict small.py truncated.pth', 'truncated.pth'),
    told('predict, a backbone', 'visualize.py predict small.py plain.pth', 'plain.pth', '318'),
    told('predict, another head', 'visualize.py predict small.py other_classes.pth',
         'other_classes.pth', 'bbox_head.retina_cls'),
    told('cam, layer', f'{CAM} --layer backbone.layer4.3',
         'backbone.layer4.3', 'backbone.layer2.3'),
    told('cam, class', f'{CAM} --classes person dg', 'dg', 'dog'),
    told('cam, classes and boxes', f'{CAM} --classes dog --boxes 1', '--boxes', '--classes'),
    told('cam, box', f'{CAM} --boxes -1', '--boxes', '-1'),
    told('cam, second config', f'{CAM} --compare nowhere.py small.pth', 'nowhere.py'),
    told('cam, second checkpoint', f'{CAM} --compare small.py plain.pth', 'plain.pth'),
    told('cam, second classes', f'{CAM} --compare other_classes.py other_classes.pth',
         '--compare', '2: person, dog'),
    told('groups, layer of groups', 'visualize.py groups small.py small.pth '
         '--layer backbone.layer4.2', 'AttentionBottleneck', 'backbone.layer4.2.sa'),
]


@pytest.fixture
def refuses(monkeypatch, capsys):
    """Run a tool in this process: it ends with the message, and nothing is left or changed."""
    def run(command, values, folder):
        monkeypatch.chdir(folder)
        monkeypatch.setenv('LOCAL_RANK', '0')  # MMDetection's scripts set it
        monkeypatch.setattr(sys, 'argv', [str(TOOLS / command[0]), *command[1:]])
        before, handler = contents(folder), signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as exit_:
                runpy.run_path(str(TOOLS / command[0]), run_name='__main__')
        finally:
            signal.signal(signal.SIGTERM, handler)
        code, printed = exit_.value.code, capsys.readouterr().err
        assert code == 2 or code.startswith('error: ')
        # without argparse's usage, which names all options
        assert_told(re.sub(r'(?s)usage: .*error: ', '', f'{printed}{code}'), values)
        assert contents(folder) == before
    return run


@pytest.mark.parametrize(('command', 'values'), [
    *CONFIG_FILES, *OVERRIDES, *TOOL_OPTIONS, *REPRODUCTION, *CHECKPOINTS, *VISUALIZATION])
def test_tool(command, values, folder, refuses):
    refuses(command, values, folder)


def edited(**changes):
    def edit(path):
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return edit


def written(content):
    return lambda path: path.write_text(content)


def damaged(what, path, damage, *values):
    """A row: a file or folder below data/coco, what is done to it, and what the message names."""
    return pytest.param(path, damage, values, id=what)


TRAIN, VAL = (f'annotations/instances_{split}2017.json' for split in ('train', 'val'))
TRAIN_IMAGE, VAL_IMAGE = (f'{split}2017/000000000001.jpg' for split in ('train', 'val'))
DRAGON = edited(categories=[dict(id=1, name='dragon')])


@pytest.mark.parametrize(('path', 'damage', 'values'), [
    damaged('empty file', TRAIN, written('')),
    damaged('truncated file', VAL, written('{"images": [')),
    damaged('a list', TRAIN, written('[1]')),
    damaged('no parts', VAL, written('{}'), "'images'"),
    damaged('an image without file', TRAIN, edited(images=[dict(id=1)]), "'file_name'"),
    damaged('no images', TRAIN, edited(images=[]), '0 images'),
    damaged('no images to evaluate', VAL, edited(images=[]), '0 images'),
    damaged('no objects', TRAIN, edited(annotations=[]), '0 objects'),
    damaged('other classes', TRAIN, DRAGON, 'dragon', "metainfo=dict(classes=('dragon',))"),
    damaged('other classes to evaluate', VAL, DRAGON, 'dragon', 'num_classes'),
    damaged('an image is missing', TRAIN_IMAGE, os.remove, 'data_prefix'),
    damaged('the images are missing', 'val2017', shutil.rmtree, '--cfg-options'),
    damaged('an empty image', TRAIN_IMAGE, written(''), '0 bytes'),
    damaged('a truncated image', VAL_IMAGE, lambda path: os.truncate(path, 100), '100 bytes'),
    damaged('an error page', TRAIN_IMAGE, written('<html>404'), '9 bytes'),
])
def test_data_set(path, damage, values, folder, tmp_path, refuses):
    drawn_coco(tmp_path / 'data/coco')
    damage(tmp_path / 'data/coco' / path)
    refuses(['train.py', str(folder / 'small.py')], [f'data/coco/{path}', *values], tmp_path)


@pytest.mark.parametrize(('command', 'values'), [
    told('training', 'train.py empty.py', 'empty.py'),
    told('conversion', 'convert_checkpoint.py small.py half.pth out.pth', '78', '96'),
    told('dist_train.sh', 'dist_train.sh', 'CONFIG GPUS'),
    told('GPUS as a word', 'dist_train.sh small.py eight', 'small.py eight'),
    told('dist_test.sh out of order', 'dist_test.sh small.py 8 half.pth', 'small.py 8 half.pth'),
    told('slurm_train.sh', 'slurm_train.sh small.py', 'small.py'),
    told('slurm_test.sh', 'slurm_test.sh a b c', 'a b c'),
])
def test_command(command, values, folder):
    """As a user starts them: the exit status, and no traceback."""
    before = contents(folder)
    start = [sys.executable] if command[0].endswith('.py') else ['bash']
    done = subprocess.run([*start, TOOLS / command[0], *command[1:]], cwd=folder, text=True,
                          capture_output=True, env=os.environ | {'OMP_NUM_THREADS': '1'})
    assert done.returncode in (1, 2)
    assert 'Traceback' not in done.stderr
    assert_told(done.stderr.strip().splitlines()[-1], values)
    assert contents(folder) == before


def test_what_is_no_mistake(tmp_path, monkeypatch, capsys, folder):
    """Float16 weights; a key that is new to the config, told if it is almost one of its own."""
    half = {key: value.half() if value.is_floating_point() else value
            for key, value in torch.load(folder / 'plain.pth').items()}
    torch.save(half, tmp_path / 'half.pth')
    monkeypatch.setattr(sys, 'argv', [
        'convert_checkpoint.py', str(folder / 'small.py'), str(tmp_path / 'half.pth'),
        str(tmp_path / 'out.pth'), '--cfg-options', 'train_cfg.max_epoch=1', 'randomness.seed=1'])
    runpy.run_path(str(TOOLS / 'convert_checkpoint.py'), run_name='__main__')
    state = torch.load(tmp_path / 'out.pth')['state_dict']
    assert state['layer1.0.conv3.weight'].dtype == torch.float16
    warnings = [line for line in capsys.readouterr().err.splitlines() if 'warning:' in line]
    assert warnings == ['warning: --cfg-options train_cfg.max_epoch is new to the config: did you '
                        'mean max_epochs instead of max_epoch?']
