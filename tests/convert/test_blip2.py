"""The parts of a BLIP-2 checkpoint: their values, which tensors are read, and what is refused in one line."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file

from jaxboost.convert import convert, encoders, qformers, store, summary
from jaxboost.convert.formats.huggingface import HuggingFaceTensors
from jaxboost.convert.placing import first_device
from jaxboost.errors import UserError
from jaxboost.models.frozen import merge, split
from jaxboost.models.qformer import QFormer
from jaxboost.models.rngs import make_rngs
from tests.convert import blip2_checkpoints as blip2
from tests.models.parity import assert_close, cotangent, normal

TOKENS = normal((2, 7, blip2.vision.WIDTH), 3)


@pytest.fixture(scope="module")
def model():
    return blip2.tiny()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """Of a source and of its converted parts."""
    folder = tmp_path_factory.mktemp("blip2")
    model.save_pretrained(folder / "source")
    for part in ("encoder", "qformer", "block"):
        convert(str(folder / "source"), "all", folder / part, part=part)
    return folder


@pytest.fixture
def changed(folder, tmp_path):
    """Writes a copy of the source with other entries of config.json and other tensors (None: left out)."""

    def write(tensors=(), **config):
        source = shutil.copytree(folder / "source", tmp_path / "source")
        values = json.loads((source / "config.json").read_text()) | config
        (source / "config.json").write_text(json.dumps(values))
        state = load_file(source / "model.safetensors") | dict(tensors)
        save_file({name: array for name, array in state.items() if array is not None}, source / "model.safetensors")
        return str(source)

    return write


def loaded(folder):
    """The structure of the converted Q-Former, and its weights."""
    arguments = qformers.read_manifest(folder / "qformer").arguments
    graphdef, params, _, _ = split(nnx.eval_shape(lambda: QFormer(**arguments, dtype=jnp.float32, rngs=make_rngs(0))))
    weights = qformers.load_weights(folder / "qformer", first_device)
    assert jax.tree.map(jnp.shape, weights) == jax.tree.map(lambda leaf: leaf.shape, params)
    return graphdef, weights


def test_qformer_equals_transformers(folder, model):
    """All queries, and the gradients of the queries and of the image's tokens."""
    graphdef, weights = loaded(folder)

    def run(weights, tokens):
        result = merge(graphdef, weights, {}).read(tokens)
        return (result * cotangent(result.shape)).sum(), result

    (_, ours), gradients = jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))(weights, TOKENS)
    assert_close(ours, blip2.read(model, TOKENS))
    tokens = torch.tensor(TOKENS, requires_grad=True)
    result = model.qformer(model.query_tokens.expand(2, -1, -1), encoder_hidden_states=tokens).last_hidden_state
    (result * torch.from_numpy(cotangent(tuple(result.shape)))).sum().backward()
    assert_close(gradients[1], tokens.grad)
    assert_close(gradients[0]["queries"], model.query_tokens.grad[0])
    model.zero_grad()


def test_dropout_is_of_training_alone(folder):
    graphdef, weights = loaded(folder)
    run = jax.jit(lambda key: merge(graphdef, weights, {})(TOKENS, key=key))
    plain, noisy = np.asarray(run(None)), np.asarray(jax.vmap(run)(jax.random.split(jax.random.key(0), 40)))
    assert plain.shape == (2, blip2.QUERIES, blip2.LLM_WIDTH)
    distances = np.abs(noisy - plain).mean((1, 2, 3))
    assert distances.min() > 1e-2 * np.abs(plain).mean()
    assert np.abs(noisy.mean(0) - plain).mean() < 0.6 * distances.mean()


def test_parts(folder):
    encoder, block = encoders.read_manifest(folder / "encoder"), store.read_manifest(folder / "block")
    assert (encoder.arguments["width"], encoder.arguments["depth"]) == (blip2.vision.WIDTH, 2)
    assert (block.layers, block.config.width, block.config.rotary) == ((0, 1), blip2.LLM_WIDTH, False)
    manifest = qformers.read_manifest(folder / "qformer")
    assert manifest.arguments == {
        "queries": blip2.QUERIES,
        "width": blip2.QUERY_WIDTH,
        "depth": 2,
        "heads": 2,
        "mlp_width": 24,
        "eps": 2e-3,
        "activation": "gelu",
        "cross_every": 2,
        "context_width": blip2.vision.WIDTH,
        "output_width": blip2.LLM_WIDTH,
    }
    assert "a Q-Former with 4 queries of width 16, for an encoder of width 24" in summary(manifest, folder / "qformer")
    before = qformers.fingerprint_at(folder / "qformer")
    assert before != store.fingerprint_of(block, None, True)


