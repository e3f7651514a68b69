"""Runs of CoOp and CoCoOp: the folder, the image embeddings that are computed once, prediction, and what is refused."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxboost.analysis import describe, training_cost
from jaxboost.config import get_clip_config, validation
from jaxboost.config.overrides import with_overrides
from jaxboost.convert import class_prompts
from jaxboost.errors import UserError
from jaxboost.explain import attention, gradcam
from jaxboost.explain.tapped import Tapped
from jaxboost.inference import open_run
from jaxboost.inference.export import export
from jaxboost.models.prompted_clip import METHODS
from jaxboost.runs import cross_validation, seeds, train, workdir
from jaxboost.training.recording import Recording
from tests import finished_runs
from tests.baselines.small import SIDE, write_images
from tests.conftest import forget_programs
from tests.models import clip_cases
from tests.training.stopped_runs import outcome, send_in

# What is replaced here are functions of the host.
pytestmark = pytest.mark.same_programs


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    with clip_cases.known(tmp_path_factory.mktemp("clip")) as checkpoint:
        yield checkpoint


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("small") / "images")


@pytest.fixture(scope="module")
def make_config(checkpoint, images):
    def make(method, **changes):
        config = get_clip_config()
        fields = {
            "data.source": "folder",
            "data.name": "small",
            "data.root": str(images),
            "data.size": SIDE,
            "model.backbone": clip_cases.NAME,
            "model.weights": str(checkpoint.folder / "vision"),
            "model.image_size": SIDE,
            "model.mean": clip_cases.MEAN,
            "model.std": clip_cases.STD,
            "clip.method": method,
            "clip.text": str(checkpoint.folder / "text"),
            "clip.context": 2,
            "optim.lr": 0.02,
            "train.epochs": 4,
            "train.batch_size": 12,
            "eval.batch_size": 12,
            "eval.bootstrap": 10,
        }
        config.update_from_flattened_dict({**fields, **changes})
        return config

    return make


@pytest.fixture(scope="module")
def runs(make_config, tmp_path_factory):
    """Method -> folder of its finished run."""
    folder = tmp_path_factory.mktemp("runs")
    for method in METHODS:
        train.train_and_evaluate(make_config(method), folder / method)
    return {method: folder / method for method in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_folder_of_a_run(runs, method):
    result = workdir.result_in(runs[method])
    assert (result.boost, result.model) == (method, clip_cases.NAME)
    assert {role for role, part in result.parts.items() if part} == {"encoder", "text"}
    assert result.text.source == "source"
    assert result.text.prompts == {"dark": ("without light",), "grey": ("grey",), "light": ("light",)}
    assert result.parameters.trainable == workdir.result_in(runs["coop_clip"]).parameters.trainable + (
        0 if method == "coop_clip" else 48 * 3 + 3 + 3 * 20 + 20
    )
    # The encoder has run once for each image.
    assert any(path.name.startswith("source-tokens-") for path in runs[method].iterdir())
    records = map(json.loads, (runs[method] / "metrics.jsonl").read_text().splitlines())
    losses = [record["train_loss"] for record in records if "train_loss" in record]
    assert losses[-1] < losses[0] - 0.01


@pytest.mark.parametrize("method", METHODS)
def test_prediction_repeats_the_runs_own(runs, images, method, tmp_path):
    run = open_run.open_run(runs[method])
    names = finished_runs.named_predictions(runs[method])
    pixels = np.stack([np.asarray(Image.open(images / name)) for name in names])
    found = run.predict(pixels)
    np.testing.assert_allclose(found, finished_runs.own_predictions(runs[method]), rtol=0, atol=1e-5)
    assert np.ptp(found, axis=0).min() > 1e-3
    np.testing.assert_allclose(np.linalg.norm(run.features(pixels), axis=1), 1, rtol=1e-5)
    export(run, tmp_path / "export")
    exported = open_run.open_run(tmp_path / "export")
    np.testing.assert_allclose(exported.predict(pixels), found, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_cut_off_goes_on_to_the_same_end(method, checkpoint, make_config, runs, tmp_path, monkeypatch):
    """To the bit, with the same text encoder alone."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        # In the first of four epochs.
        send_in(patch, Recording, "validate")
        assert train.train_and_evaluate(make_config(method), folder) is None
    forget_programs()  # as in another process
    if method == "coop_clip":
        others = clip_cases.PROMPTS | {"grey": {"prompts": ["a grey image"], "called": "half light"}}
        class_prompts.convert_text(str(checkpoint.folder / "source"), others, tmp_path / "others")
        with pytest.raises(UserError, match=r"trained with other text .*give the same as then, or another --workdir"):
            train.train_and_evaluate(make_config(method, **{"clip.text": str(tmp_path / "others")}), folder)
    train.train_and_evaluate(make_config(method), folder)
    assert outcome(folder) == outcome(runs[method])


def test_folds(make_config, tmp_path):
    content = cross_validation.train_and_evaluate(
        make_config("coop_clip", **{"data.folds": 2, "train.epochs": 1}), tmp_path / "folds"
    )
    assert (len(content["folds"]), content["boost"], content["text"]["source"]) == (2, "coop_clip", "source")


