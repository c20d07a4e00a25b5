import pytest

from hume_jax.files import atomic_write


def test_a_file_is_replaced_only_when_complete(tmp_path):
    path = tmp_path / "a.txt"
    with atomic_write(path) as file:
        file.write(b"first")
    with pytest.raises(KeyError), atomic_write(path) as file:
        file.write(b"half of the sec")
        raise KeyError
    assert path.read_bytes() == b"first"
    with atomic_write(path) as file:
        file.write(b"second")
        file.flush()
        assert path.read_bytes() == b"first"
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]
