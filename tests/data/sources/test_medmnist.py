"""The MedMNIST loader: official files, every flag in the official format, damage, and downloads."""

import os
import pathlib
import shutil
import socket
import sys

import numpy as np
import pytest

from jaxboost.data import dataset_names, describe_dataset, load
from jaxboost.data.pipeline import batches
from jaxboost.data.readers import npz
from jaxboost.data.sources.medmnist import medmnist_info
from jaxboost.errors import UserError

OTHERS = ("lidcshapes3d", "lidcsilhouettes")
FLAGS = [name for name in dataset_names() if name not in OTHERS]


@pytest.mark.parametrize(
    ("name", "counts", "shape", "test_classes"),
    [
        ("vesselmnist3d", (1335, 191, 382), (28, 28, 28, 1), (339, 43)),
        ("breastmnist", (546, 78, 156), (28, 28, 1), (42, 114)),
    ],
)
def test_official(official_root, monkeypatch, name, counts, shape, test_classes):
    monkeypatch.setenv("MEDMNIST_ROOT", official_root)
    dataset = load(name, size=28, root="")
    assert dataset.info == describe_dataset(name, 28)
    assert tuple(len(dataset.splits[split]) for split in ("train", "val", "test")) == counts
    assert tuple(dataset.info.n_samples.values()) == counts
    assert dataset.baselines == {}
    for split in dataset.splits.values():
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int64)
        assert split.images.shape == (len(split), *shape)
        assert split.labels.shape == (len(split), 1)
    assert tuple(np.bincount(dataset.splits["test"].labels[:, 0])) == test_classes


@pytest.mark.parametrize("damage", ["altered", "truncated"])
def test_damaged_official_file(official_root, tmp_path, damage):
    path = tmp_path / "breastmnist.npz"
    shutil.copyfile(pathlib.Path(official_root) / path.name, path)
    content = bytearray(path.read_bytes())
    if damage == "altered":
        content[len(content) // 2] ^= 1
    else:
        del content[-100:]
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load("breastmnist", size=28, root=str(tmp_path))
    assert str(path) in str(error.value)
    assert "altered or truncated (MD5 " in str(error.value)
    assert "expected 750601b1f35ba3300ea97c75c52ff8f6): delete it and run again" in str(error.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize("flag", FLAGS)
def test_every_flag(flag, info, write_official, tmp_path, monkeypatch):
    sizes = (28, 64) if flag.endswith("3d") else (28, 64, 128, 224)
    for size in sizes:
        path = write_official(flag, size)
        with np.load(path) as file:
            stored = dict(file)
        # 600 bytes are between the largest labels here and one image of 28 pixels.
        for large, kind in {npz.LARGE_BYTES: np.ndarray, 600: np.memmap}.items():
            with monkeypatch.context() as patch:
                patch.setattr(npz, "LARGE_BYTES", large)
                dataset = load(flag, size=size, root=str(tmp_path))
            assert dataset.info == describe_dataset(flag, size)
            assert dataset.info.task == info[flag]["task"]
            assert list(dataset.info.classes) == list(info[flag]["label"].values())
            shape = (size,) * dataset.info.ndim + (info[flag]["n_channels"],)
            for name, split in dataset.splits.items():
                assert (type(split.images), type(split.labels)) == (kind, np.ndarray)
                assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int64)
                assert split.images.shape == (len(split), *shape)
                assert split.labels.shape == (len(split), 14 if flag == "chestmnist" else 1)
                np.testing.assert_array_equal(split.images.ravel(), stored[f"{name}_images"].ravel())
                np.testing.assert_array_equal(split.labels, stored[f"{name}_labels"])
            check_batches(dataset.splits["train"], size)


def check_batches(split, size):
    """Batches are plain arrays with every sample once, in evaluation and training; `split` has 3 different samples."""
    (evaluated,) = batches.eval_batches(split, batch_size=3, image_size=size)
    np.testing.assert_array_equal(evaluated["image"], split.images)
    np.testing.assert_array_equal(evaluated["label"], split.labels)
    trained = next(batches.train_iterator(split, batch_size=3, seed=0, image_size=size))
    for batch in (evaluated, trained):
        assert (type(batch["image"]), type(batch["label"])) == (np.ndarray, np.ndarray)
        assert (batch["image"].dtype, batch["label"].dtype) == (np.uint8, np.int32)
        assert (batch["image"].shape, batch["label"].shape) == (split.images.shape, split.labels.shape)
    order = [next(row for row in range(3) if (split.images[row] == image).all()) for image in trained["image"]]
    assert sorted(order) == [0, 1, 2]
    np.testing.assert_array_equal(trained["label"], split.labels[order])


@pytest.mark.parametrize(
    ("flag", "array", "value", "message"),
    [
        ("breastmnist", "val_labels", None, "array val_labels is missing; found: train_images"),
        (
            "breastmnist",
            "test_labels",
            np.array([[0], [2]], np.uint8),
            r"test_labels has values 0\.\.2, expected 0\.\.1",
        ),
        ("breastmnist", "test_labels", np.array([[0], [-1]]), r"test_labels has values -1\.\.0, expected 0\.\.1"),
        ("breastmnist", "test_labels", np.array([0, 1]), r"test_labels is int64 \(2,\), expected integers \(2, 1\)"),
        ("breastmnist", "test_labels", np.zeros((2, 1)), r"test_labels is float64 \(2, 1\), expected integers"),
        ("breastmnist", "val_images", np.zeros((1, 28, 28)), r"val_images is float64 .* expected uint8 \(n, 28, 28\)"),
        ("breastmnist", "val_images", np.zeros((1, 28, 27), np.uint8), r"val_images is uint8 \(1, 28, 27\)"),
        ("breastmnist", "val_images", np.zeros((0, 28, 28), np.uint8), r"val_images is uint8 \(0, 28, 28\)"),
        ("pathmnist", "val_images", np.zeros((1, 28, 28), np.uint8), r"expected uint8 \(n, 28, 28, 3\)"),
        ("vesselmnist3d", "val_images", np.zeros((1, 28, 28), np.uint8), r"expected uint8 \(n, 28, 28, 28\)"),
        ("chestmnist", "val_labels", np.full((1, 14), 2), r"val_labels has values 2\.\.2, expected 0\.\.1"),
        ("chestmnist", "val_labels", np.zeros((1, 13), int), r"expected integers \(1, 14\)"),
        ("breastmnist", "val_labels", np.array([[{}]], object), "cannot read array val_labels: Object arrays"),
    ],
)
def test_wrong_arrays(flag, array, value, message, write_official, tmp_path):
    path = write_official(flag, 28, **{array: value})
    with pytest.raises(UserError, match=message) as error:
        load(flag, size=28, root=str(tmp_path))
    assert str(path) in str(error.value)


def test_official_sum_of_a_file_that_is_no_archive(info, write_official, tmp_path, monkeypatch):
    path = write_official("breastmnist", 28)
    content = path.read_bytes()
    monkeypatch.setattr("jaxboost.data.sources.medmnist.digest_of", lambda path, kind: info["breastmnist"]["MD5"])
    path.write_bytes(content[:-50])
    with pytest.raises(UserError, match="cannot read the archive"):
        load("breastmnist", size=28, root=str(tmp_path))
    damaged = bytearray(content)
    damaged[100] ^= 255
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="cannot read array train_images"):
        load("breastmnist", size=28, root=str(tmp_path))
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UserError, match=r"a single array, not an \.npz archive"):
        load("breastmnist", size=28, root=str(tmp_path))


