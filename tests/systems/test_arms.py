"""The arms of the paper and the switches of the block: each reaches the weights and the step that it should."""

import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxboost import convert
from jaxboost.errors import UserError
from jaxboost.models import classifier, frozen
from jaxboost.models.backbones import BACKBONES
from jaxboost.models.rngs import make_rngs
from jaxboost.runs import assembly, train
from jaxboost.tasks import TASKS
from jaxboost.training import step
from tests.reference import llama_checkpoints
from tests.training.small_runs import assert_same, on_host, small_config, take_steps


@pytest.fixture(scope="module")
def llama():
    return llama_checkpoints.tiny_llama(0)


@pytest.fixture(scope="module")
def blocks(llama, tmp_path_factory):
    """A folder with the four layers of a tiny LLaMA as blocks `float32` and `bfloat16`."""
    folder = tmp_path_factory.mktemp("blocks")
    source = llama_checkpoints.write_safetensors(llama, folder / "source")
    for dtype in ("float32", "bfloat16"):
        convert.convert(source, "all", folder / dtype, dtype=dtype)
    return folder


@pytest.fixture
def make_run(few_lidc_root, tmp_path):
    """Makes a run of the small config with changes, as {field: value}."""
    return lambda changes: assembly.assemble(small_config(few_lidc_root, changes), tmp_path / "run")


def _with_block(blocks, **changes):
    fields = {name.replace("__", "."): value for name, value in changes.items()}
    return {"boost.block": str(blocks / "float32"), "boost.layers": (3,), **fields}


def _dtypes(tree):
    return {leaf.dtype.name for leaf in jax.tree.leaves(tree)}


def _scores(run):
    """Probabilities of the first training batch."""
    batch = step.put(next(run.feed.iterator), run.program.by_batch)
    return np.asarray(run.program.bind_eval_step(run.state.params, run.frozen)(batch)[1])


def test_trainable_block_starts_from_the_pretrained_weights(make_run, blocks, llama):
    run = make_run(_with_block(blocks, boost__trainable=True, boost__final_norm="loaded"))
    assert jax.tree.leaves(run.frozen) == []
    block = on_host(run.state.params["boost"]["block"])
    wanted = {f"['layers']['{name}']": w[None] for name, w in llama_checkpoints.layer_weights(llama, 3).items()}
    wanted["['final_norm']"] = llama_checkpoints.final_norm_weight(llama)
    assert_same(block, wanted)
    assert np.isfinite(take_steps(run, 2)).all()
    after = on_host(run.state.params["boost"]["block"])
    assert not any(np.array_equal(after[path], block[path]) for path in block)
    # Adam moves no weight further than about its rate a step.
    assert all(np.abs(after[path] - block[path]).max() < 5e-3 for path in block)


def test_trainable_block_is_in_the_checkpoint(few_lidc_root, blocks, llama, tmp_path, caplog):
    changes = _with_block(blocks, boost__trainable=True)
    with caplog.at_level(logging.INFO, logger="jaxboost"):
        result = train.train_and_evaluate(small_config(few_lidc_root, changes), tmp_path / "run")
    assert "layer 3 of source, trained too" in caplog.text
    assert result["parameters"]["frozen"] == 0
    assert result["block"]["layers"] == [3]
    pretrained = llama_checkpoints.layer_weights(llama, 3)
    with ocp.StandardCheckpointer() as checkpointer:
        best = checkpointer.restore((tmp_path / "run/checkpoints/best/2/params").absolute())
        latest = checkpointer.restore((tmp_path / "run/checkpoints/latest/2/state").absolute())["params"]
    for params in (best, latest):
        saved = params["boost"]["block"]["layers"]
        assert saved.keys() == pretrained.keys()
        for name, weight in pretrained.items():
            assert saved[name].shape == (1, *weight.shape)
            assert not np.array_equal(saved[name][0], weight)
            np.testing.assert_allclose(saved[name][0], weight, atol=5e-3)


def test_final_norm_loaded_and_ones(make_run, blocks, llama):
    runs = {kind: make_run(_with_block(blocks, boost__final_norm=kind)) for kind in ("ones", "loaded")}
    norms = {kind: np.asarray(run.frozen["boost"]["block"]["final_norm"]) for kind, run in runs.items()}
    np.testing.assert_array_equal(norms["ones"], np.ones(64, np.float32))
    np.testing.assert_array_equal(norms["loaded"], llama_checkpoints.final_norm_weight(llama))
    assert runs["ones"].progress.fingerprints != runs["loaded"].progress.fingerprints
    assert_same(runs["ones"].state.params, runs["loaded"].state.params)
    assert np.abs(_scores(runs["ones"]) - _scores(runs["loaded"])).max() > 1e-5


def test_several_layers_run_in_the_given_order(make_run, blocks, llama):
    runs = {layers: make_run(_with_block(blocks, boost__layers=layers)) for layers in ((0, 2), (2, 0))}
    for layers, run in runs.items():
        held = run.frozen["boost"]["block"]["layers"]
        weights = [llama_checkpoints.layer_weights(llama, layer) for layer in layers]
        assert_same(held, {name: np.stack([layer[name] for layer in weights]) for name in weights[0]})
    one, other = runs.values()
    assert one.progress.fingerprints != other.progress.fingerprints
    assert_same(one.state.params, other.state.params)
    assert np.abs(_scores(one) - _scores(other)).max() > 1e-5
    assert np.isfinite(take_steps(one, 2)).all()


