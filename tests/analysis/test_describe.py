"""`describe` as a script, and every config's exact counts under `nnx.eval_shape`."""

import importlib
import json
import pathlib

import pytest

from jaxboost.analysis.describe import describe
from tests.scripts import REPOSITORY, assert_mistake, run_inside, run_script

LEAVES = sorted(
    path.stem
    for path in (REPOSITORY / "configs").glob("*.py")
    if not path.stem.startswith(("baseline", "default", "paper", "pneumollm"))
)

# (trainable, frozen, tokens) as configured, and trainable without the booster; two classes each.
COUNTS = {
    "quickstart": (614_530, 3_540_672, 8, 467_074),
    "vesselmnist3d_vivitm": (76_171_650, 202_387_456, 8, 67_783_042),
    "vesselmnist3d_vivits": (17_085_826, 202_387_456, 8, 12_891_522),
    "vesselmnist3d_vit3d": (42_557_826, 202_387_456, 344, 34_169_218),
    "breastmnist_vits": (24_812_162, 202_387_456, 197, 21_666_434),
}


def _config(leaf: str, **overrides: object):
    config = importlib.import_module(f"configs.{leaf}").get_config()
    config.update_from_flattened_dict(overrides)
    return config


@pytest.mark.parametrize("leaf", sorted(set(LEAVES) - set(COUNTS)))
def test_counts_of_the_other_sets(leaf):
    """Those of the same model on a set of two classes, and a column and bias of the head for each class more."""
    _, _, encoder = leaf.partition("mnist")
    alike = next(other for other in COUNTS if other.endswith(encoder))
    trainable, frozen, tokens, _ = COUNTS[alike]
    result = describe(_config(leaf))
    more = (result["classes"] - 2) * (_encoder_width(leaf) + 1)
    assert (result["trainable"], result["frozen"], result["tokens"]) == (trainable + more, frozen, tokens)


@pytest.mark.parametrize("leaf", COUNTS)
def test_counts(leaf):
    trainable, frozen, tokens, plain = COUNTS[leaf]
    result = describe(_config(leaf))
    assert (result["trainable"], result["frozen"], result["tokens"]) == (trainable, frozen, tokens)
    assert result["trainable_mib"] == round(trainable * 4 / 2**20, 2)
    assert result["frozen_mib"] == round(frozen * 4 / 2**20, 2)
    without = describe(_config(leaf, **{"boost.kind": "none"}))
    assert (without["trainable"], without["frozen"]) == (plain, 0)
    assert without["flops_per_image"]["with_boost"] == without["flops_per_image"]["without_boost"]
    assert result["flops_per_image"]["without_boost"] == without["flops_per_image"]["without_boost"]


def _encoder_width(leaf: str) -> int:
    widths = {"quickstart": 128, "vits": 384, "vivits": 512}
    return widths.get(leaf.rpartition("_")[2], 1024)


@pytest.mark.parametrize("leaf", COUNTS)
def test_arms_have_the_paper_codes_counts(leaf):
    """The controls have R-LLM's trainable parameters; fine-tuning trains what was frozen, and nothing else changes."""
    trainable, frozen, *_ = COUNTS[leaf]
    for kind in ("out", "hybrid", "bare", "mlp", "mlp_out"):
        assert describe(_config(leaf, **{"boost.kind": kind}))["trainable"] == trainable
    tuned = describe(_config(leaf, **{"boost.trainable": True}))
    assert (tuned["trainable"], tuned["frozen"]) == (trainable + frozen, 0)
    assert describe(_config(leaf, **{"boost.kind": "out_nn"}))["trainable"] == trainable + _encoder_width(leaf) ** 2


def test_vit_s_flops_are_those_of_its_formula():
    """Per token and block: 12 d^2 multiply-adds in the linear maps and 2 N d in the attention.

    The last block makes keys and values of all tokens (2 d^2 each), and the rest for CLS alone.
    """
    d, N, depth = 384, 197, 12
    blocks = (depth - 1) * (12 * N * d * d + 2 * N * N * d) + 2 * N * d * d + 10 * d * d + 2 * N * d
    patches, head = 196 * 16 * 16 * 3 * d, 2 * d
    result = describe(_config("breastmnist_vits"))["flops_per_image"]
    assert result["without_boost"] == 2 * (blocks + patches + head)


def test_fast_paths_cost_less():
    """Full: the layer's 202 M multiply-adds for each of 197 tokens, and more; pooled: 34 M for each; absorbed: less."""
    cost = {
        path: describe(_config("breastmnist_vits", **{"boost.path": path}))["flops_per_image"]["with_boost"]
        for path in ("auto", "full", "pooled", "absorbed")
    }
    layer, keys_and_values = 202_375_168, 2 * 4096**2
    assert cost["full"] > 2 * 197 * layer
    assert 2 * 197 * keys_and_values < cost["pooled"] < cost["full"] / 3
    assert cost["absorbed"] < cost["pooled"] / 1.5
    assert cost["auto"] == cost["absorbed"]


def test_script_prints_json_and_needs_neither_data_nor_weights(tmp_path):
    process = run_script(
        "-m", "jaxboost", "describe", "--config=configs/vesselmnist3d_vivitm.py", "--json",
        env={"MEDMNIST_ROOT": str(tmp_path)},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    assert result["trainable"] == COUNTS["vesselmnist3d_vivitm"][0]
    assert {"frozen", "trainable_mib", "frozen_mib", "tokens", "flops_per_image"} <= set(result)
    assert list(pathlib.Path(tmp_path).iterdir()) == []


def test_script_names_a_mistake():
    process = run_inside("-m", "jaxboost", "describe", "--config=configs/quickstart.py", "--config.boost.kind=rlm")
    assert_mistake(process, "boost.kind", "did you mean 'rllm'")
