"""Tiny random vision encoders of transformers and timm, every weight away from its start, and an ONNX file of one."""

from pathlib import Path
from typing import Any

import numpy as np

WIDTH, HEADS, DEPTH, MLP_WIDTH, PATCH, IMAGE_SIZE, EPS = 24, 3, 3, 48, 4, 20, 1e-3

_SHAPE = {
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "num_hidden_layers": DEPTH,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH,
    "layer_norm_eps": EPS,
}
_MLP = {"intermediate_size": MLP_WIDTH}
_TEXT = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8}
_TEXT |= {"bos_token_id": 0, "eos_token_id": 1}

_DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
_DECODER |= {"decoder_intermediate_size": 16}

# The opposite of DINOv3's.
_OTHER_BIASES = {"query_bias": False, "key_bias": True, "value_bias": False, "proj_bias": False, "mlp_bias": False}

# Name -> class in transformers, its configuration, and where the encoder is in it.
KINDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "clip": ("CLIPModel", {"vision_config": _SHAPE | _MLP, "text_config": _TEXT, "projection_dim": 8}, "vision_model"),
    "clip_gelu": ("CLIPVisionModel", _SHAPE | _MLP | {"hidden_act": "gelu"}, ""),
    "blip2": ("Blip2VisionModel", _SHAPE | _MLP, ""),
    "siglip": ("SiglipVisionModel", _SHAPE | _MLP, ""),
    "siglip_pair": ("SiglipModel", {"vision_config": _SHAPE | _MLP, "text_config": _TEXT}, "vision_model"),
    "vit": ("ViTModel", _SHAPE | _MLP, ""),
    "vit_classifier": ("ViTForImageClassification", _SHAPE | _MLP | {"qkv_bias": False}, "vit"),
    "mae": ("ViTMAEForPreTraining", _SHAPE | _MLP | _DECODER | {"mask_ratio": 0.0}, "vit"),
    "dinov2": ("Dinov2Model", _SHAPE | {"mlp_ratio": 2}, ""),
    "dinov2_registers": ("Dinov2WithRegistersModel", _SHAPE | {"mlp_ratio": 2, "num_register_tokens": 3}, ""),
    "dinov2_no_registers": ("Dinov2WithRegistersModel", _SHAPE | {"mlp_ratio": 2, "num_register_tokens": 0}, ""),
    "dinov3": ("DINOv3ViTModel", _SHAPE | _MLP | {"num_register_tokens": 3}, ""),
    "dinov3_biases": ("DINOv3ViTModel", _SHAPE | _MLP | _OTHER_BIASES | {"rope_theta": 30.0}, ""),
    "dinov2_classifier": ("Dinov2ForImageClassification", _SHAPE | {"mlp_ratio": 2}, "dinov2"),
}


# Those whose `pooler_output` is the result, by the beginnings of their names.
POOLERS = ("clip", "siglip")

# The shape of the backbone `vit_tiny`, with another grid of positions.
VIT_TINY = {
    "hidden_size": 128,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 512,
    "patch_size": 7,
    "image_size": 35,
}


def tiny(kind: str, **overrides: Any):
    """A float32 model of KINDS; `overrides` of its configuration."""
    import transformers

    name, settings, _ = KINDS[kind]
    cls = getattr(transformers, name)
    return randomised(cls(cls.config_class(**settings | overrides)).eval())


def tiny_timm(**overrides: Any):
    """A float32 ViT of timm, of the shape TIMM_SHAPE."""
    from timm.models.vision_transformer import VisionTransformer

    settings = {"img_size": IMAGE_SIZE, "patch_size": PATCH, "embed_dim": 192, "depth": DEPTH, "num_heads": 3}
    return randomised(VisionTransformer(**settings | {"mlp_ratio": 2, "num_classes": 5} | overrides).eval())


# Of transformers' configurations: what timm's ViTs have, heads of 64 and eps 1e-6.
TIMM_SHAPE = {"hidden_size": 192, "num_attention_heads": 3, "layer_norm_eps": 1e-6}


