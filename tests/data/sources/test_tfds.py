"""TFDS data sets: round trips, every kind of feature, missing and damaged files, and no TensorFlow."""

import io
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxboost import data
from jaxboost.data import decoding
from jaxboost.data.dataset import MappedRows
from jaxboost.data.problems import ProblemError
from jaxboost.data.readers import npz
from jaxboost.data.sources import lidc, medmnist, tfds_features, tfds_source
from jaxboost.data.tfds_builders import __main__ as command
from jaxboost.data.tfds_builders import builders
from jaxboost.errors import UserError
from tests.data.sources.annotations import cohort, write_database

REPOSITORY = pathlib.Path(__file__).parents[3]
SPLITS = ("train", "validation", "test")
EDGE = 8


def prepare(folder, features, examples, *, supervised_keys=None, splits=SPLITS, file_format="array_record"):
    """Writes the data set "small" with the same `examples` in each of the `splits`."""

    class Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "small"
        VERSION = tfds.core.Version("1.2.3")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=supervised_keys,
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {split: enumerate(examples) for split in splits}

        def _generate_examples(self):
            raise NotImplementedError

    builder = Small(data_dir=str(folder), file_format=file_format)
    builder.download_and_prepare()
    return pathlib.Path(builder.data_dir)


def load(folder, name="small", size=EDGE):
    """The splits of `prepare` are copies of each other, with the same patients."""
    return tfds_source.load(name, size=size, root=str(folder), ignore_splits=True)


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


GREY = tfds.features.Image(shape=(EDGE, EDGE, 1), encoding_format="png")
VECTOR = tfds.features.Tensor(shape=(3,), dtype=np.int64)


def two_classes():
    return tfds.features.ClassLabel(names=["no", "yes"])


def several_classes():
    return tfds.features.Sequence(tfds.features.ClassLabel(names=["a", "b", "c"]))


def grey_examples(count=3, **others):
    return [
        {"image": Image.fromarray(pixels(EDGE, EDGE)), "label": number % 2}
        | {name: values[number] for name, values in others.items()}
        for number in range(count)
    ]


def described(features):
    return types.SimpleNamespace(features=tfds.features.FeaturesDict(features), supervised_keys=None)


def small(folder, **others):
    """A valid data set with more features, `others`: name -> (feature, values)."""
    features = {"image": GREY, "label": two_classes()} | {name: feature for name, (feature, _) in others.items()}
    return prepare(folder, features, grey_examples(**{name: values for name, (_, values) in others.items()}))


def same_splits(left, right):
    assert list(left.splits) == ["train", "val", "test"]
    for name, split in left.splits.items():
        other = right.splits[name]
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int64)
        np.testing.assert_array_equal(split.images, other.images)
        np.testing.assert_array_equal(split.labels, other.labels)


@pytest.mark.parametrize(
    ("flag", "size"),
    [*((flag, 28) for flag in medmnist.names()), ("pathmnist", 64), ("octmnist", 64), ("nodulemnist3d", 64)],
)
def test_medmnist_round_trip(flag, size, info, write_official, tmp_path):
    write_official(flag, size)
    config = flag if size == 28 else f"{flag}_{size}"
    folder = builders.build(f"medmnist/{config}", data_dir=str(tmp_path / "tfds"), root=str(tmp_path))
    assert folder == tmp_path / "tfds" / "medmnist" / config / "1.0.0"
    dataset, official = (
        load(tmp_path / "tfds", f"medmnist/{config}:1.0.0", size),
        medmnist.load(flag, size=size, root=str(tmp_path)),
    )
    same_splits(dataset, official)
    ours, theirs = dataset.info, official.info
    assert ours.name == f"tfds-medmnist-{config}-1.0.0"
    assert (ours.classes, ours.channels, ours.ndim, ours.size, ours.license) == (
        theirs.classes,
        theirs.channels,
        theirs.ndim,
        theirs.size,
        theirs.license,
    )
    # TFDS has no ordinal labels.
    assert ours.task == theirs.task.replace("ordinal-regression", "multi-class")
    assert ours.n_samples == {"train": 3, "val": 1, "test": 2}
    assert ours == tfds_source.describe(f"medmnist/{config}", size=size, root=str(tmp_path / "tfds"))
    assert {split.groups for split in dataset.splits.values()} == {None}
    # As another project reads it: only from the files.
    elsewhere = tfds.builder_from_directory(str(folder))
    assert elsewhere.info.citation.startswith("@article{medmnistv2")
    assert elsewhere.info.config_description == info[flag]["description"]
    assert elsewhere.info.supervised_keys == ("volume" if flag.endswith("3d") else "image", "label")
    example = elsewhere.as_data_source(split="validation")[0]
    np.testing.assert_array_equal(example[elsewhere.info.supervised_keys[0]], official.splits["val"].images[0])


