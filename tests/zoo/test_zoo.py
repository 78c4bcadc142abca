"""The page is what the results say, and the attempts can fail."""
import json

import pytest

from sa_mmdet.environment import stack
from sa_mmdet.models import ShuffleAttention
from zoo.attempt import attempt
from zoo.families import ZOO, find_family
from zoo.page import DOCS, PAGE, page

RETINANET = 'retinanet/retinanet_r50_fpn_1x_coco.py'


def test_page_is_that_of_the_results():
    assert PAGE.read_text() == page()


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
