"""BLIP-2 from a checkpoint to a run: transformers' scores, training, going on, prediction, export, and refusals."""

import dataclasses
import json
import logging
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from jaxboost import systems
from jaxboost.config import get_blip2_config, validation
from jaxboost.config.overrides import with_overrides
from jaxboost.convert import convert, questions
from jaxboost.data.dataset import DatasetInfo
from jaxboost.errors import UserError
from jaxboost.explain import activation, attention, gradcam
from jaxboost.explain.tapped import Tapped
from jaxboost.inference import open_run
from jaxboost.inference.export import export
from jaxboost.models.frozen import merge
from jaxboost.runs import train, workdir
from jaxboost.systems import start
from jaxboost.training import optim, step
from jaxboost.training.recording import Recording
from tests import finished_runs
from tests.baselines.small import CLASSES, SIDE, write_images
from tests.convert import blip2_checkpoints as blip2
from tests.convert.changed_manifests import rewrite
from tests.models.parity import assert_close
from tests.training.stopped_runs import outcome, send_in

# What is replaced here are functions of the host.
pytestmark = pytest.mark.same_programs

INFO = DatasetInfo(
    name="small", task="multi-class", classes=CLASSES, channels=3, ndim=2, size=SIDE, n_samples={}, license=""
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    with blip2.known(tmp_path_factory.mktemp("blip2")) as checkpoint:
        yield checkpoint


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("small") / "images")


@pytest.fixture(scope="module")
def config(checkpoint, images):
    config = get_blip2_config()
    fields = {
        "data.source": "folder",
        "data.name": "small",
        "data.root": str(images),
        "data.size": SIDE,
        "optim.lr": 1e-2,
        "train.epochs": 2,
        "train.batch_size": 12,
        "eval.batch_size": 12,
        "eval.bootstrap": 10,
    }
    config.update_from_flattened_dict(fields | checkpoint.fields)
    return config


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train.train_and_evaluate(config, folder)
    return folder


def test_scores_are_those_of_transformers(checkpoint, config):
    """Of the whole model, in float32: encoder, Q-Former, projection, learned positions, layers, and the tied head."""
    system = systems.prepare(config, INFO)
    params, frozen, stats, fingerprints = start.initialise(system, seed=0, replicated=step.make_mesh()[0])
    assert set(fingerprints) == {"encoder", "qformer", "llama", "question"}
    assert set(params) == {"qformer"}
    decays = optim.decay_mask(params)["qformer"]
    assert (decays["queries"], decays["norm"]["scale"], decays["projection"]["kernel"]) == (False, False, True)
    images = np.random.default_rng(0).integers(
        0, 256, (2, blip2.vision.IMAGE_SIZE, blip2.vision.IMAGE_SIZE, 3), np.uint8
    )
    manifest = questions.read_manifest(checkpoint.folder / "question")
    assert (manifest.place, manifest.positions, manifest.tokens[:2]) == (0, 16, (1, 6))
    assert system.tokens == blip2.QUERIES + len(manifest.tokens)
    expected = blip2.scores(checkpoint.model, images, list(manifest.tokens), [each.token for each in manifest.answers])
    ours = jax.jit(lambda *trees: merge(system.graphdef, *trees)(images))(params, frozen, stats)
    assert np.ptp(expected) > 0.1
    assert_close(ours, expected)


def test_folder_of_a_run(run):
    result = workdir.result_in(run)
    assert (result.boost, result.model) == ("blip2", blip2.NAME)
    assert {role for role, part in result.parts.items() if part} == {"encoder", "qformer", "llama", "question"}
    assert result.question.prompts == {"dark": ("no",), "grey": ("yes",), "light": ("never",)}
    # The encoder has run once for each image.
    assert any(path.name.startswith("source-tokens-") for path in run.iterdir())
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    losses = [record["train_loss"] for record in records if "train_loss" in record]
    assert losses[-1] < losses[0] - 0.01