def test_every_published_size_has_a_config():
    by_flag = {
        flag: [name for name in builders.names() if name.split("/")[-1].split("_")[0] == flag]
        for flag in medmnist.names()
    }
    assert by_flag["breastmnist"] == [f"medmnist/breastmnist{suffix}" for suffix in ("", "_64", "_128", "_224")]
    assert {len(found) for flag, found in by_flag.items() if not flag.endswith("3d")} == {4}
    assert {len(found) for flag, found in by_flag.items() if flag.endswith("3d")} == {2}
    assert {config.size for config in builders.MedMNIST.BUILDER_CONFIGS} == {28, 64, 128, 224}


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    """The LIDC shapes of a small cohort: the folder where TFDS has prepared them, and the data set."""
    database = write_database(tmp_path / "cohort.sqlite", cohort())
    monkeypatch.setattr(lidc, "_database", lambda: database)
    builders.build("lidc_shapes", data_dir=str(tmp_path / "tfds"), root=str(tmp_path))
    return tmp_path / "tfds", lidc.load("lidcshapes3d", size=28, root=str(tmp_path))


def test_lidc_round_trip(shapes):
    folder, expected = shapes
    dataset = load(folder, "lidc_shapes", 28)
    same_splits(dataset, expected)
    for name, split in dataset.splits.items():
        assert split.groups.tolist() == expected.splits[name].groups.tolist()
        assert split.names[0].endswith("/0")
    assert dataset.info.name == f"tfds-lidc_shapes-{lidc.BUILD_VERSION}.0.0"
    assert (dataset.info.classes, dataset.info.task) == (("benign", "malignant"), "binary-class")
    assert (dataset.info.ndim, dataset.info.license) == (3, "CC BY 3.0")
    assert dataset.info.n_samples == expected.info.n_samples
    with pytest.raises(UserError, match=r"^data.size=64: tfds:lidc_shapes comes in 28$"):
        tfds_source.describe("lidc_shapes", size=64, root=str(folder))


def test_parquet(tmp_path):
    prepare(tmp_path, {"image": GREY, "label": two_classes()}, grey_examples(), file_format="parquet")
    np.testing.assert_array_equal(load(tmp_path).splits["val"].images[0, ..., 0], pixels(EDGE, EDGE))


def test_the_newest_version_in_the_default_folder(tmp_path, monkeypatch):
    from tensorflow_datasets.core import constants

    folder = small(tmp_path)
    folder.with_name("0.9.0").symlink_to(folder)
    monkeypatch.setattr(constants, "DATA_DIR", str(tmp_path))
    assert tfds_source.load("small", size=EDGE, root="").info.name == "tfds-small-1.2.3"


def encoded(picture, kind):
    content = io.BytesIO()
    picture.save(content, format=kind)
    return content.getvalue()


