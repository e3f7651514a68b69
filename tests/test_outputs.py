"""What a command writes never takes the place of an input, nor of any file that the command did not write."""

import os
import pathlib
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from configs import quickstart
from jaxboost import outputs
from jaxboost.config.table import ALL_FIELDS
from jaxboost.convert import convert
from jaxboost.convert.writer import writing
from jaxboost.data.tfds_builders.__main__ import main as build_tfds
from jaxboost.errors import UserError
from jaxboost.inference.export import export_run
from jaxboost.inference.predict import predict
from jaxboost.runs import train, workdir
from jaxboost.systems import weights
from tests import finished_runs
from tests.finished_runs import colours
from tests.reference.llama_checkpoints import tiny_llama, write_safetensors


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run, and its data."""
    folder = tmp_path_factory.mktemp("colours")
    return colours(folder / "data", folder / "run"), folder / "data"


def contents(folder: pathlib.Path) -> dict[pathlib.Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def place(finished, tmp_path):
    """A folder with images to predict, links to one of them, and a user's own files."""
    _, data = finished
    images = sorted((data / "images").iterdir())[:3]
    for image in images:
        shutil.copy(image, tmp_path)
    first = tmp_path / images[0].name
    (tmp_path / "link.png").symlink_to(first)
    (tmp_path / "link").symlink_to(first)
    os.link(first, tmp_path / "hard")
    (tmp_path / "labels.csv").write_text("file,label,patient_id\n00.png,red,p0\n")
    (tmp_path / "notes.csv").write_text("prediction\n1\n")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\0")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("00.png", "already exists and is not a table of predictions, in CSV, it would be overwritten"),
        ("./folder/../00.png", "already exists and is not a table of predictions"),
        ("link", "already exists and is not a table of predictions"),
        ("hard", "already exists and is not a table of predictions"),
        ("labels.csv", "already exists and is not a table of predictions"),
        ("notes.csv", "already exists and is not a table of predictions"),
        ("binary.csv", "already exists and is not a table of predictions"),
        ("pipe", "is not a regular file and would be replaced by one"),
        ("folder", "is a folder: give the name of a file"),
        ("new.png", "this is the name of an image file: give a name that ends with .csv"),
        ("new.nii.gz", "this is the name of an image file"),
        ("nowhere/new.csv", "there is no folder"),
        ("hard/new.csv", "there is no folder"),
    ],
)
def test_predictions_overwrite_nothing(out, words, place, finished):
    run, _ = finished
    regular = [path for path in place.iterdir() if path.is_file()]
    before = {path: path.read_bytes() for path in regular}
    with pytest.raises(UserError, match=f"^--out .*{words}"):
        predict(run, files=[str(place / "00.png")], out=place / out)
    assert {path: path.read_bytes() for path in regular} == before


def test_predictions_replace_predictions(place, finished):
    run, _ = finished
    out = place / "table.csv"
    # As a shell's `> table.csv` or mktemp leaves it.
    out.touch()
    predict(run, files=[str(place / "00.png")], out=out)
    assert [row["file"] for row in finished_runs.read_table(out)] == [str(place / "00.png")]
    predict(run, files=[str(place / "01.png")], out=out)
    assert [row["file"] for row in finished_runs.read_table(out)] == [str(place / "01.png")]


def test_a_table_that_is_an_input_too(place, finished):
    run, _ = finished
    out = place / "table.csv"
    predict(run, files=[str(place / "00.png")], out=out)
    before = out.read_bytes()
    with pytest.raises(UserError, match=r"is one of the inputs .*which would be overwritten"):
        predict(run, files=[str(place / "00.png"), str(out)], out=out, skip_faulty=True)
    assert out.read_bytes() == before


@pytest.mark.parametrize("inside", ["export", "checkpoints/best/7", "predictions/export"])
def test_an_export_lies_outside_of_its_run(inside, finished, tmp_path):
    run, _ = finished
    (tmp_path / "link").symlink_to(run)
    before = contents(run)
    for folder in (run, tmp_path / "link"):
        with pytest.raises(UserError, match="would lie in the run that is exported: give a folder elsewhere"):
            export_run(folder, folder / inside)
    assert contents(run) == before


def test_a_file_of_a_run_is_not_overwritten(finished):
    run, data = finished
    before = contents(run)
    for path in before:
        with pytest.raises(UserError, match="--out"):
            predict(run, files=[str(data / "images")], out=path)
    assert contents(run) == before


