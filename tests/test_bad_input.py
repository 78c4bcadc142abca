"""What users get wrong: a message with the cause, the value found and the remedy, at once.

Each row of the tables is one mistake, with a fragment of the message for each of the three.
"""
import json
import os
import runpy
import signal
import subprocess
import sys

import numpy as np
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
    EfficientChannelAttention,
    SAResNet,
    ShuffleAttention,
    SpatialGroupEnhance,
    SqueezeExcitation,
)
from sa_mmdet.ops import fused_bn_sa_add_relu, shuffle_attention

TOOLS = CONFIGS.parent / 'tools'
SA = CONFIGS / 'retinanet/retinanet_sa-r50_fpn_1x_coco.py'
PLAIN = CONFIGS / 'retinanet/retinanet_r50_fpn_1x_coco.py'
ROW = SA.name.removesuffix('_fpn_1x_coco.py')
SMALL = dict(base_channels=16, attention=dict(groups=4))
PLUGIN = dict(cfg=dict(type='CBAM'), position='after_conv3')
zeros = torch.zeros


def bad(what, do, error, cause, value, remedy):
    return pytest.param(do, error, (cause, value, remedy), id=what)


def attend(x=None, groups=2, change=None, **options):
    """The operator with two channels in each half of each group; ``change``, of its parameters."""
    parameters = dict(cweight=zeros(1, 2, 1, 1), cbias=zeros(1, 2, 1, 1),
                      sweight=zeros(1, 2, 1, 1), sbias=zeros(1, 2, 1, 1),
                      gn_weight=zeros(2), gn_bias=zeros(2)) | (change or {})
    x = zeros(1, 8, 4, 4) if x is None else x
    return shuffle_attention(x, **parameters, groups=groups, **options)


def fused(batch_norm=None, **change):
    arguments = dict(z=zeros(1, 8, 4, 4), identity=zeros(1, 8, 4, 4)) | change
    parameters = [zeros(1, 2, 1, 1)] * 4 + [zeros(2)] * 2
    return fused_bn_sa_add_relu(*arguments.values(), batch_norm, *parameters, 2)


LAYERS = [
    bad('groups None', lambda: ShuffleAttention(256, None), TypeError,
        'groups must be', 'got None', 'an integer'),
    bad('groups too many', lambda: ShuffleAttention(256, 2**70), ValueError,
        'in_channels=256 is not divisible', f'groups={2**70}', 'use one of groups=[1, 2, 4'),
    bad('groups of SGE', lambda: SpatialGroupEnhance(96), ValueError,
        'in_channels=96 is not divisible', 'groups=64', 'use one of groups=[1, 2, 3'),
    bad('gn yes', lambda: ShuffleAttention(256, gn='yes'), TypeError,
        'gn must be', "got 'yes'", 'True or False'),
    bad('gn False as text', lambda: ShuffleAttention(256, gn='False'), TypeError,
        'gn must be', "got 'False'", 'True or False'),
    bad('shuffle None', lambda: ShuffleAttention(256, shuffle=None), TypeError,
        'shuffle must be', 'got None', 'True or False'),
    bad('bias of SE', lambda: SqueezeExcitation(256, bias='no'), TypeError,
        'bias must be', "got 'no'", 'True or False'),
    bad('fc empty', lambda: ShuffleAttention(256, fc=''), ValueError,
        'fc must be', "got ''", "one of ('affine', 'conv', 'none')"),
    bad('eps as text', lambda: ShuffleAttention(256, eps='1e-5'), TypeError,
        'eps must be', "got '1e-5'", 'a number'),
    bad('eps negative', lambda: ShuffleAttention(256, eps=-1e-5), ValueError,
        'eps must be', 'got -1e-05', 'of at least 0'),
    bad('eps NaN', lambda: SpatialGroupEnhance(256, eps=float('nan')), ValueError,
        'eps must be', 'got nan', 'a finite number'),
    bad('gamma as text', lambda: EfficientChannelAttention(256, gamma='2'), TypeError,
        'gamma must be', "got '2'", 'a number'),
    bad('b infinite', lambda: EfficientChannelAttention(256, b=float('inf')), ValueError,
        'b must be', 'got inf', 'a finite number'),
    bad('kernel of two sizes', lambda: CBAM(256, kernel_size=(7, 7)), TypeError,
        'kernel_size must be', 'got (7, 7)', 'an integer'),
    bad('integers', lambda: ShuffleAttention(256)(zeros(1, 256, 4, 4).long()), TypeError,
        'ShuffleAttention expects a floating point tensor', 'torch.int64', 'float()'),
    bad('bytes', lambda: SpatialGroupEnhance(256)(zeros(1, 256, 4, 4).byte()), TypeError,
        'SpatialGroupEnhance expects a floating point tensor', 'torch.uint8', 'float()'),
    bad('complex', lambda: CBAM(256)(zeros(1, 256, 4, 4) + 0j), TypeError,
        'CBAM expects a floating point tensor', 'torch.complex64', 'float()'),
    bad('an array', lambda: SqueezeExcitation(256)(np.zeros((1, 256, 4, 4))), TypeError,
        'SqueezeExcitation expects a floating point tensor', 'got ndarray', 'torch.as_tensor'),
    bad('channels last in the shape', lambda: ShuffleAttention(256)(zeros(1, 4, 4, 256)),
        ValueError, 'ShuffleAttention expects input of shape', 'got (1, 4, 4, 256)',
        '(N, 256, H, W)'),
]

