"""Reading checkpoints: whole ones only, and no code."""
import zipfile
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import pytest
import torch

from sa_mmdet.checkpoint import CheckpointError, read_checkpoint
from sa_mmdet.checkpoint.read import (
    TRUST_CODE,
    is_whole,
    last_whole,
    load_weights,
    refuse_code,
)


def test_a_hole_in_a_checkpoint_is_found(tmp_path):
    path = tmp_path / 'epoch_1.pth'
    torch.save(torch.ones(9999), path)
    assert is_whole(path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    middle = largest.header_offset + largest.file_size // 2
    content[middle:middle + 64] = bytes(64)
    path.write_bytes(content)
    assert not is_whole(path)


def test_last_whole(tmp_path):
    assert last_whole(tmp_path / 'none') is None
    for name in ('iter_5', 'iter_40', 'iter_300', 'best_iter_900', 'iter_last', 'epoch_1000'):
        torch.save(torch.ones(9), tmp_path / f'{name}.pth')
    path = tmp_path / 'iter_300.pth'
    path.write_bytes(path.read_bytes()[:-1])
    assert last_whole(tmp_path, 'iter_{}.pth') == (40, tmp_path / 'iter_40.pth')
    assert last_whole(tmp_path)[0] == 1000
    assert last_whole(tmp_path, 'epoch_{:04d}.pth')[0] == 1000
    assert last_whole(tmp_path, 'latest.pth') is None


def test_code_is_refused_with_the_way_to_trust_it(attack, monkeypatch):
    with pytest.raises(CheckpointError) as refusal:
        load_weights(attack)
    for part in (str(attack), 'posix.mkdir', f'{TRUST_CODE}=1'):
        assert part in str(refusal.value)
    assert not attack.with_name('attacked').exists()
    monkeypatch.setenv(TRUST_CODE, '1')
    assert read_checkpoint(attack)['state_dict'].keys() == {'a'}
    assert attack.with_name('attacked').is_dir()


@pytest.mark.parametrize(('value', 'name'), [
    (Namespace(lr=0.1), 'argparse.Namespace'),
    (Path('a'), 'pathlib.PosixPath'),
    (print, 'print'),
    (torch.nn.Linear(2, 2), 'torch.nn.modules.linear.Linear'),
    (np.datetime64('2020-01-01'), 'numpy.dtypes.DateTime64DType'),
    (np.array([{}], dtype=object), 'numpy.dtypes.ObjectDType'),
    (np.ma.array([1]), 'numpy.ma.core._mareconstruct'),
], ids=str)
def test_every_kind_of_refusal_names_what_is_refused(tmp_path, value, name):
    path = tmp_path / 'a.pth'
    torch.save(dict(state_dict=dict(w=torch.ones(2)), meta=dict(value=value)), path)
    with pytest.raises(CheckpointError) as refusal:
        read_checkpoint(path)
    for part in (f'{path} holds more than weights (', name, f'{TRUST_CODE}=1'):
        assert part in str(refusal.value)


@pytest.mark.parametrize('write', [
    lambda path: path.write_text('hello'), lambda path: path.write_bytes(b''),
    torch.jit.script(torch.nn.Linear(2, 2)).save], ids=['text', 'empty', 'TorchScript'])
def test_what_is_no_checkpoint(tmp_path, write):
    write(tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=r'a\.pth is not a PyTorch checkpoint') as refusal:
        load_weights(tmp_path / 'a.pth')
    assert TRUST_CODE not in str(refusal.value)


@pytest.mark.parametrize('trust', ['0', '1'])
def test_refuse_code_holds_for_every_load_of_the_process(attack, monkeypatch, trust):
    monkeypatch.setenv(TRUST_CODE, trust)
    refuse_code()
    with nullcontext() if trust == '1' else pytest.raises(UnpicklingError, match=r'posix\.mkdir'):
        torch.load(attack, weights_only=False)
    assert attack.with_name('attacked').exists() == (trust == '1')
