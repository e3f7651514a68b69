"""Loading blocks: what is restored where, what is verified, and what is refused."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxboost.convert import convert, summary
from jaxboost.convert.store import fingerprint, fingerprint_of, load_block, read_manifest
from jaxboost.errors import UserError
from tests.convert.changed_manifests import rewrite
from tests.reference import llama_checkpoints as reference


@pytest.fixture(scope="module")
def model():
    return reference.tiny_llama(seed=7)


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """A block of three layers in an order of their own, with the final norm."""
    folder = tmp_path_factory.mktemp("store")
    convert(reference.write_safetensors(model, folder / "tiny"), "2,0,3", folder / "block")
    return folder / "block"


@pytest.fixture
def block(whole, tmp_path):
    """A copy to damage."""
    return shutil.copytree(whole, tmp_path / "block")


def assert_layers(block, model, layers):
    assert block.layers == layers
    for position, layer in enumerate(layers):
        for weight, expected in reference.layer_weights(model, layer).items():
            assert block.weights[weight].shape == (len(layers), *expected.shape)
            np.testing.assert_array_equal(np.asarray(block.weights[weight][position]), expected)


def test_all_layers_in_the_order_of_the_manifest(whole, model):
    block = load_block(whole, None, final_norm=True)
    assert_layers(block, model, (2, 0, 3))
    np.testing.assert_array_equal(np.asarray(block.final_norm), reference.final_norm_weight(model))


@pytest.mark.parametrize("layers", [(0,), (3, 2)])
def test_some_layers_without_the_norm(whole, model, layers):
    block = load_block(whole, layers, final_norm=False)
    assert_layers(block, model, layers)
    assert block.final_norm is None


def test_only_the_wanted_layers_are_read(block, model):
    shutil.rmtree(block / "layer_00002")
    shutil.rmtree(block / "final_norm")
    assert_layers(load_block(block, (0, 3), final_norm=False), model, (0, 3))


def test_default_placement(whole):
    block = load_block(whole, None, final_norm=True)
    for array in (*block.weights.values(), block.final_norm):
        assert array.devices() == {jax.local_devices()[0]}


def test_placed_over_several_devices(whole):
    program = f"""
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
import numpy as np
from jaxboost.convert.store import load_block
mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
replicated, columns = jax.NamedSharding(mesh, jax.P()), jax.NamedSharding(mesh, jax.P(None, None, "data"))
asked = []
def split(shape):
    asked.append(shape)
    return columns if len(shape) == 3 else replicated
for layers in ((0,), (3, 2)):
    plain = load_block({str(whole)!r}, layers, final_norm=True)
    for placement in (lambda shape: replicated, split):
        placed = load_block({str(whole)!r}, layers, final_norm=True, placement=placement)
        for name, expected in plain.weights.items():
            found = placed.weights[name]
            assert found.sharding.is_equivalent_to(placement(found.shape), found.ndim), name
            assert len(found.addressable_shards) == 2
            for shard in found.addressable_shards:
                np.testing.assert_array_equal(np.asarray(shard.data), np.asarray(expected)[shard.index])
        assert placed.weights["q"].addressable_shards[0].data.shape[-1] == (32 if placement is split else 64)
        assert placed.final_norm.sharding.is_equivalent_to(replicated, 1)
        assert placed.fingerprint == plain.fingerprint
# Only shapes of what is returned.
shapes = ((64,), (64, 64), (64, 32), (64, 96), (96, 64))
assert set(asked) == {{(n, *shape) for n in (1, 2) for shape in shapes}} | {{(64,)}}, asked
print("checked")
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "checked", run.stderr


def test_the_manifest_alone_gives_the_fingerprint(whole):
    manifest = read_manifest(whole)
    prints = set()
    for layers in (None, (2,), (0,), (0, 2), (2, 0)):
        for final_norm in (True, False):
            expected = load_block(whole, layers, final_norm=final_norm).fingerprint
            assert fingerprint_of(manifest, layers, final_norm) == expected
            assert re.fullmatch("[0-9a-f]{64}", expected)
            prints.add(expected)
    for constants in ({"eps": 1e-3}, {"rope_base": 1.0}, {"rope_factors": (2.0,) * 8}):
        altered = dataclasses.replace(manifest, config=dataclasses.replace(manifest.config, **constants))
        prints.add(fingerprint_of(altered, (2,), True))
    assert len(prints) == 13
    assert fingerprint_of(manifest, (2, 0, 3), True) == fingerprint_of(manifest, None, True)


def test_fingerprint_depends_on_everything_but_the_order():
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(2, np.float32)
    base = fingerprint({"a": a, "b": b})
    assert fingerprint({"b": b, "a": a.copy(order="F")}) == base
    others = [
        {"a": a, "c": b},
        {"a": a.reshape(3, 2), "b": b},
        {"a": a.astype(np.int32), "b": b},
        {"a": a.view(np.int32), "b": b},
        {"a": a + 1, "b": b},
        {"a": a},
    ]
    prints = {fingerprint(other) for other in others}
    assert len(prints) == len(others)
    assert base not in prints


