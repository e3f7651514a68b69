"""Rotary scaling against transformers, and what is refused."""

import types

import numpy as np
import pytest

from jaxboost.convert.formats.settings import Settings
from jaxboost.convert.tables.llama_gguf import of_gguf
from jaxboost.convert.tables.rope import fields, linear_factors, llama3_factors
from jaxboost.errors import UserError

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def factors_of(scaling, **shape):
    found = fields(Settings(scaling, "here"), **shape)
    assert found["rope_unsupported"] is None
    return found["rope_factors"]


@pytest.mark.parametrize("scaling", [LLAMA3, LLAMA3 | {"factor": 32.0}, {"rope_type": "linear", "factor": 4.0}])
def test_factors_agree_with_transformers(scaling):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(
        hidden_size=512,
        num_attention_heads=4,
        max_position_embeddings=131072,
        rope_parameters=scaling | {"rope_theta": 500000.0},
    )
    expected, _ = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, "cpu")
    factors = factors_of(scaling, head_dim=128, rope_base=500000.0)
    unscaled = 500000.0 ** (-np.arange(0, 128, 2) / 128)
    np.testing.assert_allclose(unscaled / np.array(factors), expected.numpy(), rtol=2e-6)
    assert len(factors) == 64


def test_llama3_keeps_short_wavelengths_and_stretches_long_ones():
    factors = llama3_factors(
        head_dim=128, rope_base=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=8192.0
    )
    wavelengths = 2 * np.pi * 500000.0 ** (np.arange(0, 128, 2) / 128)
    np.testing.assert_array_equal(np.array(factors)[wavelengths < 2048], 1.0)
    np.testing.assert_array_equal(np.array(factors)[wavelengths > 8192], 8.0)
    between = np.array(factors)[(wavelengths > 2048) & (wavelengths < 8192)]
    assert between.size > 2
    assert (np.diff(between) > 0).all()
    assert between.min() > 1
    assert between.max() < 8


def test_older_key_and_default():
    assert factors_of({"type": "linear", "factor": 2}, head_dim=8, rope_base=1e4) == (2.0,) * 4
    assert linear_factors(head_dim=8, factor=2.0) == (2.0,) * 4
    assert factors_of({}, head_dim=8, rope_base=1e4) is None
    assert factors_of({"rope_type": "default"}, head_dim=8, rope_base=1e4) is None


@pytest.mark.parametrize("changes", [{"phi3.rope.scaling.type": "longrope"}, {"rope_factors_long.weight": [2.0, 4.0]}])
def test_a_gguf_file_without_factors_of_short_texts(changes):
    """It can be used without rotation."""
    numbers = {"block_count": 2, "embedding_length": 8, "attention.head_count": 2, "feed_forward_length": 16}
    entries = {f"phi3.{name}": value for name, value in numbers.items()}
    entries |= {"phi3.attention.layer_norm_rms_epsilon": 1e-5} | changes
    file = types.SimpleNamespace(settings=Settings(entries, "file.gguf"), architecture="phi3", names={*changes})
    found = of_gguf(file).config
    assert (found.rope_factors, found.rope_unsupported) == (None, "the rotary scaling 'longrope'")


def test_incomplete_scaling():
    with pytest.raises(UserError, match="here has no 'low_freq_factor'"):
        factors_of({"rope_type": "llama3", "factor": 2.0}, head_dim=8, rope_base=1e4)
