"""The page is what the results say, on all stacks, and the rest of it is left alone."""
import json
import shutil
from pathlib import Path

import pytest

from sa_mmdet.dropin.matrix import CANNOT_RUN, FAILS, WORKS, MatrixError
from sa_mmdet.dropin.report import BEGIN, END, read_stacks, render, row_in_words, write_page

DOCS = Path(__file__).parents[2] / 'docs'


def row(family, backbone='ResNet 50', **routes):
    return dict(family=family, config=f'{family}/{family}_r50.py', backbone=backbone, routes=routes)


def works(*remarks):
    return dict(outcome=WORKS, remarks=list(remarks))


def stops(outcome, reason):
    return dict(outcome=outcome, remarks=[], reason=reason)


def stack(name, *rows):
    others = dict(family='yolox', config=None, backbone='CSPDarknet', routes={})
    return dict(versions=dict(stack=name, torch='2.13.0'), rows=[*rows, others])


@pytest.fixture
def stacks():
    lacking = stops(CANNOT_RUN, 'needs skimage')
    broken = stops(FAILS, 'AssertionError: a | b')
    return dict(
        openmmlab=stack('openmmlab',
                        row('atss', plugin=works(), SAResNet=works()),
                        row('boxinst', plugin=lacking, SAResNet=lacking),
                        row('regnet', 'RegNet 4GF', plugin=works('groups=8'))),
        onedl=stack('onedl',
                    row('atss', plugin=works(), SAResNet=broken),
                    row('boxinst', plugin=works(), SAResNet=works()),
                    row('clrnet', plugin=works(), SAResNet=works()),
                    row('regnet', 'RegNet 4GF', plugin=works('groups=8'))))


def test_rows_of_two_stacks(stacks):
    lines = render(stacks).splitlines()
    for line in [
            '| atss | `atss_r50` | ResNet 50 | works | openmmlab: works<br>onedl: fails | '
            'onedl: AssertionError: a \\| b |',
            '| boxinst | `boxinst_r50` | ResNet 50 | openmmlab: cannot run<br>onedl: works | '
            'openmmlab: cannot run<br>onedl: works | openmmlab: needs skimage |',
            '| clrnet | `clrnet_r50` | ResNet 50 | works | works | only in onedl |',
            '| regnet | `regnet_r50` | RegNet 4GF | works | – | groups=8 |']:
        assert line in lines
    assert lines[-1].endswith('were not tried: yolox (CSPDarknet).')


def test_counts(stacks):
    lines = render(stacks).splitlines()
    assert '| openmmlab | 3 | 2 | 2 of 3 | 1 of 2 | 1 | 0 | torch 2.13.0 |' in lines
    assert '| onedl | 4 | 3 | 4 of 4 | 2 of 3 | 0 | 1 | torch 2.13.0 |' in lines


def test_a_row_in_words(stacks):
    words = [row_in_words(row) for row in stacks['openmmlab']['rows']]
    assert words[1:] == [
        'boxinst/boxinst_r50.py (ResNet 50): plugin cannot run, needs skimage; '
        'SAResNet cannot run, needs skimage',
        'regnet/regnet_r50.py (RegNet 4GF): plugin works, groups=8', 'yolox: not tried: CSPDarknet']


def test_only_between_the_markers(tmp_path, stacks):
    (tmp_path / 'dropin').mkdir()
    for name, result in stacks.items():
        (tmp_path / f'dropin/{name}.json').write_text(json.dumps(result))
    page = tmp_path / 'compatibility.md'
    page.write_text(f'before\n{BEGIN}\nold\n{END}\nafter\n')
    write_page(tmp_path)
    assert page.read_text() == f'before\n{BEGIN}\n{render(stacks)}\n{END}\nafter\n'
    page.unlink()
    write_page(tmp_path)
    assert page.read_text().startswith('# Compatibility\n')
    assert render(stacks) in page.read_text()


@pytest.mark.parametrize('text', ['', BEGIN, f'{END}\n{BEGIN}'])
def test_page_without_markers_is_left_alone(tmp_path, text):
    (tmp_path / 'compatibility.md').write_text(text)
    with pytest.raises(MatrixError, match='has not both lines'):
        write_page(tmp_path)
    assert (tmp_path / 'compatibility.md').read_text() == text


def test_page_in_the_repository_is_that_of_its_results(tmp_path):
    shutil.copy(DOCS / 'compatibility.md', tmp_path)
    shutil.copytree(DOCS / 'dropin', tmp_path / 'dropin')
    assert write_page(tmp_path).read_text() == (DOCS / 'compatibility.md').read_text()


@pytest.mark.parametrize('name', ['openmmlab', 'onedl'])
def test_results_in_the_repository(name):
    """At least forty families, each of which works or has its reason; none fails by attention."""
    rows = [row for row in read_stacks(DOCS / 'dropin')[name]['rows'] if row['routes']]
    assert len(rows) >= 40
    for row in rows:
        for route in row['routes'].values():
            assert route['outcome'] in (WORKS, CANNOT_RUN), row
            assert (route['outcome'] == CANNOT_RUN) == bool(route.get('reason')), row
