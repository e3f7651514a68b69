"""Blocks of other LLM families in R-LLM and PneumoLLM: whole runs, what they record, and what is refused."""

import json
import logging

import numpy as np
import pytest

from jaxboost import convert, data, schema, systems
from jaxboost.convert import argument_types, store
from jaxboost.data.dataset import DatasetInfo
from jaxboost.errors import UserError
from jaxboost.inference import export, exported, open_run
from jaxboost.models.frozen import merge
from jaxboost.models.llama import LlamaConfig
from jaxboost.runs import train
from jaxboost.runs.result import Part
from tests import finished_runs
from tests.reference import llm_models
from tests.training.radiographs import small
from tests.training.small_runs import on_host, small_config

INFO = DatasetInfo("nodulemnist3d", "binary-class", ("a", "b"), 1, 3, 28, {}, "")


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    """Blocks of two layers of tiny models: `gpt2`, `qwen2`, `qwen3`, `gemma2`, `gemma3_text`."""
    folder = tmp_path_factory.mktemp("families")
    for family in ("gpt2", "qwen2", "qwen3", "gemma2", "gemma3_text"):
        convert.convert(llm_models.save(llm_models.tiny(family), folder / f"{family}-source"), "0,1", folder / family)
    return folder


def rllm(blocks, family, root="nowhere", **changes):
    fields = {"boost.block": str(blocks / family), "boost.family": "", "boost.layers": ()}
    return small_config(root, fields | {name.replace("__", "."): value for name, value in changes.items()})


def pneumollm(blocks, family, root="nowhere", **changes):
    fields = {"llama__block": str(blocks / family), "llama__family": "", "llama__layers": ()}
    return small(root, **fields | changes)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("qwen3", {"boost__path": "absorbed"}, r"boost\.path: absorbed .*normalise each key.*: choose pooled .*auto$"),
        ("gpt2", {"boost__rope": True}, r"boost\.rope: these layers have no rotary .*: set boost\.rope to False$"),
    ],
)
def test_rllm_refuses(family, changes, message, blocks):
    with pytest.raises(UserError, match=message) as caught:
        systems.prepare(rllm(blocks, family, **changes), INFO)
    assert "\n" not in str(caught.value)
    systems.prepare(rllm(blocks, family), INFO)


def test_rllm_takes_absorbed_where_the_algebra_holds(blocks):
    for family in ("qwen2", "gemma2", "gpt2"):
        systems.prepare(rllm(blocks, family, boost__path="absorbed"), INFO)


def test_pneumollm_says_that_positions_are_left_out(blocks, caplog):
    info = DatasetInfo("folder", "binary-class", ("a", "b"), 3, 2, 28, {}, "")
    caplog.set_level(logging.INFO)
    systems.prepare(pneumollm(blocks, "qwen2"), info)
    assert "learned positions" not in caplog.text
    systems.prepare(pneumollm(blocks, "gpt2"), info)
    assert "the learned positions of the LLM are left out" in caplog.text


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gemma3_text"])
def test_the_record_of_a_trained_block_gives_its_config_back(family, blocks):
    config = store.read_manifest(blocks / family).config
    arguments = json.loads(json.dumps(config.entries()))
    part = schema.validated(Part, {"source": "a", "sha256": "0", "arguments": arguments})
    assert LlamaConfig.of_entries(part.arguments) == config
    schema.validated(argument_types.Llama, part.arguments)


def test_a_run_that_trains_the_layers_of_gpt2(blocks, few_lidc_root, tmp_path):
    """Record, checkpoint, prediction and export have its biases and its LayerNorms."""
    config = rllm(blocks, "gpt2", few_lidc_root, boost__trainable=True, train__epochs=1, eval__bootstrap=5)
    result = train.train_and_evaluate(config, tmp_path / "run")
    expected = store.read_manifest(blocks / "gpt2").config
    assert LlamaConfig(**result["block"]["arguments"]) == expected
    opened = open_run.open_run(tmp_path / "run")
    images = data.load("lidcshapes3d", size=28, root=str(few_lidc_root)).splits["test"].images
    found = opened.predict(images)
    np.testing.assert_allclose(found, finished_runs.own_predictions(tmp_path / "run"), rtol=0, atol=1e-6)
    trained = on_host(opened.weights[0]["boost"]["block"])
    start = on_host(store.load_block(blocks / "gpt2", None, final_norm=False).tree())
    assert trained.keys() == start.keys()
    # The keys' bias adds the same to all scores of a query: it has no gradient but rounding.
    assert [name for name in start if np.array_equal(trained[name], start[name])] in ([], ["['layers']['k_bias']"])
    export.export(opened, tmp_path / "export")
    np.testing.assert_array_equal(exported.load(tmp_path / "export").predict(images), found)


def test_chosen_layers_of_gemma_3_keep_their_own_rotary_base(blocks):
    for chosen, local in (((), (0,)), ((1, 0), (1,))):
        config = pneumollm(blocks, "gemma3_text", llama__layers=chosen)
        system = systems.prepare(config, DatasetInfo("folder", "binary-class", ("a", "b"), 3, 2, 28, {}, ""))
        model = merge(system.graphdef, system.params, system.frozen)
        assert (model.llama.config.local_layers, model.llama.config.local_rope_base) == (local, 300.0)
    system = systems.prepare(rllm(blocks, "gemma3_text", boost__rope=True, boost__layers=(0,)), INFO)
    model = merge(system.graphdef, system.params, system.frozen)
    assert (model.boost.block.config.rope_base, model.boost.block.config.local_layers) == (300.0, ())
