import shutil
from types import SimpleNamespace

import pytest

from coco import CONFIGS, small_coco
from sa_mmdet.apps.paper.runs import Settings


@pytest.fixture
def coco_root(tmp_path, coco_tiny):
    return small_coco(coco_tiny, tmp_path / 'coco', images=3)


@pytest.fixture
def settings(tmp_path, coco_root, monkeypatch):
    """Settings of a work dir that could be run on this machine, on a disk of 1 TB."""
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=10**12))
    return Settings(root=CONFIGS.parent, work_dir=tmp_path / 'work', data_root=coco_root,
                    cfg_options={'model.backbone.init_cfg': None})