def test_bfloat16_computation_keeps_float32_weights(make_run, blocks):
    runs = {dtype: make_run(_with_block(blocks, model__dtype=dtype)) for dtype in ("float32", "bfloat16")}
    half, full = runs["bfloat16"], runs["float32"]
    assert_same(half.state.params, full.state.params)
    ours, theirs = _scores(half), _scores(full)
    assert ours.dtype == np.float32
    assert not np.array_equal(ours, theirs)
    np.testing.assert_allclose(ours, theirs, atol=0.02)
    before = on_host(half.state.params)
    losses = take_steps(half, 2)
    np.testing.assert_allclose(losses, take_steps(full, 2), atol=0.05)
    assert _dtypes(half.state.params) == {"float32"}
    assert _dtypes(half.frozen) == {"float32"}
    assert _dtypes(half.state.opt_state) == {"float32", "int32"}
    after = on_host(half.state.params)
    assert not any(np.array_equal(after[path], before[path]) for path in before)


def test_bfloat16_block_stays_bfloat16_and_trains(make_run, blocks, llama):
    run = make_run(_with_block(blocks, boost__block=str(blocks / "bfloat16")))
    layers = run.frozen["boost"]["block"]["layers"]
    assert _dtypes(layers) == {"bfloat16"}
    for name, weight in llama_checkpoints.layer_weights(llama, 3).items():
        np.testing.assert_array_equal(np.asarray(layers[name][0]), weight.astype(jnp.bfloat16))
    before, params = on_host(run.frozen), on_host(run.state.params)
    assert np.isfinite(take_steps(run, 2)).all()
    assert_same(on_host(run.frozen), before)
    after = on_host(run.state.params)
    assert not any(np.array_equal(after[path], params[path]) for path in params)


def test_bfloat16_block_that_is_trained_becomes_float32(make_run, blocks):
    run = make_run(_with_block(blocks, boost__block=str(blocks / "bfloat16"), boost__trainable=True))
    assert _dtypes(run.state.params) == {"float32"}
    before = on_host(run.state.params["boost"]["block"])
    assert np.isfinite(take_steps(run, 2)).all()
    after = on_host(run.state.params["boost"]["block"])
    # A step of 5e-4 would be lost on a bfloat16 norm of about 1.
    assert not any(np.array_equal(after[path], before[path]) for path in before)


@pytest.mark.parametrize("kind", ["none", "mlp", "mlp_out"])
def test_arms_without_a_layer_need_no_block(kind, few_lidc_root, tmp_path):
    changes = {"boost.kind": kind, "boost.block": "", "train.max_steps": 1}
    result = train.train_and_evaluate(small_config(few_lidc_root, changes), tmp_path / "run")
    assert result["boost"] == kind
    assert result["block"] is None
    assert result["parameters"]["frozen"] == 0
    # Without the adapters F_E and F_D, or with them: 2 x 128 x 64.
    bare = small_config(few_lidc_root, {"boost.kind": "none"})
    adapters = result["parameters"]["trainable"] - frozen.count(assembly.assemble(bare, tmp_path).system.params)
    assert adapters == (0 if kind == "none" else 2 * 128 * 64)


@pytest.mark.parametrize("family", ["smollm2-135m", ""])
def test_block_of_another_family_has_its_own_shapes(family, make_run, blocks):
    run = make_run(_with_block(blocks, boost__family=family))
    assert run.system.frozen["boost"]["block"]["final_norm"].shape == (64,)


def test_block_without_the_final_norm(make_run, blocks, tmp_path):
    convert.convert(str(blocks / "source"), "3", tmp_path / "block", final_norm=False)
    changes = _with_block(blocks, boost__block=str(tmp_path / "block"))
    with pytest.raises(UserError, match="without the final norm"):
        make_run(changes | {"boost.final_norm": "loaded"})
    assert float(make_run(changes).frozen["boost"]["block"]["final_norm"].min()) == 1


def test_altered_block_is_refused(make_run, blocks, tmp_path):
    block = shutil.copytree(blocks / "float32", tmp_path / "block")
    shutil.copy(block / "layer_00002.safetensors", block / "layer_00003.safetensors")
    with pytest.raises(UserError, match="is altered or truncated: convert again"):
        make_run(_with_block(blocks, boost__block=str(block)))


@pytest.mark.parametrize("backbone", ["vit_tiny", "vit3d_tiny", "vivit_tiny"])
def test_remat_changes_neither_loss_nor_gradients(backbone):
    rng = np.random.default_rng(0)
    shape = (2, *(28,) * BACKBONES[backbone].ndim, 1)
    batch = {"image": rng.integers(0, 256, shape).astype(np.uint8), "label": np.array([[0], [1]], np.int32)}
    found, programs = {}, {}
    for remat in (False, True):
        model = classifier.build(
            backbone,
            boost=classifier.BoostSpec(kind="none"),
            classes=2,
            image_size=28,
            mean=(0.0,),
            std=(1.0,),
            dtype=jnp.float32,
            remat=remat,
            rngs=make_rngs(0),
        )
        graphdef, params, none, _ = frozen.split(model)

        def loss_fn(params, graphdef=graphdef, none=none):
            logits = frozen.merge(graphdef, params, none)(batch["image"])
            targets = jax.nn.one_hot(batch["label"][:, 0], 2)
            return TASKS["binary-class"].losses(logits, targets).mean()

        gradient = jax.jit(jax.value_and_grad(loss_fn)).trace(params)
        programs[remat] = str(gradient.jaxpr)
        found[remat] = on_host(gradient.lower().compile()(params))
    assert max(np.abs(leaf).max() for leaf in found[False].values()) > 0.01
    # More is computed again.
    assert programs[True].count("dot_general") > programs[False].count("dot_general")
    for path, leaf in found[False].items():
        np.testing.assert_allclose(found[True][path], leaf, rtol=1e-6, atol=1e-6, err_msg=path)
