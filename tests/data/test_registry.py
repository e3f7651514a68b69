"""The registry: names, sizes, options and the data root."""

import os
import pathlib
import subprocess
import sys

import pytest

import jaxboost.data
from jaxboost.data import dataset_names, describe_dataset, load
from jaxboost.data.dataset import data_root
from jaxboost.errors import UserError

FLAGS_2D = [
    *("pathmnist", "chestmnist", "dermamnist", "octmnist", "pneumoniamnist", "retinamnist", "breastmnist"),
    *("bloodmnist", "tissuemnist", "organamnist", "organcmnist", "organsmnist"),
]
FLAGS_3D = ["organmnist3d", "nodulemnist3d", "adrenalmnist3d", "fracturemnist3d", "vesselmnist3d", "synapsemnist3d"]


def test_names():
    own = ["lidcshapes3d", "lidcsilhouettes"]
    assert sorted(dataset_names()) == sorted([*FLAGS_2D, *FLAGS_3D, *own])


@pytest.mark.parametrize("name", FLAGS_2D)
def test_describe_2d(name):
    for size in (28, 64, 128, 224):
        info = describe_dataset(name, size)
        assert (info.name, info.ndim, info.size) == (name, 2, size)
        assert set(info.n_samples) == {"train", "val", "test"}


@pytest.mark.parametrize("name", FLAGS_3D)
def test_describe_3d(name):
    for size in (28, 64):
        info = describe_dataset(name, size)
        assert (info.ndim, info.size, info.channels) == (3, size, 1)


def test_describe_fields():
    info = describe_dataset("dermamnist", 64)
    assert (info.task, info.channels, info.license) == ("multi-class", 3, "CC BY-NC 4.0")
    assert info.n_samples == {"train": 7007, "val": 1003, "test": 2005}
    organ = describe_dataset("organamnist", 28)
    # Eleven classes: sorted as text, "10" would come before "2".
    assert organ.classes[0] == "bladder"
    assert organ.classes[2] == "femur-right"
    assert organ.classes[10] == "spleen"
    chest = describe_dataset("chestmnist", 28)
    assert chest.task == "multi-label, binary-class"
    assert (chest.labels_per_sample, organ.labels_per_sample) == (14, 1)
    lidc = describe_dataset("lidcshapes3d", 28)
    assert (lidc.classes, lidc.license, lidc.ndim) == (("benign", "malignant"), "CC BY 3.0", 3)


def test_unknown_name():
    with pytest.raises(UserError, match=r"data.name: 'brestmnist' is unknown, did you mean 'breastmnist'\?") as e:
        describe_dataset("brestmnist", 28)
    assert all(name in str(e.value) for name in dataset_names())
    with pytest.raises(UserError, match="did you mean 'vesselmnist3d'"):
        load("VesselMNIST3D", size=28, root="")


def test_options_of_a_folder_are_refused_for_other_data_sets():
    message = r"data\.{}: .* is for data.source='folder' only, not for {}: leave it at {}$"
    with pytest.raises(UserError, match=message.format("classes", "breastmnist", r"\(\)")):
        describe_dataset("breastmnist", 28, classes=("a", "b"))
    given = {
        "spacing": (1.0, "0.0"),
        "duplicates": ("refuse", "'warn'"),
        "max_pixels": (7, 2**26),
        "max_voxels": (7, 2**29),
        "patient": ("tag", "''"),
        "nan": ("0", "''"),
    }
    for field, (value, default) in given.items():
        for source, name in (("tfds:mnist", "tfds:mnist"), ("", "lidcshapes3d")):
            for attempt in (load, describe_dataset):
                with pytest.raises(UserError, match=message.format(field, name, default)):
                    attempt("lidcshapes3d", size=28, source=source, root="", **{field: value})
    # A config gives these for every data set.
    info = describe_dataset("breastmnist", 28, ndim=3, classes=(), multi_label=False, masks="")
    assert info == describe_dataset("breastmnist", 28)


def test_sources():
    with pytest.raises(UserError, match=r"data.source: 'foldr' is unknown, did you mean 'folder'\?"):
        load("mine", size=28, source="foldr", root="")
    with pytest.raises(UserError, match=r"'breastmnist' is a published data set, and data.source='folder' is your own"):
        load("breastmnist", size=28, source="folder", root="")


@pytest.mark.parametrize(
    ("name", "size", "sizes"),
    [
        ("breastmnist", 32, "28, 64, 128, 224"),
        ("vesselmnist3d", 128, "28, 64"),
        ("lidcshapes3d", 64, "28"),
        ("lidcsilhouettes", 64, "28"),
    ],
)
def test_unknown_size(name, size, sizes, tmp_path):
    with pytest.raises(UserError, match=f"^data.size={size}: {name} comes in {sizes}$"):
        describe_dataset(name, size)
    with pytest.raises(UserError, match=f"^data.size={size}: "):
        load(name, size=size, root=str(tmp_path))


def test_data_root(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MEDMNIST_ROOT", raising=False)
    assert data_root("") == tmp_path / ".medmnist"
    assert data_root("~/other") == tmp_path / "other"
    monkeypatch.setenv("MEDMNIST_ROOT", "~/files")
    assert data_root("") == tmp_path / "files"
    assert data_root("relative") == pathlib.Path("relative")


def test_imports_are_light_and_silent(tmp_path):
    """The import loads no heavy package such as torch or jax, and prints nothing, unlike `import medmnist`."""
    code = (
        "import sys, jaxboost.data\n"
        "jaxboost.data.describe_dataset('breastmnist', 28)\n"
        "heavy = {'torch', 'jax', 'medmnist', 'pylidc', 'pydicom', 'nibabel', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    folder = pathlib.Path(jaxboost.data.__file__).parents[2]
    environment = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
