import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest
import torch

from sa_mmdet.apps.speed import measure, operator
from sa_mmdet.apps.speed.compiled import Code, Launch, instructions, resident_warps
from sa_mmdet.apps.speed.measure import (
    compare,
    graph_times,
    host_microseconds,
    median_times,
    peak_memory,
)
from sa_mmdet.apps.speed.operator import (
    BACKWARD,
    FLOORS,
    FORWARD,
    PLANS,
    OperatorCase,
    _calls,
    input_sets,
    measure_operator,
)
from sa_mmdet.apps.speed.report import operator_lines, operator_table
from sa_mmdet.ops import triton_launch

TOOL = Path(__file__).parents[3] / 'tools/benchmark.py'
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


@pytest.fixture
def fake_graphs(monkeypatch):
    """torch.cuda's graphs without a GPU, as far as the order of calls goes."""
    launched = []

    class FakeGraph:
        """Runs at a replay what the calls appended to ``launched`` in the capture."""

        def replay(self):
            launched.extend(self.captured)

    @contextlib.contextmanager
    def capture(graph, pool, stream):
        before = len(launched)
        yield
        graph.captured = launched[before:]

    for name, fake in dict(
            CUDAGraph=FakeGraph, graph=capture, stream=contextlib.nullcontext,
            Stream=lambda device: SimpleNamespace(device=device, wait_stream=lambda _: None),
            current_stream=lambda _: None, graph_pool_handle=lambda: None).items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(measure, '_FAILED_GRAPHS', [])
    return launched


def test_graphs_run_every_set_once_after_warm_up(fake_graphs, capsys):
    sets = [{name: lambda call=f'{name}{i}': fake_graphs.append(call) for name in 'ab'}
            for i in range(3)]
    times = graph_times(sets, CPU, repeats=2)
    a, b = (['a0', 'a1', 'a2'], ['b0', 'b1', 'b2'])
    assert fake_graphs[:18] == [*a, *a, *a, *b, *b, *b]  # warm-up twice, captured
    rest = fake_graphs[18:]
    rounds = [rest[i:i + 3] for i in range(0, len(rest), 3)]
    assert len(rounds) == 2 * (3 + 2)
    assert rounds.count(a) == rounds.count(b) == 5
    assert times.keys() == {'a', 'b'}
    assert capsys.readouterr().err == ''


def test_what_is_not_captured_is_called(fake_graphs, monkeypatch, capsys):
    called = []
    monkeypatch.setattr(measure, 'median_times', lambda calls, *_: {
        name: call() or 6. for name, call in calls.items()} | dict(a=6.))

    def synchronises():
        called.append('a')
        if len(called) == 5:  # twice for each set, then captured
            raise RuntimeError('operation not permitted when stream is capturing\nCompile with')

    sets = [dict(a=synchronises, b=lambda: fake_graphs.append('b')) for _ in range(2)]
    assert graph_times(sets, CPU, repeats=1) == dict(a=3., b=3.)
    assert len(called) == 5 + 2
    assert fake_graphs == ['b'] * (3 + 1) * 2
    assert capsys.readouterr().err == (
        "warning: a: no CUDA graph, so its time includes Python's: operation not permitted "
        'when stream is capturing\n')
    assert len(measure._FAILED_GRAPHS) == 1


def test_host_time_is_of_one_call(monkeypatch):
    synchronised, called = [], []
    monkeypatch.setattr(torch.cuda, 'synchronize', synchronised.append)
    clock = iter(range(100))
    monkeypatch.setattr(measure.time, 'perf_counter', lambda: next(clock))
    call = lambda: called.append(1)  # noqa: E731
    assert host_microseconds(call, torch.device('cuda'), repeats=3, calls=10) == 1e5
    assert len(called) == 1 + 3 * 10
    assert len(synchronised) == 3 + 1
    assert host_microseconds(call, CPU, repeats=3) is None


@pytest.mark.parametrize(('moved', 'cache', 'sets'), [
    (10**10, 50 * MEGABYTE, 2),  # however large
    (10**9, 50 * MEGABYTE, 3),
    (3 * 10**7, 50 * MEGABYTE, 100),
    (10**6, 50 * MEGABYTE, 256),
    (4 * 10**5, 5 * 10**7, 500),  # four times the cache
    (1000, 50 * MEGABYTE, 1024),
])
def test_sets_of_inputs(moved, cache, sets):
    assert input_sets(moved, cache) == sets


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_variants_of_the_bottleneck(dtype):
    case = OperatorCase(bottleneck=True, compiled=False, dtype=dtype)
    shape = (2, 256, 3, 5)
    forward, other = _calls(case, shape, FORWARD, 2)
    assert list(forward) == ['add', 'operator', 'formula', 'without attention']
    outputs = {name: call() for name, call in forward.items()}
    assert all(y.shape == shape and y.dtype == dtype and not y.requires_grad
               for y in outputs.values())
    tolerance = dict(rtol=0.02, atol=0.05) if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(outputs['operator'], outputs['formula'], **tolerance)
    assert not torch.equal(outputs['add'], other['add']())
    backward, = _calls(case, shape, BACKWARD, 1)
    assert len(backward['add + clone + add']()) == 3
    y, gradients = backward['without attention']()
    assert (y >= 0).all()
    shapes = [shape, shape, (256, ), (256, )]
    assert [gradient.shape for gradient in gradients[:4]] == shapes
    assert gradients[4:] == (None, ) * 6
    for name in ('operator', 'formula'):
        y, gradients = backward[name]()
        assert len(gradients) == 10
        assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize('bottleneck', [False, True])
