"""The code in the README runs, and its links lead somewhere."""
import re
from pathlib import Path

import pytest
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

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


def test_by_hand():
    code, = (block for block in BLOCKS if '_base_' not in block)
    names = {}
    exec(code, names)
    assert names['backbone'].layer1[0].sa.in_channels == names['attention'].in_channels


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_to_files(page):
    for target in re.findall(r'\]\(([^)#]+)', page.read_text()):
        assert '://' in target or (page.parent / target).exists(), target
