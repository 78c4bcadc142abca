import pytest

from sa_mmdet.checkpoint.files import atomic_file, write_atomically


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / 'a.txt'
    write_atomically(path, 'first')
    write_atomically(path, b'second')
    assert path.read_bytes() == b'second'
    assert path.stat().st_mode & 0o777 == 0o644


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('before')
    with pytest.raises(ZeroDivisionError), atomic_file(path) as file:
        file.writelines(b'a part' for size in (1, 0) if 1 // size)
    assert path.read_text() == 'before'
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / 'none/a.txt', '')
