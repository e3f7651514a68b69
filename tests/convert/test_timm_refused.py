"""ViTs in timm's names that are refused, in one line each."""

import numpy as np
import pytest

from jaxboost.convert import Hints
from tests.convert import vision_checkpoints as vision
from tests.convert.timm_files import refused, vit_state, write, write_folder


@pytest.fixture(scope="module")
def state():
    return vit_state()


def test_all_faults_are_in_one_message(state, tmp_path):
    weights = state | {
        "blocks.1.mlp.fc1.bias": np.zeros(3, np.float32),
        "blocks.2.extra.weight": np.zeros(3, np.float32),
        "patch_embed.norm.weight": np.zeros(192, np.float32),
        "blocks.0.norm1.weight": np.zeros(192, np.int8),
        "blocks.0.ls1.gamma": np.ones(192, np.float32),
    }
    del weights["blocks.1.attn.qkv.bias"], weights["norm.bias"]
    message = refused(write("safetensors", weights, tmp_path)[0], r"^vit\.safetensors does not hold a vision", tmp_path)
    for problem in (
        "missing: blocks.1.attn.qkv.bias;",
        "missing: norm.bias;",
        # LayerScale is in all blocks or in none.
        "missing: blocks.2.ls1.gamma;",
        "blocks.1.mlp.fc1.bias has the shape (3,) instead of (48,)",
        "not part of a ViT's embedding, blocks and norm: blocks.2.extra.weight;",
        ": patch_embed.norm.weight;",
        "blocks.0.norm1.weight is stored as I8",
    ):
        assert problem in message
    assert "head" not in message


def test_a_whole_block_is_missing(state, tmp_path):
    weights = {name: array for name, array in state.items() if not name.startswith("blocks.1.")}
    refused(write("safetensors", weights, tmp_path)[0], r"missing: blocks\.1\.norm1\.weight;", tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dist_token": (1, 1, 192)},
            r"has CLS and a distillation token \(DeiT, distilled\).* without distillation",
        ),
        (
            {"fc_norm.weight": (192,), "norm.weight": None},
            r"mean of its patches as its result \(fc_norm.* pretrained c",
        ),
        (
            {"norm_pre.weight": (192,)},
            r"the weights do not say the activation, and CLIP models .* --activation quick_gelu \(OpenAI",
        ),
        (
            {"rope_embed.periods": (16,), "pos_embed": None},
            r"has rotary positions \(DINOv3\).*: choose Hugging Face's copy, such as facebook/dinov3-vits16",
        ),
        (
            {"reg_token": (1, 4, 192), "blocks.0.gamma_1": (192,), "blocks.0.attn.qkv.bias": None, "pos_embed": None},
            "has registers and no table of positions, as DINOv3 in timm's names, .* Hugging Face's copy, such as face",
        ),
        ({"blocks.0.attn.q_bias": (192,)}, r"has separate biases of queries and values \(BEiT, EVA\)"),
        ({"rel_pos_bias.relative_position_bias_table": (4, 3)}, r"has relative positions \(BEiT\)"),
        ({"blocks.0.gamma_1": (192,)}, "LayerScale under the names of BEiT"),
        ({"blocks.0.attn.q_norm.weight": (64,)}, r"norms of queries and keys \(qk_norm\)"),
        ({"blocks.0.attn.qkv.bias": None}, "queries, keys and values have no biases, which is not supported"),
        ({"pos_embed": (1, 24, 192)}, "positions for 24 tokens, which are not a CLS token and a square grid"),
        ({"reg_token": (1, 4, 192)}, "positions for 26 tokens, which are not CLS, 4 registers and a square grid"),
        ({"pos_embed": (26, 192)}, r"pos_embed has the shape \(26, 192\) instead of 3 axes"),
        ({"patch_embed.proj.weight": (192, 48)}, r"patch_embed.proj.weight has the shape \(192, 48\) instead of 4"),
        (
            {"patch_embed.proj.weight": (96, 3, 4, 4)},
            "heads is not known for a width of 96, which none of timm's ViTs has: give it with --heads",
        ),
        ({"patch_embed.proj.weight": (192, 1, 4, 4)}, r"\(192, 1, 4, 4\) instead of \(192, 3, 4, 4\)"),
        ({"patch_embed.proj.bias": None}, r"missing: patch_embed\.proj\.bias"),
        ({"patch_embed.proj.weight": None}, "holds no ViT in timm's names, .* 'patch_embed.proj.weight'.* the folder"),
        ({"blocks.0.mlp.fc1.weight": None}, "holds no ViT in timm's names, there is no 'blocks.0.mlp.fc1.weight'"),
        (
            {"cls_token": None},
            "neither a CLS token, cls_token, nor an attention pool: choose .*patch16_siglip",
        ),
        (
            {"cls_token": None, "attn_pool.latent": (1, 1, 192)},
            "positions for 26 tokens, which are not a square grid: choose another model",
        ),
        (
            {"cls_token": None, "attn_pool.latent": (1, 1, 192), "pos_embed": (1, 25, 192)},
            r"missing: attn_pool\.q\.weight; missing: attn_pool\.kv\.weight; ",
        ),
        (
            {"cls_token": None, "attn_pool.latent": (1, 1, 192), "pos_embed": (1, 25, 192), "reg_token": (1, 4, 192)},
            "an attention pool with registers, which is not supported: choose a SigLIP, such as vit_base",
        ),
        ({"attn_pool.latent": (1, 1, 192)}, r"not part of a ViT's embedding, blocks and norm: attn_pool\.latent"),
    ],
)
def test_other_models_are_refused(changes, message, state, tmp_path):
    weights = dict(state)
    for name, shape in changes.items():
        if shape is None:
            del weights[name]
        else:
            weights[name] = np.zeros(shape, np.float32)
    refused(write("safetensors", weights, tmp_path)[0], message, tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"architecture": "resnet50d"},
            "timm's 'resnet50d' is not read: choose a ViT, whose name begins with vit_ or deit, or one of resnet18,"
            " .*; the nearest is resnet50$",
        ),
        (
            {"architecture": "vit_small_patch16_dinov3"},
            "timm's vit_small_patch16_dinov3 has DINOv3's rotary positions: choose Hugging Face's copy, such",
        ),
        ({"model_args": {"act_layer": "quick_gelu"}}, "this vit_small_patch16_224 has another act_layer"),
        ({"model_args": {"num_heads": 5}}, "a width of 192 is not a multiple of 5 heads"),
        ({"model_args": "none"}, "'model_args' is 'none' instead of an object"),
        ({"architecture": None}, "this is a None checkpoint, not of a known family"),
    ],
)
def test_other_configurations_are_refused(config, message, state, tmp_path):
    refused(write_folder(state, tmp_path / "timm", **config), message, tmp_path)


