"""Runs with clinical columns: images of noise, and a column that tells the class."""

import csv
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from PIL import Image

from jaxboost import exported, schema
from jaxboost.config import validate
from jaxboost.data.sources.folder import inputs
from jaxboost.errors import UserError
from jaxboost.explain import command, samples
from jaxboost.inference import open_run, predict
from jaxboost.inference.export import export_run
from jaxboost.models import frozen
from jaxboost.runs import cross_validation, saved_config, seeds, workdir
from jaxboost.training import step
from jaxboost.training.mixing import Mixing
from tests import finished_runs
from tests.baselines.small import small_config
from tests.training.own_folders import make_config

# What is replaced here are functions of the host.
pytestmark = pytest.mark.same_programs

COUNT, SIDE = 96, 14
SPLITS = ("train", "train", "val", "test")
COLUMNS = ("marker", "sex", "site:category")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """labels.csv and weak grey noise; marker is larger for class b, and missing in some samples of the train split."""
    folder = tmp_path_factory.mktemp("columns") / "mine"
    folder.mkdir()
    rng, rows = np.random.default_rng(0), []
    for number in range(COUNT):
        Image.fromarray(rng.integers(100, 104, (SIDE, SIDE), np.uint8)).save(folder / f"{number}.png")
        label, split = number // 4 % 2, SPLITS[number % 4]
        marker = "" if split == "train" and number % 12 == 0 else f"{rng.uniform(0, 2) + 40 * label:.3f}"
        rows.append((f"{number}.png", "ab"[label], f"p{number}", split, marker, rng.choice(["F", "M"]), number % 3))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label", "patient_id", "split", "marker", "sex", "site"), *rows])
    return folder


def config_of(root, **changes):
    """A head on the tokens of a frozen random encoder."""
    return make_config(
        root,
        **{
            "data__size": SIDE,
            "data__columns": COLUMNS,
            "model__image_size": SIDE,
            "model__weights": "random",
            "model__frozen": True,
            "model__dtype": "float32",
            "optim__lr": 0.05,
            "train__epochs": 4,
            "train__batch_size": 4,
            "eval__batch_size": 32,
            **changes,
        },
    )


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    """A run with columns, whose tokens and columns are on the device: its folder and its result."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, cross_validation.train_and_evaluate(config_of(root, data__on_device="true"), folder)


@pytest.fixture(scope="module")
def opened(finished):
    return open_run.open_run(finished[0])


def predictions(model, root, out):
    """The file of each sample, and what the command predicts for it."""
    predict.predict(model, files=[str(root)], out=out)
    return {row["file"].rpartition("/")[2]: float(row["b"]) for row in finished_runs.read_table(out)}


def own_predictions(folder):
    rows = finished_runs.read_table(folder / "predictions" / "test.csv")
    return {row["file"]: float(row["b"]) for row in rows}


def test_columns_tell_what_noise_does_not(finished, root, tmp_path):
    _, result = finished
    assert result["test"]["auc"] == 1
    without = cross_validation.train_and_evaluate(config_of(root, data__columns=()), tmp_path / "without")
    assert 0.2 < without["test"]["auc"] < 0.8
    assert "columns" not in without
    # Arms with and without columns are of the same data.
    assert (without["data_sha256"], without["splits_sha256"]) == (result["data_sha256"], result["splits_sha256"])
    # Of two classes, each with a feature for marker, its absence, two sexes and three sites.
    assert result["parameters"]["trainable"] - without["parameters"]["trainable"] == 2 * (2 + 2 + 3)
    with (root / "labels.csv").open(newline="") as file:
        train = [float(row["marker"]) for row in csv.DictReader(file) if row["split"] == "train" and row["marker"]]
    marker, sex, site = result["columns"]
    assert marker == {
        "name": "marker",
        "mean": pytest.approx(np.mean(train)),
        "sd": pytest.approx(np.std(train)),
        "missing": True,
        "separates": False,
    }
    assert (sex["categories"], site["categories"]) == (["F", "M"], ["0", "1", "2"])


def test_a_finished_run_repeats_its_predictions(finished, opened, root, tmp_path):
    own, found = own_predictions(finished[0]), predictions(finished[0], root, tmp_path / "out.csv")
    assert len(found) == COUNT
    np.testing.assert_allclose([found[name] for name in own], [*own.values()], rtol=0, atol=1e-6)
    # The worst errors of a split are found with the columns of the split.
    given = samples.from_split(opened, "test")
    again = opened.predict(given.images, columns=given.columns)
    np.testing.assert_allclose(again[:, 1], [own[name] for name in given.names], rtol=0, atol=1e-6)
    assert opened.features(given.images, columns=given.columns).shape == (len(own), 128 + 7)


def test_an_export_repeats_them_too(finished, root, tmp_path):
    folder, _ = finished
    export_run(folder, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "export.json").read_text())["format"] == 3
    own, found = own_predictions(folder), predictions(tmp_path / "model", root, tmp_path / "out.csv")
    np.testing.assert_allclose([found[name] for name in own], [*own.values()], rtol=0, atol=1e-6)
    model = exported.load(tmp_path / "model")
    with pytest.raises(UserError, match="columns is missing: the model reads marker, sex, site"):
        model.predict(np.zeros((1, SIDE, SIDE), np.uint8))


@pytest.mark.parametrize(
    ("header", "row", "text"),
    [
        (
            None,
            None,
            "--table is missing: the model reads clinical columns: give a CSV file with the columns file, marker",
        ),
        ("file,marker,sex", "0.png,1,F", "column 'site' that the model reads is missing"),
        ("file,marker,sex,site", "1.png,1,F,0", "no row for .*0.png"),
        ("file,marker,sex,site", "0.png,x,F,0", "row 2, 0.png: column 'marker': 'x' is no number"),
        ("file,marker,sex,site", '0.png,"1,5",F,0', "row 2, 0.png: column 'marker': '1,5' has a comma"),
        ("file,marker,sex,site", "0.png,1,F,0\n0.png,2,F,0", "row 3, 0.png: is listed in row 2 already"),
    ],
)
def test_mistakes_in_a_table_for_prediction(header, row, text, opened, root, tmp_path):
    table = tmp_path / "table.csv"
    if header:
        table.write_text(f"{header}\n{row}\n")
    (tmp_path / "new").mkdir()
    image = tmp_path / "new" / "0.png"
    image.write_bytes((root / "0.png").read_bytes())
    with pytest.raises(UserError, match=text) as error:
        predict.columns_of(opened, [str(tmp_path / "new")], [image], str(table) if header else "")
    assert "\n" not in str(error.value)


def test_a_table_of_new_images(opened, root, tmp_path):
    """It needs neither labels nor the order of the training's table."""
    (tmp_path / "new").mkdir()
    files = [tmp_path / "new" / f"{number}.png" for number in (0, 1)]
    for file in files:
        file.write_bytes((root / file.name).read_bytes())
    (tmp_path / "table.csv").write_text("sex;file;marker;site\nX;new/1.png;41;0\n;new/0.png;0.5;9\n")
    found = predict.columns_of(opened, [str(tmp_path / "new")], files, str(tmp_path / "table.csv"))
    assert {name: cells.tolist() for name, cells in found.items()} == {
        "marker": ["0.5", "41"],
        "sex": ["", "X"],
        "site": ["9", "0"],
    }
    first, second = opened.predict(np.full((2, SIDE, SIDE), 100, np.uint8), columns=found)[:, 1]
    assert first < second


