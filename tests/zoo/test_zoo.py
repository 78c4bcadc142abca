"""The page is what the results say, and the attempts can fail."""
import json

import pytest

from sa_mmdet.environment import stack, versions
from sa_mmdet.models import ShuffleAttention
from zoo.attempt import attempt
from zoo.families import ROUTES, ZOO, find_family
from zoo.page import DOCS, PAGE, page, write

RETINANET = 'retinanet/retinanet_r50_fpn_1x_coco.py'


def test_page_is_that_of_the_results():
    assert PAGE.read_text() == page()


def test_some_families_anew(tmp_path, monkeypatch):
    """Their config and backbone too, and their routes in the same order whichever ends first."""
    monkeypatch.setattr('zoo.page.DOCS', tmp_path)
    monkeypatch.setattr('zoo.page.PAGE', tmp_path / 'page.md')
    (tmp_path / 'page.md').write_text(PAGE.read_text())
    file = tmp_path / f'zoo/{stack()}.json'
    file.parent.mkdir()
    file.write_text(json.dumps(dict(versions=versions(), rows=[
        dict(family=name, config=None, backbone='', routes={}) for name in 'az'])))
    works = dict(outcome='works', remarks=[])
    write([('a', 'a.py', 'ResNet 50', route, works) for route in reversed(ROUTES)])
    row, _ = json.loads(file.read_text())['rows']
    assert (row['config'], row['backbone'], list(row['routes'])) == ('a.py', 'ResNet 50', [*ROUTES])


@pytest.mark.parametrize('name', ['dcnv2', 'tridentnet', 'yolox'])
def test_the_config_of_the_results_is_chosen(name):
    rows = json.loads((DOCS / f'zoo/{stack()}.json').read_text())['rows']
    row = next(row for row in rows if row['family'] == name)
    assert find_family(name) == (name, row['config'], row['backbone'], tuple(row['routes']))


def test_attention_without_gradient_fails(monkeypatch):
    monkeypatch.chdir(ZOO.parent)
    assert attempt(RETINANET, 'SAResNet') == []
    monkeypatch.setattr(ShuffleAttention, 'attend', lambda self, x: x)
    with pytest.raises(AssertionError, match=r'layer2\.0\.sa\.cweight gets no gradient'):
        attempt(RETINANET, 'plugin')
