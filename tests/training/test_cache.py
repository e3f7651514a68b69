"""The folder of compiled programs may be shared by processes on several machines."""

import os
import time

import pytest
from jax._src import lru_cache

from jaxboost.training import cache


@pytest.fixture
def entries(tmp_path, monkeypatch):
    """JAX's cache in a folder, as this package changes it."""
    monkeypatch.setattr(lru_cache.LRUCache, "put", lru_cache.LRUCache.put)
    cache._write_entries_whole()
    return lru_cache.LRUCache(str(tmp_path), max_size=-1)


def test_an_entry_is_there_whole_or_not_at_all(entries, tmp_path, monkeypatch):
    entries.put("a", b"first")
    # The first writer wins, as in JAX.
    entries.put("a", b"second")
    assert (entries.get("a"), entries.get("b")) == (b"first", None)
    assert [path.name for path in tmp_path.iterdir()] == ["a-cache"]
    write = type(entries.path).write_bytes

    def half(path, value):
        write(path, value[: len(value) // 2])
        # Another process looks at this moment.
        assert lru_cache.LRUCache(str(tmp_path), max_size=-1).get("b") is None
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(type(entries.path), "write_bytes", half)
        with pytest.raises(OSError, match="killed"):
            entries.put("b", b"0123456789")
    assert [path.name for path in tmp_path.iterdir()] == ["a-cache"]
    entries.put("b", b"0123456789")
    assert entries.get("b") == b"0123456789"


def test_what_killed_processes_left_is_removed(tmp_path):
    for name, age in (("old", 2 * 24 * 3600), ("new", 60)):
        folder = tmp_path / f".{name}.part"
        folder.mkdir()
        (folder / "a-cache").write_bytes(b"half")
        os.utime(folder, (time.time() - age,) * 2)
    (tmp_path / "a-cache").write_bytes(b"whole")
    cache._remove_remains(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".new.part", "a-cache"]
