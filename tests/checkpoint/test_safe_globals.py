import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

import sa_mmdet  # noqa: F401


@pytest.fixture
def loads(monkeypatch):
    """The value of weights_only in every call of torch.load."""
    seen = []
    load = torch.load

    def recording_load(*args, **kwargs):
        seen.append(kwargs.get('weights_only'))
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, 'load', recording_load)
    return seen


@pytest.mark.parametrize('dtype', ['float32', 'float64', 'int32', 'int64'])
def test_log_history_loads_with_weights_only(tmp_path, loads, dtype):
    buffer = HistoryBuffer(np.arange(4, dtype=dtype), np.ones(4, dtype=dtype))
    content = dict(
        state_dict=dict(w=torch.ones(2)),
        message_hub=dict(log_scalars=dict(loss=buffer), value=np.dtype(dtype).type(3)))
    torch.save(content, tmp_path / 'a.pth')
    loaded = CheckpointLoader.load_checkpoint(str(tmp_path / 'a.pth'), map_location='cpu')
    history = loaded['message_hub']['log_scalars']['loss']
    assert np.array_equal(history.data[0], np.arange(4))
    assert loaded['message_hub']['value'] == 3
    assert loads in ([None], [True])


@pytest.mark.parametrize('value', [
    np.bool_(True), np.str_('a'), np.bytes_(b'a'), np.int8(1), np.uint16(2), np.uint64(3),
    np.float16(0.5), np.array([True]), np.array(['a', 'bc']), np.arange(3, dtype=np.uint8),
    np.zeros((2, 3), order='F'), np.array(3)], ids=repr)
def test_scalars_and_arrays_of_numpy(tmp_path, value):
    torch.save(dict(meta=dict(value=value)), tmp_path / 'a.pth')
    loaded = torch.load(tmp_path / 'a.pth', weights_only=True)['meta']['value']
    assert np.array_equal(loaded, value)
    assert loaded.dtype == value.dtype


def test_names_of_both_numpy_generations(tmp_path):
    """numpy 1 wrote numpy.core, numpy 2 writes numpy._core."""
    torch.save(dict(history=HistoryBuffer(np.arange(3.), np.ones(3))), tmp_path / 'a.pth',
               _use_new_zipfile_serialization=False)
    content = (tmp_path / 'a.pth').read_bytes()
    old, new = b'numpy.core.multiarray', b'numpy._core.multiarray'
    other = content.replace(new, old) if new in content else content.replace(old, new)
    assert other != content
    length = {old: len(old), new: len(new)}
    assert length[new] == length[old] + 1
    (tmp_path / 'b.pth').write_bytes(other)
    torch.load(tmp_path / 'b.pth', weights_only=True)


def test_code_is_still_refused(attack):
    with pytest.raises(pickle.UnpicklingError, match='Weights only load failed'):
        torch.load(attack, weights_only=True)
    assert not attack.with_name('attacked').exists()


class _GetAttribute:

    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


def test_getattr_gives_statistics_only(tmp_path):
    torch.save(dict(state_dict=_GetAttribute()), tmp_path / 'a.pth')
    with pytest.raises(pickle.UnpicklingError, match='refused: getattr'):
        torch.load(tmp_path / 'a.pth', weights_only=True)