def timm_state(model, folder: Path) -> dict[str, np.ndarray]:
    """The weights of a "vit" or "dinov2" of TIMM_SHAPE in timm's names, with a head beside them."""
    from safetensors.numpy import load_file

    model.save_pretrained(folder)
    published = load_file(folder / "model.safetensors")
    state = {"head.weight": np.ones((5, 192), np.float32), "head.bias": np.ones(5, np.float32)}
    for ours, theirs in (("cls_token", "cls_token"), ("pos_embed", "position_embeddings")):
        state[ours] = published[f"embeddings.{theirs}"]
    # Part of the new name -> parts of the published ones, side by side.
    modules = {"patch_embed.proj": ["embeddings.patch_embeddings.projection"], "norm": ["layernorm"]}
    for layer in range(DEPTH):
        block, theirs = f"blocks.{layer}", f"encoder.layer.{layer}"
        if f"{theirs}.layer_scale1.lambda1" in published:
            norms, mlp = ("norm1", "norm2"), ("mlp.fc1", "mlp.fc2")
            for number in (1, 2):
                state[f"{block}.ls{number}.gamma"] = published[f"{theirs}.layer_scale{number}.lambda1"]
        else:
            norms, mlp = ("layernorm_before", "layernorm_after"), ("intermediate.dense", "output.dense")
        attention = f"{theirs}.attention"
        modules[f"{block}.attn.qkv"] = [f"{attention}.attention.{name}" for name in ("query", "key", "value")]
        modules[f"{block}.attn.proj"] = [f"{attention}.output.dense"]
        for ending, name in zip(("norm1", "norm2", "mlp.fc1", "mlp.fc2"), norms + mlp, strict=True):
            modules[f"{block}.{ending}"] = [f"{theirs}.{name}"]
    for ours, parts in modules.items():
        for kind in ("weight", "bias"):
            state[f"{ours}.{kind}"] = np.concatenate([published[f"{part}.{kind}"] for part in parts])
    return state


def open_clip_state(model, folder: Path) -> dict[str, np.ndarray]:
    """The weights of a "clip_gelu" as OpenCLIP names them, with a text tower of another width beside them."""
    from safetensors.numpy import load_file

    model.save_pretrained(folder)
    loaded = load_file(folder / "model.safetensors")
    published = {name.removeprefix("vision_model."): array for name, array in loaded.items()}
    plain = {
        "conv1.weight": "embeddings.patch_embedding.weight",
        "class_embedding": "embeddings.class_embedding",
        "positional_embedding": "embeddings.position_embedding.weight",
    }
    state = {f"visual.{ours}": published[theirs] for ours, theirs in plain.items()}
    modules = {"visual.ln_pre": "pre_layrnorm", "visual.ln_post": "post_layernorm"}
    for layer in range(DEPTH):
        block, theirs = f"visual.transformer.resblocks.{layer}", f"encoder.layers.{layer}"
        named = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
        named |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
        modules |= {f"{block}.{ours}": f"{theirs}.{name}" for ours, name in named.items()}
        for kind in ("weight", "bias"):
            parts = [published[f"{theirs}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
            state[f"{block}.attn.in_proj_{kind}"] = np.concatenate(parts)
    for ours, theirs in modules.items():
        for kind in ("weight", "bias"):
            state[f"{ours}.{kind}"] = published[f"{theirs}.{kind}"]
    text = {"transformer.resblocks.0.ln_1.weight": np.ones(8, "f"), "positional_embedding": np.ones((7, 8), "f")}
    return state | text | {"visual.proj": np.ones((WIDTH, 8), "f"), "logit_scale": np.float32(1)}


# Part of a name of timm's -> of OpenCLIP's.
_OPEN_CLIP_OF_TIMM = {
    "cls_token": "class_embedding",
    "pos_embed": "positional_embedding",
    "patch_embed.proj": "conv1",
    "norm_pre.": "ln_pre.",
    "blocks.": "transformer.resblocks.",
    ".norm1.": ".ln_1.",
    ".norm2.": ".ln_2.",
    "attn.qkv.": "attn.in_proj_",
    "attn.proj.": "attn.out_proj.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
    ".ls1.": ".ls_1.",
    ".ls2.": ".ls_2.",
}


def open_clip_state_of_timm(model) -> dict[str, Any]:
    """The weights of a `tiny_timm` as OpenCLIP names them. OpenCLIP's patches have no bias: timm's becomes zero."""
    import torch

    state = {}
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name == "patch_embed.proj.bias":
                tensor.zero_()
            elif not name.startswith("head."):
                renamed = f"ln_post.{name.removeprefix('norm.')}" if name.startswith("norm.") else name
                for theirs, ours in _OPEN_CLIP_OF_TIMM.items():
                    renamed = renamed.replace(theirs, ours)
                is_table = name in ("cls_token", "pos_embed")
                state[f"visual.{renamed}"] = tensor.reshape(-1, 192).squeeze(0) if is_table else tensor
    return state


def randomised(model):
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_scaled(name, torch.randn(parameter.shape, generator=generator)))
    return model


def encoder(kind: str, model):
    """The encoder in a model of `tiny`."""
    where = KINDS[kind][2]
    return getattr(model, where) if where else model


def stages(kind: str, model, images: np.ndarray) -> dict[str, np.ndarray]:
    """What transformers computes for images (B, S, S, 3), of any multiple of the patch.

    Returns:
      "embedded" (B, N, D), what the first block gets; "cls" (depth, B, D), the CLS token after each block; "normed"
      (B, D), the last of them after the final LayerNorm. For SigLIP "normed" is the pooled feature.
    """
    import torch

    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    resizing = {} if kind.startswith("dinov") else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        output = encoder(kind, model)(pixels, output_hidden_states=True, **resizing, **_order(kind, pixels))
    hidden = [state.numpy() for state in output.hidden_states]
    # CLIP's final norm is applied to the pooled token alone.
    normed = output.pooler_output if kind.startswith(POOLERS) else output.last_hidden_state[:, 0]
    return {
        "embedded": hidden[0],
        "cls": np.stack([state[:, 0] for state in hidden[1:]]),
        "normed": normed.numpy(),
    }


def _order(kind: str, pixels) -> dict[str, Any]:
    """What keeps MAE's patches in their order: it shuffles them, also where it masks none."""
    import torch

    patches = (pixels.shape[-1] // PATCH) ** 2
    return {"noise": torch.arange(patches).float().expand(len(pixels), -1)} if kind == "mae" else {}


def normed(kind: str, model, images: np.ndarray):
    """The result of the encoder, see `stages`, as a tensor (B, D) with its graph, and the pixels (B, 3, S, S)."""
    import torch

    pixels = torch.tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), requires_grad=True)
    output = encoder(kind, model)(pixels, **_order(kind, pixels))
    return (output.pooler_output if kind.startswith(POOLERS) else output.last_hidden_state[:, 0]), pixels