def test_folder_with_other_weights(tmp_path):
    source = write_folder({"stem.weight": np.zeros(3, np.float32)}, tmp_path / "timm")
    message = r"^timm holds no ViT in timm's names, there is no 'patch_embed\.proj\.weight': choose another model$"
    refused(source, message, tmp_path)


@pytest.mark.parametrize(
    ("hints", "message"),
    [
        (Hints(heads=5), "a width of 192 is not a multiple of 5 heads: check --heads"),
        (Hints(eps=0.0), r"--eps 0\.0 is not above 0 and at most 1"),
        (Hints(eps=float("nan")), "--eps nan is not above 0"),
        (Hints(activation="relu"), "--activation 'relu' is not one of gelu, gelu_tanh, quick_gelu"),
        (Hints(resizing="nearest"), "--resizing 'nearest' is not one of bicubic, antialiased"),
    ],
)
def test_hints_are_checked(hints, message, state, tmp_path):
    refused(write("safetensors", state, tmp_path)[0], message, tmp_path, hints)


def test_no_hints_for_what_a_source_says_itself(state, tmp_path):
    source = write_folder(state, tmp_path / "timm", model_args={"num_heads": 6})
    refused(source, "says 6 heads, not 3: leave --heads out", tmp_path, Hints(heads=3))
    vision.tiny("vit").save_pretrained(tmp_path / "vit")
    refused(
        str(tmp_path / "vit"),
        "vit does not take --heads, --eps: they are only for vision encoders in timm.s or OpenCLIP.s names: leave",
        tmp_path,
        Hints(heads=3, eps=1),
    )