def test_prediction_and_export_repeat_the_runs_own(run, images, tmp_path):
    opened = open_run.open_run(run)
    names = finished_runs.named_predictions(run)
    pixels = np.stack([np.asarray(Image.open(images / name)) for name in names])
    found = opened.predict(pixels)
    np.testing.assert_allclose(found, finished_runs.own_predictions(run), rtol=0, atol=1e-5)
    assert opened.features(pixels).shape == (len(names), blip2.LLM_WIDTH)
    export(opened, tmp_path / "export")
    np.testing.assert_allclose(open_run.open_run(tmp_path / "export").predict(pixels), found, rtol=0, atol=1e-6)


def test_maps(run, images):
    """Grad-CAM on the tokens that the Q-Former reads; the others need a pooled token, or patches in the LLM."""
    tapped = Tapped(open_run.open_run(run))
    pixels = np.stack([np.asarray(Image.open(images / f"{number:02d}.png")) for number in (0, 2)])
    found = gradcam.maps(tapped, pixels, np.array([0, 1]))
    assert (found.place, found.grid.shape) == ("tokens", (2, 5, 5))
    assert found.grid.max() > 0
    with pytest.raises(UserError, match="its Q-Former reads all tokens, not a pooled token"):
        attention.maps(tapped, pixels, np.array([0, 1]))
    with pytest.raises(UserError, match="no LLM layers that see tokens of patches"):
        activation.maps(tapped, pixels)
    question = next(part for part in tapped.run.system.pretrained if part.role == "question")
    drawn = dataclasses.replace(question, about={"source": "random"})
    tapped.run = dataclasses.replace(tapped.run, system=dataclasses.replace(tapped.run.system, pretrained=(drawn,)))
    # Only an LLM's random block is named.
    assert tapped.title == "blip2_tiny + blip2"


def test_a_run_that_was_cut_off_goes_on_to_the_same_end(config, run, tmp_path, monkeypatch):
    """To the bit, with the dropout of each step."""
    with monkeypatch.context() as patch:
        send_in(patch, Recording, "validate")
        assert train.train_and_evaluate(config, tmp_path / "run") is None
    train.train_and_evaluate(config, tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(run)


def test_other_weights_than_a_finished_runs(checkpoint, config, run):
    with pytest.raises(UserError, match=r"with the Q-Former from source .*, not with random: give another"):
        train.train_and_evaluate(with_overrides(config, {"blip2.qformer": "random"}), run)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"blip2.qformer": ""}, "blip2.qformer is empty: set it to the folder that `jaxboost convert --part qformer`"),
        ({"blip2.question": ""}, "blip2.question is empty: set it to the folder that `jaxboost convert --question"),
        ({"model.weights": ""}, "model.weights is empty: set it to the folder that `jaxboost convert --part encoder`"),
        (
            {"model.backbone": "resnet18"},
            "resnet18 has no tokens with a final norm for a Q-Former: set it to blip2_vit",
        ),
        (
            {"data.source": "folder", "data.columns": ("age",)},
            "data.columns: the LLM answers a question",
        ),
        ({"llama.final_norm": "ones"}, "llama.final_norm: scores are read after the LLM's own norm: set it to loaded"),
        ({"train.loss": "columns"}, "columns compares logits with 0, and an LLM's scores have no such meaning"),
        ({"data.name": "chestmnist"}, "BLIP-2 compares classes that exclude each other, and chestmnist is multi-label"),
        ({"data.name": "nodulemnist3d"}, "data set nodulemnist3d is 3-D but backbone blip2_vit_g14 takes 2-D input"),
    ],
)
def test_fields_that_do_not_go_together(changes, words):
    config = get_blip2_config()
    fields = {"data.name": "pneumoniamnist", "model.backbone": "blip2_vit_g14", "model.image_size": 224}
    fields |= {
        "llama.block": "blocks/opt",
        "model.weights": "random",
        "blip2.qformer": "random",
        "blip2.question": "blocks/question",
    }
    config.update_from_flattened_dict(fields | changes)
    (problem,) = validation.problems(config)
    assert words in problem


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"blip2.qformer": "blocks/nowhere", "blip2.qformer_source": "owner/blip2"},
            "no Q-Former at blocks/nowhere: make it with `jaxboost convert --source owner/blip2 --part qformer --out",
        ),
        ({"model.weights": "blocks/nowhere"}, "make it with `jaxboost convert --source .* --part encoder --out"),
        (
            {"llama.block": "blocks/nowhere"},
            "make it with `jaxboost convert --source .* --part block --layers all --out",
        ),
        (
            {"model.backbone": "vit_tiny", "model.weights": "random", "model.image_size": 14},
            r"is for an encoder of width 24, and model\.backbone=vit_tiny has 128: take encoder, Q-Former, layers and",
        ),
        (
            {"llama.block": "random", "llama.family": "opt-125m", "llama.layers": (0,), "llama.final_norm": "ones"},
            r"is for an LLM of width 12, and the layers of llama\.block has 768: take encoder, Q-Former, layers and",
        ),
    ],
)
def test_parts_that_do_not_fit(config, changes, words):
    with pytest.raises(UserError, match=words):
        systems.prepare(with_overrides(config, changes), INFO)