def test_rows(bottleneck):
    case = OperatorCase(height=32, width=32, compiled=False, repeats=1, bottleneck=bottleneck)
    rows = list(measure_operator(case))
    assert all(row.keys() == {'stage', 'shape', 'pass', 'name', 'milliseconds',
                              'host_microseconds', 'bytes', 'peak_bytes'} for row in rows)
    assert all(row['host_microseconds'] is None for row in rows)
    for pass_ in (FORWARD, BACKWARD):
        first = next(row for row in rows if row['pass'] == pass_)
        name, tensors = FLOORS[bottleneck][pass_]
        assert (first['name'], first['bytes']) == (name, tensors * 256 * 8 * 8 * 4)
    assert 'host µs' not in [column.header for column in operator_table(rows).columns]


def test_bandwidth_is_beside_the_floors():
    rows = [{'stage': stage, 'shape': shape, 'pass': pass_, 'name': name, 'peak_bytes': None,
             'milliseconds': milliseconds, 'bytes': 8 * 10**6, 'host_microseconds': 12.3}
            for stage, shape in ((1, (2, 64, 3, 5)), ('ResNet-50', None))
            for pass_ in (FORWARD, BACKWARD)
            for name, milliseconds in (('copy', 2.), ('operator', 4.), ('formula', 16.))]
    cells = {column.header: list(column.cells) for column in operator_table(rows).columns}
    assert cells['GB/s'] == ['4.0', '2.0', '0.5'] * 4
    assert cells['% of copy'] == ['100', '50', '12'] * 4
    assert cells['host µs'] == ['12'] * 12
    assert cells['stage'] == ['1 64×3×5'] * 6 + ['ResNet-50'] * 6
    assert operator_lines(rows)[0] == (
        'forward: operator / (copy) = 2.00, formula / operator = 4.00, 2.0 of 4.0 GB/s')


def test_sum_is_over_the_16_blocks():
    rows = list(measure_operator(OperatorCase(height=32, width=32, compiled=False, repeats=1)))
    clone = [row for row in rows if row['name'] == 'clone']
    *stages, total = clone
    assert [row['shape'] for row in stages] == [
        (1, 256, 8, 8), (1, 512, 4, 4), (1, 1024, 2, 2), (1, 2048, 1, 1)]
    for key in ('milliseconds', 'bytes'):
        assert total[key] == pytest.approx(sum(
            blocks * row[key] for blocks, row in zip((3, 4, 6, 3), stages, strict=True)))


@pytest.mark.parametrize(('options', 'subject', 'floor', 'others'), [
    (['--batch', 2, '--channels-last'], 'shuffle attention by ', 'clone', []),
    (['--bottleneck'], 'shuffle attention in the bottleneck by ', 'add + clone',
     ['without attention']),
], ids=['alone', 'in the bottleneck'])
def test_tool(run_tool, tmp_path, options, subject, floor, others):
    out = tmp_path / 'op'
    code, output = run_tool('benchmark', 'op', '--size', 64, 64, *options, '--no-compile',
                            '--repeats', 1, '--out', out)
    assert code == 0
    assert f'forward + backward: operator / ({floor} + add) = ' in output
    assert all(f'{name} / operator = ' in output for name in others)
    content = json.loads(out.with_suffix('.json').read_text())
    assert content['command'].startswith('python tools/benchmark.py op --size 64 64')
    assert content['title'].startswith(subject)
    assert {'device', 'threads', 'versions'} <= content['machine'].keys()
    assert {row['name'] for row in content['rows']} == {
        floor.partition(' ')[0], f'{floor} + add', 'operator', 'formula', *others}
    assert cv2.imread(str(out.with_suffix('.png'))) is not None