def test_a_folder_instead_of_the_file(tmp_path):
    (tmp_path / "breastmnist.npz").mkdir()
    with pytest.raises(UserError, match=r"breastmnist\.npz: cannot read the file: Is a directory"):
        load("breastmnist", size=28, root=str(tmp_path))


def test_a_named_pipe_instead_of_the_file(tmp_path):
    os.mkfifo(tmp_path / "breastmnist.npz")
    expected = r"breastmnist\.npz: cannot read the file: it is a named pipe, not a regular file: delete it"
    with pytest.raises(UserError, match=expected):
        load("breastmnist", size=28, root=str(tmp_path))


@pytest.mark.parametrize("terminal", [True, False])
def test_download(terminal, info, write_official, server, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    path = write_official("retinamnist", 64)
    content = path.read_bytes()
    server.files["/retinamnist_64.npz"] = content
    info["retinamnist"]["url_64"] = f"{server.url}/retinamnist_64.npz?download=1"
    root = tmp_path / "new" / "folder"
    dataset = load("retinamnist", size=64, root=str(root))
    assert dataset.splits["train"].images.shape == (3, 64, 64, 3)
    assert [entry.name for entry in root.iterdir()] == ["retinamnist_64.npz"]
    assert (root / "retinamnist_64.npz").read_bytes() == content
    # There is a progress bar only on a terminal.
    assert ("\r" in capfd.readouterr().err) == terminal
    server.files.clear()
    load("retinamnist", size=64, root=str(root))


@pytest.mark.parametrize("failure", ["wrong sum", "not found", "cut short", "no server"])
def test_failed_download(failure, info, write_official, server, tmp_path):
    path = write_official("retinamnist", 28)
    server.files["/retinamnist.npz"] = path.read_bytes()
    root = tmp_path / "root"
    url = info["retinamnist"]["url"] = f"{server.url}/retinamnist.npz"
    if failure == "wrong sum":
        server.files["/retinamnist.npz"] += b"x"
    elif failure == "not found":
        server.files.clear()
    elif failure == "cut short":
        server.cut.add("/retinamnist.npz")
    else:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            url = info["retinamnist"]["url"] = f"http://127.0.0.1:{unused.getsockname()[1]}/retinamnist.npz"
    with pytest.raises(UserError) as error:
        load("retinamnist", size=28, root=str(root))
    message = str(error.value)
    assert url in message
    assert f"put that file at {root / 'retinamnist.npz'} yourself" in message
    expected = {
        "wrong sum": f"expected {info['retinamnist']['MD5']}",
        "not found": "404",
        "cut short": "cannot be downloaded",
        "no server": "cannot be downloaded",
    }
    assert expected[failure] in message
    assert list(root.iterdir()) == []


def test_root_that_cannot_be_made(info, server, tmp_path):
    (tmp_path / "file").write_text("")
    info["breastmnist"]["url"] = f"{server.url}/breastmnist.npz"
    with pytest.raises(UserError, match=r"breastmnist\.npz: cannot read the file: Not a directory"):
        load("breastmnist", size=28, root=str(tmp_path / "file"))


def test_the_table_is_that_of_the_package():
    table = medmnist_info()
    assert len(table) == 18
    assert table["vesselmnist3d"]["MD5"] == "b41fd4f7e7e2feedddb201585ecafa1b"
    assert table is medmnist_info()