def folder_config(data: pathlib.Path, **changes: object):
    config = quickstart.get_config()
    config.update_from_flattened_dict({"data.source": "folder", "data.name": "x", "data.root": str(data), **changes})
    return config


@pytest.mark.parametrize("field", ["data.root", "data.masks", "boost.block", "model.weights"])
@pytest.mark.parametrize("inside", [".", "runs/first", "link/run"])
def test_a_run_does_not_lie_in_what_it_reads(field, inside, finished, tmp_path):
    _, data = finished
    other = tmp_path / "other"
    (other / "runs").mkdir(parents=True)
    (other / "link").symlink_to(".")
    # A 2-D encoder, which can load weights.
    config = folder_config(data, **{"model.backbone": "vit_tiny", field: str(other)})
    with pytest.raises(UserError, match=f"--workdir .* lies in {re.escape(field)}=.*, which the run reads"):
        train.train_and_evaluate(config, other / inside)
    assert list((other / "runs").iterdir()) == []
    # Published data sets have files of their own names.
    config = folder_config(other, **{"data.source": "", "data.name": "nothing"})
    with pytest.raises(UserError, match=r"data\.name"):
        train.train_and_evaluate(config, other / "run")


def test_every_converted_folder_of_a_config_is_one_that_it_reads():
    named = {name for name, field in ALL_FIELDS.items() if "a folder made by `jaxboost convert" in field.meaning}
    assert named == {*workdir.CONVERTED_FOLDERS}


def test_a_block_does_not_lie_in_its_source(tmp_path):
    source = pathlib.Path(write_safetensors(tiny_llama(0), tmp_path / "llama"))
    before = contents(source)
    for out in (source / "block", source / "a" / "b", tmp_path / "x" / ".." / "llama" / "block"):
        with pytest.raises(UserError, match=r"--out .* lies in --source .*: give a folder elsewhere"):
            convert(str(source), "3", out)
    with pytest.raises(UserError, match="exists and is not a converted folder"):
        convert(str(source), "3", source)
    with pytest.raises(UserError, match="exists and is not a converted folder"):
        convert(str(source), "3", tmp_path, overwrite=True)
    assert contents(source) == before


def test_a_block_that_another_process_makes_meanwhile_stays(tmp_path, monkeypatch, caplog):
    """As the runs of a sweep do that all find it missing: they use what is there."""
    source, out = write_safetensors(tiny_llama(0), tmp_path / "llama"), tmp_path / "block"
    with pytest.raises(UserError, match="block already"), writing(out, overwrite=False):
        convert(str(source), "3", out)
    before = contents(out)
    assert before
    assert not list(tmp_path.glob(".*"))
    real = weights.convert.convert

    def slow(*arguments, **options):
        (tmp_path / "aside").rename(out)
        real(*arguments, **options)

    out.rename(tmp_path / "aside")
    monkeypatch.setattr(weights.convert, "convert", slow)
    assert weights.find_converted("block", str(out), str(source), "3", dtype="float32", convert_missing=True) == out
    assert contents(out) == before


def test_a_tfds_folder_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stop:
        build_tfds(["--name=lidc_shapes", f"--data_dir={tmp_path / 'file'}"])
    assert stop.value.code == 2
    assert "--data_dir" in capsys.readouterr().err


def test_the_same_file_by_other_names(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(1))
    Image.new("L", (1, 1)).save(tmp_path / "b.png")
    (tmp_path / "link").symlink_to(tmp_path / "a.npy")
    os.link(tmp_path / "a.npy", tmp_path / "hard")
    for name in ("a.npy", "link", "hard", "x/../a.npy"):
        (tmp_path / "x").mkdir(exist_ok=True)
        assert outputs.is_same(tmp_path / name, tmp_path / "a.npy")
        assert not outputs.is_same(tmp_path / name, tmp_path / "b.png")
    # Not there yet, below a link to a folder.
    (tmp_path / "to").symlink_to(tmp_path)
    assert outputs.is_same(tmp_path / "to" / "new", tmp_path / "new")
    assert outputs.is_inside(tmp_path / "to" / "x" / "new", tmp_path / "x")
    assert not outputs.is_inside(tmp_path / "xy", tmp_path / "x")