OPERATORS = [
    bad('input of integers', lambda: attend(zeros(1, 8, 4, 4).int()), TypeError,
        'x must be a floating point tensor', 'got torch.int32', 'float()'),
    bad('input None', lambda: shuffle_attention(None, *[zeros(2)] * 6, 2), TypeError,
        'x must be a floating point tensor', 'got NoneType', 'torch.as_tensor'),
    bad('a parameter of another size', lambda: attend(change=dict(gn_bias=zeros(5))), ValueError,
        'gn_bias of shape', '(5,)', 'C / (2 * groups) = 2 values'),
    bad('a parameter None', lambda: attend(change=dict(cbias=None)), TypeError,
        'cbias must be a floating point tensor', 'got NoneType', 'torch.as_tensor'),
    bad('a complex parameter', lambda: attend(change=dict(sweight=zeros(2) + 0j)), TypeError,
        'sweight must be a floating point tensor', 'got torch.complex64', 'float()'),
    bad('a parameter elsewhere', lambda: attend(change=dict(gn_weight=zeros(2, device='meta'))),
        ValueError, 'gn_weight must be on the device of the input', 'cpu, got meta', '.to()'),
    bad('groups as text', lambda: attend(groups='2'), TypeError,
        'groups must be', "got '2'", 'an integer'),
    bad('groups as a fraction', lambda: attend(groups=2.), TypeError,
        'groups must be', 'got 2.0', 'an integer'),
    bad('implementation in capitals', lambda: attend(implementation='CPU'), ValueError,
        'is no implementation', "implementation='CPU'", 'use one of reference, cpu, triton'),
    bad('no identity', lambda: fused(identity=None), TypeError,
        'identity must be a floating point tensor', 'got NoneType', 'torch.as_tensor'),
    bad('three tensors of a batch norm', lambda: fused([zeros(8)] * 3), TypeError,
        'batch_norm must be None or four tensors', 'got 3 of them', 'weight, bias, running mean'),
    bad('a module as batch norm', lambda: fused(nn.BatchNorm2d(8)), TypeError,
        'batch_norm must be None or four tensors', 'got BatchNorm2d', 'weight, bias, running mean'),
    bad('a batch norm without weight', lambda: fused([None, None, zeros(8), zeros(8)]), TypeError,
        "the batch norm's weight must be", 'got NoneType', 'a floating point tensor'),
    bad('a batch norm elsewhere', lambda: fused([zeros(8, device='meta')] * 4), ValueError,
        "the batch norm's weight must be on the device", 'got meta', '.to()'),
]

