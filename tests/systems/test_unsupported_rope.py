"""A block whose checkpoint rotates in a way that is not supported: used without rotation, refused with it."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from configs import pneumollm
from jaxboost import systems
from jaxboost.convert import convert, store
from jaxboost.data.dataset import DatasetInfo
from jaxboost.errors import UserError
from jaxboost.models.llama import LlamaBlock
from jaxboost.models.rngs import make_rngs
from tests.reference import llama_checkpoints as reference
from tests.training.small_runs import small_config

INFO = DatasetInfo("nodulemnist3d", "binary-class", ("a", "b"), 1, 3, 28, {}, "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Blocks of the same weights: `plain`, and `yarn` whose config.json has a scaling that is not known."""
    folder, model = tmp_path_factory.mktemp("rope"), reference.tiny_llama(seed=7, num_hidden_layers=1)
    convert(reference.write_safetensors(model, folder / "source"), "0", folder / "plain")
    path = folder / "source" / "config.json"
    scaling = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 50000.0, "original_max_position_embeddings": 32}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_parameters": scaling}))
    convert(str(folder / "source"), "0", folder / "yarn")
    return folder


def prepared(folder, tmp_path, **changes):
    changes = {"boost.block": str(folder / "yarn"), "boost.family": ""} | changes
    return systems.prepare(small_config(tmp_path, changes), INFO)


def test_manifest_and_fingerprint(folder):
    plain, yarn = (store.read_manifest(folder / name) for name in ("plain", "yarn"))
    assert yarn.config == dataclasses.replace(plain.config, rope_unsupported="the rotary scaling 'yarn'")
    assert yarn.sha256 == plain.sha256
    assert store.fingerprint_of(yarn, None, True) != store.fingerprint_of(plain, None, True)


def test_without_rotation_it_is_the_same_layer(folder):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 64)), jnp.float32)
    outputs = []
    for name in ("plain", "yarn"):
        block = store.load_block(folder / name, None, final_norm=True)
        model = LlamaBlock(block.manifest.config, depth=1, dtype=jnp.float32, rngs=make_rngs(0))
        for weight, array in block.weights.items():
            getattr(model.layers, weight).set_value(array)
        outputs.append(model(x, rope=False, causal=True, mask=None))
        if name == "yarn":
            with pytest.raises(ValueError, match="these layers cannot be rotated: the rotary scaling 'yarn' is not"):
                model(x, rope=True, causal=True, mask=None)
    np.testing.assert_array_equal(*outputs)


def test_rllm(folder, tmp_path):
    assert prepared(folder, tmp_path).boost
    with pytest.raises(UserError, match=r"boost\.block: its layers cannot use .*'yarn'.*: set boost\.rope to F"):
        prepared(folder, tmp_path, **{"boost.rope": True})
    # No layer, no rotation.
    prepared(folder, tmp_path, **{"boost.rope": True, "boost.kind": "none"})


def test_pneumollm(folder):
    config = pneumollm.get_config()
    changes = {"pneumollm.vision": "random", "llama.block": str(folder / "yarn"), "llama.family": ""}
    config.update_from_flattened_dict({"model.backbone": "clip_vit_b32", "llama.layers": (), **changes})
    with pytest.raises(UserError, match=r"llama\.block: its layers cannot use .*: take a block of another che"):
        systems.prepare(config, DatasetInfo("folder", "binary-class", ("a", "b"), 3, 2, 224, {}, ""))