@pytest.mark.parametrize(
    ("part", "beginnings"),
    [
        ("encoder", ("vision_model.",)),
        ("block", ("language_model.model.decoder.layers.", "language_model.model.decoder.final_layer_norm.")),
        # The norms are those of its neighbours, by which it knows them again.
        (
            "qformer",
            (
                *("qformer.", "query_tokens", "language_projection.", "vision_model.post_layernorm."),
                "language_model.model.decoder.final_layer_norm.",
            ),
        ),
    ],
)
def test_only_a_parts_own_tensors_are_read(part, beginnings, folder, tmp_path, monkeypatch):
    seen, read = set(), HuggingFaceTensors.read

    def reading(self, name):
        seen.add(name)
        return read(self, name)

    monkeypatch.setattr(HuggingFaceTensors, "read", reading)
    convert(str(folder / "source"), "all", tmp_path / part, part=part)
    names = load_file(folder / "source" / "model.safetensors")
    assert seen == {name for name in names if name.startswith(beginnings)}


def refused(source, message, out, part=None, **arguments):
    with pytest.raises(UserError, match=message) as caught:
        convert(source, "all", out, part=part, **arguments)
    assert "\n" not in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize(
    ("config", "part", "message"),
    [
        ({}, None, "source is a BLIP-2, which holds several models: say which with --part encoder, qformer, block"),
        ({"model_type": "blip"}, None, "this is a BLIP, .*: choose a BLIP-2 with OPT, such as Salesforce/blip2-opt-2"),
        ({"model_type": "instructblip"}, "qformer", "this is an InstructBLIP, whose Q-Former reads the question too"),
        (
            {"text_config": {"model_type": "t5"}},
            "encoder",
            r"is an encoder with a decoder \(Flan-T5\), not OPT: choose its twin with OPT, such as Salesforce/blip2-o",
        ),
        ({"qformer_config": {"use_qformer_text_input": True}}, "qformer", "this Q-Former reads texts .*: choose a"),
        (
            {"qformer_config": blip2.CONFIG["qformer_config"] | {"hidden_act": "selu"}},
            "qformer",
            "activation is 'selu'",
        ),
        ({"num_query_tokens": 5}, "qformer", r"query_tokens has the shape \(1, 4, 16\) instead of \(1, 5, 16\)"),
        ({}, "head", "--part 'head' is not one of encoder, qformer, block"),
    ],
)
def test_others_are_refused(config, part, message, changed, tmp_path):
    refused(changed(**config), message, tmp_path / "out", part)


def test_a_damaged_qformer_is_refused(changed, tmp_path):
    tensors = {
        "qformer.encoder.layer.0.crossattention.attention.key.weight": np.zeros((16, 20), np.float32),
        "qformer.encoder.layer.1.output_query.LayerNorm.bias": None,
        "qformer.encoder.layer.1.crossattention.attention.key.weight": np.zeros((16, 24), np.float32),
        "language_projection.bias": None,
    }
    source = changed(tensors)
    for message in (
        r"key\.weight has the shape \(16, 20\) instead of \(16, 24\)",
        r"missing: qformer\.encoder\.layer\.1\.output_query\.LayerNorm\.bias; missing: language_projection\.bias; not",
        r"not part of the Q-Former's .*: qformer\.encoder\.layer\.1\.crossattention\.attention\.key\.weight",
    ):
        refused(source, message, tmp_path / "out", "qformer")


def test_a_part_of_another_source(folder, tmp_path):
    refused(
        str(folder / "source"), "--dtype bfloat16: a Q-Former is trained", tmp_path / "out", "qformer", dtype="bfloat16"
    )
    blip2.vision.tiny("clip").save_pretrained(tmp_path / "clip")
    refused(
        str(tmp_path / "clip"),
        "--part qformer: .* has none, it is converted with --part encoder or",
        tmp_path / "out",
        "qformer",
    )
    with pytest.raises(
        UserError, match="holds a vision encoder, not a Q-Former: name another folder, or make one with"
    ):
        qformers.read_manifest(folder / "encoder")
    with pytest.raises(
        UserError, match=r"no Q-Former at .*: make one with `jaxboost convert --source SOURCE --part qf"
    ):
        qformers.read_manifest(tmp_path / "nowhere")