BACKBONES = [
    bad('depth in a list', lambda: SAResNet([50]), ValueError,
        'depth must be', 'got [50]', 'one of [50, 101, 152]'),
    bad('attention empty', lambda: AttentionResNet(50, ''), ValueError,
        'attention must be the name of a layer', "{'type': ''}", "dict(type='ShuffleAttention'"),
    bad('attention None', lambda: AttentionResNet(50, dict(type=None)), ValueError,
        'attention must be the name of a layer', "{'type': None}", "dict(type='ShuffleAttention'"),
    bad('an abbreviation', lambda: AttentionResNet(50, 'SE'), ValueError,
        'unknown attention type', "'SE'", 'SqueezeExcitation'),
    bad('an option misspelt', lambda: SAResNet(50, dict(group=32)), TypeError,
        'unexpected keyword argument', "'group'", 'ShuffleAttention takes (in_channels'),
    bad('no attention at all', lambda: AttentionResNet(50, 'FPN'), TypeError,
        'missing a required argument', "{'type': 'FPN'}", 'FPN takes (in_channels'),
    bad('the name for SAResNet', lambda: SAResNet(50, 'ShuffleAttention'), TypeError,
        'attention of SAResNet must be a dict', "got 'ShuffleAttention'", 'AttentionResNet takes'),
    bad('SE for SAResNet', lambda: SAResNet(50, dict(type='SqueezeExcitation')), ValueError,
        'the attention of SAResNet is ShuffleAttention', 'got SqueezeExcitation',
        'use AttentionResNet'),
    bad('channels that do not fit', lambda: SAResNet(50, base_channels=60), ValueError,
        'is not divisible by 2 * groups', 'in_channels=240', 'use one of groups=['),
    bad('one plugin without a list', lambda: SAResNet(50, plugins=PLUGIN), TypeError,
        'plugins must be a list of dicts', "got {'cfg':", "position='after_conv3'"),
    bad('a plugin None', lambda: SAResNet(50, plugins=[None]), TypeError,
        'a plugin must be a dict', 'got None', "dict(cfg=dict(type="),
    bad('a plugin without cfg', lambda: SAResNet(50, plugins=[dict(position='after_conv3')]),
        TypeError, 'a plugin must be a dict', "got {'position'", "dict(cfg=dict(type="),
    bad('no position', lambda: SAResNet(50, plugins=[dict(cfg=PLUGIN['cfg'])]), ValueError,
        'the position of a plugin must be', 'got None', "'after_conv3'"),
    bad('a fourth convolution', lambda: SAResNet(
        50, plugins=[PLUGIN | dict(position='after_conv4')]), ValueError,
        'the position of a plugin must be', "got 'after_conv4'", "'after_conv3'"),
    bad('stages of a plugin', lambda: SAResNet(50, plugins=[PLUGIN | dict(stages=(True, ))]),
        ValueError, 'the stages of a plugin must be', 'got (True,)', '4 times'),
    bad('a plugin that is unknown', lambda: SAResNet(50, plugins=[PLUGIN | dict(
        cfg=dict(type='Nope'))]), ValueError, 'unknown plugin type', "'Nope'", 'known are CBAM'),
    bad('attention twice', lambda: SAResNet(50, plugins=[PLUGIN | dict(
        cfg=dict(type='ShuffleAttention'))]), ValueError,
        '2 plugins of a bottleneck', "'sa'", "postfix='_2'"),
    bad('five frozen stages', lambda: SAResNet(50, frozen_stages=5), ValueError,
        'frozen_stages must be', 'got 5', 'from -1, nothing frozen, to num_stages = 4'),
    bad('frozen stages as text', lambda: SAResNet(50, frozen_stages='1'), ValueError,
        'frozen_stages must be', "got '1'", 'an integer'),
    bad('no output', lambda: SAResNet(50, out_indices=()), ValueError,
        'out_indices must be', 'got ()', 'a tuple of stages of [0, 1, 2, 3]'),
    bad('one output without a tuple', lambda: SAResNet(50, out_indices=3), ValueError,
        'out_indices must be', 'got 3', 'a tuple of stages'),
    bad('the last output', lambda: SAResNet(50, out_indices=(-1, )), ValueError,
        'out_indices must be', 'got (-1,)', 'of [0, 1, 2, 3]'),
    bad('more outputs than stages', lambda: SAResNet(50, num_stages=2, out_indices=(2, )),
        ValueError, 'out_indices must be', 'got (2,)', 'of [0, 1]'),
    bad('five stages', lambda: SAResNet(50, num_stages=5), ValueError,
        'num_stages must be', 'got 5', '1 to 4'),
    bad('style of another framework', lambda: SAResNet(50, style='tensorflow'), ValueError,
        'style must be', "got 'tensorflow'", "'pytorch' or 'caffe'"),
    bad('an unknown norm', lambda: SAResNet(50, norm_cfg=dict(type='XN')), ValueError,
        'norm_cfg must be', "got {'type': 'XN'}", "dict(type='BN')"),
    bad('no norm', lambda: SAResNet(50, norm_cfg=None), ValueError,
        'norm_cfg must be', 'got None', "dict(type='BN')"),
    bad('convert_weights as text', lambda: SAResNet(50, convert_weights='no'), TypeError,
        'convert_weights must be', "got 'no'", 'True or False'),
    bad('a grey image', lambda: SAResNet(50, **SMALL)(zeros(1, 1, 64, 64)), ValueError,
        'SAResNet expects input of shape', 'got (1, 1, 64, 64)', '(N, 3, H, W)'),
    bad('an image without a batch', lambda: SAResNet(50, **SMALL)(zeros(3, 64, 64)), ValueError,
        'SAResNet expects input of shape', 'got (3, 64, 64)', '(N, 3, H, W)'),
    bad('an image of bytes', lambda: SAResNet(50, **SMALL)(zeros(1, 3, 64, 64).byte()), TypeError,
        'SAResNet expects a floating point tensor', 'torch.uint8', 'float()'),
    bad('weights of another attention', lambda: SAResNet(50, **SMALL).load_state_dict(
        AttentionResNet(50, 'SqueezeExcitation', base_channels=16).state_dict(), strict=False),
        ConversionError, 'of which the network knows nothing', 'layer1.0.se.fc1.weight',
        'is it of another attention?'),
]


