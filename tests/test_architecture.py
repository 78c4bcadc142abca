"""Imports run one way, and no function bears the name of the module or package that it is in."""
import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / 'sa_mmdet'
LAYERS = ['ops', 'models', 'checkpoint', 'hooks', 'apps']  # each imports itself and those before it
MODULES = sorted(path for path in PACKAGE.rglob('*.py') if '.mim' not in path.parts)


def imported(path):
    """Yield the modules of the package that a module imports, by their parts below it."""
    own = path.relative_to(PACKAGE.parent).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = own[:len(own) - node.level + 1] if node.level else ()
            names = (*base, *(node.module or '').split('.'))
            if names[0] == PACKAGE.name:
                yield from ((*filter(None, names[1:]), alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (tuple(alias.name.split('.')[1:]) for alias in node.names
                        if alias.name.split('.')[0] == PACKAGE.name)


@pytest.mark.parametrize('path', MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    layer = path.relative_to(PACKAGE).parts[0]
    if layer == '__init__.py':
        allowed = LAYERS[:-1]
    else:
        allowed = LAYERS[:LAYERS.index(layer) + 1] if layer in LAYERS else []
    others = {names[0] for names in imported(path) if names[0] in LAYERS} - set(allowed)
    assert not others, f'{layer} imports {others}'


def test_imports_are_found():
    found = set(imported(PACKAGE / 'apps/train.py'))
    assert ('checkpoint', 'read', 'refuse_code') in found
    assert ('apps', 'validate', 'coco', 'coco_problems') in found


@pytest.mark.parametrize('path', MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_names(path):
    names = set(path.relative_to(PACKAGE).with_suffix('').parts)
    defined = {node.name for node in ast.walk(ast.parse(path.read_text()))
               if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assert not names & defined