def picture_cases():
    wide = Image.fromarray(pixels(11, 20, 3))
    yield "colour, of another shape", 3, encoded(wide, "PNG"), wide
    grey = Image.fromarray(pixels(EDGE, EDGE))
    yield "grey in colour", 3, encoded(grey, "PNG"), grey.convert("RGB")
    palette = wide.quantize(5)
    yield "palette", 3, encoded(palette, "PNG"), palette.convert("RGB")
    yield "colour in grey", 1, encoded(wide, "PNG"), wide.convert("L")
    jpeg = encoded(wide, "JPEG")
    yield "jpeg", 3, jpeg, Image.open(io.BytesIO(jpeg))


@pytest.mark.parametrize(("case", "channels", "content", "expected"), list(picture_cases()))
def test_pictures(case, channels, content, expected, tmp_path):
    features = {"image": tfds.features.Image(shape=(None, None, channels)), "label": two_classes()}
    prepare(tmp_path, features, [{"image": content, "label": 1}])
    images = load(tmp_path).splits["test"].images
    assert images.shape == (1, EDGE, EDGE, channels)
    wanted = np.asarray(expected.resize((EDGE, EDGE), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(images[0], wanted.reshape(EDGE, EDGE, channels))


@pytest.mark.parametrize(
    ("shape", "size", "ndim", "channels"),
    [((9, 9, 9), 9, 3, 1), ((9, 9, 9, 1), 9, 3, 1), ((EDGE, EDGE, 3), EDGE, 2, 3), ((EDGE, EDGE, 1), EDGE, 2, 1)],
)
def test_tensors(shape, size, ndim, channels, tmp_path):
    array = pixels(*shape)
    features = {"scan": tfds.features.Tensor(shape=shape, dtype=np.uint8), "label": two_classes()}
    prepare(tmp_path, features, [{"scan": array, "label": 1}])
    dataset = load(tmp_path, size=size)
    assert (dataset.info.ndim, dataset.info.channels) == (ndim, channels)
    np.testing.assert_array_equal(dataset.splits["train"].images, array.reshape(1, *(size,) * ndim, channels))


def test_a_tensor_is_resized(tmp_path):
    features = {"image": tfds.features.Tensor(shape=(6, 12, 1), dtype=np.uint8), "label": two_classes()}
    array = pixels(6, 12, 1)
    prepare(tmp_path, features, [{"image": array, "label": 1}])
    wanted = np.asarray(Image.fromarray(array[..., 0]).resize((EDGE, EDGE), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(load(tmp_path).splits["train"].images[0, ..., 0], wanted)


@pytest.mark.parametrize(
    ("feature", "values", "task", "classes", "labels"),
    [
        (two_classes(), [1, 0], "binary-class", ("no", "yes"), [[1], [0]]),
        (tfds.features.ClassLabel(num_classes=3), [2, 0], "multi-class", ("0", "1", "2"), [[2], [0]]),
        (several_classes(), [[2, 0], []], "multi-label, binary-class", ("a", "b", "c"), [[1, 0, 1], [0, 0, 0]]),
        (VECTOR, [[0, 1, 1], [0, 0, 0]], "multi-label, binary-class", ("0", "1", "2"), [[0, 1, 1], [0, 0, 0]]),
        (
            tfds.features.Tensor(shape=(2,), dtype=np.bool_),
            [np.array([True, False]), np.array([True, True])],
            "multi-label, binary-class",
            ("0", "1"),
            [[1, 0], [1, 1]],
        ),
    ],
)
def test_labels(feature, values, task, classes, labels, tmp_path):
    picture = Image.fromarray(pixels(EDGE, EDGE))
    prepare(tmp_path, {"image": GREY, "finding": feature}, [{"image": picture, "finding": value} for value in values])
    dataset = load(tmp_path)
    assert (dataset.info.task, dataset.info.classes) == (task, classes)
    assert dataset.splits["val"].labels.tolist() == labels
    assert dataset.splits["val"].labels.dtype == np.int64


@pytest.mark.parametrize(
    ("feature", "value", "message"),
    [
        (two_classes(), -1, r"tfds:small, split train: train_labels has values -1\.\.-1, expected 0\.\.1"),
        (VECTOR, [0, 2, 1], r"train_labels has values 0\.\.2, expected 0\.\.1"),
        (
            several_classes(),
            [0, -1],
            r"split train, example 0 in .*: has the labels \[0, -1\], expected 0\.\.2: correct",
        ),
    ],
)
def test_labels_out_of_range(feature, value, message, tmp_path):
    example = {"image": Image.fromarray(pixels(EDGE, EDGE)), "label": value}
    prepare(tmp_path, {"image": GREY, "label": feature}, [example])
    with pytest.raises(UserError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(("keys", "chosen"), [(("other", "kind"), "other"), (None, "image"), (("label", "x"), "image")])
def test_supervised_keys_have_priority_over_usual_names(keys, chosen, tmp_path):
    array = {"image": pixels(EDGE, EDGE), "other": 255 - pixels(EDGE, EDGE)}
    features = {"image": GREY, "other": GREY, "label": two_classes(), "kind": several_classes(), "x": np.int64}
    example = {name: Image.fromarray(image) for name, image in array.items()} | {"label": 1, "kind": [0], "x": 3}
    prepare(tmp_path, features, [example], supervised_keys=keys)
    dataset = load(tmp_path)
    np.testing.assert_array_equal(dataset.splits["train"].images[0, ..., 0], array[chosen])
    assert dataset.info.classes == (("a", "b", "c") if chosen == "other" else ("no", "yes"))


MASK = tfds.features.LabeledImage(shape=(EDGE, EDGE, 1), labels=2)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            {"left": GREY, "right": GREY, "label": two_classes()},
            r"which feature holds the images \(uint8, 1 or 3 channels\)\? left, right, and none is named 'image'; its "
            r"features: FeaturesDict\({ 'label': ClassLabel",
        ),
        ({"image": GREY, "a": two_classes(), "b": VECTOR}, r"holds the labels .*\? a, b, and none is named 'label'"),
        ({"mask": MASK, "label": two_classes()}, r"holds the images .*\? none of them; its features: .*LabeledImage"),
        ({"image": tfds.features.Tensor(shape=(4, 5, 5), dtype=np.uint8), "label": VECTOR}, "images .* none of them"),
        ({"image": tfds.features.Tensor(shape=(5, 5, 1), dtype=np.int64), "label": VECTOR}, "images .* none of them"),
        ({"image": tfds.features.Image(shape=(5, 5, 4)), "label": two_classes()}, "images .* none of them"),
        ({"image": tfds.features.Image(shape=(5, 5, 1), dtype=np.uint16), "label": VECTOR}, "images .* none of them"),
        ({"image": GREY, "label": tfds.features.ClassLabel(num_classes=1)}, "labels .* none of them"),
        ({"image": GREY, "label": tfds.features.Text()}, "labels .* none of them"),
        ({"image": GREY, "label": tfds.features.Tensor(shape=(3,), dtype=np.float32)}, "labels .* none of them"),
    ],
)
def test_unsuitable_features(features, message):
    with pytest.raises(UserError, match=message) as error:
        tfds_features.find_fields(described(features), "tfds:small")
    assert str(error.value).startswith("tfds:small: which feature holds the ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["patient", "patient_id"])
def test_patients_and_files(name, tmp_path):
    small(
        tmp_path,
        **{
            name: (tfds.features.Text(), ["P1", "P2", "Ä"]),
            "file": (tfds.features.Text(), ["a.png", "b.png", "c.png"]),
        },
    )
    for split in load(tmp_path).splits.values():
        assert split.groups.tolist() == ["P1", "P2", "Ä"]
        assert split.names.tolist() == ["a.png", "b.png", "c.png"]


def test_images_are_decoded_once(tmp_path, monkeypatch):
    folder = small(tmp_path, patient=(tfds.features.Text(), ["P1", "P2", "P3"]))
    decoded, prepared = [], tfds_source._prepared
    monkeypatch.setattr(
        tfds_source, "_prepared", lambda *given, **options: decoded.append(1) or prepared(*given, **options)
    )
    first = load(tmp_path)
    same_splits(load(tmp_path), first)
    assert len(decoded) == 9
    assert load(tmp_path).splits["val"].groups.tolist() == ["P1", "P2", "P3"]
    monkeypatch.setattr(npz, "LARGE_BYTES", 10)
    mapped = load(tmp_path)
    assert isinstance(mapped.splits["train"].images, MappedRows)
    same_splits(mapped, first)
    assert len(decoded) == 9
    # Any file of the data set.
    file = next(folder.glob("*array_record*"))
    file.write_bytes(file.read_bytes())
    same_splits(load(tmp_path), first)
    assert len(decoded) == 18
    same_splits(tfds_source.load("small", size=EDGE, root=str(tmp_path), ignore_splits=True, cache="off"), first)
    assert len(decoded) == 27


def test_many_images_are_decoded_by_processes(tmp_path, monkeypatch):
    prepare(tmp_path, {"image": GREY, "label": two_classes()}, grey_examples(210), splits=("whole",))
    monkeypatch.setattr(decoding, "cores", lambda: 2)
    found = load(tmp_path).splits["all"]
    monkeypatch.setattr(decoding, "workers_for", lambda *_: 0)
    expected = tfds_source.load("small", size=EDGE, root=str(tmp_path), cache="off").splits["all"]
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.labels, expected.labels)


def test_files_of_one_name_are_told_apart_in_folds(tmp_path):
    """Slices of one file, or files of the same name in each split: the table of folds goes by the names."""
    count, names = 12, ["a.png", "a.png", "b.png", "a.png (2)"] * 3
    features = {"image": GREY, "label": two_classes(), "file": tfds.features.Text()}
    prepare(tmp_path / "data", features, grey_examples(count, file=names), splits=("train", "test"))
    dataset = data.load("", source="tfds:small", size=EDGE, root=str(tmp_path / "data"), ignore_splits=True)
    assert dataset.splits["test"].names.tolist() == names
    file = tmp_path / "folds.csv"
    tested = []
    for fold in range(3):
        splits = data.fold_of(dataset, count=3, fold=fold, seed=0, val_share=0.5, file=file).splits
        tested += splits["test"].names.tolist()
    assert len(set(tested)) == len(tested) == 2 * count
    assert {"a.png", "a.png (2)", "a.png (3)", "b.png", "b.png (6)"} <= set(tested)


def test_splits_are_checked_unless_all_samples_are_divided_anew(tmp_path):
    small(tmp_path, patient=(tfds.features.Text(), ["P1", "P2", "P3"]))
    message = (
        r"^tfds:small: patient 'P1' is in train \(train/0\) and in val \(validation/0\): give every patient to one"
    )
    with pytest.raises(UserError, match=message):
        data.load("", source="tfds:small", size=EDGE, root=str(tmp_path))
    with pytest.raises(UserError, match=r"or set data\.folds for a cross-validation of all of them$"):
        data.load("", source="tfds:small", size=EDGE, root=str(tmp_path))
    dataset = data.load("", source="tfds:small", size=EDGE, root=str(tmp_path), ignore_splits=True)
    assert dataset.pooled().splits["all"].groups.tolist() == ["P1", "P2", "P3"] * 3


def test_invalid_patients(tmp_path):
    small(tmp_path / "numbers", patient=(np.int64, [1, 2, 3]))
    assert load(tmp_path / "numbers").splits["train"].groups.tolist() == ["1", "2", "3"]
    small(tmp_path / "empty", patient=(tfds.features.Text(), ["P1", "", "P2"]))
    with pytest.raises(UserError, match="split train, example 1: feature 'patient' is empty: every patient needs"):
        load(tmp_path / "empty")


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (("test", "val", "train"), ["train", "val", "test"]),
        (("train", "validation", "test", "extra"), ["train", "val", "test"]),
        (("train", "validation", "val", "test"), ["train", "val", "test"]),
        (("test", "train"), ["train", "test"]),
        (("train",), ["all"]),
        (("extra",), ["all"]),
    ],
)
def test_splits(splits, expected, tmp_path):
    prepare(tmp_path, {"image": GREY, "label": two_classes()}, grey_examples(), splits=splits)
    dataset = load(tmp_path)
    assert list(dataset.splits) == expected
    assert dataset.info.n_samples == dict.fromkeys(expected, 3)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (("train", "validation"), "tfds:small has the splits train, validation, test missing: train and test are"),
        (("a", "b"), r"has the splits a, b, train and test missing: train and test are needed, or a single split"),
    ],
)
def test_missing_splits(splits, message, tmp_path):
    prepare(tmp_path, {"image": GREY, "label": two_classes()}, grey_examples(), splits=splits)
    for read in (tfds_source.load, tfds_source.describe):
        with pytest.raises(UserError, match=message):
            read("small", size=EDGE, root=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("small/big", "tfds:small/big is not prepared in FOLDER, which has small/1.2.3: name one of them"),
        ("small:2.0.0", "tfds:small:2.0.0 is not prepared in FOLDER, which has small/1.2.3: name one of them"),
        ("smal", "and tensorflow-datasets has no data set of that name, did you mean 'small'?"),
        ("mnists", "and tensorflow-datasets has no data set of that name, did you mean 'mnist'?"),
        ("mnist:3.*.*", "tfds:mnist:3.*.* is not prepared in FOLDER: set data.root to the folder that has it, or"),
        ("mnist", "tensorflow_datasets.builder('mnist', data_dir='FOLDER', file_format='array_record')"),
        ("medmnist/octmnist:1.0.0", "--name medmnist/octmnist --data_dir FOLDER`, or set data.root to the folder"),
        ("kaggle:small", "config field data.source: 'tfds:kaggle:small' should be tfds:NAME, tfds:NAME/CONFIG or"),
        ("small/x=1", "'tfds:small/x=1' should be tfds:NAME"),
        ("../small", "'tfds:../small' should be tfds:NAME"),
        ("", "'tfds:' should be tfds:NAME"),
    ],
)
def test_unknown_names(name, message, tmp_path):
    small(tmp_path)
    with pytest.raises(UserError) as error:
        tfds_source.describe(name, size=EDGE, root=str(tmp_path))
    assert message.replace("FOLDER", str(tmp_path)) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_folder(tmp_path):
    with pytest.raises(UserError, match=r"tfds:small is not prepared in .*/none, and tensorflow-datasets has no"):
        load(tmp_path / "none")


