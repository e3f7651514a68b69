"""Changed weights of a block, and LoRA: what a run starts with, records, continues, predicts and exports."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors

from jaxboost import convert, data, systems
from jaxboost.convert import store
from jaxboost.errors import UserError
from jaxboost.inference import export, exported, open_run
from jaxboost.models.families import Architecture
from jaxboost.runs import datasets, train
from jaxboost.systems import start
from jaxboost.systems.controls import Control
from jaxboost.training import step
from tests import finished_runs
from tests.reference import llama_checkpoints
from tests.training.small_runs import assert_same, on_host, small_config

MATRICES = Architecture().matrices
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def mean_square(values):
    return np.mean(np.square(np.asarray(values, np.float64)))


@pytest.fixture(params=DTYPES)
def matrix(request):
    weights = 0.02 + 0.03 * np.random.default_rng(0).standard_t(4, (70, 96))
    return weights.astype(DTYPES[request.param])


def test_shuffled_keeps_the_numbers_and_not_their_places(matrix):
    shuffled = Control(kind="shuffled", seed=0)("3", "q", matrix)
    assert (shuffled.shape, shuffled.dtype) == (matrix.shape, matrix.dtype)
    np.testing.assert_array_equal(*(np.sort(each.astype(np.float32), axis=None) for each in (shuffled, matrix)))
    # Rows and columns are mixed too.
    assert np.mean(shuffled == matrix) < 0.01
    assert not np.array_equal(np.sort(shuffled, 0), np.sort(matrix, 0))
    assert not np.array_equal(np.sort(shuffled, 1), np.sort(matrix, 1))


def test_matched_matrix_is_normal_with_the_mean_square(matrix):
    matched = Control(kind="matched", seed=0)("3", "q", matrix)
    assert (matched.shape, matched.dtype) == (matrix.shape, matrix.dtype)
    # Each number is rounded to its dtype, to 2^-9 in bfloat16.
    tolerance = 1e-6 if matrix.dtype == np.float32 else 1e-3
    assert mean_square(matched) == pytest.approx(mean_square(matrix), rel=tolerance)
    z = matched.astype(np.float64) / np.sqrt(mean_square(matched))
    # Four standard errors of the mean and of the fourth moment of normal numbers, which is 3.
    assert abs(z.mean()) < 4 / np.sqrt(z.size)
    assert abs(np.mean(z**4) - 3) < 4 * np.sqrt(96 / z.size)


def test_matched_vector_keeps_its_mean_and_variance():
    norm = (0.4 + 0.1 * np.random.default_rng(0).random(64)).astype(np.float32)
    matched = Control(kind="matched", seed=0)("3", "attention_norm", norm)
    assert matched.mean(dtype=np.float64) == pytest.approx(norm.mean(dtype=np.float64), rel=1e-6)
    assert matched.var(dtype=np.float64) == pytest.approx(norm.var(dtype=np.float64), rel=1e-5)
    assert mean_square(matched) == pytest.approx(mean_square(norm), rel=1e-6)
    assert not np.array_equal(matched, norm)
    ones = np.ones(64, np.float32)
    np.testing.assert_array_equal(Control(kind="matched", seed=0)("3", "attention_norm", ones), ones)


@pytest.mark.parametrize("kind", ["shuffled", "matched"])
def test_draws(kind):
    """Each seed, layer and tensor has its own, and always the same."""
    weights = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)
    places = [(0, "3", "q"), (1, "3", "q"), (0, "2", "q"), (0, "3", "k"), (0, "final_norm", "scale")]
    drawn = [Control(kind=kind, seed=seed)(part, name, weights) for seed, part, name in places]
    for number, one in enumerate(drawn):
        assert not any(np.array_equal(one, other) for other in drawn[:number])
    np.testing.assert_array_equal(Control(kind=kind, seed=0)("3", "q", weights), drawn[0])


def test_draws_are_those_of_earlier_runs():
    """Runs record a fingerprint of drawn weights: another way to draw them would be other weights."""
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    shuffled, matched = (Control(kind=kind, seed=0)("3", "q", weights) for kind in ("shuffled", "matched"))
    np.testing.assert_array_equal(shuffled, [[4, 5, 1], [2, 0, 3]])
    expected = [[1.596294, -5.134466, 0.020663], [3.378573, -2.149075, 3.171025]]
    np.testing.assert_allclose(matched, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def llama():
    return llama_checkpoints.tiny_llama(0)


@pytest.fixture(scope="module")
def blocks(llama, tmp_path_factory):
    """A folder with four layers of a tiny LLaMA as blocks `float32`, `bfloat16`, and `other`, of another model."""
    folder = tmp_path_factory.mktemp("blocks")
    source = llama_checkpoints.write_safetensors(llama, folder / "source")
    for dtype in DTYPES:
        convert.convert(source, "all", folder / dtype, dtype=dtype)
    other = llama_checkpoints.write_safetensors(llama_checkpoints.tiny_llama(1), folder / "other-source")
    convert.convert(other, "all", folder / "other")
    return folder


@pytest.fixture(scope="module")
def config(few_lidc_root, blocks):
    """The small config with a block, and changes as {field: value}."""
    fields = {"boost.block": str(blocks / "float32"), "boost.layers": (3,)}
    return lambda **changes: small_config(
        few_lidc_root, fields | {name.replace("__", "."): value for name, value in changes.items()}
    )


def made(config):
    """Trained and frozen weights of the start of a run, its fingerprints, and the block's entry in result.json."""
    system = systems.prepare(config, datasets.describe(config))
    params, held, _, fingerprints = start.initialise(system, seed=config.seed, replicated=step.make_mesh()[0])
    return params, held, fingerprints["block"], dict(system.pretrained[0].about), system.title


