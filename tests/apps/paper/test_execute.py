import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest

from sa_mmdet.apps.paper import execute as module
from sa_mmdet.apps.paper.execute import RunFailed, run_all
from sa_mmdet.apps.paper.processes import locked, run_child
from sa_mmdet.apps.paper.runs import ReproduceError, plan_runs, select_rows


@pytest.fixture
def runs(settings):
    settings.work_dir.mkdir()
    return plan_runs(select_rows([3], ['retinanet_*r50']), 1, settings)


def finish(run, lock):
    run.folder.mkdir(parents=True)
    run.result_file.write_text('{"hours": 2}')


def test_one_failing_run_does_not_stop_the_others(runs, settings, monkeypatch, capsys):
    def fail_second(run, lock):
        if run is runs[1]:
            raise RunFailed(f'{run.name}: it broke')
        finish(run, lock)
    monkeypatch.setattr(module, 'bring_to_end', fail_second)
    reports = []
    failures = run_all(runs, settings, lambda: reports.append(1))
    assert failures == ['retinanet_se-r50 seed 0: it broke']
    assert [run.finished for run in runs] == [True, False, True]
    assert len(reports) == 2
    output = capsys.readouterr().out
    assert '[1/3] retinanet_r50 seed 0' in output
    assert '3 of 3 runs remain; the first one gives an estimate of the time' in output
    # 2 h for the 239 GFLOPs of the first, so 4 h for the two others
    assert '2 of 3 runs remain, about 4.0 h of training' in output

    monkeypatch.setattr(module, 'bring_to_end', finish)
    assert run_all(runs, settings, lambda: reports.append(1)) == []
    assert len(reports) == 3


@pytest.mark.parametrize('error', [IndexError('list index out of range'), AssertionError(),
                                   MemoryError('cannot allocate')], ids=repr)
def test_results_stand_whatever_drawing_raises(runs, settings, monkeypatch, capsys, error):
    def draw(*_):
        raise error
    result = dict(evaluated_on=dict(annotations='a.json'))
    monkeypatch.setattr(module, 'draw_detections', draw)
    monkeypatch.setattr(module, '_train', lambda *_: 'a.pth')
    monkeypatch.setattr(module, '_test', lambda *_: {})
    monkeypatch.setattr(module, '_result', lambda run, *_: result)
    with locked(settings.work_dir) as lock:
        module.bring_to_end(runs[0], lock)
    assert runs[0].finished
    assert f'=== {runs[0].name}: no picture of its detections: ' in capsys.readouterr().out


def test_full_disk_stops_before_the_next_run(runs, settings, monkeypatch):
    monkeypatch.setattr(module, 'bring_to_end', finish)
    problems = iter([[], ['the disk is full']])
    monkeypatch.setattr(module, 'disk_problems', lambda runs, work_dir: next(problems))
    with pytest.raises(ReproduceError, match=r'before retinanet_se-r50 .* Nothing is lost'):
        run_all(runs, settings, lambda: None)
    assert [run.finished for run in runs] == [True, False, False]


@pytest.mark.parametrize(('script', 'message'), [
    ('print("working"); raise SystemExit("ValueError: no")', 'exit status 1: ValueError: no'),
    ('pass', 'training ended without the checkpoint of epoch 12 (the last is from epoch 0)'),
], ids=['fails', 'does nothing'])
def test_training_that_leaves_nothing(runs, monkeypatch, script, message):
    monkeypatch.setattr(module, 'train_command', lambda run: [sys.executable, '-c', script])
    with locked(runs[0].settings.work_dir) as lock, pytest.raises(RunFailed) as error:
        module.bring_to_end(runs[0], lock)
    assert message in str(error.value)
    assert str(runs[0].output_file) in str(error.value)


def test_test_without_detections_file(runs, monkeypatch, tmp_path):
    checkpoint = tmp_path / 'a.pth'
    checkpoint.touch()
    settings = dataclasses.replace(runs[0].settings, checkpoints={'retinanet_r50': checkpoint})
    run = dataclasses.replace(runs[0], settings=settings)
    monkeypatch.setattr(module, 'test_command', lambda *args: [sys.executable, '-c', 'pass'])
    with locked(settings.work_dir) as lock, pytest.raises(RunFailed, match=r'wrote no .*bbox.json'):
        module.bring_to_end(run, lock)
    assert not run.finished


def test_output_goes_to_the_terminal_and_the_log(tmp_path, capsys):
    script = 'import sys; print("one"); print("two", file=sys.stderr); sys.exit(3)'
    log = tmp_path / 'log'
    for _ in range(2):
        with locked(tmp_path) as lock:
            status, last = run_child([sys.executable, '-c', script], log, lock, tmp_path, {})
    assert status == 3
    assert sorted(last) == ['one', 'two']
    assert sorted(log.read_text().split()) == ['one', 'one', 'two', 'two']
    assert sorted(capsys.readouterr().out.split()) == ['one', 'one', 'two', 'two']


def test_a_work_dir_in_use_is_refused(tmp_path):
    with locked(tmp_path), pytest.raises(ReproduceError, match='in use by another'), \
            locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


PARENT = '''
import sys
from pathlib import Path
from sa_mmdet.apps.paper.processes import locked, run_child
folder = Path(sys.argv[1])
child = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
with locked(folder) as lock:
    run_child([sys.executable, '-c', child], folder / 'log', lock, folder, {})
'''


def _gone(pid):
    try:
        with open(f'/proc/{pid}/stat') as file:
            return file.read().rsplit(')', 1)[1].split()[0] == 'Z'
    except FileNotFoundError:
        return True


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux ends children with their parent')
@pytest.mark.parametrize('kill', [signal.SIGKILL, signal.SIGINT], ids=str)
def test_children_end_with_their_parent(tmp_path, kill):
    parent = subprocess.Popen([sys.executable, '-c', PARENT, str(tmp_path)], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    child = int(next(filter(str.isdecimal, map(str.strip, parent.stdout))))  # onedl prints too
    os.kill(parent.pid, kill)
    parent.wait(60)
    end = time.monotonic() + 30
    while not _gone(child):
        assert time.monotonic() < end
        time.sleep(0.02)
    with locked(tmp_path):
        pass
