"""What `import jaxboost` offers."""

import inspect
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxboost
from jaxboost.convert import convert, store
from jaxboost.errors import UserError
from jaxboost.models import frozen
from tests.reference import llama_checkpoints as reference
from tests.scripts import run_script


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A block of two layers of a tiny random model, with its final norm."""
    root = tmp_path_factory.mktemp("api")
    convert(reference.write_safetensors(reference.tiny_llama(seed=3), root / "tiny"), "1,3", root / "block")
    return root / "block"


def test_a_bare_import_loads_nothing_large():
    process = run_script(
        "-c",
        "import sys, jaxboost; dir(jaxboost); jaxboost.__version__;"
        " print([name for name in ('jax', 'flax', 'numpy', 'ml_collections', 'absl') if name in sys.modules])",
    )
    assert process.stdout == "[]\n", process.stderr


def test_names_are_listed_found_and_explained():
    assert set(jaxboost.__all__) <= set(dir(jaxboost))
    for name in jaxboost.__all__:
        assert inspect.getdoc(getattr(jaxboost, name))
    for name in ("build", "load_block", "load_config", "open_run", "train"):
        assert "Example::" in getattr(jaxboost, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'lode_block'"):
        jaxboost.lode_block  # noqa: B018
    assert sys.modules["jaxboost.config"].load_config is jaxboost.load_config


def test_load_block(folder):
    block = jaxboost.load_block(folder)
    assert (block.depth, block.config.width) == (2, store.read_manifest(folder).config.width)
    _, params, weights, stats = frozen.split(block)
    assert (params, stats) == ({}, {})
    np.testing.assert_array_equal(weights["final_norm"], np.ones(block.config.width))
    x = np.random.default_rng(0).standard_normal((2, 5, block.config.width), np.float32)
    switches = dict(rope=False, causal=False, mask=None)

    @nnx.jit
    def run(block, x):
        return block(x, **switches), block.norm(block.below_last(x, **switches))

    both, of_first = run(block, x)
    assert (both.shape, both.dtype) == (x.shape, jnp.float32)
    # One layer alone is the first of both.
    one = jaxboost.load_block(folder, 1)
    alone = nnx.jit(lambda one, x: one(x, **switches))(one, x)
    np.testing.assert_allclose(alone, of_first, atol=1e-6)


def test_load_block_with_its_own_norm(folder):
    loaded = store.load_block(folder, None, final_norm=True)
    block = jaxboost.load_block(folder, final_norm="loaded")
    np.testing.assert_array_equal(frozen.split(block)[2]["final_norm"], loaded.final_norm)
    with pytest.raises(UserError, match="should be 'ones' or 'loaded'"):
        jaxboost.load_block(folder, final_norm="zeros")
    with pytest.raises(UserError, match="holds the layers 1,3, not layer 2"):
        jaxboost.load_block(folder, (1, 2))


@pytest.mark.parametrize("kind", ["none", "rllm", "mlp"])
def test_build(kind, folder):
    block = jaxboost.load_block(folder, dtype=jnp.bfloat16)
    model = jaxboost.build("vit_tiny", classes=3, image_size=28, boost=kind, block=block, rngs=nnx.Rngs(0))
    images = np.zeros((2, 28, 28, 1), np.uint8)
    logits = nnx.jit(lambda model, images: model(images))(model, images)
    assert logits.shape == (2, 3)
    if kind == "rllm":
        # Without jit every operation is a program of its own: once is enough.
        assert model(images).shape == (2, 3)
    _, params, weights, _ = frozen.split(model)
    assert set(params) == {"encoder", "head", "head_norm"} | ({"boost"} if kind != "none" else set())
    # Only the adapters of the booster are trained.
    assert bool(weights) == (kind == "rllm")


def test_build_mistakes(folder):
    options = dict(classes=2, image_size=28, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="boost='rllm' needs a block"):
        jaxboost.build("vit_tiny", **options)
    with pytest.raises(UserError, match="backbone: 'vit_tny' is unknown, did you mean 'vit_tiny'"):
        jaxboost.build("vit_tny", **options)
    with pytest.raises(UserError, match="gives one pooled feature, no tokens"):
        jaxboost.build("resnet18", block=jaxboost.load_block(folder), **options)
    with pytest.raises(UserError, match="image_size=30 is not a multiple of the patch size 7 of backbone vit_tiny"):
        jaxboost.build("vit_tiny", boost="none", **options | {"image_size": 30})
    with pytest.raises(UserError, match="boost kind 'rlm' is unknown") as caught:
        jaxboost.Boost("rlm", width=8, block=jaxboost.load_block(folder), rngs=nnx.Rngs(0))
    # As for any function of Python.
    assert isinstance(caught.value, ValueError)


def test_convert_train_and_open(tmp_path, few_lidc_root):
    source = reference.write_safetensors(reference.tiny_llama(seed=3), tmp_path / "tiny")
    jaxboost.convert(source, (0, 2), tmp_path / "block")
    changes = {
        "data.root": str(few_lidc_root),
        "boost.family": "",
        "boost.block": str(tmp_path / "block"),
        "boost.layers": (2,),
        "train.max_steps": 1,
        "train.batch_size": 16,
        "eval.batch_size": 24,
        "eval.bootstrap": 10,
        "optim.warmup_epochs": 0.0,
    }
    config = jaxboost.load_config("quickstart", **changes)
    result = jaxboost.train(config, tmp_path / "run")
    assert result["block"]["layers"] == [2]
    run = jaxboost.open_run(str(tmp_path / "run"))
    probabilities = run.predict(np.zeros((3, 28, 28, 28, 1), np.uint8))
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    assert run.features(np.zeros((3, 28, 28, 28, 1), np.uint8)).shape == (3, 128)
    # Frozen weights may move.
    (tmp_path / "block").rename(tmp_path / "elsewhere")
    moved = jaxboost.open_run(tmp_path / "run", [f"boost.block={tmp_path / 'elsewhere'}"])
    np.testing.assert_array_equal(moved.predict(np.zeros((3, 28, 28, 28, 1), np.uint8)), probabilities)