def loaded(config):
    """The block's weights as they are loaded, its fingerprint, its entry in result.json, and the model's title."""
    system = systems.prepare(config, datasets.describe(config))
    (part,) = system.pretrained
    (weights,), sha256 = part.load(start.placement(part, step.make_mesh()[0]))
    return weights, sha256, dict(part.about), system.title


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_shuffled_block_is_loaded(dtype, config, blocks, llama):
    block = {"boost__block": str(blocks / dtype), "boost__layers": (3, 1), "boost__final_norm": "loaded"}
    held, sha256, about, title = loaded(config(**block, boost__control="shuffled", boost__control_seed=5))
    control = Control(kind="shuffled", seed=5)
    for position, layer in enumerate((3, 1)):
        for name, weight in llama_checkpoints.layer_weights(llama, layer).items():
            expected = control(str(layer), name, np.asarray(weight).astype(DTYPES[dtype]))
            np.testing.assert_array_equal(held["layers"][name][position], expected)
    norm = np.asarray(llama_checkpoints.final_norm_weight(llama)).astype(DTYPES[dtype])
    np.testing.assert_array_equal(np.sort(held["final_norm"]), np.sort(norm))
    _, plain_sha256, plain_about, _ = loaded(config(**block))
    assert sha256 != plain_sha256 == about["loaded_sha256"]
    assert about == {**plain_about, "control": "shuffled", "control_seed": 5, "loaded_sha256": plain_sha256}
    assert "layer 3, 1 of source, its numbers in random places of each tensor (draw 5), frozen" in title


def test_a_run_starts_with_the_changed_block_and_all_else_as_without(config):
    changed = config(boost__control="shuffled")
    params, held, sha256, about, _ = made(changed)
    weights, *expected = loaded(changed)
    assert_same(held["boost"]["block"], weights)
    assert [sha256, about] == expected[:2]
    plain_params, plain_held, plain_sha256, *_ = made(config())
    assert_same(params, plain_params)
    assert plain_sha256 == about["loaded_sha256"] != sha256
    assert jax.tree.structure(held) == jax.tree.structure(plain_held)


def test_the_fingerprint_is_that_of_the_weights(config, blocks):
    """As if they were a block of their own: it depends on the draw, and not on the seed of the run."""
    held, sha256, _, _ = loaded(config(boost__control="matched"))
    manifest = store.read_manifest(blocks / "float32")
    layer = {name: np.asarray(weights[0]) for name, weights in held["layers"].items()}
    as_block = {**manifest.sha256, "3": store.fingerprint(layer)}
    assert sha256 == store.fingerprint_of(dataclasses.replace(manifest, sha256=as_block), (3,), False)
    again = loaded(config(boost__control="matched", seed=7))
    assert again[1] == sha256
    assert_same(again[0], held)
    assert loaded(config(boost__control="matched", boost__control_seed=1))[1] != sha256
    assert loaded(config(boost__control="shuffled"))[1] != sha256


def test_a_trained_block_may_start_from_a_control(config):
    params, held, _, about, title = made(config(boost__control="shuffled", boost__trainable=True))
    assert jax.tree.leaves(held) == []
    assert about["control"] == "shuffled"
    assert "trained too" in title
    assert_same(params["boost"]["block"], loaded(config(boost__control="shuffled"))[0])


def test_a_trainable_random_block_is_trained_and_comes_back(config, images, tmp_path):
    """From real weights: tests/systems/test_arms.py."""
    # "pooled" has the shortest program with gradients.
    changes = {"boost__path": "pooled", "train__max_steps": 1, "eval__bootstrap": 5}
    given = config(boost__block="random", boost__trainable=True, train__epochs=1, **changes)
    start_of_run = on_host(made(given)[0]["boost"]["block"])
    result = train.train_and_evaluate(given, tmp_path / "run")
    assert result["parameters"]["frozen"] == 0
    assert result["block"]["source"] == "random"
    opened = same_predictions(tmp_path / "run", images)
    trained = on_host(opened.weights[0]["boost"]["block"])
    assert trained.keys() == start_of_run.keys()
    assert not any(np.array_equal(trained[path], start_of_run[path]) for path in trained)


