"""Prediction with finished runs: the same figures as the run's own, the table, and what is refused."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxboost import data
from jaxboost.convert import convert
from jaxboost.data.sources.folder import inputs
from jaxboost.errors import UserError
from jaxboost.evaluation.prediction_table import Labels
from jaxboost.inference import images as given_images
from jaxboost.inference import open_run
from jaxboost.inference.export import export
from jaxboost.inference.predict import predict
from jaxboost.runs import workdir
from jaxboost.tasks import MULTI_LABEL
from tests import finished_runs
from tests.convert import vision_checkpoints as vision
from tests.reference import llama_checkpoints
from tests.scripts import assert_mistake, run_inside, run_script


@pytest.fixture(scope="module")
def volumes(few_lidc_root, tmp_path_factory):
    """A run on volumes with a random block, and a folder of its test images."""
    folder = tmp_path_factory.mktemp("volumes")
    split = data.load("lidcshapes3d", size=28, root=str(few_lidc_root)).splits["test"]
    images = finished_runs.write_test_images(split, folder / "images")
    return finished_runs.volumes(few_lidc_root, folder / "run"), images


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """A run on colour images with several labels, and its test images in the order of their predictions."""
    folder = tmp_path_factory.mktemp("colours")
    run = finished_runs.colours(folder / "data", folder / "run")
    return run, [folder / "data" / "images" / name for name in finished_runs.named_predictions(run)]


def probabilities(table, classes):
    return np.array([[float(row[name]) for name in classes] for row in table])


def test_command_predicts_what_the_run_did(volumes, tmp_path):
    run, images = volumes
    out = tmp_path / "table.csv"
    process = run_script("-m", "jaxboost", "predict", f"--run={run}", f"--input={images}", f"--out={out}")
    assert process.returncode == 0, process.stderr
    result = json.loads((run / "result.json").read_text())
    classes, own, table = result["classes"], finished_runs.own_predictions(run), finished_runs.read_table(out)
    assert list(table[0]) == ["file", *classes, "prediction", "threshold"]
    assert [row["file"] for row in table] == [str(images / f"{number:04d}.npy") for number in range(len(own))]
    np.testing.assert_allclose(probabilities(table, classes), own, rtol=0, atol=1e-6)
    threshold = result["threshold"]["value"]
    assert {row["threshold"] for row in table} == {f"{threshold:.9g}"}
    positive = np.array([row["prediction"] == classes[1] for row in table])
    np.testing.assert_array_equal(positive, own[:, 1] >= np.float32(threshold))
    assert 0 < positive.mean() < 1
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_several_labels_of_resized_colours(colours, tmp_path):
    run, files = colours
    # One given twice, and two ways to give several.
    given = [str(files[0]), ",".join(map(str, files[1:])), str(files[2])]
    predict(run, files=given, out=tmp_path / "table.csv")
    own, table = finished_runs.own_predictions(run), finished_runs.read_table(tmp_path / "table.csv")
    classes = ("blue", "green", "red")
    assert [row["file"] for row in table] == list(map(str, files))
    np.testing.assert_allclose(probabilities(table, classes), own, rtol=0, atol=1e-6)
    expected = ["|".join(np.array(classes)[row > 0.5]) for row in own]
    assert [row["prediction"] for row in table] == expected
    assert len(set(expected)) > 1
    assert "threshold" not in table[0]


def test_another_batch_size_is_the_same(colours):
    run, files = colours
    model = open_run.open_run(run)
    _, images = inputs.read(files, model.preprocessing)
    expected, found = model.predict(images), model.predict(images, batch_size=3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_arrays_are_predicted_as_files_are(volumes, colours):
    for folder, files, run_folder in ((volumes[1], None, volumes[0]), (None, colours[1], colours[0])):
        run = open_run.open_run(str(run_folder))
        _, images = inputs.read(files or sorted(folder.iterdir()), run.preprocessing)
        own = finished_runs.own_predictions(run_folder)
        np.testing.assert_allclose(run.predict(images), own, rtol=0, atol=1e-6)
        # The axis of channels may be left out.
        if images.shape[-1] == 1:
            np.testing.assert_array_equal(run.predict(images[..., 0]), run.predict(images))


def test_features_are_what_the_head_reads(volumes):
    run = open_run.open_run(volumes[0])
    _, images = inputs.read(sorted(volumes[1].iterdir())[:20], run.preprocessing)
    head, features = run.weights[0]["head"], run.features(images)
    assert features.shape == (20, head["kernel"].shape[0])
    assert features.dtype == np.float32
    logits = features @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(run.predict(images), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(run.features(images, batch_size=7), features, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("ndim", "shape", "dtype", "match"),
    [
        (
            2,
            (3, 8, 8),
            np.float32,
            r"float32 \(3, 8, 8\), the model takes uint8 \(n, 8, 8\), .*: scale them",
        ),
        (2, (8, 8), np.uint8, r"images are uint8 \(8, 8\), .*give a single one as image\[np\.newaxis\]"),
        (2, (3, 9, 9), np.uint8, r"\(n, 8, 8, 1\) or \(n, 8, 8, 3\): resize them like the training data"),
        (2, (3, 8, 8, 2), np.uint8, "resize them"),
        (2, (0, 8, 8), np.uint8, "there are no images"),
        (3, (3, 8, 8), np.uint8, r"takes uint8 \(n, 8, 8, 8\) or \(n, 8, 8, 8, 1\)"),
        (3, (3, 8, 8, 8, 3), np.uint8, "resize them"),
    ],
)
def test_arrays_of_another_kind(ndim, shape, dtype, match):
    preprocessing = dataclasses.replace(PREPROCESSING, ndim=ndim)
    with pytest.raises(UserError, match=match):
        given_images.checked(np.zeros(shape, dtype), preprocessing)


@pytest.mark.parametrize(
    ("labels", "row", "expected"),
    [
        ({"task": "binary-class"}, [0.5, 0.5], "a"),
        ({"task": "binary-class"}, [0.4, 0.6], "b"),
        ({"task": "binary-class", "threshold": 0.75}, [0.25, 0.75], "b"),
        ({"task": "binary-class", "threshold": 0.75}, [0.3, 0.7], "a"),
        ({"task": "binary-class", "threshold": math.inf}, [0.0, 1.0], "a"),
        ({"task": "multi-class"}, [0.3, 0.4], "b"),
        ({"task": MULTI_LABEL}, [0.6, 0.7], "a|b"),
        ({"task": MULTI_LABEL}, [0.5, 0.2], ""),
    ],
)
def test_decisions(labels, row, expected):
    assert Labels(classes=("a", "b"), **labels).predictions(np.array([row], np.float32)) == [expected]


def test_faults_are_told_together_or_left_out(colours, tmp_path, caplog):
    run, files = colours
    (tmp_path / "in").mkdir()
    for file in files[:2]:
        shutil.copy(file, tmp_path / "in")
    (tmp_path / "in" / "broken.png").write_bytes(b"no image")
    Image.new("L", (8, 8), 7).save(tmp_path / "in" / "empty.png")
    volume = tmp_path / "scan.nii"
    volume.touch()
    given, out = [str(tmp_path / "in"), str(volume)], tmp_path / "table.csv"
    with pytest.raises(UserError, match=r"3 problems to fix.*scan\.nii: is not a file that .*broken\.png.*empty\.png"):
        predict(run, files=given, out=out)
    assert not out.exists()
    predict(run, files=given, out=out, skip_faulty=True)
    assert "left out: --input: 3 problems to fix" in caplog.text
    kept = sorted(tmp_path / "in" / file.name for file in files[:2])
    assert [row["file"] for row in finished_runs.read_table(out)] == list(map(str, kept))
    with pytest.raises(UserError, match="1 problem to fix"):
        predict(run, files=[str(volume)], out=out, skip_faulty=True)


def test_files_of_another_dimension(colours, volumes, tmp_path):
    (run, files), (other, images) = colours, volumes
    with pytest.raises(UserError, match=r"has the shape \(28, 28, 28\), not \(H, W\)"):
        predict(run, files=[str(images / "0000.npy")], out=tmp_path / "table.csv")
    np.save(tmp_path / "flat.npy", np.arange(64).reshape(8, 8))
    with pytest.raises(UserError, match=r"flat\.npy: is 2-D, with the shape \(8, 8\)"):
        predict(other, files=[str(tmp_path / "flat.npy")], out=tmp_path / "table.csv")
    with pytest.raises(UserError, match=r"holds no file that the model takes \(volumes: .*\); it has 00\.png"):
        predict(other, files=[str(files[0].parent)], out=tmp_path / "table.csv")


def test_hidden_files_do_not_count(tmp_path):
    for name in ("b.png", "a/deep/c.PNG", ".d.png", ".e/f.png", "g.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert inputs.find([str(tmp_path)], 2) == [tmp_path / "a/deep/c.PNG", tmp_path / "b.png"]
    assert inputs.find([str(tmp_path / "b.png"), str(tmp_path)], 2) == [tmp_path / "b.png", tmp_path / "a/deep/c.PNG"]


PREPROCESSING = inputs.Preprocessing(ndim=2, size=8, window=(), spacing=0.0, masked=True, image_size=8, resize=0)


def test_images_are_cut_to_their_masks(tmp_path):
    rng = np.random.default_rng(0)
    pixels, mask = rng.integers(0, 256, (16, 16), np.uint8), np.zeros((16, 16), np.uint8)
    mask[2:10, 5:13] = 255
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks" / "x.png")
    Image.fromarray(pixels).save(tmp_path / "x.png")
    _, (image,) = inputs.read([tmp_path / "x.png"], PREPROCESSING, masks=str(tmp_path / "masks"))
    np.testing.assert_array_equal(image[..., 0], pixels[2:10, 5:13])
    with pytest.raises(UserError, match="--masks is missing"):
        inputs.read([tmp_path / "x.png"], PREPROCESSING)
    with pytest.raises(UserError, match=r"masks/x\.png: has the same mask as .*/x\.png"):
        inputs.read([tmp_path / "x.png", tmp_path / "masks" / "x.png"], PREPROCESSING, masks=str(tmp_path / "masks"))


def test_masks_that_are_not_wanted(colours, tmp_path):
    run, files = colours
    with pytest.raises(UserError, match=r"--masks .*whole images"):
        predict(run, files=[str(files[0])], out=tmp_path / "table.csv", masks=str(tmp_path))


def copy_of(run, folder, **left_out):
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns(*left_out.get("names", ())))
    return folder


def test_what_is_no_finished_run(colours, volumes, tmp_path):
    run, out = colours[0], tmp_path / "table.csv"

    def attempt(folder, match, **arguments):
        with pytest.raises(UserError, match=match):
            predict(folder, **{"files": [str(colours[1][0])], "out": out, **arguments})

    attempt(tmp_path / "nowhere", "nowhere: there is no such folder")
    attempt(tmp_path / ("x" * 300), "xxx: there is no such folder")
    attempt(tmp_path, "is neither a run nor an export: it has no config.json")
    attempt(copy_of(run, tmp_path / "unfinished", names=["result.json"]), "is not finished, it has no result.json")
    attempt(copy_of(run, tmp_path / "moved", names=["best"]), "the weights of the best epoch are missing")
    folds = copy_of(run, tmp_path / "folds")
    config = json.loads((folds / "config.json").read_text())
    (folds / "config.json").write_text(json.dumps(config | {"data": config["data"] | {"folds": 3}}))
    attempt(folds, "is a whole cross-validation: give one of its folds, such as .*fold0")
    (folds / "config.json").write_text(json.dumps({"data": {}}))
    attempt(folds, r"config\.json is damaged \(it lacks seed, model, train, eval\)")
    (folds / "config.json").write_text("{")
    attempt(folds, r"config\.json is damaged \(.*\): run its training command again")
    cut = copy_of(run, tmp_path / "cut")
    for file in (cut / "checkpoints" / "best").rglob("*"):
        if file.is_file() and "/d/" in str(file):
            file.write_bytes(file.read_bytes()[:10])
    attempt(cut, r"best/\d: the weights of the best epoch, step \d, are damaged \(.*\): bring the folder back")
    attempt(run, "there is no such file or folder", files=[str(tmp_path / "nothing.png")])
    (tmp_path / "hollow").mkdir()
    attempt(run, "hollow: the folder holds no file", files=[str(tmp_path / "hollow")])
    attempt(run, "there is no folder .*elsewhere", out=tmp_path / "elsewhere" / "table.csv")
    attempt(run, r"cannot be written \(File name too long\): give a shorter name", out=tmp_path / ("x" * 300))
    attempt(run, "is a folder: give the name of a file, a table of predictions, in CSV", out=tmp_path)
    attempt(run, "--set: 'boost.blok' is unknown, did you mean 'boost.block'", moved=["boost.blok=x"])
    attempt(run, "--set boost.block: give FIELD=DIR", moved=["boost.block"])
    assert not out.exists()


def test_random_weights_that_differ_are_refused(volumes, tmp_path):
    run = copy_of(volumes[0], tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"seed": 1}))
    with pytest.raises(UserError, match=r"config\.json was altered, .* differs in seed \(1 there, 0 now\)"):
        open_run.open_run(run)
    result = json.loads((run / "result.json").read_text())
    del result["sha256"]
    workdir.write_result(run, result | {"config": config | {"seed": 1}})
    with pytest.raises(UserError, match=r"was trained with the block .*random frozen weights can differ"):
        open_run.open_run(run)


def test_frozen_weights_may_move_but_not_change(tmp_path):
    for seed in (0, 1):
        model = llama_checkpoints.tiny_llama(seed=seed)
        convert(llama_checkpoints.write_safetensors(model, tmp_path / f"source{seed}"), "3", tmp_path / f"block{seed}")
    fields = {"boost.kind": "rllm", "boost.block": str(tmp_path / "block0"), "boost.layers": (3,)}
    run = finished_runs.colours(tmp_path / "data", tmp_path / "run", **fields)
    (tmp_path / "block0").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"no block at .*block0"):
        open_run.open_run(run)
    with pytest.raises(UserError, match=r"was trained with the block .*, not .*give the folder of .* with --set"):
        open_run.open_run(run, [f"boost.block={tmp_path / 'block1'}"])
    model = open_run.open_run(run, [f"boost.block={tmp_path / 'elsewhere'}"])
    files = [tmp_path / "data" / "images" / name for name in finished_runs.named_predictions(run)]
    _, images = inputs.read(files, model.preprocessing)
    own = finished_runs.own_predictions(run)
    np.testing.assert_allclose(model.predict(images), own, rtol=0, atol=1e-6)


def test_first_weights_of_trained_parts_are_not_wanted(tmp_path):
    """Their constants are: here they are no default ones."""
    rope = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
    model = llama_checkpoints.tiny_llama(seed=0, rope_parameters=rope)
    convert(llama_checkpoints.write_safetensors(model, tmp_path / "llama"), "3", tmp_path / "block")
    vision.tiny("vit", **vision.VIT_TINY, layer_norm_eps=0.03).save_pretrained(tmp_path / "vit")
    convert(str(tmp_path / "vit"), "all", tmp_path / "encoder")
    run = finished_runs.colours(
        tmp_path / "data",
        tmp_path / "run",
        **{
            "data.size": 28,
            "model.image_size": 28,
            "augment.resize": 0,
            "model.weights": str(tmp_path / "encoder"),
            "boost.kind": "rllm",
            "boost.block": str(tmp_path / "block"),
            "boost.layers": (3,),
            "boost.trainable": True,
            "boost.rope": True,
        },
    )
    for name in ("block", "encoder"):
        shutil.rmtree(tmp_path / name)
    files = [tmp_path / "data" / "images" / name for name in finished_runs.named_predictions(run)]
    opened = open_run.open_run(run)
    _, images = inputs.read(files, opened.preprocessing)
    own = finished_runs.own_predictions(run)
    np.testing.assert_allclose(opened.predict(images), own, rtol=0, atol=1e-6)
    hash(opened.system.graphdef)
    export(opened, tmp_path / "export")
    pretrained = json.loads((tmp_path / "export" / "export.json").read_text())["provenance"]["pretrained"]
    assert {role: about["source"] for role, about in pretrained.items()} == {
        "encoder": "vit",
        "block": "llama",
    }


def test_a_control_without_layers_needs_no_block(tmp_path):
    """The run records the width that it took from the block; results of earlier versions name none."""
    model = llama_checkpoints.tiny_llama(seed=0, hidden_size=32, intermediate_size=48)
    convert(llama_checkpoints.write_safetensors(model, tmp_path / "source"), "3", tmp_path / "block")
    fields = {"boost.kind": "mlp", "boost.family": "llama-tiny", "boost.block": str(tmp_path / "block")}
    run = finished_runs.colours(tmp_path / "data", tmp_path / "run", **fields)
    content = json.loads((run / "result.json").read_text())
    assert content["width"] == 32
    files = [tmp_path / "data" / "images" / name for name in finished_runs.named_predictions(run)]
    own = finished_runs.own_predictions(run)

    def check(folder):
        opened = open_run.open_run(folder)
        _, images = inputs.read(files, opened.preprocessing)
        np.testing.assert_allclose(opened.predict(images), own, rtol=0, atol=1e-6)

    older = shutil.copytree(run, tmp_path / "older")
    del content["width"], content["sha256"]
    workdir.write_result(older, content)
    check(older)
    shutil.rmtree(tmp_path / "block")
    check(run)
    with pytest.raises(UserError, match="parameters, that of result"):
        open_run.open_run(older)


def test_a_mistake_is_one_line():
    process = run_inside("-m", "jaxboost", "predict", "--run=nowhere", "--input=x.png")
    assert_mistake(process, "nowhere", "no such folder")