def test_without_the_package(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    message = "the package tensorflow-datasets cannot be imported"
    for read in (tfds_source.load, tfds_source.describe):
        with pytest.raises(UserError, match=f"{message} .*: run this with `uv run --extra tfds ...`, or `pip install"):
            read("mnist", size=28, root="")
    with pytest.raises(SystemExit) as error:
        command.main(["--name", "lidc_shapes", "--data_dir", "unused"])
    assert error.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


RECORDS = "small-train.array_record-00000-of-00001"


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_info(old, new):
    return lambda path: path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (RECORDS, cut, "split train, example 0 in"),
        (RECORDS, pathlib.Path.unlink, "cannot be read (open() failed: No such file"),
        ("dataset_info.json", cut, "cannot be read (Failed to load JSON"),
        ("dataset_info.json", pathlib.Path.unlink, "cannot be read (Could not read dataset info"),
        ("features.json", cut, "cannot be read"),
        ("dataset_info.json", change_info('"3"', '"4"'), "cannot be read (index 3 out of bound 3)"),
        (
            "dataset_info.json",
            change_info("array_record", "tfrecord"),
            "its files have no random access: prepare small",
        ),
    ],
)
def test_damaged_files(file, damage, message, tmp_path):
    damage(small(tmp_path) / file)
    with pytest.raises(UserError) as error:
        load(tmp_path)
    assert str(tmp_path / "small") in str(error.value)
    assert message in str(error.value)
    assert "prepare small again" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"text", "is not a picture"),
        (encoded(Image.fromarray(pixels(90, 90)), "PNG")[:2000], "cannot"),
    ],
)
def test_a_damaged_picture(content, message, tmp_path):
    prepare(tmp_path, {"image": GREY, "label": two_classes()}, [*grey_examples(2), {"image": content, "label": 0}])
    with pytest.raises(UserError, match=f"tfds:small, split train, example 2 in .*: its image {message}"):
        load(tmp_path)


