"""PneumoLLM with an int8 LLaMA from end to end: loading, training, resuming, and what is said of it."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxboost import systems
from jaxboost.analysis import memory
from jaxboost.convert import convert, placing
from jaxboost.convert.store import load_block
from jaxboost.errors import UserError
from jaxboost.models import frozen
from jaxboost.models.frozen import Quantized
from jaxboost.runs import cross_validation, datasets
from jaxboost.systems import start
from jaxboost.training import program, step
from tests.reference import llama_checkpoints
from tests.scripts import devices, run_script
from tests.training.radiographs import int8_layers, make_run, small, write_radiographs
from tests.training.small_runs import assert_same, on_host, take_steps

# What is replaced here are functions of the host.
pytestmark = pytest.mark.same_programs

MATRICES = {"q", "k", "v", "o", "gate", "up", "down"}


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory):
    return write_radiographs(tmp_path_factory.mktemp("radiographs"))


@pytest.fixture(scope="module")
def block(tmp_path_factory):
    """Four layers as bfloat16."""
    folder = tmp_path_factory.mktemp("block")
    source = llama_checkpoints.write_safetensors(llama_checkpoints.tiny_llama(seed=7), folder / "source")
    convert(source, "all", folder / "block", dtype="bfloat16")
    return folder / "block"


def _by_layer(stack: jax.Array) -> Quantized:
    layers = [placing.int8(stack[number : number + 1]) for number in range(len(stack))]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *layers)


def test_layers_are_quantized_one_by_one(block):
    seen = []

    def quantize(layer):
        seen.append(layer.shape)
        return placing.int8(layer)

    plain = load_block(block, (3, 0, 2), final_norm=True)
    held = load_block(block, (3, 0, 2), final_norm=True, quantize=quantize)
    assert {name for name, weight in held.weights.items() if isinstance(weight, Quantized)} == MATRICES
    assert {shape[0] for shape in seen} == {1}
    # Layer by layer here too: a GPU may round a whole stack otherwise.
    expected = {name: _by_layer(w) if name in MATRICES else w for name, w in plain.weights.items()}
    assert_same(held.weights, expected)
    assert held.fingerprint == plain.fingerprint
    one = load_block(block, (0,), final_norm=False, quantize=placing.int8)
    assert_same(jax.tree.map(lambda leaf: leaf[0], one.weights), jax.tree.map(lambda leaf: leaf[1], held.weights))


@pytest.mark.parametrize("source", ["random", "loaded"])
def test_weights_on_the_device_are_int8_and_stay(radiographs, block, tmp_path, source):
    changes = int8_layers(block) if source == "loaded" else {"llama__weights": "int8"}
    run = make_run(small(radiographs, **changes), tmp_path)
    layers = run.frozen["llama"]["layers"]
    for name in MATRICES:
        assert {shard.data.dtype for shard in layers[name].parts.qvalue.addressable_shards} == {np.dtype(np.int8)}
        assert layers[name].parts.scale.shape == (2, 1, layers[name].shape[-1])
    # The norms are as they come.
    assert layers["mlp_norm"].dtype == (jnp.bfloat16 if source == "loaded" else jnp.float32)
    assert frozen.count(run.frozen) == frozen.count(run.system.frozen)
    before, kept = on_host(run.state.params), on_host(run.frozen)
    losses = take_steps(run, 3)
    after = on_host(run.state.params)
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert {path for path in before if "llama_adapters" in path} <= moved
    for path, leaf in on_host(run.frozen).items():
        np.testing.assert_array_equal(leaf, kept[path], err_msg=path)
    # What the weights were rounded from gives nearly the same.
    plain = make_run(small(radiographs, **{**changes, "llama__weights": "stored"}), tmp_path / "stored")
    unpacked = jax.tree.map(
        lambda weight: frozen.dequantize(weight).astype(jnp.float32),
        layers,
        is_leaf=lambda node: isinstance(node, Quantized),
    )
    for name, weight in plain.frozen["llama"]["layers"].items():
        weight = np.asarray(weight, np.float32)
        step_size = np.asarray(layers[name].parts.scale) if name in MATRICES else np.zeros_like(weight)
        assert np.all(np.abs(np.asarray(unpacked[name]) - weight) <= 0.5001 * step_size), name
    # Before the first change of the trained weights: after it both go their own ways.
    np.testing.assert_allclose(losses[0], take_steps(plain, 1)[0], rtol=1e-2)


def test_a_run_that_is_cut_off_goes_on_to_the_same_end(radiographs, block, tmp_path, monkeypatch):
    config = small(radiographs, **int8_layers(block), data__fold=0)
    cross_validation.train_and_evaluate(config, tmp_path / "whole")
    whole = json.loads((tmp_path / "whole" / "fold0" / "result.json").read_text())
    put, calls = step.put, []

    def put_or_die(*arguments):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return put(*arguments)

    folder = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(step, "put", put_or_die)
        with pytest.raises(KeyboardInterrupt):
            cross_validation.train_and_evaluate(config, folder)
    assert (folder / "fold0" / "checkpoints").exists()
    assert not (folder / "fold0" / "result.json").exists()
    stored = small(radiographs, **int8_layers(block, llama__weights="stored"), data__fold=0)
    with pytest.raises(UserError, match=r"differs in llama\.weights \('int8' there, 'stored' now\)"):
        cross_validation.train_and_evaluate(stored, folder)
    program.forget()  # as in another process
    cross_validation.train_and_evaluate(config, folder)
    result = json.loads((folder / "fold0" / "result.json").read_text())
    for name in ("test", "val", "selection", "llama", "parameters"):
        assert result[name] == whole[name], name
    assert result["llama"]["weights"] == "int8"
    assert result["llama"]["dtype"] == "bfloat16"
    prepared = systems.prepare(stored, datasets.describe(stored))
    assert result["parameters"]["frozen"] == frozen.count(prepared.frozen)
    assert "weights" not in next(part.about for part in prepared.pretrained if part.role == "llama")


SHARDED = """
import json, sys
import pathlib
import numpy as np
from tests.training.radiographs import int8_layers, make_run, small
from tests.training.small_runs import scores_of, take_steps
root, block, folder = map(pathlib.Path, sys.argv[1:])
found = {}
for source in ("random", "loaded"):
    for shard in (False, True):
        changes = int8_layers(block) if source == "loaded" else {"llama__weights": "int8"}
        config = small(root, llama__shard=shard, **changes)
        run = make_run(config, folder / f"{source}{shard}")
        up = run.frozen["llama"]["layers"]["up"].parts
        places = [[x.dtype.name, x.addressable_shards[0].data.shape[-1]] for x in (up.qvalue, up.scale)]
        # Placed, both are the same program.
        if source == "loaded":
            values = [*take_steps(run, 3), scores_of(run, run.state.params, {}, "val")[0]]
        else:
            values = [float(np.square(np.asarray(x, np.float64)).sum()) for x in (up.qvalue, up.scale)]
        found[f"{source} {shard}"] = [places, run.progress.fingerprints["llama"], values]
