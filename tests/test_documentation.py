"""What the pages say to type is typed, and their links lead somewhere.

CONTRIBUTING.md, "Documentation", says how a page marks what cannot be run here.
"""
import contextlib
import functools
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.registry import HOOKS, MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from coco import drawn_coco
from pages import PAGES, ROOT, anchors, blocks, commands, inline_commands, links
from sa_mmdet.apps.datasets.shapes import generate_shapes
from sa_mmdet.apps.validate.config import check_detector, read_config
from sa_mmdet.hooks import EpochSeedHook
from sa_mmdet.models import AttentionLayer

pytestmark = pytest.mark.xdist_group('documentation')

LANGUAGES = {'bash', 'python', 'text', 'bibtex', '{eval-rst}', '{toctree}'}
FRAGMENT_OF = ("_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'\n"
               "custom_imports = dict(imports=['sa_mmdet'])\n")
# Where a command that is marked may have its options looked up; MMDetection's scripts pass them on.
PASSED_ON = {'dist_train.sh': 'train.py', 'slurm_train.sh': 'train.py', 'dist_test.sh': 'test.py',
             'slurm_test.sh': 'test.py'}
NOW = '+++'


def name_of(page):
    return str(page.relative_to(ROOT))


def each_page(pages=PAGES):
    return pytest.mark.parametrize('page', pages, ids=name_of)


def commands_of(page):
    return [command for block in blocks(page) if block.language == 'bash'
            for command in commands(block)]


def is_program(block):
    return block.language == 'python' and not block.file and 'import ' in block.text


def configs_of(page):
    return [block.text for block in blocks(page)
            if block.language == 'python' and not is_program(block)]


def files_of(page):
    """The files that a page has written or run, by their names."""
    return {block.file or f'block_{number}.py': block.text
            for number, block in enumerate(blocks(page)) if block.language == 'python'}


def script_of(page, slow=False):
    """What is to be typed, line by line; of what takes minutes that alone."""
    for number, block in enumerate(blocks(page)):
        if is_program(block) and not slow:
            yield f'python block_{number}.py'
        elif block.language == 'bash':
            for command in commands(block):
                if command.sets_variable or (command.slow == slow and not command.needs):
                    yield dry(command.text)


def dry(command):
    """What installs is only tried."""
    command = re.sub(r'^((?:\w+=\S+ )*)make ', r'\1make -n ', command)
    return command.replace('pip install', 'pip install --dry-run', 1)


# What the pages take as given


@pytest.fixture(scope='module')
def given(tmp_path_factory):
    """Files that a reader has at hand, with less in them: random weights and a few images."""
    folder = tmp_path_factory.mktemp('given')
    (folder / 'data').mkdir()
    (folder / 'work_dirs/quickstart').mkdir(parents=True)
    generate_shapes(folder / 'data/reference', train=0, val=0)
    generate_shapes(folder / 'data/shapes', train=4, val=2)
    settings = json.loads((folder / 'data/shapes/settings.json').read_text())
    (folder / 'data/shapes/settings.json').write_text(
        json.dumps(settings | dict(train=480, val=100)))  # of the whole, so that nothing is drawn
    shutil.rmtree(folder / 'data/reference')
    drawn_coco(folder / 'small/coco', CocoDataset.METAINFO['classes'])

    init_default_scope('mmdet')
    mask_rcnn = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
    for path, config, part in [
            ('work_dirs/quickstart/epoch_4.pth', ROOT / 'configs/quickstart'
             '/mask-rcnn_sa-r50_fpn_shapes.py', None),
            ('mask_rcnn_r50_fpn_1x_coco.pth', mask_rcnn, None),
            ('resnet50.pth', mask_rcnn, 'backbone'),
            ('resnext101_32x4d.pth', mask_rcnn.replace('r50', 'x101-32x4d'), 'backbone')]:
        model = based_on(config, folder).model
        torch.save(MODELS.build(model[part] if part else model).state_dict(), folder / path)
    return folder


def based_on(config, folder):
    (folder / 'config.py').write_text(f"_base_ = '{config}'\n")
    config = Config.fromfile(folder / 'config.py')
    (folder / 'config.py').unlink()
    return config


@pytest.fixture
def clone(given, tmp_path):
    """A clone after the quickstart: links to what is here, and work dirs of its own."""
    folder = tmp_path / 'clone'
    shutil.copytree(given, folder, copy_function=os.link)
    for path in ROOT.iterdir():
        if path.name[0] != '.' and path.name not in ('build', 'data', 'work_dirs'):
            (folder / path.name).symlink_to(path)
    (folder / '.venv').mkdir()
    (folder / '.venv/openmmlab').symlink_to(sys.prefix)
    return folder