def test_several_seeds_at_once_are_the_runs_of_each(make_config, runs, tmp_path):
    found = seeds.train_and_evaluate(
        seeds.of_config(make_config("coop_clip", **{"train.seeds": 2}), tmp_path / "seeds")
    )
    first, second = found.values()
    whole = workdir.result_in(runs["coop_clip"])
    assert first["test"]["auc"] == pytest.approx(whole.test.auc, abs=1e-6)
    assert first["selection"]["sha256"] != second["selection"]["sha256"]


def test_maps_are_those_of_the_encoder_of_images(runs, images):
    """`explain` reads the model as a classifier without a booster."""
    run = open_run.open_run(runs["cocoop_clip"])
    pixels = np.stack([np.asarray(Image.open(images / f"{number:02d}.png")) for number in (0, 2)])
    tapped = Tapped(run)
    for method, place in ((gradcam, "encoder_last"), (attention, "encoder_attention")):
        found = method.maps(tapped, pixels, np.array([0, 1]))
        assert found.place.partition("/")[0] == place
        assert found.grid.shape == (2, 2, 2)
        assert found.grid.max() > 0


def test_other_prompts_are_other_weights(checkpoint, make_config, runs, tmp_path):
    moved = shutil.copytree(checkpoint.folder / "text", tmp_path / "moved")
    train.train_and_evaluate(make_config("coop_clip", **{"clip.text": str(moved)}), runs["coop_clip"])
    source = str(checkpoint.folder / "source")
    others = clip_cases.PROMPTS | {"grey": {"prompts": ["a grey image"], "called": "half light"}}
    class_prompts.convert_text(source, others, tmp_path / "others")
    with pytest.raises(UserError, match="finished run with the text encoder from source"):
        train.train_and_evaluate(make_config("coop_clip", **{"clip.text": str(tmp_path / "others")}), runs["coop_clip"])
    with pytest.raises(UserError, match=r"trained with the text .*--set FIELD=DIR"):
        open_run.open_run(runs["coop_clip"], [f"clip.text={tmp_path / 'others'}"])
    assert open_run.open_run(runs["coop_clip"], [f"clip.text={moved}"]).result.boost == "coop_clip"


def test_description():
    config = get_clip_config()
    config.update_from_flattened_dict(
        {
            "data.name": "pneumoniamnist",
            "model.backbone": "clip_vit_b32",
            "model.weights": "blocks/nowhere",
            "model.image_size": 224,
            "clip.text": "blocks/nowhere",
        }
    )
    found = describe.describe(config)
    assert (found["boost"], found["trainable"], found["tokens"]) == ("coop_clip", 16 * 512, 50)
    assert found["flops_per_image"]["without_boost"] < found["flops_per_image"]["with_boost"]
    assert "of the encoder of images" in describe.as_text(found)
    # CoOp encodes the classes once for a batch, CoCoOp for each image.
    costs = {
        method: training_cost.training_cost(with_overrides(config, {"clip.method": method}), 100) for method in METHODS
    }
    assert costs["coop_clip"].once == costs["cocoop_clip"].once == found["flops_per_image"]["without_boost"]
    assert costs["coop_clip"].each == found["flops_per_image"]["with_boost"] - costs["coop_clip"].once
    assert costs["cocoop_clip"].each > 0.9 * config.train.batch_size * costs["coop_clip"].each


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clip.text": ""}, "clip.text is empty: set it to the folder that `jaxboost convert --source SOURCE"),
        ({"model.weights": ""}, "model.weights is empty: set it to the folder that `jaxboost convert` made, or to"),
        ({"model.backbone": "resnet18"}, "model.backbone: resnet18 is no CLIP: set it to one of clip_vit_b32"),
        ({"model.backbone": "dinov2_s14"}, "model.backbone: dinov2_s14 is no CLIP: set it to one of clip_vit_b32"),
        ({"clip.method": "coop"}, "clip.method: 'coop' is unknown, did you mean 'coop_clip'"),
        ({"clip.context": 0}, "clip.context: 0 should be 1 or more"),
        (
            {"data.source": "folder", "data.columns": ("age",)},
            "data.columns: CLIP compares images with texts",
        ),
        ({"train.loss": "columns"}, "train.loss: columns compares logits with 0"),
        ({"data.name": "chestmnist"}, "coop_clip compares classes that exclude each other, and chestmnist is multi"),
        ({"optim.layer_decay": 0.5}, "optim.layer_decay: it is for encoders with trained layers, set it to 1"),
    ],
)
def test_fields_that_do_not_go_together(changes, words):
    config = get_clip_config()
    fields = {
        "data.name": "pneumoniamnist",
        "model.backbone": "clip_vit_b32",
        "model.weights": "random",
        "model.image_size": 224,
        "clip.text": "blocks/text",
    }
    config.update_from_flattened_dict(fields | changes)
    (problem,) = validation.problems(config)
    assert words in problem