def become_gradients(model) -> None:
    """Puts the gradient of each weight in its place: saved, they are a checkpoint like the model's own."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)


def write_onnx(model, path: Path, *, opset: int = 14, **changes: str) -> str:
    """A graph with those parts of an exported DINOv2 that are read: its weights and the nodes around some of them.

    Args:
      model: a tiny "dinov2".
      opset: from 20 on, LayerNorm and GELU are one operator each, the positions are not interpolated, and one constant
        shape cuts the heads.
      changes: operator -> the one to write instead.
    """
    import onnx
    from onnx import helper, numpy_helper
    from safetensors.numpy import load_file

    is_new, nodes, weights = opset >= 20, [], {}

    def constant(value: Any) -> str:
        name = f"onnx::Constant_{len(weights)}"
        weights[name] = np.asarray(value)
        return name

    def node(operator: str, module: str, *inputs: str, **attributes: Any) -> None:
        name, operator = f"/backbone/{module}/{operator}", changes.get(operator, operator)
        nodes.append(helper.make_node(operator, inputs, [f"{name}_output_0"], name=name, **attributes))

    model.save_pretrained(path.parent / "published")
    state = load_file(path.parent / "published" / "model.safetensors")
    positions = state["embeddings.position_embeddings"]
    if not is_new:
        del state["embeddings.position_embeddings"]
        node("Reshape", "embeddings", constant(positions[:, 1:]), "shape")
        node("Concat", "embeddings", constant(positions[:, :1]), "resized", axis=1)
    for name, array in state.items():
        module = name.removesuffix(".weight").replace(".", "/").replace("/layer/", "/layer.")
        if array.ndim == 2 and name.endswith(".weight"):
            node("MatMul", module, "x", constant(array.T))
        else:
            weights[f"backbone.{name}"] = array
        if array.ndim == 1 and name.endswith(("norm1.weight", "norm2.weight", "layernorm.weight")):
            if is_new:
                node("LayerNormalization", module, "x", f"backbone.{name}", epsilon=EPS)
            else:
                node("Add", module, "variance", constant(np.float32(EPS)))
    for layer in range(DEPTH):
        attention, mlp = f"encoder/layer.{layer}/attention/attention", f"encoder/layer.{layer}/mlp/activation"
        node("MatMul", attention, "q", "k")
        if is_new:
            node("Reshape", attention, "x", constant([0, -1, HEADS, WIDTH // HEADS]))
            node("Gelu", mlp, "x")
        else:
            node("Concat", attention, "batch", "tokens", constant([HEADS]), constant([WIDTH // HEADS]), axis=0)
            node("Concat", attention, "batch", "tokens", constant([WIDTH]), axis=0)
            node("Erf", mlp, "x")
    graph = helper.make_graph(
        nodes, "tiny", [], [], [numpy_helper.from_array(array, name) for name, array in weights.items()]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]), path)
    return str(path)


def _scaled(name: str, noise):
    if "norm" in name or "layrnorm" in name or "lambda" in name or "gamma" in name:
        return 0.3 * noise + (0.0 if name.endswith("bias") else 1.0)
    if noise.ndim < 2 or "_token" in name or "position_embedding" in name or "pos_embed" in name:
        return 0.5 * noise
    # Queries and keys larger, so that attention is far from uniform.
    larger = 1.5 if any(part in name for part in ("q_proj", "k_proj", "query", "key")) else 1.0
    return larger * noise / noise[0].numel() ** 0.5