@pytest.mark.parametrize(('do', 'error', 'fragments'), [*LAYERS, *OPERATORS, *BACKBONES])
def test_python(do, error, fragments):
    with pytest.raises(error) as raised:
        do()
    assert type(raised.value) is error
    assert_told(str(raised.value), fragments)


def assert_told(message, fragments):
    for what, fragment in zip(('cause', 'value', 'remedy'), fragments, strict=True):
        assert fragment in message, f'the {what} is missing: {message}'


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
    'begun/mask-rcnn.py': "model = dict(type='MaskRCNN', backbone=dict(type='ResNet'))",
    'begun/last_checkpoint': 'epoch_1.pth',
}


def checkpoints() -> dict:
    """What somebody could take for the weights of ``small.py``'s backbone, by file name."""
    plain = dict(ResNet(50, base_channels=16).state_dict())
    weight = 'layer1.0.bn3.weight'
    attention = dict(SAResNet(50, **SMALL).state_dict())
    return {
        'plain.pth': plain,
        'optimizer.pth': dict(optimizer=dict(state={}), meta={}),
        'list.pth': dict(state_dict=[1, 2]),
        'numbers.pth': {0: zeros(2), 1: zeros(2)},
        'tensor.pth': zeros(3),
        'shape.pth': plain | {weight: zeros(5)},
        'stem.pth': plain | {'conv1.weight': zeros(5)},
        'integers.pth': plain | {'conv1.weight': plain['conv1.weight'].long()},
        'groups.pth': SAResNet(50, base_channels=16, attention=dict(groups=8)).state_dict(),
        'half.pth': {key: value for key, value in attention.items() if 'layer4' not in key
                     or '.sa.' not in key},
        'se.pth': AttentionResNet(50, 'SqueezeExcitation', base_channels=16).state_dict(),
        'detector.pth': {f'encoder.{key}': value for key, value in plain.items()},
    }


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with all that is given to the tools."""
    root = tmp_path_factory.mktemp('bad')
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


def told(name, tool, *fragments):
    """A row: a tool's command line, its files, and the three fragments."""
    return pytest.param(tool.split(), fragments, id=name)


def options(*overrides):
    return f'complexity.py {SA} --cfg-options ' + ' '.join(overrides)


REPRODUCE = f'reproduce.py --rows {ROW} --gpus 0 --work-dir runs --dry-run'
RANDOM = '--cfg-options model.backbone.init_cfg=None'
NO_ROW = 'reproduce.py --gpus 0 --dry-run'

CONFIG_FILES = [
    told('missing', 'complexity.py nowhere.py',
         'does not exist', 'nowhere.py', 'give the path of a config file'),
    told('folder', 'convert_checkpoint.py folder.py plain.pth out.pth',
         'is a folder', 'folder.py', 'give the path of a config file'),
    told('this folder', 'train.py .', 'is a folder', 'config /', 'give the path of a config file'),
    told('empty', 'train.py empty.py', 'has no model', 'found nothing', 'give the config of a'),
    told('syntax', 'quickstart.py --config syntax.py',
         "'(' was never closed", 'syntax.py', 'Mend it'),
    told('undefined name', 'test.py name.py plain.pth',
         'is not defined', "'nonsense'", 'Mend it'),
    told('missing base', 'complexity.py missing_base.py',
         'No such file', 'nowhere.py', 'what it is based on'),
    told('missing import', 'train.py missing_import.py',
         'Failed to import custom modules', 'nowhere_to_be_found', 'Mend it'),
    told('binary', 'complexity.py binary.py', "can't decode byte 0xff", 'binary.py', 'Mend it'),
    told('a list', 'benchmark.py train list.json', 'cannot be read', 'list.json', 'Mend it'),
    told('no config', 'complexity.py notes.txt', 'is no file of .py', 'notes.txt', 'checkpoint'),
    told('swapped', f'convert_checkpoint.py plain.pth {SA} out.pth',
         'is no file of .py', 'plain.pth', "is it the checkpoint, in the config's place?"),
    told('swapped in a test', f'test.py plain.pth {SA}',
         'is no file of .py', 'plain.pth', "is it the checkpoint, in the config's place?"),
    told('model as text', 'complexity.py text_model.py',
         'has no model with a type', "model='RetinaNet'", 'give the config of a detector'),
    told('no backbone', 'train.py no_backbone.py',
         'cannot be built', 'RetinaNet', "missing 3 required positional arguments: 'backbone'"),
    told('no scope', 'train.py no_scope.py',
         'is not in the mmengine::model registry', 'RetinaNet', "default_scope='mmdet'"),
    told('of a classifier', 'complexity.py classifier.py',
         'is not in the mmdet::model registry', 'ImageClassifier', 'registered as expected'),
    told("position in MMDetection's ResNet", 'train.py plain_position.py',
         'AssertionError in resnet.py', 'allowed_position', "p['position'] in"),
    told('groups of a plugin', 'complexity.py plugin_groups.py',
         'in_channels=256 is not divisible', 'groups=48', 'use one of groups=[1, 2'),
    told('attention for none', f'convert_checkpoint.py {PLAIN} se.pth out.pth',
         'has, beyond the network of the config', 'layer1.0.se.fc1.weight', 'of the same network'),
    told('a classifier for a detector', f'convert_checkpoint.py {CONFIGS}/imagenet/'
         'sa-resnet50_8xb32_in1k.py plain.pth out.pth',
         'is of a classifier', 'sa-resnet50_8xb32_in1k.py', 'give that of a detector'),
    told('no training', f'quickstart.py --config {CONFIGS}/_base_/sa_mmdet.py',
         'has no train_dataloader', 'found None', 'such as configs/quickstart/'),
]