def test_an_empty_record():
    features = {"image": tfds.features.Tensor(shape=(9, 9, 9), dtype=np.uint8, encoding="zlib"), "label": VECTOR}
    fields = tfds_features.find_fields(described(features), "tfds:small")
    with pytest.raises(ProblemError, match="its image is empty"):
        fields.image_of({"image": np.zeros(0, np.uint8)}, 9)


def test_the_command(info, write_official, tmp_path, capsys):
    write_official("bloodmnist", 28)
    arguments = ["--name", "medmnist/bloodmnist", "--data_dir", str(tmp_path / "tfds"), "--root", str(tmp_path)]
    for _ in range(2):
        command.main(arguments)
        assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "tfds" / "medmnist" / "bloodmnist" / "1.0.0")
    (tmp_path / "file").write_text("")
    for options, message in (
        ({1: "medmnist/bloodmnst"}, "--name: 'medmnist/bloodmnst' is unknown, did you mean 'medmnist/bloodmnist'?"),
        ({3: str(tmp_path / "file")}, f"{tmp_path / 'file'} is a file: give a folder"),
        ({1: "medmnist/octmnist", 5: str(tmp_path / "file")}, "octmnist.npz: cannot read the file: Not a directory"),
    ):
        changed = [options.get(place, argument) for place, argument in enumerate(arguments)]
        with pytest.raises(SystemExit) as error:
            command.main(changed)
        assert error.value.code == 2
        assert message in capsys.readouterr().err
    assert not list((tmp_path / "tfds").rglob("*incomplete*"))