def test_only_the_whole_llm_answers(checkpoint, config, tmp_path, caplog):
    convert(str(checkpoint.folder / "source"), "-1", tmp_path / "last", part="block")
    with pytest.raises(UserError, match=r"last holds the layers 1 of source, and only all 2, .*--part block --layers"):
        systems.prepare(with_overrides(config, {"llama.block": str(tmp_path / "last")}), INFO)
    convert(str(checkpoint.folder / "source"), "all", tmp_path / "bare", part="block", final_norm=False)
    with pytest.raises(UserError, match="final norm"):
        systems.prepare(with_overrides(config, {"llama.block": str(tmp_path / "bare")}), INFO)
    with caplog.at_level(logging.WARNING):
        systems.prepare(with_overrides(config, {"llama.layers": (1,)}), INFO)
    assert "the layers 1 of source answer blip2.question, not all 2" in caplog.text


def test_learned_positions(checkpoint, config, tmp_path, caplog):
    long = shutil.copytree(checkpoint.folder / "question", tmp_path / "long")
    manifest = questions.read_manifest(long)
    tokens = [*manifest.tokens, *[manifest.tokens[-1]] * (13 - len(manifest.tokens))]
    rewrite(long, lambda fields: fields.update(tokens=tokens))
    with pytest.raises(
        UserError, match=r"blip2\.question: the LLM has 16 positions, too few for 4 tokens of the image a"
    ):
        systems.prepare(with_overrides(config, {"blip2.question": str(long)}), INFO)
    with caplog.at_level(logging.INFO):
        systems.prepare(with_overrides(config, {"blip2.question": "random"}), INFO)
    assert "a random question has no learned positions" in caplog.text


def test_parts_of_another_checkpoint(checkpoint, config, tmp_path):
    source = shutil.copytree(checkpoint.folder / "source", tmp_path / "source")
    state = load_file(source / "model.safetensors")
    for part, name in {
        "encoder": "vision_model.post_layernorm",
        "block": "language_model.model.decoder.final_layer_norm",
    }.items():
        save_file(state | {f"{name}.bias": state[f"{name}.bias"] + 1}, source / "model.safetensors")
        convert(str(source), "all", tmp_path / part, part=part)
    changes = {"encoder": "model.weights", "block": "llama.block"}
    for part, field in changes.items():
        words = f"the Q-Former at .* does not belong to the {part} of source, which has other weights than that of its"
        with pytest.raises(UserError, match=words):
            systems.prepare(with_overrides(config, {field: str(tmp_path / part)}), INFO)