OVERRIDES = [
    told('no value', options('model.backbone.depth'),
         '--cfg-options', "got 'model.backbone.depth'", 'give key=value'),
    told('no value for MMDetection', f'train.py {SA} --cfg-options foo',
         '--cfg-options', "got 'foo'", 'give key=value'),
    told('below a number', options('model.backbone.depth.x=1'),
         'cannot inherit from base', "{'x': 1}", "depth is a dict in the child config"),
    told('misspelt', options('model.backbone.depht=50'),
         'unexpected keyword argument', "'depht'", 'did you mean depth in place of depht?'),
    told('depth', options('model.backbone.depth=18'),
         'depth must be', 'got 18', 'one of [50, 101, 152]'),
    told('attention', options('model.backbone.attention=SE'),
         'attention of SAResNet must be a dict', "got 'SE'", 'AttentionResNet takes'),
    told('yes', options('model.backbone.attention.gn=yes'),
         'gn must be', "got 'yes'", 'True or False'),
    told('no model', options('model=None'), 'has no model', 'model=None', 'config of a detector'),
    told('norm', options('model.backbone.norm_cfg.type=XN'),
         'norm_cfg must be', "'type': 'XN'", "dict(type='BN')"),
    told('of the neck', options('model.neck.in_channels=1'),
         'AssertionError in fpn.py', 'in_channels', 'isinstance(in_channels, list)'),
    told('no data', f'train.py {SA} --cfg-options train_dataloader=None',
         'has no train_dataloader', 'found None', 'give the config of a detector with its data'),
]

TOOL_OPTIONS = [
    told('work dir is a file', f'train.py {SA} --work-dir notes.txt',
         'is not a folder', '--work-dir notes.txt', 'choose another'),
    told('work dir in a file', 'quickstart.py --work-dir notes.txt/w',
         'is not a folder', 'notes.txt', 'choose another'),
    told('work dir of another model', 'quickstart.py --work-dir begun',
         'was begun with another model', 'begun', 'Give another --work-dir'),
    told('AP over one', 'quickstart.py --min-ap 50', '--min-ap', 'got 50.0', 'from -1 to 1'),
    told('AP that is none', 'quickstart.py --min-ap nan', '--min-ap', 'got nan', 'from -1 to 1'),
    told('no epoch', 'quickstart.py --cfg-options train_cfg.max_epochs=0',
         'train_cfg.max_epochs must be', 'got 0', 'an integer of at least 1'),
    told('place of the data', 'quickstart.py --cfg-options '
         'train_dataloader.dataset.data_root=notes.txt/a',
         'notes.txt is not a folder', 'data_root=notes.txt/a', 'where the data set is drawn'),
    told('shape', f'complexity.py {SA} --shape -5 3', '--shape', 'got -5 3', 'must be positive'),
    told('JSON into a folder', f'complexity.py {SA} --json folder.py',
         'is a folder', 'folder.py', 'give the name of a file'),
    told('JSON below a file', f'complexity.py {SA} --json notes.txt/a.json',
         'is not a folder', 'notes.txt', '--json'),
    told('output in no folder', 'benchmark.py op --out nowhere/a',
         'does not exist', '/nowhere', 'make it, or give another file'),
    told('output without a name', 'benchmark.py op --out .',
         '--out', ' .:', 'give the name of a file'),
    told('size', 'benchmark.py op --size 33 64', '--size', 'got 33 64', 'multiples of 32'),
    told('a size beyond memory', 'benchmark.py backbone --size 3200000 3200000 --repeats 1',
         'not measured', "can't allocate memory", 'you tried to allocate'),
    told('device', 'benchmark.py op --device meta', '--device', 'meta', 'measured on cpu and cuda'),
    told('depth of a benchmark', 'benchmark.py backbone --depth 18',
         'invalid choice', '18', 'choose from 50, 101, 152'),
    told('plain backbone', f'benchmark.py train {PLAIN}',
         'the backbone must be', 'got ResNet', 'SAResNet or AttentionResNet'),
    told('an output that exists', f'convert_checkpoint.py {SA} plain.pth notes.txt',
         'exists', 'notes.txt', 'remove it, or choose another name'),
    told('an output below a file', f'convert_checkpoint.py {SA} plain.pth notes.txt/out.pth',
         'not a folder that can be written to', 'notes.txt', 'make it, or choose another'),
    told('one file of two', f'convert_checkpoint.py {SA} plain.pth',
         'required', 'convert_checkpoint.py: error', 'out'),
]

