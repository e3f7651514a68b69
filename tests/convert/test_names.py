"""The tables, the order of the rotary pairs, and the one message about everything that does not fit."""

import numpy as np
import pytest

from jaxboost.convert import names
from jaxboost.errors import UserError
from jaxboost.models.llama import LlamaConfig

CONFIG = LlamaConfig(width=8, heads=2, kv_heads=1, head_dim=4, mlp_width=12, eps=1e-5, rope_base=10000.0)


class DictReader:
    source, source_format, layout, config, n_layers = "tiny", "safetensors", names.HUGGING_FACE, CONFIG, 2

    def __init__(self):
        self.tensors = {
            name: np.zeros(names.weight_shapes(CONFIG)[weight][::-1], np.float32)
            for layer in range(2)
            for weight, name in self.layout.names(layer).items()
        }
        self.tensors["model.norm.weight"] = np.zeros(8, np.float32)
        self.names = self.tensors.keys()
        self.obstacles = {}

    def info(self, name):
        return names.TensorInfo(self.tensors[name].shape, self.obstacles.get(name))

    def read(self, name):
        return self.tensors[name]


@pytest.mark.parametrize("layout", [names.HUGGING_FACE, names.META, names.GGUF])
def test_every_layout_names_every_weight_once(layout):
    assert set(layout.weights) == set(names.weight_shapes(CONFIG))
    assert len(set(layout.weights.values())) == len(layout.weights)


def test_to_half_split_keeps_the_pairs_of_each_head():
    # Row = 100 * head + 10 * pair + part: 0, 1, 10, 11 | 100, 101, 110, 111.
    rows = np.array([[0], [1], [10], [11], [100], [101], [110], [111]])
    assert names.to_half_split(rows, heads=2)[:, 0].tolist() == [0, 10, 1, 11, 100, 110, 101, 111]


def test_a_complete_layer_passes():
    names.check(DictReader(), (0, 1), final_norm=True)


def test_all_faults_are_in_one_message():
    reader = DictReader()
    del reader.tensors["model.layers.1.mlp.up_proj.weight"]
    del reader.tensors["model.norm.weight"]
    reader.tensors["model.layers.1.self_attn.q_proj.bias"] = np.zeros(8)
    reader.tensors["model.layers.1.self_attn.rotary_emb.inv_freq"] = np.zeros(2)
    reader.tensors["model.layers.1.self_attn.k_proj.weight"] = np.zeros((8, 8))
    reader.obstacles["model.layers.1.self_attn.v_proj.weight"] = "is stored as I8: only F32 are read"
    with pytest.raises(UserError) as caught:
        names.check(reader, (1,), final_norm=True)
    message = str(caught.value)
    assert "missing: model.layers.1.mlp.up_proj.weight;" in message
    assert "missing: model.norm.weight;" in message
    assert "not part of a LLaMA layer: model.layers.1.self_attn.q_proj.bias;" in message
    assert "model.layers.1.self_attn.k_proj.weight has the shape (8, 8) instead of (4, 8)" in message
    assert "model.layers.1.self_attn.v_proj.weight is stored as I8: only F32 are read" in message
    assert "inv_freq" not in message
    assert "\n" not in message


def test_faults_of_other_layers_are_not_reported():
    reader = DictReader()
    del reader.tensors["model.layers.1.mlp.up_proj.weight"]
    del reader.tensors["model.norm.weight"]
    names.check(reader, (0,), final_norm=False)


def test_long_lists_are_cut():
    reader = DictReader()
    reader.tensors.clear()
    with pytest.raises(UserError, match="and 6 more"):
        names.check(reader, (0, 1), final_norm=False)
