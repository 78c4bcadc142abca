import json

import cv2
import pytest
import torch

from sa_mmdet.benchmark import measure
from sa_mmdet.benchmark.measure import compare, median_times, peak_memory
from sa_mmdet.benchmark.operator import OperatorCase, measure_operator

CPU = torch.device('cpu')
MEGABYTE = 2**20


def test_peak_memory_counts_what_is_held_at_one_time():
    def one_after_another():
        for _ in range(3):
            torch.empty(MEGABYTE, dtype=torch.uint8)

    def at_once():
        return [torch.empty(MEGABYTE, dtype=torch.uint8) for _ in range(3)]

    assert peak_memory(one_after_another, CPU) == MEGABYTE
    assert peak_memory(at_once, CPU) == 3 * MEGABYTE


def test_median_times_are_of_the_calls():
    called = []
    times = median_times({name: lambda name=name: called.append(name) for name in 'ab'}, CPU,
                         repeats=5, warmup=2)
    assert times.keys() == {'a', 'b'}
    assert all(0 < time < 100 for time in times.values())
    assert called.count('a') == called.count('b') == 7
    assert ''.join(called) != 'ab' * 7


def test_ratios_are_taken_within_each_round(monkeypatch):
    times = {'slow': [10., 20., 40., 10.], 'fast': [5., 10., 30., 10.]}
    monkeypatch.setattr(measure, 'round_times', lambda *_: times)
    monkeypatch.setattr(measure, 'peak_memory', lambda call, _: call)
    slow, fast = compare({'slow': 100, 'fast': 50}, CPU, repeats=4)
    assert slow['milliseconds'] == 15
    assert (slow['time_ratio'], slow['time_ratio_quartiles']) == (1, (1, 1))
    assert fast['milliseconds'] == 10
    assert fast['time_ratio'] == 0.625  # of 0.5, 0.5, 0.75 and 1
    assert fast['time_ratio_quartiles'] == (0.5, 0.8125)
    assert fast['round_milliseconds'] == times['fast']
    assert (fast['peak_bytes'], fast['memory_ratio']) == (50, 0.5)


def test_sum_is_over_the_16_blocks():
    rows = list(measure_operator(OperatorCase(height=32, width=32, compiled=False, repeats=1)))
    clone = [row for row in rows if row['name'] == 'clone']
    *stages, total = clone
    assert [row['shape'] for row in stages] == [
        (1, 256, 8, 8), (1, 512, 4, 4), (1, 1024, 2, 2), (1, 2048, 1, 1)]
    for key in ('milliseconds', 'bytes'):
        assert total[key] == pytest.approx(sum(
            blocks * row[key] for blocks, row in zip((3, 4, 6, 3), stages, strict=True)))


def test_tool(run_tool, tmp_path):
    out = tmp_path / 'op'
    code, output = run_tool('op', '--size', 64, 64, '--batch', 2, '--no-compile', '--repeats', 1,
                            '--channels-last', '--out', out)
    assert code == 0
    assert 'forward + backward: operator / (clone + add) = ' in output
    content = json.loads(out.with_suffix('.json').read_text())
    assert content['command'].startswith('python tools/benchmark.py op --size 64 64')
    assert {'device', 'threads', 'versions'} <= content['machine'].keys()
    assert {row['name'] for row in content['rows']} == {
        'clone', 'clone + add', 'operator', 'formula'}
    assert cv2.imread(str(out.with_suffix('.png'))) is not None


@pytest.mark.parametrize(('args', 'message'), [
    (['op', '--size', '100', '64'], '--size must be multiples of 32, got 100 64'),
    (['op', '--batch', '0'], 'must be at least 1, got 0'),
    (['op', '--device', 'cuda'], '--device cuda'),
    (['op', '--out', 'nowhere/x'], 'nowhere does not exist'),
    (['op', '--dtype', 'int8'], 'invalid choice'),
    (['op', '--implementation', 'triton', '--dtype', 'float64', '--size', '32', '32'],
     'does not compute in torch.float64'),
    ([], 'the following arguments are required: command'),
], ids=str)
def test_tool_refuses(run_tool, args, message):
    code, output = run_tool(*args)
    assert code != 0
    assert message in output
