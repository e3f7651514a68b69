"""The tables, the order of the rotary pairs, and the one message about everything that does not fit."""

import numpy as np
import pytest

from jaxboost.convert.formats.tensors import TensorInfo
from jaxboost.convert.tables import llama, shapes
from jaxboost.convert.tables.llama_names import LLAMA
from jaxboost.errors import UserError
from jaxboost.models.llama import LlamaConfig

HUGGING_FACE = LLAMA.below("model.")
CONFIG = LlamaConfig(width=8, heads=2, kv_heads=1, head_dim=4, mlp_width=12, eps=1e-5, rope_base=10000.0)


class DictTensors:
    source, source_format = "tiny", "safetensors"

    def __init__(self):
        self.tensors = {
            name: np.zeros(shapes.llama_layer(CONFIG)[weight][::-1], np.float32)
            for layer in range(2)
            for weight, name in HUGGING_FACE.names(layer).items()
        }
        self.tensors["model.norm.weight"] = np.zeros(8, np.float32)
        self.names = self.tensors.keys()
        self.obstacles = {}

    def info(self, name):
        return TensorInfo(self.tensors[name].shape, self.obstacles.get(name))

    def read(self, name):
        return self.tensors[name]


def check(tensors, layers, *, final_norm):
    source = llama.LlamaSource(tensors=tensors, layout=HUGGING_FACE, config=CONFIG, n_layers=2)
    llama.check(source, layers, final_norm=final_norm)


@pytest.mark.parametrize("layout", [HUGGING_FACE, llama.META, llama.GGUF])
def test_every_layout_names_every_weight_once(layout):
    assert set(layout.weights) == set(shapes.llama_layer(CONFIG))
    assert len(set(layout.weights.values())) == len(layout.weights)


def test_to_half_split_keeps_the_pairs_of_each_head():
    # Row = 100 * head + 10 * pair + part: 0, 1, 10, 11 | 100, 101, 110, 111.
    rows = np.array([[0], [1], [10], [11], [100], [101], [110], [111]])
    assert llama.to_half_split(rows, heads=2)[:, 0].tolist() == [0, 10, 1, 11, 100, 110, 101, 111]


def test_a_complete_layer_passes():
    check(DictTensors(), (0, 1), final_norm=True)


def test_all_problems_are_in_one_message():
    tensors = DictTensors()
    del tensors.tensors["model.layers.1.mlp.up_proj.weight"]
    del tensors.tensors["model.norm.weight"]
    tensors.tensors["model.layers.1.self_attn.q_proj.bias"] = np.zeros(8)
    tensors.tensors["model.layers.1.self_attn.rotary_emb.inv_freq"] = np.zeros(2)
    tensors.tensors["model.layers.1.self_attn.k_proj.weight"] = np.zeros((8, 8))
    tensors.obstacles["model.layers.1.self_attn.v_proj.weight"] = "is stored as I8: only F32 are read"
    with pytest.raises(UserError) as caught:
        check(tensors, (1,), final_norm=True)
    message = str(caught.value)
    assert "missing: model.layers.1.mlp.up_proj.weight;" in message
    assert "missing: model.norm.weight;" in message
    assert "not part of a decoder layer: model.layers.1.self_attn.q_proj.bias;" in message
    assert "model.layers.1.self_attn.k_proj.weight has the shape (8, 8) instead of (4, 8)" in message
    assert "model.layers.1.self_attn.v_proj.weight is stored as I8: only F32 are read" in message
    assert "inv_freq" not in message
    assert "\n" not in message


def test_problems_of_other_layers_are_not_reported():
    tensors = DictTensors()
    del tensors.tensors["model.layers.1.mlp.up_proj.weight"]
    del tensors.tensors["model.norm.weight"]
    check(tensors, (0,), final_norm=False)


def test_long_lists_are_cut():
    tensors = DictTensors()
    kept = next(name for name in tensors.tensors if ".layers.0." in name)
    for name in [*tensors.tensors.keys() - {kept}]:
        del tensors.tensors[name]
    with pytest.raises(UserError, match="and 5 more"):
        check(tensors, (0, 1), final_norm=False)


def test_weights_of_another_model():
    tensors = DictTensors()
    renamed = {f"other.{name}": array for name, array in tensors.tensors.items()}
    tensors.tensors.clear()
    tensors.tensors |= renamed
    with pytest.raises(
        UserError, match=r"missing: all 18 tensors, such as model\.layers\.0.*; there are others, such as o"
    ):
        check(tensors, (0, 1), final_norm=False)