@pytest.mark.parametrize(
    ("files", "form"),
    [
        (["images/0.png", "images/1.png"], "{}.png"),
        (["images"], "images/{}.png"),
        (["."], "IMAGES\\{}.PNG"),
        (["."], "C:\\study\\images\\{}.png"),
        (["images/0.png", "images/1.png"], "./{}.PNG"),
    ],
)
def test_a_table_as_training_reads_it(files, form, opened, tmp_path, monkeypatch):
    """Beside files that are given by name, above images/, and with the names of another system."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.new("L", (SIDE, SIDE)).save(tmp_path / "images" / f"{number}.png")
    rows = [f"{form.format(number)},{number},F,0\n" for number in range(4)]
    (tmp_path / "labels.csv").write_text("".join(["file,marker,sex,site\n", *rows]))
    found = inputs.find(files, 2)
    cells = predict.columns_of(opened, files, found)["marker"].tolist()
    assert cells == [path.stem for path in found]


def test_maps_of_a_run_with_columns(opened, root, tmp_path, monkeypatch):
    monkeypatch.setattr(open_run, "open_run", lambda folder, moved=(): opened)
    image, table = tmp_path / "new.png", tmp_path / "table.csv"
    image.write_bytes((root / "0.png").read_bytes())
    request = command.Request(run=opened.folder, files=[str(image)], method="gradcam", out=tmp_path / "out")
    # Before an image is read.
    monkeypatch.setattr(inputs, "read", None)
    with pytest.raises(UserError, match="--table is missing: the model reads clinical columns"):
        command.explain(request)
    monkeypatch.undo()
    monkeypatch.setattr(open_run, "open_run", lambda folder, moved=(): opened)
    found = []
    for marker in (-500, 500):
        table.write_text(f"file,marker,sex,site\nnew.png,{marker},F,0\n")
        command.explain(dataclasses.replace(request, table=str(table), out=tmp_path / str(marker)))
        found += finished_runs.read_table(tmp_path / str(marker) / "index.csv")
    assert [row["prediction"] for row in found] == ["a", "b"]
    with pytest.raises(UserError, match=r"--table .*the columns of a split are those of the run's data"):
        command.explain(dataclasses.replace(request, files=(), split="test", table=str(table)))


def test_runs_with_other_columns_side_by_side(opened):
    """The second run may read fewer."""
    fewer = dataclasses.replace(opened, result=dataclasses.replace(opened.result, columns=opened.columns[:1]))
    samples.check_alike(opened, fewer)
    with pytest.raises(UserError, match=r"differ in clinical columns \(sex, site only in .*\)"):
        samples.check_alike(fewer, opened)


def test_a_column_that_is_called_by_a_number():
    """The command line makes a number of it."""
    content = {"source": "folder", "size": 4, "masks": "", "window": [], "spacing": 0.0}
    content |= {"folds": 0, "fold": -1, "nan": "", "max_pixels": 1, "max_voxels": 1}
    assert schema.validated(saved_config.Data, {**content, "columns": [1, "2"]}).columns == ("1", "2")


def test_seeds_at_once_read_columns_of_rows_on_the_device(finished, root, tmp_path):
    # Tokens of an encoder that each seed draws cannot be kept for several.
    config = config_of(root, data__on_device="true", train__seeds=2, train__epochs=1, model__cache_gb=0)
    found = seeds.train_and_evaluate(seeds.of_config(config, tmp_path))
    assert [result["test"]["auc"] for result in found.values()] == [1, 1]
    assert all(result["columns"] == finished[1]["columns"] for result in found.values())


@pytest.mark.parametrize(("rung", "features"), [("columns", 7), ("trivial", 24 + 7)])
def test_baselines_read_columns(rung, features, root, tmp_path):
    config = small_config(root, rung, data__columns=COLUMNS)
    folder = tmp_path / rung
    result = cross_validation.train_and_evaluate(config, folder)
    assert (result["model"], result["parameters"]["trainable"]) == (rung, features + 1)
    assert result["test"]["auc"] == 1 if rung == "columns" else result["test"]["auc"] > 0.9
    own, found = own_predictions(folder), predictions(folder, root, tmp_path / "out.csv")
    np.testing.assert_allclose([found[name] for name in own], [*own.values()], rtol=0, atol=1e-6)


def test_a_fold_is_fitted_to_its_own_training_part(root, tmp_path):
    config = small_config(root, "columns", data__columns=COLUMNS, data__folds=3, data__fold=1)
    cross_validation.train_and_evaluate(config, tmp_path)
    with (root / "labels.csv").open(newline="") as file:
        marker = {row["file"]: float(row["marker"] or "nan") for row in csv.DictReader(file)}
    tables = [finished_runs.read_table(tmp_path / "fold1" / "predictions" / f"{name}.csv") for name in ("val", "test")]
    held_out = {row["file"] for table in tables for row in table}
    train = [value for name, value in marker.items() if name not in held_out]
    assert 0 < len(train) < COUNT
    assert workdir.result_in(tmp_path / "fold1").columns[0].mean == pytest.approx(np.nanmean(train))


class Difference(nnx.Module):
    """Logits (w d, 0) of the difference d between a column and the mean of the image."""

    def __init__(self):
        self.weight = nnx.Param(jnp.ones(()))

    def __call__(self, images, *, columns, key):
        difference = columns[:, 0] - images.astype(jnp.float32).mean((1, 2, 3)) / 255
        return jnp.stack([1e3 * self.weight * difference, jnp.zeros(len(images))], axis=1)


def test_columns_are_mixed_as_their_images_are():
    """Where a column is the mean of its image, it still is after the examples were mixed: the loss is log 2."""
    graphdef, params, rest, _ = frozen.split(Difference())
    objective = step.Objective(task="multi-class", classes=2, mixing=Mixing(mixup=1.0))
    replicated, by_batch = step.make_mesh()
    tx = optax.sgd(0.0)
    train_step = step.make_train_step(graphdef, tx, objective, replicated)
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 1), np.uint8)
    batch = {"image": images, "label": np.arange(8, dtype=np.int32)[:, np.newaxis] % 2}
    batch["columns"] = (images.mean((1, 2, 3))[:, np.newaxis] / 255).astype(np.float32)
    state = step.init_state(params, tx, replicated)
    _, found = train_step(state, rest, step.put(batch, by_batch), jax.random.key(0))
    assert float(found["loss"]) == pytest.approx(np.log(2), abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"data__source": "", "data__name": "breastmnist"},
            "data.columns: it names columns of a table: give a CSV file",
        ),
        ({"data__columns": ("label",)}, "data.columns: 'label' is the label of a sample"),
    ],
)
def test_configs_that_are_refused(changes, text, root):
    with pytest.raises(UserError, match=text):
        validate(config_of(root, **changes))


def test_a_baseline_of_no_columns(root):
    with pytest.raises(UserError, match=r"data\.columns is empty: name the clinical columns"):
        validate(small_config(root, "columns"))


def test_changed_columns_are_other_data(finished, root, tmp_path):
    """A run that goes on with other values is refused, and one with the same columns continues."""
    folder, _ = finished
    other = tmp_path / "moved"
    other.mkdir()
    for path in root.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    assert cross_validation.train_and_evaluate(config_of(other), folder)["columns"]
    (other / "labels.csv").write_text((root / "labels.csv").read_text().replace(",F,", ",M,", 1))
    with pytest.raises(UserError, match="is a finished run with other columns"):
        cross_validation.train_and_evaluate(config_of(other), folder)