print(json.dumps(found))
"""


def test_spread_over_devices_gives_the_same(radiographs, block, tmp_path):
    process = run_script("-c", SHARDED, radiographs, block, tmp_path, env=devices(2))
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout.splitlines()[-1])
    for source in ("random", "loaded"):
        (copied, print_of_copied, losses), (spread, print_of_spread, others) = (
            found[f"{source} {shard}"] for shard in (False, True)
        )
        assert copied == [["int8", 96], ["float32", 96]]
        assert spread == [["int8", 48], ["float32", 48]]
        assert print_of_copied == print_of_spread
        np.testing.assert_allclose(others, losses, rtol=1e-4)


def test_memory_is_estimated_as_held(radiographs):
    config = small(radiographs, llama__family="smollm2-135m", llama__layers=(0, 1), llama__weights="int8")
    info = datasets.describe(config)
    prepared = systems.prepare(config, info, with_weights=False)
    llama = start.shapes_in_memory(prepared, jnp.bfloat16)["llama"]
    D, q_width, kv_width, F = 576, 576, 192, 1536
    matrices = 2 * (D * q_width + 2 * D * kv_width + q_width * D + 3 * D * F)
    scales, norms = 2 * (q_width + 2 * kv_width + D + 2 * F + D), (2 * 2 + 1) * D
    assert frozen.count(llama) == matrices + norms
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(llama)) == matrices + 4 * scales + 2 * norms
    held = memory.step_memory_gb(config, info)
    config.llama.weights = "stored"
    stored = memory.step_memory_gb(config, info)
    assert stored["weights"] - held["weights"] == pytest.approx((3 * matrices - 4 * scales) / 1e9, abs=2e-3)


@pytest.mark.parametrize("used", [True, False])
def test_another_word_is_a_mistake(radiographs, tmp_path, used):
    config = small(radiographs, llama__weights="int4", llama__used=used)
    with pytest.raises(UserError, match=r"config field llama\.weights.*int8"):
        cross_validation.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_qwix_is_named(radiographs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(UserError, match=r"need qwix: run this with `uv run --extra int8 \.\.\.`"):
        cross_validation.train_and_evaluate(small(radiographs, llama__weights="int8"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    systems.prepare(small(radiographs), datasets.describe(small(radiographs)))