@pytest.fixture(scope="module")
def images(few_lidc_root):
    """Of the test split."""
    return data.load("lidcshapes3d", size=28, root=str(few_lidc_root)).splits["test"].images


def same_predictions(folder, images, export_to=None):
    """The run's own, those of the opened run, and of its export, if one is wanted; returns the opened run."""
    opened = open_run.open_run(folder)
    found = opened.predict(images)
    np.testing.assert_allclose(found, finished_runs.own_predictions(folder), rtol=0, atol=1e-6)
    if export_to:
        export.export(opened, export_to)
        np.testing.assert_array_equal(exported.load(export_to).predict(images), found)
    return opened


@pytest.fixture(scope="module")
def lora_run(config, tmp_path_factory):
    """A finished run with LoRA on the shuffled block, and the changes of its config."""
    changes = {"boost__control": "shuffled", "boost__control_seed": 2, "boost__lora_rank": 3, "optim__lr": 3e-3}
    changes |= {"train__epochs": 1, "eval__bootstrap": 5}
    folder = tmp_path_factory.mktemp("lora") / "run"
    return changes, train.train_and_evaluate(config(**changes), folder), folder


def test_a_run_with_lora_on_a_changed_block(lora_run, config, blocks, tmp_path):
    changes, result, folder = lora_run
    _, sha256, about, _ = loaded(config(**changes))
    assert result["block"] == {**json.loads(json.dumps(about)), "sha256": sha256}
    # The same command finds it finished, also where the block has moved.
    moved = shutil.copytree(blocks / "float32", tmp_path / "moved")
    for given in (changes, changes | {"boost__block": str(moved)}):
        assert train.train_and_evaluate(config(**given), folder) == result
    for field, value in (("control_seed", 3), ("control", "matched"), ("lora_rank", 4), ("lora_alpha", 1.0)):
        with pytest.raises(UserError, match=rf"differs in boost\.{field}"):
            train.train_and_evaluate(config(**changes | {f"boost__{field}": value}), folder)
    with pytest.raises(UserError, match="finished run with the block from source"):
        train.train_and_evaluate(config(**changes | {"boost__block": str(blocks / "other")}), folder)
    with pytest.raises(UserError, match="give the folder of the weights that it was trained with"):
        open_run.open_run(folder, moved=[f"boost.block={blocks / 'other'}"])


@pytest.fixture(scope="module")
def opened_lora(lora_run, images, tmp_path_factory):
    """The opened run, and its export."""
    target = tmp_path_factory.mktemp("export") / "export"
    return same_predictions(lora_run[2], images, target), target


def test_lora_is_trained_and_merged(lora_run, opened_lora, config):
    changes, result, _ = lora_run
    opened, target = opened_lora
    trained, held, _ = opened.weights
    lora = trained["boost"]["block"]["layers"]["lora"]
    assert set(lora) == {f"{name}_{part}" for name in MATRICES for part in "ab"}
    assert all(float(np.abs(lora[f"{name}_b"]).max()) > 0 for name in MATRICES)
    assert_same(held["boost"]["block"], loaded(config(**changes))[0])
    assert result["parameters"]["frozen"] == sum(leaf.size for leaf in jax.tree.leaves(held))
    with safetensors.safe_open(target / "weights.safetensors", framework="numpy") as file:
        names = set(file.keys())
    assert {f"merged.{name}" for name in MATRICES} <= names
    assert not [name for name in names if "lora" in name or name.endswith(tuple(f"layers.{m}" for m in MATRICES))]


def test_evaluation_never_uses_old_merged_matrices(opened_lora, images):
    opened, _ = opened_lora
    objective = step.Objective(task="binary-class", classes=2)
    bind = step.make_eval_step(opened.system.graphdef, objective, opened.replicated)
    params, held, _ = opened.weights
    changed = {**params["boost"], "block": jax.tree.map(lambda leaf: leaf + 0.3, params["boost"]["block"])}
    batch = {"image": images[:4], "label": np.zeros((4, 1), np.int32)}
    before, after = (np.asarray(bind(each, held)(batch)[1]) for each in (params, {**params, "boost": changed}))
    np.testing.assert_allclose(before, opened.predict(images[:4], batch_size=4), rtol=0, atol=1e-6)
    assert np.abs(before - after).max() > 1e-4


def test_a_run_with_a_trained_layer(config, images, tmp_path):
    """It needs no block: the width of the LLM's layers, which decides its size, is recorded."""
    given = config(boost__kind="layer", boost__block="", train__epochs=1, train__max_steps=1, eval__bootstrap=5)
    result = train.train_and_evaluate(given, tmp_path / "run")
    assert (result["boost"], result["block"], result["width"]) == ("layer", None, 64)
    assert result["parameters"]["frozen"] == 0
    opened = same_predictions(tmp_path / "run", images, tmp_path / "export")
    assert set(opened.weights[0]["boost"]) == {"layer"}
