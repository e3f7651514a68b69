"""Loading blocks: what is restored where, what is verified, and what is refused."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch

from jaxboost.convert import convert, encoders, summary
from jaxboost.convert.store import fingerprint, fingerprint_of, load_block, read_manifest
from jaxboost.errors import UserError
from tests.convert.changed_manifests import BROKEN, change_text, make_earlier, rewrite, sealed
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
    (block / "layer_00002.safetensors").unlink()
    (block / "final_norm.safetensors").unlink()
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
    (tmp_path / "manifest.json").write_text(sealed(dataclasses.asdict(manifest) | {"config": vars(factors)}))
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
        "`jaxboost convert --source SOURCE --part block --layers 0,1,7 --out DIR`"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        load_block(whole, (0, 1, 7), final_norm=False)
    with pytest.raises(UserError, match=re.escape(message)):
        fingerprint_of(read_manifest(whole), (0, 1, 7), False)
    with pytest.raises(UserError, match="none of them was asked for"):
        load_block(whole, (), final_norm=False)


def test_final_norm_that_is_not_there(model, tmp_path):
    convert(reference.write_safetensors(model, tmp_path / "tiny"), "3", tmp_path / "block", final_norm=False)
    assert not (tmp_path / "block" / "final_norm.safetensors").exists()
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
        lambda text: text.replace('"checksum"', '"digest"'),
    ],
)
def test_broken_manifest(block, change):
    change_text(block, change)
    with pytest.raises(UserError, match=BROKEN):
        read_manifest(block)


def test_other_format_version(block):
    path = block / "manifest.json"
    path.write_text(path.read_text().replace('"format_version": 2', '"format_version": 3'))
    with pytest.raises(UserError, match=r"has the format version 3, this is 2: convert again$"):
        read_manifest(block)


def test_an_earlier_format_is_refused_with_the_command_that_converts_again(model, block, tmp_path):
    make_earlier(block)
    message = (
        f"{block} has the format version 1, this is 2: convert again with `jaxboost convert --source tiny "
        f"--layers 2,0,3 --out {block} --overwrite`"
    )
    for read in (read_manifest, lambda path: load_block(path, (0,), final_norm=False)):
        with pytest.raises(UserError) as caught:
            read(block)
        assert str(caught.value) == message
    convert(reference.write_safetensors(model, tmp_path / "tiny"), "2,0,3", block, overwrite=True)
    assert_layers(load_block(block, None, final_norm=True), model, (2, 0, 3))
    assert all(path.is_file() for path in block.iterdir())


@pytest.mark.parametrize(
    ("change", "command"),
    [
        ({"dtype": "bfloat16", "final_norm": False}, "tiny --layers 2,0,3 --out BLOCK --dtype bfloat16 --nofinal_norm"),
        ({"layers": [0, 1, 2, 3]}, "tiny --layers all --out BLOCK"),
        ({"source": "o/n@main", "kind": "vision"}, "o/n@main --layers 2,0,3 --out BLOCK"),
        ({"source": "o/n", "kind": "vision", "layers": None}, "o/n --layers all --out BLOCK"),
        ({"source": "package:llm/tiny.gguf"}, "package:llm --layers 2,0,3 --out BLOCK"),
        ({"source": "a b; rm"}, "'a b; rm' --layers 2,0,3 --out BLOCK"),
        ({"source": "a\nb", "layers": ["3; rm"]}, "SOURCE --layers LAYERS --out BLOCK"),
        ({"source": ["a"], "layers": {}}, "SOURCE --layers LAYERS --out BLOCK"),
    ],
)
def test_the_command_for_an_earlier_folder(block, change, command):
    make_earlier(block)
    rewrite(block, lambda fields: fields.update(change))
    read = encoders.read_manifest if change.get("kind") == "vision" else read_manifest
    with pytest.raises(UserError) as caught:
        read(block)
    expected = f"--source {command} --overwrite`".replace("BLOCK", str(block))
    assert str(caught.value).endswith(expected)


def test_any_safetensors_reader_opens_a_part(whole, model):
    for part in ("layer_00000", "layer_00002", "layer_00003"):
        expected = reference.layer_weights(model, int(part[-1]))
        found = load_file(whole / f"{part}.safetensors")
        assert found.keys() == expected.keys()
        for name, array in found.items():
            np.testing.assert_array_equal(array, expected[name])


def test_bfloat16(model, tmp_path):
    convert(reference.write_safetensors(model, tmp_path / "tiny"), "1", tmp_path / "half", dtype="bfloat16")
    weights = load_block(tmp_path / "half", None, final_norm=False).weights
    stored = load_torch(tmp_path / "half" / "layer_00001.safetensors")
    for name, expected in reference.layer_weights(model, 1).items():
        assert weights[name].dtype == jax.numpy.bfloat16
        np.testing.assert_array_equal(np.asarray(weights[name][0]), expected.astype(jax.numpy.bfloat16))
        np.testing.assert_array_equal(stored[name].float().numpy(), np.asarray(weights[name][0], np.float32))


def test_the_digests_are_those_of_the_first_release(tmp_path):
    """Finished runs refer to them: the storage may change, the digest of the same weights may not."""
    write_simple_checkpoint(tmp_path / "simple")
    manifest = convert(str(tmp_path / "simple"), "all", tmp_path / "block")
    assert dict(manifest.sha256) == {
        "0": "06f7f41ae7ad885a109e0b7b05992003dbd843a26b032237cbbe223aeaaf2359",
        "1": "0216d5a7eac8cc1ec198ea4672bc3d0cec3d01f545f352adc559dbd9eeb638b3",
        "final_norm": "b34e14f0f8c9eba2e0d22375cbfecc864c3f5777ddc7483362627314436f3eab",
    }
    assert fingerprint_of(manifest, (1, 0), True) == "e7d08d2dedd466eb2e227276de17c5c47c5ba75bf08e55b0f483b4c136d25100"
    half = convert(str(tmp_path / "simple"), "1", tmp_path / "half", dtype="bfloat16", final_norm=False)
    assert dict(half.sha256) == {"1": "bacaead48f38f5ff8f0e37267f9eada915f998baed2f084595248e5b4b87e0cb"}


def write_simple_checkpoint(folder):
    """Two layers whose weights are multiples of 1/64, by their names in alphabetical order."""
    folder.mkdir()
    config = {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
    config |= {"intermediate_size": 12, "num_hidden_layers": 2, "rms_norm_eps": 1e-5}
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.norm.weight": (8,)}
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}{name}_layernorm.weight": (8,) for name in ("input", "post_attention")}
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": (8, 8) for name in "qo"}
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": (4, 8) for name in "kv"}
        shapes |= {f"{prefix}mlp.{name}_proj.weight": (12, 8) for name in ("gate", "up")}
        shapes[f"{prefix}mlp.down_proj.weight"] = (8, 12)
    arrays, start = {}, 0
    for name, shape in sorted(shapes.items()):
        size = int(np.prod(shape))
        arrays[name] = (np.arange(start, start + size, dtype=np.float32) / 64).reshape(shape)
        start += size
    save_file(arrays, folder / "model.safetensors")


def damages():
    def flip(path):
        contents = bytearray(path.read_bytes())
        contents[len(contents) // 2] ^= 1
        path.write_bytes(contents)

    def in_header(path, old, new):
        contents = path.read_bytes()
        assert old in contents[: len(contents) // 2]
        path.write_bytes(contents.replace(old, new, 1))

    def swap_arrays(path):
        save_file(dict(zip(sorted(found := load_file(path)), reversed(list(found.values())), strict=True)), path)

    return {
        "flipped": flip,
        "last byte": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 128])),
        "truncated": lambda path: path.write_bytes(path.read_bytes()[:-10]),
        "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
        "emptied": lambda path: path.write_bytes(b""),
        "deleted": lambda path: path.unlink(),
        "header of all memory": lambda path: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:]),
        "no header": lambda path: path.write_bytes(bytes(8) + path.read_bytes()[8:]),
        "another dtype": lambda path: in_header(path, b'"F32"', b'"I32"'),
        "another offset": lambda path: in_header(path, b'"data_offsets":[0,', b'"data_offsets":[4,'),
        "another name": lambda path: in_header(path, b'"dtype"', b'"DTYPE"'),
        "nulls": lambda path: path.write_bytes(bytes(path.stat().st_size)),
        "swapped": swap_arrays,
        "a folder": lambda path: (path.unlink(), path.mkdir()),
    }


@pytest.mark.parametrize(
    ("part", "damage"),
    # The norm is one array alone.
    [(part, damage) for part in ("layer_00000", "layer_00003") for damage in damages()]
    + [("final_norm", damage) for damage in damages() if damage != "swapped"],
)
def test_altered_parts(block, part, damage, capfd):
    path = block / f"{part}.safetensors"
    damages()[damage](path)
    with pytest.raises(UserError) as caught:
        load_block(block, None, final_norm=True)
    if damage == "a folder":
        assert str(caught.value).startswith(f"{path} is not a regular file")
    elif damage == "deleted":
        assert str(caught.value) == f"{path} is missing: copy the folder again, or convert again"
    else:
        assert str(caught.value) == f"{path} is altered or truncated: convert again"
    # Nor does a library complain on its own.
    assert "Traceback" not in capfd.readouterr().err


def test_a_file_that_changes_later_does_not_change_what_was_loaded(block, model):
    loaded = load_block(block, (0,), final_norm=True)
    for path in block.glob("*.safetensors"):
        with path.open("r+b") as file:
            file.write(b"\xff" * path.stat().st_size)
    assert_layers(loaded, model, (0,))
    np.testing.assert_array_equal(np.asarray(loaded.final_norm), reference.final_norm_weight(model))


def test_a_part_that_the_system_cannot_read(block, monkeypatch):
    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(np, "memmap", broken)
    with pytest.raises(UserError, match=r"layer_00000\.safetensors cannot be read: Input/output error"):
        load_block(block, (0,), final_norm=False)


def test_conversion_needs_no_device(model, tmp_path):
    source = reference.write_safetensors(model, tmp_path / "tiny")
    program = (
        "import sys; from jaxboost.convert import convert; convert(sys.argv[1], 'all', sys.argv[2]); "
        "from jax._src import xla_bridge; assert not xla_bridge._backends; assert 'orbax' not in sys.modules"
    )
    # A platform that is not there: whatever asked for a device would fail.
    environment = os.environ | {"JAX_PLATFORMS": "absent"}
    command = [sys.executable, "-c", program, source, str(tmp_path / "block")]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr
    assert_layers(load_block(tmp_path / "block", None, final_norm=True), model, (0, 1, 2, 3))


def test_values_of_another_block(whole, block, tmp_path):
    other = reference.write_safetensors(reference.tiny_llama(seed=8), tmp_path / "other")
    convert(other, "0", tmp_path / "other-block")
    shutil.copy(tmp_path / "other-block" / "layer_00000.safetensors", block)
    with pytest.raises(UserError, match=r"layer_00000\.safetensors is altered or truncated: convert again"):
        load_block(block, (0,), final_norm=False)
    load_block(block, (3,), final_norm=False)


def test_precision_of_the_manifest_must_be_that_of_the_values(block):
    rewrite(block, lambda fields: fields.update(dtype="bfloat16"))
    with pytest.raises(UserError, match="is altered or truncated: convert again"):
        load_block(block, (0,), final_norm=False)