# Commands


@each_page([page for page in PAGES if any(script_of(page))])
def test_commands(page, clone):
    run(script_of(page), clone, files_of(page))


@pytest.mark.slow
@each_page([page for page in PAGES if any(command.slow for command in commands_of(page))])
def test_slow_commands(page, clone):
    shutil.rmtree(clone / 'data/shapes')
    generate_shapes(clone / 'data/shapes')  # the whole: the quickstart has to reach its AP
    run(script_of(page, slow=True), clone, files_of(page))


def run(script, folder, files):
    """Run the lines of a script by one Bash, as if typed into it."""
    for name, text in files.items():
        (folder / name).write_text(text)
    script = [f'echo {shlex.quote(NOW + line)}\n{line}\n' for line in script]
    environment = os.environ | dict(
        PATH=f'{sys.prefix}/bin:{os.environ["PATH"]}', OMP_NUM_THREADS='1', TRITON_INTERPRET='0')
    result = subprocess.run(
        ['bash', '-euo', 'pipefail', '-c', ''.join(script)], cwd=folder, env=environment,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert result.returncode == 0, result.stdout.rpartition(NOW)[2][-5000:]


@each_page()
def test_options_of_commands_that_are_not_run(page):
    for command in [*commands_of(page), *inline_commands(page)]:
        if (command.needs or command.slow) and not command.sets_variable:
            check_options(command)


def check_options(command):
    program, *arguments = command.words
    if program == 'make':
        subprocess.run(['make', '-n', *arguments], cwd=ROOT, check=True, capture_output=True)
        return
    if program == 'pip':
        return
    assert program.startswith('tools/'), f'{command.text}: neither run nor one of the tools'
    assert (ROOT / program).is_file(), program
    if program.endswith('.sh'):
        assert os.access(ROOT / program, os.X_OK), program
        if Path(program).name not in PASSED_ON:
            return
        program = f'tools/{PASSED_ON[Path(program).name]}'
    first = [argument for argument in arguments[:1] if re.fullmatch('[a-z]+', argument)]
    for argument in arguments:
        option = argument.partition('=')[0]
        if option.startswith('--'):
            assert re.search(rf'(?<![\w-]){option}(?![\w-])', help_of(program, *first)), (
                f'{command.text}: {option} is none of its options')


@functools.cache
def help_of(program, *command):
    text = io.StringIO()
    with (mock.patch.object(sys, 'argv', [program, *command, '--help']),
          mock.patch.dict(os.environ), contextlib.redirect_stdout(text),
          pytest.raises(SystemExit) as end):
        runpy.run_path(str(ROOT / program), run_name='__main__')
    assert not end.value.code, program
    return text.getvalue()


@each_page()
def test_every_block_is_of_a_known_language(page):
    assert {block.language for block in blocks(page)} <= LANGUAGES
    assert len(re.findall('^ *```', page.read_text(), re.MULTILINE)) == 2 * len(blocks(page))


# Configs


@pytest.mark.parametrize('code', [
    pytest.param(code, id=f'{name_of(page)}-{number}') for page in PAGES
    for number, code in enumerate(configs_of(page))])
def test_config(tmp_path, code):
    """It makes a detector; where it is about the model, one with attention, which runs."""
    path = tmp_path / 'config.py'
    path.write_text(code if '_base_' in code else FRAGMENT_OF + code)
    config = read_config(path)
    check_detector(config)
    if 'model' in code:
        config.model.backbone.init_cfg = None
        model = MODELS.build(config.model)
        called = []
        for module in model.modules():
            if isinstance(module, AttentionLayer):
                module.register_forward_hook(lambda layer, *_: called.append(layer))
        with torch.no_grad():
            model.eval().extract_feat(torch.zeros(1, 3, 64, 64))
        assert called


def test_hooks(tmp_path):
    """On a config of MMDetection's, its own hooks are replaced and joined by ours."""
    code, = (code for code in configs_of(ROOT / 'docs/use.md') if 'custom_hooks' in code)
    (tmp_path / 'config.py').write_text(FRAGMENT_OF + code)
    config = Config.fromfile(tmp_path / 'config.py')
    assert HOOKS.build(config.default_hooks.checkpoint).interval == 1
    assert [type(HOOKS.build(hook)) for hook in config.custom_hooks] == [EpochSeedHook]
    assert not config.train_dataloader.persistent_workers


# Links


@each_page()
def test_links(page):
    """External ones are left to ``make linkcheck``, which needs the network."""
    for link in links(page):
        target, _, anchor = link.partition('#')
        if '://' in target:
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        if anchor:
            assert anchor in anchors(path), f'{link}: has {sorted(anchors(path))}'
