"""The model zoo files that MIM reads, and that an installed package has them."""
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

from sa_mmdet.apps.paper.tables import load_table

ROOT = Path(__file__).parents[1]
INDEX = yaml.safe_load((ROOT / 'model-index.yml').read_text())
METAFILES = {path: yaml.safe_load((ROOT / path).read_text()) for path in INDEX['Import']}
MODELS = [model for metafile in METAFILES.values() for model in metafile['Models']]


def test_index_imports_every_metafile():
    metafiles = [path.relative_to(ROOT).as_posix() for path in ROOT.glob('configs/*/metafile.yml')]
    assert sorted(INDEX['Import']) == sorted(metafiles)


def test_every_row_is_listed_once_beside_its_config():
    configs = [path.relative_to(ROOT).as_posix() for path in ROOT.glob('configs/*/*.py')
               if path.parent.name not in ('_base_', 'quickstart', 'study')]
    assert sorted(model['Config'] for model in MODELS) == sorted(configs)
    for path, metafile in METAFILES.items():
        for model in metafile['Models']:
            config = Path(model['Config'])
            assert (config.parent, config.stem) == (Path(path).parent, model['Name'])


def test_models_are_of_the_papers_collection():
    collection, = INDEX['Collections']
    assert collection['Paper']['URL'] == 'https://arxiv.org/abs/2102.00240'
    assert (ROOT / collection['README']).is_file()
    assert {model['In Collection'] for model in MODELS} == {collection['Name']}


@pytest.mark.parametrize('model', MODELS, ids=lambda model: model['Name'])
def test_results_are_marked_as_the_papers(model):
    assert model['Metadata'] == {
        'Epochs': 100 if 'imagenet' in model['Config'] else 12,
        'Source of Results': 'paper (arXiv 2102.00240), not measured with this code'}
    assert 'Weights' not in model


def test_results_are_those_of_the_papers_tables():
    expected = {}
    for table, task, metric in [(3, 'Object Detection', 'box AP'),
                                (4, 'Instance Segmentation', 'mask AP')]:
        for row in load_table(table):
            result = dict(Task=task, Dataset='COCO', Metrics={metric: row.metrics['AP']})
            expected.setdefault(row.config.stem, []).append(result)
    for row in (*load_table(1), *load_table(2)):  # SA-ResNet-50 is in both
        expected[row.config.stem] = [dict(
            Task='Image Classification', Dataset='ImageNet-1k', Metrics={
                'Top 1 Accuracy': row.metrics['top1'], 'Top 5 Accuracy': row.metrics['top5']})]
    assert {model['Name']: model['Results'] for model in MODELS} == expected


def test_the_table_of_configs_has_the_papers_results():
    rows = re.findall(r'^\| (?:R-.*?1x) \| (.*) \| not measured \| \[config\]\((.*)\) \|$',
                      (ROOT / 'configs/README.md').read_text(), re.MULTILINE)
    listed = {f'configs/{config}': [cell for cell in cells.split(' | ') if cell != '–']
              for cells, config in rows}
    assert listed == {
        model['Config']: [str(value) for result in model['Results']
                          for value in result['Metrics'].values()]
        for model in MODELS if 'imagenet' not in model['Config']}


def zoo_of(folder):
    """The contents of all that MIM uses, below a repository's root or a package's .mim."""
    return {path.relative_to(folder): path.read_bytes()
            for pattern in ('model-index.yml', 'configs/*/*.*', 'tools/*.*')
            for path in folder.glob(pattern) if path.suffix != '.pyc'}


def test_installed_package_has_the_zoo():
    mim = Path(importlib.util.find_spec('sa_mmdet').origin).parent / '.mim'
    assert zoo_of(mim) == zoo_of(ROOT), 'install again: pip install --no-deps -e .'


@pytest.fixture
def tree(tmp_path):
    """What building the package needs, where it may leave its traces."""
    pytest.importorskip('setuptools', '64')
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE', 'model-index.yml'):
        shutil.copy(ROOT / name, tmp_path)
    for name in ('configs', 'tools', 'sa_mmdet'):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns('.mim'))
    return tmp_path


def build(tree, hook, before=''):
    code = f'{before}\nfrom setuptools import build_meta\nbuild_meta.{hook}("dist")'
    without_operator = os.environ | {'SA_MMDET_BUILD': '0'}  # compiling it takes a minute
    subprocess.run([sys.executable, '-c', code], cwd=tree, check=True, capture_output=True,
                   env=without_operator)


def test_wheel_has_a_copy(tree):
    (tree / 'build/lib/sa_mmdet/.mim/configs/faster_rcnn').mkdir(parents=True)
    (tree / 'build/lib/sa_mmdet/.mim/configs/faster_rcnn/removed.py').touch()
    build(tree, 'build_wheel')
    wheel, = (tree / 'dist').glob('*.whl')
    ZipFile(wheel).extractall(tree / 'unpacked')
    assert zoo_of(tree / 'unpacked/sa_mmdet/.mim') == zoo_of(tree)


def test_editable_install_has_links_however_often_it_is_made(tree):
    for _ in range(2):
        build(tree, 'build_editable')
    mim = tree / 'sa_mmdet/.mim'
    assert zoo_of(mim) == zoo_of(tree)
    assert all(path.is_symlink() for path in mim.iterdir())


def test_editable_install_copies_where_links_cannot_be_made(tree):
    build(tree, 'build_editable', before='import pathlib\n'
                                         'def refuse(*_, **__): raise OSError\n'
                                         'pathlib.Path.symlink_to = refuse')
    mim = tree / 'sa_mmdet/.mim'
    assert zoo_of(mim) == zoo_of(tree)
    assert not any(path.is_symlink() for path in mim.iterdir())
