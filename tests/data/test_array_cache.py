"""Arrays kept in a file: read when they are sound, set aside when they are damaged."""

import numpy as np

from jaxboost import io
from jaxboost.data import array_cache
from jaxboost.data.readers.npz import write_npz


def numbers(arrays):
    if arrays["numbers"].ndim != 1:
        raise ValueError("not a list")
    return arrays["numbers"].tolist()


def test_a_sound_file(tmp_path):
    path = tmp_path / "kept.npz"
    assert array_cache.read(path, ["numbers"], numbers) is None
    write_npz(path, {"numbers": np.arange(3)})
    assert array_cache.read(path, ["numbers"], numbers) == [0, 1, 2]


def test_damaged_files_are_set_aside(tmp_path, caplog):
    path = tmp_path / "kept.npz"
    for count, write in enumerate(
        [
            lambda: path.write_bytes(b"no archive"),
            lambda: write_npz(path, {"others": np.arange(3)}),
            lambda: write_npz(path, {"numbers": np.eye(3)}),
            lambda: write_npz(path, {"numbers": np.zeros(1 << 20)}),
        ],
        1,
    ):
        write()
        assert array_cache.read(path, ["numbers"], numbers, most_bytes=1 << 20) is None
        assert not path.exists()
        assert (tmp_path / f"kept.npz.damaged-{count}").exists()
        assert f"kept.npz.damaged-{count}" in caplog.text


def test_a_damaged_file_in_a_folder_that_cannot_be_written(tmp_path, caplog, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(array_cache, "set_aside", refuse)
    (tmp_path / "kept.npz").write_bytes(b"no archive")
    assert array_cache.read(tmp_path / "kept.npz", ["numbers"], numbers) is None
    assert "cannot be renamed (Permission denied)" in caplog.text


def test_digest_of_a_file(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert io.digest_of(tmp_path / "abc").startswith("ba7816bf8f01cfea")
    assert io.digest_of(tmp_path / "abc", "md5") == "900150983cd24fb0d6963f7d28e17f72"
