"""Every public name has a docstring, and appears in the pages that Sphinx makes of them."""
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import sa_mmdet

ROOT = Path(__file__).parents[1]
PUBLIC = {name: getattr(sa_mmdet, name) for name in sa_mmdet.__all__ if name != '__version__'}


def test_public_names():
    assert len(PUBLIC) == len(sa_mmdet.__all__) - 1  # none is of two packages
    assert not [name for name, value in PUBLIC.items() if not callable(value)]
    assert not [name for name, value in PUBLIC.items() if not inspect.getdoc(value)]


@pytest.mark.xdist_group('documentation')
def test_api_pages(tmp_path):
    """Built as ``make docs`` does it."""
    pytest.importorskip('sphinx', reason='Sphinx is not installed: make install')
    from sphinx.util.inventory import InventoryFile

    command = [sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going', '-c', 'docs', '.',
               tmp_path]
    build = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert build.returncode == 0, build.stderr
    inventory = InventoryFile.loads((tmp_path / 'objects.inv').read_bytes(), uri='').data
    listed = [value_of(name) for kind in ('class', 'exception', 'function')
              for name in inventory[f'py:{kind}']]
    missing = [name for name, value in PUBLIC.items() if value not in listed]
    assert not missing, 'a page of docs/api has to name each of these'


def value_of(name):
    module, _, attribute = name.rpartition('.')
    return getattr(importlib.import_module(module), attribute)
