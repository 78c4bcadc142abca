"""The code in the README runs, and its links lead somewhere."""
import re
from pathlib import Path

import pytest
from mmdet.registry import HOOKS, MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from sa_mmdet.engine import EpochSeedHook
from sa_mmdet.models import AttentionLayer

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
PAGES = [ROOT / 'README.md', *(ROOT / 'docs').glob('*.md')]


@pytest.mark.parametrize('code', [block for block in BLOCKS if '_base_' in block],
                         ids=['backbone', 'plugin'])
def test_config(tmp_path, code):
    (tmp_path / 'config.py').write_text(code)
    backbone = Config.fromfile(tmp_path / 'config.py').model.backbone
    backbone.init_cfg = None
    init_default_scope('mmdet')
    model = MODELS.build(backbone)
    assert any(isinstance(module, AttentionLayer) for module in model.modules())


def test_hooks(tmp_path):
    """On a config of MMDetection's, its own hooks are replaced and joined by ours."""
    code, = (block for block in BLOCKS if 'default_hooks' in block)
    base = "_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\n"
    (tmp_path / 'config.py').write_text(base + code)
    config = Config.fromfile(tmp_path / 'config.py')
    assert HOOKS.build(config.default_hooks.checkpoint).interval == 1
    assert [type(HOOKS.build(hook)) for hook in config.custom_hooks] == [EpochSeedHook]
    assert not config.train_dataloader.persistent_workers


def test_by_hand():
    code, = (block for block in BLOCKS if 'from sa_mmdet' in block)
    names = {}
    exec(code, names)
    assert names['backbone'].layer1[0].sa.in_channels == names['attention'].in_channels


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_to_files(page):
    for target in re.findall(r'\]\(([^)#]+)', page.read_text()):
        assert '://' in target or (page.parent / target).exists(), target
