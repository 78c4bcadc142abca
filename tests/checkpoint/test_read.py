"""Reading checkpoints: whole ones only, and no code."""
import zipfile
from contextlib import nullcontext
from pickle import UnpicklingError

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


@pytest.mark.parametrize('trust', ['0', '1'])
def test_refuse_code_holds_for_every_load_of_the_process(attack, monkeypatch, trust):
    monkeypatch.setenv(TRUST_CODE, trust)
    refuse_code()
    with nullcontext() if trust == '1' else pytest.raises(UnpicklingError, match=r'posix\.mkdir'):
        torch.load(attack, weights_only=False)
    assert attack.with_name('attacked').exists() == (trust == '1')