REPRODUCTION = [
    told('row', f'{NO_ROW} --rows {ROW}0', 'has no row', f"'{ROW}0'", f'did you mean {ROW}?'),
    told("another table's row", f'{NO_ROW} --table 3 --rows mask-rcnn_eca-r50',
         'is a row of Table 4', 'mask-rcnn_eca-r50', 'add --table 4'),
    told('start without files', f'{NO_ROW} --init imagenet=',
         '--init', 'imagenet=', 'imagenet=PATH with the checkpoints'),
    told('files without start', f'{NO_ROW} --init resnet plain.pth',
         '--init', 'resnet plain.pth', 'give resnet, or imagenet=PATH'),
    told('start of another attention', f'{NO_ROW} --rows {ROW} --init imagenet=plain.pth',
         'has no checkpoint of ResNet-50 with SA', 'given are ResNet-50', 'Give the missing ones'),
    told('no partition', f'{REPRODUCE} --slurm=', '--slurm', 'must name', 'a partition'),
    told('below a number for all', f'{REPRODUCE} --cfg-options model.backbone.depth.x=1',
         'does not fit config', 'model.backbone.depth.x=1', 'cannot inherit from base'),
    told('a loop without epochs', f'{REPRODUCE} --cfg-options train_cfg=None',
         'train_cfg.max_epochs must be', 'got None', 'an integer of at least 1'),
    told('a data set without annotations', f'{REPRODUCE} {RANDOM} '
         'test_dataloader.dataset.ann_file=None',
         'test_dataloader.dataset.ann_file', 'got None', 'must say where the data is'),
    told('data that is a file', f'{REPRODUCE} --data-root notes.txt {RANDOM}',
         'not found', 'notes.txt/annotations/instances_', 'by --data-root'),
    told('work dir with other settings', f'{REPRODUCE} --work-dir settings {RANDOM}',
         'is damaged', '[1]', 'give another --work-dir'),
    told('results that are none', 'reproduce.py --report --work-dir damaged',
         'is damaged', 'it lacks row, seed', 'remove it to test again'),
    told('work dir that is no folder', 'reproduce.py --check --work-dir notes.txt',
         'is not a folder', 'notes.txt', 'give that of the runs'),
    told('two checkpoints of a row', f'{NO_ROW} --eval-only {ROW}=plain.pth {ROW}=half.pth',
         'twice', f'{ROW} twice, with plain.pth and half.pth', 'give one checkpoint for each row'),
    told('the weights of a backbone', f'{NO_ROW} --eval-only {ROW}=plain.pth',
         'of the weights of RetinaNet with SAResNet', 'plain.pth', 'such as backbone.conv1.weight'),
]


def converted(name, *fragments):
    return told(name, f'convert_checkpoint.py small.py {name}.pth out.pth', *fragments)


CHECKPOINTS = [
    converted('empty', 'is not a checkpoint of PyTorch', 'empty.pth', 'or damaged'),
    converted('text', 'is not a checkpoint of PyTorch', 'text.pth', 'or damaged'),
    converted('truncated', 'is not a checkpoint of PyTorch', 'truncated.pth', 'or damaged'),
    converted('optimizer', 'is not a checkpoint', 'optimizer.pth', 'no state dict of tensors'),
    converted('list', 'is not a checkpoint', 'list.pth', 'no state dict of tensors'),
    converted('numbers', 'is not a checkpoint', 'numbers.pth', 'no state dict of tensors'),
    converted('tensor', 'is not a checkpoint', 'tensor.pth', 'no state dict of tensors'),
    converted('shape', 'layer1.0.bn3.weight has shape', '(5,)', '(64,) in the network'),
    converted('stem', 'the checkpoint has conv1.weight', '(5,)', '(16, 3, 7, 7) is needed'),
    converted('integers', 'conv1.weight of', 'torch.int64', 'torch.float32 is needed'),
    converted('groups', 'layer1.0.sa.cweight', '(1, 4, 1, 1)', 'where (1, 8, 1, 1) is needed'),
    converted('half', "of the network's attention", 'has 78 of the 96', 'Give one with all'),
    converted('se', 'of which the network knows nothing', 'layer1.0.se.fc1.weight',
              'is it of another attention?'),
    converted('detector', 'no name in the checkpoint is one of the network',
              'encoder.conv1.weight', 'under another prefix?'),
]


