"""R-LLM on a frozen encoder: images are encoded once, which changes no figure, and only where it is possible."""

import logging

import numpy as np
import pytest
from PIL import Image

from jaxboost.config import load_config
from jaxboost.inference import open_run
from jaxboost.models.backbones import BACKBONES, Backbone
from jaxboost.models.resnet import ResNet
from jaxboost.runs import assembly, datasets, train
from jaxboost.systems import rllm
from jaxboost.training import source_tokens
from tests import finished_runs
from tests.baselines.small import SIDE, write_images
from tests.training.small_runs import on_host, take_steps

# What is replaced here are functions of the host, and rows of BACKBONES: another structure is another program.
pytestmark = pytest.mark.same_programs

TOKENS = 1 + (SIDE // 7) ** 2


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("small") / "images")


@pytest.fixture(scope="module")
def config(images):
    """A tiny frozen random encoder; changes as {field: value}."""
    fields = {
        "data.source": "folder",
        "data.name": "small",
        "data.root": str(images),
        "data.size": SIDE,
        "model.backbone": "vit_tiny",
        "model.image_size": SIDE,
        "model.weights": "random",
        "model.frozen": True,
        "boost.block": "random",
        "boost.family": "llama-tiny",
        "boost.layers": (0,),
        "boost.source": "",
        "boost.convert": False,
        "optim.lr": 1e-2,
        "optim.warmup_epochs": 0.0,
        "train.epochs": 1,
        "train.batch_size": 12,
        "eval.batch_size": 12,
        "eval.bootstrap": 10,
    }
    return lambda **changes: load_config(
        "quickstart", **(fields | {name.replace("__", "."): value for name, value in changes.items()})
    )


def train_images(loop):
    return loop.dataset.splits["train"].images


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The cache that the runs of a study share."""
    return tmp_path_factory.mktemp("study") / "cache"


# The first reads the first token alone, the second all of them, from the same images by the same encoder.
@pytest.mark.parametrize(("kind", "count"), [("none", 1), ("rllm", TOKENS), ("mlp", 1)])
def test_losses_are_those_of_encoding_at_each_step(config, study, tmp_path, monkeypatch, kind, count):
    changes = {"boost__kind": kind} | ({"boost__block": ""} if kind == "none" else {})
    each = assembly.assemble(config(**changes, model__cache_gb=0.0), tmp_path / "each")
    assert train_images(each).dtype == np.uint8
    losses = take_steps(each, 3)
    assert losses[2] != losses[0]
    with datasets.shared(study):
        once = assembly.assemble(config(**changes), tmp_path / "once")
        assert (train_images(once).dtype, train_images(once).shape) == (np.float32, (36, count, 128))
        np.testing.assert_allclose(take_steps(once, 3), losses, rtol=1e-5)
        if kind == "rllm":
            # Another run reads the file.
            monkeypatch.setattr(source_tokens.batches, "eval_batches", lambda *_, **__: 1 / 0)
            again = assembly.assemble(config(**changes), tmp_path / "again")
            np.testing.assert_array_equal(train_images(again), train_images(once))
    assert len(list(study.iterdir())) == {"none": 1, "rllm": 2, "mlp": 2}[kind]


def test_a_frozen_resnet_is_encoded_once(config, tmp_path, monkeypatch):
    """Its batch norms compute in a training step as in evaluation, and keep their statistics."""
    arguments = dict(block="basic", depths=(1, 1), convolution="2d", base_width=4)
    monkeypatch.setitem(BACKBONES, "small", Backbone(encoder=ResNet, ndim=2, arguments=arguments, head_eps=None))
    changes = dict(boost__kind="none", boost__block="", model__backbone="small")
    each = assembly.assemble(config(**changes, model__cache_gb=0.0), tmp_path / "each")
    before = on_host(each.state.stats)
    losses = take_steps(each, 3)
    assert before
    assert all(np.array_equal(value, before[path]) for path, value in on_host(each.state.stats).items())
    once = assembly.assemble(config(**changes), tmp_path / "once")
    assert (train_images(once).dtype, train_images(once).shape) == (np.float32, (36, 1, 8))
    np.testing.assert_allclose(take_steps(once, 3), losses, rtol=1e-5)


@pytest.mark.parametrize("limit", [0.0, 60 * 128 * 4 / 1e9 * 0.99])
def test_tokens_that_are_too_large_are_computed_at_each_step(config, tmp_path, caplog, limit):
    """60 images with one token of 128 numbers each."""
    with caplog.at_level(logging.INFO, "jaxboost"):
        loop = assembly.assemble(config(boost__kind="none", boost__block="", model__cache_gb=limit), tmp_path / "run")
    assert train_images(loop).dtype == np.uint8
    assert f"would take 3.1e-05 GB, more than model.cache_gb={limit:g}: they are computed at each step" in caplog.text
    assert not list(tmp_path.rglob("source-tokens-*"))


def test_encoders_that_change_are_not_encoded_once(config):
    fixed = rllm.fixed_tokens(config())
    assert (fixed.role, fixed.most_gb) == ("encoder", 4.0)
    for changes in (
        {"model__frozen": False},
        {"model__drop_path": 0.1},
        {"model__last_block": True},
        {"model__lora_rank": 2},
    ):
        assert rllm.fixed_tokens(config(**changes)) is None
    # Frozen batch norms compute as in evaluation.
    assert rllm.fixed_tokens(config(model__backbone="resnet18")) is not None
    # What the encoder computes depends on these too.
    for changes in (
        {"model__mean": (0.4,)},
        {"model__std": (0.3,)},
        {"model__dtype": "bfloat16"},
        {"model__slices": 2},
    ):
        assert rllm.fixed_tokens(config(**changes)).key != fixed.key


def test_random_changes_of_the_images_are_not_encoded_once(config, tmp_path):
    loop = assembly.assemble(config(boost__kind="none", boost__block="", augment__flip=0.5), tmp_path / "run")
    assert train_images(loop).dtype == np.uint8


def test_prediction_from_images_repeats_the_runs_own(config, images, tmp_path):
    """In bfloat16, whose tokens are float32 in the file."""
    train.train_and_evaluate(config(model__dtype="bfloat16", train__max_steps=2), tmp_path / "run")
    (file,) = (tmp_path / "run").glob("source-tokens-*/*.npy")
    assert np.load(file).shape == (60, TOKENS, 128)
    names = finished_runs.named_predictions(tmp_path / "run")
    given = np.stack([np.asarray(Image.open(images / name)) for name in names])
    found = open_run.open_run(tmp_path / "run").predict(given)
    np.testing.assert_allclose(found, finished_runs.own_predictions(tmp_path / "run"), rtol=0, atol=1e-6)