WITHOUT = """
import sys
from jaxboost.data.pipeline import batches
from jaxboost.data.sources import lidc, tfds_source
from jaxboost.data.tfds_builders.__main__ import main

lidc._database = lambda: None  # a file that is there is used as it is
main(["--name", "lidc_shapes", "--data_dir", sys.argv[1], "--root", sys.argv[2]])
dataset = tfds_source.load("lidc_shapes", size=28, root=sys.argv[1])
batch = next(batches.train_iterator(dataset.splits["train"], batch_size=4, seed=0, image_size=None))
assert batch["image"].shape == (4, 28, 28, 28, 1)
print(sorted({"tensorflow", "torch"} & set(sys.modules)))
import tensorflow
print(tensorflow.__file__)
"""


def test_no_tensorflow(shapes, tmp_path):
    # A stub that can be imported, so that an attempt to use TensorFlow is noticed.
    package = tmp_path / "stub" / "tensorflow"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '2.99.0'\n")
    process = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", WITHOUT, tmp_path / "built", tmp_path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(package.parent), str(REPOSITORY)])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-2:] == ["[]", str(package / "__init__.py")]


def test_a_training_run(shapes, tmp_path):
    # Only here: the other tests of this file need no jax.
    from jaxboost.runs import train
    from tests.training.small_runs import small_config

    folder, expected = shapes
    config = small_config(folder, {"data.source": "tfds:lidc_shapes", "train.batch_size": 8})
    result = train.train_and_evaluate(config, tmp_path / "run")
    assert result["dataset"] == f"tfds-lidc_shapes-{lidc.BUILD_VERSION}.0.0"
    assert result["steps"] == 2
    assert result["splits"] == {name: len(split) for name, split in expected.splits.items()}
    predictions = (tmp_path / "run" / "predictions").iterdir()
    assert {path.name.partition("_[")[0] for path in predictions} == {
        "test.csv",
        "val.csv",
        f"{result['dataset']}_test",
        f"{result['dataset']}_val",
    }