def drawn(name, options, *fragments, mode='predict', checkpoint='small.pth'):
    return told(f'{mode}, {name}', f'visualize.py {mode} small.py {checkpoint} {options}',
                *fragments)


VISUALIZATION = [
    told('no mode', 'visualize.py', 'required', 'MODE', 'usage: '),
    told('another mode', 'visualize.py attention small.py small.pth',
         'invalid choice', "'attention'", 'predict'),
    told('no test data', 'visualize.py predict no_data.py small.pth',
         'no test_dataloader', 'no_data.py', 'give the config of a detector with its data'),
    drawn('no such image', 'nowhere.jpg',
          'does not exist', 'nowhere.jpg', 'give an image, or a folder'),
    drawn('text', 'notes.txt', 'is no image', 'notes.txt (5 bytes)', 'give another'),
    drawn('empty image', 'empty.jpg', 'is no image', 'empty.jpg (0 bytes)', 'give another'),
    drawn('no images', 'settings', 'has no image', 'settings', 'give another folder'),
    drawn('no count', '--images 0', '--images must be', 'got 0', 'at least 1'),
    drawn('threshold', '--pred-score-thr 30', '--pred-score-thr must be', 'got 30', 'from 0 to 1'),
    drawn('below a file', '--out-dir notes.txt/out', 'is not a folder', 'notes.txt', 'choose'),
    drawn('GPU', '--device cuda:9', 'cannot be used', 'cuda:9', 'Use cpu, or another'),
    drawn('device', '--device gpu', 'cannot be used', 'device gpu', 'Use cpu, or another'),
    drawn('no checkpoint', '', 'does not exist', 'nowhere.pth', 'give the path of a checkpoint',
          checkpoint='nowhere.pth'),
    drawn('damaged', '', 'is not a checkpoint of PyTorch', 'truncated.pth', 'copy it again',
          checkpoint='truncated.pth'),
    drawn('a backbone', '', 'is of another model', '318 are none', 'Give the config that',
          checkpoint='plain.pth'),
    drawn('another head', '', 'have other shapes', 'bbox_head.retina_cls', 'Give the config that',
          checkpoint='other_classes.pth'),
    drawn('layer', '--layer backbone.layer4.3', 'none of this name', 'backbone.layer4.3',
          'near it are backbone.layer2.3', mode='cam'),
    drawn('class', '--classes person dg', 'does not have it', 'class dg', 'did you mean dog',
          mode='cam'),
    drawn('classes and boxes', '--classes dog --boxes 1', 'not allowed with', '--boxes',
          '--classes', mode='cam'),
    drawn('box', '--boxes -1', 'numbered from 0', 'got -1', '--boxes', mode='cam'),
    drawn('second config', '--compare nowhere.py small.pth', 'does not exist', 'nowhere.py',
          'give the path of a config', mode='cam'),
    drawn('second checkpoint', '--compare small.py plain.pth', 'is of another model',
          'plain.pth', 'Give the config that', mode='cam'),
    drawn('second classes', '--compare other_classes.py other_classes.pth', 'has other classes',
          '(2: person, dog', 'two detectors of the same data set', mode='cam'),
    drawn('layer of groups', '--layer backbone.layer4.2', 'is AttentionBottleneck',
          'backbone.layer4.2', 'give one, such as backbone.layer4.2.sa', mode='groups'),
]


@pytest.mark.parametrize(('command', 'fragments'), [
    *CONFIG_FILES, *OVERRIDES, *TOOL_OPTIONS, *REPRODUCTION, *CHECKPOINTS, *VISUALIZATION])
def test_tool(command, fragments, folder, monkeypatch, capsys):
    refuses(command, fragments, folder, monkeypatch, capsys)


def refuses(command, fragments, folder, monkeypatch, capsys):
    """Run a tool in this process: it ends with the message, and nothing is left or changed."""
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
    assert_told(f'{printed}{code}', fragments)
    assert contents(folder) == before


def edited(**changes):
    """Change the annotations of a split."""
    def edit(root, split):
        path = root / f'annotations/instances_{split}2017.json'
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return edit


def written(content):
    def write(root, split):
        (root / f'annotations/instances_{split}2017.json').write_text(content)
    return write