def test_manifest_round_trip(whole, tmp_path):
    manifest = read_manifest(whole)
    factors = dataclasses.replace(manifest.config, rope_factors=tuple(1 + 1 / n for n in range(1, 9)))
    (tmp_path / "manifest.json").write_text(json.dumps(dataclasses.asdict(manifest) | {"config": vars(factors)}))
    again = read_manifest(str(tmp_path))
    assert again == dataclasses.replace(manifest, config=factors)
    assert isinstance(again.config.rope_factors, tuple)
    assert isinstance(again.layers, tuple)


def test_summary(whole):
    text = summary(read_manifest(whole), whole)
    assert "source  tiny (safetensors)" in text
    assert "layers  2, 0, 3 of 0 to 3, and the final norm" in text
    assert re.search(r"wrote   0\.\d MiB to ", text)
    assert f"--config.boost.block={whole}" in text


def test_layer_that_is_not_there(whole):
    message = (
        "the block from tiny holds the layers 2,0,3, not layer 1, 7: convert what is needed with "
        "`python convert_weights.py --source SOURCE --layers 0,1,7 --out DIR`"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        load_block(whole, (0, 1, 7), final_norm=False)
    with pytest.raises(UserError, match=re.escape(message)):
        fingerprint_of(read_manifest(whole), (0, 1, 7), False)
    with pytest.raises(UserError, match="none of them was asked for"):
        load_block(whole, (), final_norm=False)


def test_final_norm_that_is_not_there(model, tmp_path):
    convert(reference.write_safetensors(model, tmp_path / "tiny"), "3", tmp_path / "block", final_norm=False)
    assert not (tmp_path / "block" / "final_norm").exists()
    assert load_block(tmp_path / "block", None, final_norm=False).final_norm is None
    with pytest.raises(UserError, match="was converted without the final norm: convert again without --nofinal_norm"):
        load_block(tmp_path / "block", None, final_norm=True)


def test_no_block(tmp_path):
    with pytest.raises(
        UserError, match=re.escape(f"there is no block at {tmp_path} (no manifest.json): make one with")
    ):
        load_block(tmp_path, None, final_norm=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"width"', '"breadth"'),
        lambda text: text.replace('"dtype": "float32"', '"dtype": "float8"'),
        lambda text: text.replace('"source_format"', '"format"'),
        lambda text: text.replace('"final_norm": true', '"final_norm": false'),
        lambda text: text.replace('"layers": [', '"layers": [1,'),
    ],
)
def test_broken_manifest(block, change):
    path = block / "manifest.json"
    text = path.read_text()
    path.write_text(change(text))
    assert path.read_text() != text
    with pytest.raises(
        UserError, match=r"manifest\.json (is damaged or of another version \(.*\)|was changed after .*): convert again"
    ):
        read_manifest(block)


def test_other_format_version(block):
    path = block / "manifest.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(UserError, match="has the format version 2, this is 1: convert again"):
        read_manifest(block)


def damages():
    def flip(path):
        contents = bytearray(path.read_bytes())
        contents[len(contents) // 2] ^= 1
        path.write_bytes(contents)

    return {
        "flipped": flip,
        "truncated": lambda path: path.write_bytes(path.read_bytes()[:-10]),
        "emptied": lambda path: path.write_bytes(b""),
        "deleted": lambda path: path.unlink(),
    }


@pytest.mark.parametrize("damage", damages())
@pytest.mark.parametrize("part", ["layer_00000/q/0.0", "layer_00003/mlp_norm/0", "final_norm/scale/0"])
def test_altered_values(block, part, damage, capfd):
    damages()[damage](block / part)
    with pytest.raises(UserError) as caught:
        load_block(block, None, final_norm=True)
    assert str(caught.value) == f"{block / part.split('/')[0]} is altered or truncated: convert again"
    # Nor does a library complain on its own.
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("part", ["layer_00000", "layer_00000/q", "layer_00000/q/.zarray", "final_norm"])
def test_missing_parts(block, part):
    path = block / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match="is altered or truncated: convert again"):
        load_block(block, None, final_norm=True)


def test_values_of_another_block(whole, block, tmp_path):
    other = reference.write_safetensors(reference.tiny_llama(seed=8), tmp_path / "other")
    convert(other, "0", tmp_path / "other-block")
    shutil.rmtree(block / "layer_00000")
    shutil.copytree(tmp_path / "other-block" / "layer_00000", block / "layer_00000")
    with pytest.raises(UserError, match="layer_00000 is altered or truncated: convert again"):
        load_block(block, (0,), final_norm=False)
    load_block(block, (3,), final_norm=False)


def test_precision_of_the_manifest_must_be_that_of_the_values(block):
    rewrite(block, lambda fields: fields.update(dtype="bfloat16"))
    with pytest.raises(UserError, match="is altered or truncated: convert again"):
        load_block(block, (0,), final_norm=False)