@pytest.mark.parametrize(('pass_', 'table'), [(FORWARD, 'FORWARD'), (BACKWARD, 'BACKWARD')])
@pytest.mark.parametrize('channels_last', [False, True])
def test_a_sweep_calls_the_operator_with_each_plan(monkeypatch, pass_, table, channels_last):
    plans = getattr(triton_launch, table)
    usual, used = dict(plans), []

    def shuffle_attention(x, *_, implementation):
        used.append(plans[4])
        return 2 * x

    monkeypatch.setattr(operator, 'shuffle_attention', shuffle_attention)
    case = OperatorCase(sweep=True, channels_last=channels_last)
    _, *calls = _calls(case, (1, 256, 2, 3), pass_, 1)[0].values()
    for call in calls:
        call()
    assert used == [usual[4], *(usual[4]._replace(**plan) for plan in PLANS[channels_last])]
    assert plans == usual


@pytest.mark.parametrize('changes', [*PLANS[False], *PLANS[True]], ids=str)
def test_plans_can_be_launched(changes):
    plan = triton_launch.FORWARD[2]._replace(**changes)
    for area in (1, 49, 1050, 4200, 67200, 10**6):
        _, block, warps = triton_launch.contiguous_plan(area, plan)
        assert 1 <= warps <= 32
        assert area <= block or block % (32 * warps * 8) == 0  # 16 bytes a thread
        for itemsize in (2, 4):
            columns, rows, chunk, chunks = triton_launch.channels_last_plan(
                2048, area, itemsize, plan)
            assert columns * rows * itemsize == plan.warps * 32 * 16
            assert chunk % rows == 0
            assert (chunks - 1) * chunk < area <= chunks * chunk


def test_tool_compiles_only(run_tool, tmp_path, monkeypatch):
    """In a process of its own: Triton's interpreter, which the other tests need, compiles none."""
    out = tmp_path / 'kernels'
    command = [sys.executable, TOOL, 'op', '--bottleneck', '--compile-only', '--size', '32', '32',
               '--dtype', 'bfloat16', '--out', out]
    done = subprocess.run(command, env=os.environ | dict(TRITON_INTERPRET='0'), text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r'^forward: at most \d+ instructions per element, \d+ registers, 0 spilled ',
                     done.stdout, re.MULTILINE)
    rows = json.loads(out.with_suffix('.json').read_text())['rows']
    assert {row['capability'] for row in rows} == {80, 90, 100}
    assert {row['kernel'] for row in rows} == {'forward_kernel', 'backward_kernel', 'add_up_kernel'}
    assert all(row['programs'] == 256 and row['warps'] == 1 for row in rows
               if row['stage'] == 1 and row['instructions'])
    monkeypatch.setattr(triton_launch, 'INTERPRETED', True)
    code, _ = run_tool('benchmark', *command[2:])
    assert code == 'error: TRITON_INTERPRET is set, so nothing is compiled: unset it'


def test_instructions_are_those_that_run():
    """A loop counts for every turn; it is known by what it does for an element of a thread."""
    body = ['LDG.E.128 R4, desc[UR8][R2.64]', *['MUFU.EX2 R1, R1'] * 8, '@P0 BRA 0x10']
    code = Code(32, 0, list(enumerate(['MOV R1, R2'] * 16 + body + ['EXIT', 'BRA 0x1b'])))
    launch = Launch('forward_kernel', programs=2, warps=4, binary=b'', arguments=[])
    elements = 2 * 4 * 32 * 80  # 80 of a thread, 8 in a turn
    assert instructions(launch, code, elements, itemsize=2) == (18 + 10 * 10) / 80
    code.instructions[17:25] = [(at, 'FADD R1, R1') for at in range(17, 25)]  # 16 bytes a turn
    assert instructions(launch, code, elements, itemsize=4) == (18 + 20 * 10) / 80
    launch.kernel = 'statistics_kernel'
    assert instructions(launch, code, elements, itemsize=4) is None


@pytest.mark.parametrize(('warps', 'registers', 'resident'), [
    (1, 32, 32), (4, 32, 64), (4, 64, 32), (4, 65, 28), (16, 126, 16), (16, 129, 0), (32, 64, 32)])
def test_resident_warps(warps, registers, resident):
    assert resident_warps(warps, registers) == resident


@pytest.mark.parametrize(('args', 'message'), [
    (['op', '--sweep', '--implementation', 'cpu'], '--sweep and --compile-only need triton'),
    (['op', '--sweep', '--compile-only'], 'not allowed with'),
    (['op', '--compile-only', '--dtype', 'float64'], 'change --dtype'),
    (['op', '--batch', '0'], 'must be at least 1, got 0'),
    (['op', '--device', 'cuda'], '--device cuda'),
    (['op', '--dtype', 'int8'], 'invalid choice'),
    (['op', '--implementation', 'triton', '--dtype', 'float64', '--size', '32', '32'],
     'does not compute in torch.float64'),
    ([], 'the following arguments are required: command'),
], ids=str)
def test_tool_refuses(run_tool, args, message):
    code, output = run_tool('benchmark', *args)
    assert code != 0
    assert message in output