def with_image(content):
    def write(root, split):
        path = root / f'{split}2017/000000000001.jpg'
        path.write_bytes(path.read_bytes()[:content] if isinstance(content, int) else content)
    return write


def without_image(root, split):
    (root / f'{split}2017/000000000001.jpg').unlink()


def without_images(root, split):
    without_image(root, split)
    (root / f'{split}2017').rmdir()


@pytest.mark.parametrize(('damage', 'split', 'fragments'), [
    (written(''), 'train', ("is not a file of COCO's annotations", 'train2017.json', 'download')),
    (written('{"images": ['), 'val', ('or damaged', 'val2017.json', 'Write or download it again')),
    (written('[1]'), 'train', ("is not a file of COCO's annotations", 'TypeError', 'download')),
    (written('{}'), 'val', ("is not a file of COCO's annotations", "KeyError('images')", 'Write')),
    (edited(images=[dict(id=1)]), 'train', ('or damaged', "KeyError('file_name')", 'Write')),
    (edited(images=[]), 'train', ('train2017.json has', '0 images', 'that has some')),
    (edited(images=[]), 'val', ('val2017.json has', '0 images', 'that has some')),
    (edited(annotations=[]), 'train', ('train2017.json has', '0 objects', 'that has some')),
    (edited(categories=[dict(id=1, name='dragon')]), 'train',
     ('none of the 80 classes', 'its categories are dragon', 'metainfo=dict(classes=')),
    (edited(categories=[dict(id=1, name='dragon')]), 'val',
     ('none of the 80 classes', 'its categories are dragon', "the heads' num_classes")),
    (without_image, 'train', ('does not exist', '000000000001.jpg', 'data_prefix')),
    (without_images, 'val', ('not found', 'data/coco/val2017', '--cfg-options')),
    (with_image(b''), 'train', ('is no image', '(0 bytes)', 'download the images again')),
    (with_image(100), 'val', ('or damaged', '(100 bytes)', 'download the images again')),
    (with_image(b'<html>404'), 'train', ('is no image', '(9 bytes)', 'download')),
], ids=['empty file', 'truncated file', 'a list', 'no parts', 'an image without file', 'no images',
        'no images to evaluate', 'no objects', 'other classes', 'other classes to evaluate',
        'an image is missing', 'the images are missing', 'an empty image', 'a truncated image',
        'an error page'])
def test_data_set(damage, split, fragments, folder, tmp_path, monkeypatch, capsys):
    drawn_coco(tmp_path / 'data/coco')
    damage(tmp_path / 'data/coco', split)
    refuses(['train.py', str(folder / 'small.py')], fragments, tmp_path, monkeypatch, capsys)


def test_annotations_too_large_to_read_twice(tmp_path, monkeypatch, capsys, folder):
    """Of these only the ends are looked at."""
    drawn_coco(tmp_path / 'data/coco')
    written('{"images": [' + ' ' * 100)(tmp_path / 'data/coco', 'train')
    monkeypatch.setattr('sa_mmdet.apps.validate.coco.FULLY_READ', 64)
    refuses(['train.py', str(folder / 'small.py')],
            ('is damaged', 'train2017.json', 'Download it again'), tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(('command', 'fragments'), [
    told('training', 'train.py empty.py', 'has no model', 'found nothing', 'give the config of a'),
    told('conversion', 'convert_checkpoint.py small.py half.pth out.pth',
         "of the network's attention", 'has 78 of the 96', 'Give one with all'),
    told('dist_train.sh', 'dist_train.sh', 'usage:', 'got: nothing', 'CONFIG GPUS [option of'),
    told('GPUS as a word', 'dist_train.sh small.py eight', 'usage:', 'eight', 'CONFIG GPUS'),
    told('dist_test.sh in another order', 'dist_test.sh small.py 8 half.pth',
         'usage:', 'got: small.py 8 half.pth', 'CONFIG CHECKPOINT GPUS'),
    told('slurm_train.sh', 'slurm_train.sh small.py', 'usage:', 'got: small.py', 'PARTITION JOB'),
    told('slurm_test.sh', 'slurm_test.sh a b c', 'usage:', 'got: a b c', 'PARTITION JOB CONFIG'),
])
def test_command(command, fragments, folder):
    """As a user starts them: the exit status, and no traceback."""
    before = contents(folder)
    start = [sys.executable] if command[0].endswith('.py') else ['bash']
    done = subprocess.run([*start, TOOLS / command[0], *command[1:]], cwd=folder, text=True,
                          capture_output=True, env=os.environ | {'OMP_NUM_THREADS': '1'})
    assert done.returncode in (1, 2)
    assert 'Traceback' not in done.stderr
    assert_told(done.stderr.strip().splitlines()[-1], fragments)
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
                        'mean max_epochs in place of max_epoch?']
