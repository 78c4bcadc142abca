"""Every public name has a docstring, and appears in the pages that Sphinx makes of them."""
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import sa_mmdet

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def modules():
    """All modules of the package by their names, except for the operator's libraries (_cpu_...)."""
    names = [name for _, name, _ in pkgutil.walk_packages(sa_mmdet.__path__, 'sa_mmdet.')]
    return {name: importlib.import_module(name) for name in names if '._' not in name}


def documentable(value):
    return inspect.isclass(value) or inspect.isfunction(inspect.unwrap(value))


def defined(module):
    """The classes and functions of a module, without those that begin with an underscore."""
    return [value for name, value in vars(module).items()
            if not name.startswith('_') and documentable(value)
            and value.__module__ == module.__name__]


def public(name, modules):
    """What a module offers. Where a package has an ``__all__``, that says what of it is public,
    and its modules are internal."""
    module = modules[name]
    if hasattr(module, '__all__'):
        return filter(documentable, map(vars(module).get, module.__all__))
    package = modules.get(name.rpartition('.')[0])
    return [] if hasattr(package, '__all__') else defined(module)


def test_docstrings(modules):
    without = [f'{name}.{value.__qualname__}' for name, module in modules.items()
               for value in defined(module) if not inspect.getdoc(value)]
    assert not without


@pytest.mark.xdist_group('documentation')
def test_api_pages(modules, tmp_path):
    """Built as ``make docs`` does it."""
    pytest.importorskip('sphinx', reason='Sphinx is not installed: make install')
    from sphinx.util.inventory import InventoryFile

    command = [sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going', '-c', 'docs', '.',
               tmp_path]
    build = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert build.returncode == 0, build.stderr
    inventory = InventoryFile.loads((tmp_path / 'objects.inv').read_bytes(), uri='').data
    pages = [value_of(name) for kind in ('class', 'exception', 'function')
             for name in inventory[f'py:{kind}']]
    missing = [f'{name}.{value.__name__}' for name in modules for value in public(name, modules)
               if value not in pages]
    assert not missing, 'a page of docs/api has to name the module of each of these'


def value_of(name):
    module, _, attribute = name.rpartition('.')
    return getattr(importlib.import_module(module), attribute)
