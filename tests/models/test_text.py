"""CLIP's text encoder computes what transformers computes, and class embeddings are those of CLIP's authors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from jaxboost.convert import class_prompts, text_encoders
from jaxboost.convert.placing import first_device
from jaxboost.models import attention, transformer
from jaxboost.models.frozen import freeze, merge, split
from jaxboost.models.rngs import make_rngs
from jaxboost.models.text import TextEncoder
from tests.convert import clip_checkpoints as clip
from tests.models.parity import assert_close, normal


@pytest.fixture(scope="module", params=["quick_gelu", "gelu"])
def case(request, tmp_path_factory):
    """A checkpoint's model, its folder, and the folder of the converted text encoder."""
    folder = tmp_path_factory.mktemp(request.param)
    model = clip.tiny(hidden_act=request.param)
    source = clip.write(folder / "source", model)
    class_prompts.convert_text(source, clip.PROMPTS, folder / "text")
    return model, source, folder / "text"


def test_text_encoder_equals_transformers(case):
    model, source, folder = case
    theirs = transformers.CLIPTextModelWithProjection.from_pretrained(source).eval()
    manifest, weights = text_encoders.read_manifest(folder), text_encoders.load_weights(folder, first_device)
    graphdef, params, frozen, _ = split(
        nnx.eval_shape(lambda: freeze(TextEncoder(**manifest.arguments, dtype=jnp.float32, rngs=make_rngs(0))))
    )
    assert params == {}
    assert jax.tree.map(jnp.shape, weights) == jax.tree.map(lambda leaf: leaf.shape, frozen)

    # Texts of other lengths, one as long as there are positions; what follows an end must have no effect.
    end, ends = clip.vocabulary()[clip.END], np.array([3, 12, clip.CONTEXT - 1], np.int32)
    numbers = np.random.default_rng(0).integers(0, end - 1, (3, clip.CONTEXT))
    numbers[np.arange(3), ends] = end
    table = model.text_model.embeddings.token_embedding.weight.detach()
    inputs = table[torch.from_numpy(numbers)].numpy()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(numbers)).text_embeds
    run = jax.jit(lambda weights, x: merge(graphdef, {}, weights)(x, ends))
    assert_close(run(weights, inputs), expected.numpy(), name="embeddings")


def test_the_projection_is_float32(case):
    """Also where the blocks have 16 bits, and without the shorter products of a GPU."""
    manifest, weights = text_encoders.read_manifest(case[2]), text_encoders.load_weights(case[2], first_device)
    graphdef, _, _, _ = split(
        nnx.eval_shape(lambda: freeze(TextEncoder(**manifest.arguments, dtype=jnp.bfloat16, rngs=make_rngs(0))))
    )
    run = jax.jit(lambda x: merge(graphdef, {}, weights)(x, np.array([4, 2], np.int32)))
    x = normal((2, 5, clip.WIDTH), seed=0)
    found = np.asarray(run(x))
    assert found.dtype == np.float32
    assert (found != found.astype(jnp.bfloat16)).mean() > 0.5
    assert "HIGHEST" in str(run.trace(x).jaxpr)


def test_class_embeddings(case):
    """Each prompt's embedding is normalised, then the mean of them: not the mean of embeddings of other lengths."""
    model, source, folder = case
    tokenizer, found = clip.tokenizer(source), text_encoders.load_classes(folder, ("light", "dark", "grey"))

    def embedding(prompt):
        with torch.no_grad():
            features = model.get_text_features(**tokenizer(prompt, return_tensors="pt")).pooler_output[0].numpy()
        return features / np.linalg.norm(features)

    dark = embedding("a dark image") + embedding("an image without light")
    expected = [embedding("a light image"), dark / np.linalg.norm(dark), embedding("a grey image")]
    assert_close(found.embeddings, np.stack(expected), name="embeddings")
    np.testing.assert_allclose(np.linalg.norm(found.embeddings, axis=-1), 1, rtol=1e-6)
    assert found.scale == pytest.approx(np.exp(clip.LOGIT_SCALE), rel=1e-6)
    np.testing.assert_array_equal(found.projection, model.visual_projection.weight.detach().numpy().T)


def test_class_names_for_coop(case):
    """The tokens from the start of the text to its end, behind the name a full stop; zeros after them."""
    model, source, folder = case
    tokenizer, found = clip.tokenizer(source), text_encoders.load_classes(folder, ("dark", "grey", "light"))
    table = model.text_model.embeddings.token_embedding.weight.detach().numpy()
    for row, (name, end) in enumerate(zip(("dark.", "half light.", "light."), found.ends, strict=True)):
        numbers = tokenizer(name)["input_ids"]
        assert (numbers[0], numbers[end]) == (clip.vocabulary()[clip.START], clip.vocabulary()[clip.END])
        assert len(numbers) == end + 1
        np.testing.assert_array_equal(found.names[row, : end + 1], table[numbers])
        assert not found.names[row, end + 1 :].any()


def test_causal_attention_is_the_same_in_all_implementations():
    q, k, v = (normal((2, 5, 3, 4), seed=seed) for seed in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(torch.from_numpy(x).transpose(1, 2) for x in (q, k, v)), is_causal=True
    )
    expected = expected.transpose(1, 2).numpy()
    assert_close(transformer.attend(q, k, v, causal=True), expected, name="head major")
    assert_close(jax.nn.dot_product_attention(q, k, v, is_causal=True), expected, name="einsums")
    with attention.portable():
        assert_close(jax.jit(lambda *x: transformer.attend(*x, causal=True))(q, k, v), expected, name="portable")
