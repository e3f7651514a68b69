"""The naming schemes of vision checkpoints: which tensor is which weight of `models.vit.ViT`."""

import dataclasses

from jaxboost.convert.tables.parts import EMBEDDING, NORM, POOL

# Our names of weights that need special care.
KERNEL, QKV = "embedding.kernel", "attention.qkv"
POSITIONS, REGISTERS = "positions", "registers"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VitLayout:
    """One naming scheme of vision checkpoints; names are without the encoder's prefix.

    Attributes:
      embedding: our name of a weight before the first block -> the tensor's name.
      block: beginning of a block's tensor names, with `{layer}` for its number.
      weights: our name of a block's weight -> the rest of the names of the tensors that it joins, side by side.
      norm: the final LayerNorm.
      ignored: beginnings of the names of tensors that do not affect the encoder's result.
      pool: as `weights`, of the pooling after the final norm, with their whole names; {} without one.
    """

    embedding: dict[str, str]
    block: str
    weights: dict[str, tuple[str, ...]]
    norm: str
    ignored: tuple[str, ...]
    pool: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def names(self, key: str) -> dict[str, tuple[str, ...]]:
        """Our name of each weight of a part -> its tensors' names."""
        if key == EMBEDDING:
            return {weight: (name,) for weight, name in self.embedding.items()}
        if key == NORM:
            return {"scale": (f"{self.norm}.weight",), "bias": (f"{self.norm}.bias",)}
        if key == POOL:
            return self.pool
        prefix = self.block.format(layer=key)
        return {weight: tuple(prefix + ending for ending in endings) for weight, endings in self.weights.items()}


def _linear(ours: str, *theirs: str) -> dict[str, tuple[str, ...]]:
    return {
        f"{ours}.kernel": tuple(f"{name}.weight" for name in theirs),
        f"{ours}.bias": tuple(f"{name}.bias" for name in theirs),
    }


def _norm(ours: str, theirs: str) -> dict[str, tuple[str, ...]]:
    return {f"{ours}.scale": (f"{theirs}.weight",), f"{ours}.bias": (f"{theirs}.bias",)}


CLIP = VitLayout(
    embedding={
        KERNEL: "embeddings.patch_embedding.weight",
        "cls": "embeddings.class_embedding",
        "positions": "embeddings.position_embedding.weight",
        "pre_norm.scale": "pre_layrnorm.weight",
        "pre_norm.bias": "pre_layrnorm.bias",
    },
    block="encoder.layers.{layer}.",
    weights=_norm("attention_norm", "layer_norm1")
    | _linear(QKV, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    | _linear("attention.out", "self_attn.out_proj")
    | _norm("mlp_norm", "layer_norm2")
    | _linear("mlp.up", "mlp.fc1")
    | _linear("mlp.down", "mlp.fc2"),
    norm="post_layernorm",
    ignored=("embeddings.position_ids",),
)

# The vision encoder of BLIP-2. The keys' part of the bias is zero.
BLIP2 = VitLayout(
    embedding={
        KERNEL: "embeddings.patch_embedding.weight",
        "embedding.bias": "embeddings.patch_embedding.bias",
        "cls": "embeddings.class_embedding",
        POSITIONS: "embeddings.position_embedding",
    },
    block=CLIP.block,
    weights=CLIP.weights | _linear(QKV, "self_attn.qkv") | _linear("attention.out", "self_attn.projection"),
    norm=CLIP.norm,
    ignored=(),
)

SIGLIP = VitLayout(
    embedding={
        KERNEL: "embeddings.patch_embedding.weight",
        "embedding.bias": "embeddings.patch_embedding.bias",
        POSITIONS: "embeddings.position_embedding.weight",
    },
    block=CLIP.block,
    weights=CLIP.weights,
    norm=CLIP.norm,
    ignored=CLIP.ignored,
    pool={"probe": ("head.probe",)}
    | {f"{QKV}.kernel": ("head.attention.in_proj_weight",), f"{QKV}.bias": ("head.attention.in_proj_bias",)}
    | _linear("attention.out", "head.attention.out_proj")
    | _norm("norm", "head.layernorm")
    | _linear("mlp.up", "head.mlp.fc1")
    | _linear("mlp.down", "head.mlp.fc2"),
)

_EMBEDDING = {
    KERNEL: "embeddings.patch_embeddings.projection.weight",
    "embedding.bias": "embeddings.patch_embeddings.projection.bias",
    "cls": "embeddings.cls_token",
    "positions": "embeddings.position_embeddings",
}
_SELF_ATTENTION = _linear(
    QKV, "attention.attention.query", "attention.attention.key", "attention.attention.value"
) | _linear("attention.out", "attention.output.dense")
# How transformers 5 names them in memory, and in files that it saves with its own names instead of the published ones.
_RENAMED_ATTENTION = _linear(QKV, "attention.q_proj", "attention.k_proj", "attention.v_proj") | _linear(
    "attention.out", "attention.o_proj"
)
_MLP = _linear("mlp.up", "mlp.fc1") | _linear("mlp.down", "mlp.fc2")

VIT = VitLayout(
    embedding=_EMBEDDING,
    block="encoder.layer.{layer}.",
    weights=_norm("attention_norm", "layernorm_before")
    | _SELF_ATTENTION
    | _norm("mlp_norm", "layernorm_after")
    | _linear("mlp.up", "intermediate.dense")
    | _linear("mlp.down", "output.dense"),
    norm="layernorm",
    ignored=("embeddings.mask_token", "pooler.", "classifier."),
)
VIT_RENAMED = dataclasses.replace(VIT, block="layers.{layer}.", weights=VIT.weights | _RENAMED_ATTENTION | _MLP)

DINOV2 = VitLayout(
    embedding=_EMBEDDING | {REGISTERS: "embeddings.register_tokens"},
    block="encoder.layer.{layer}.",
    weights=_norm("attention_norm", "norm1")
    | _SELF_ATTENTION
    | {"attention_scale": ("layer_scale1.lambda1",)}
    | _norm("mlp_norm", "norm2")
    | _MLP
    | {"mlp_scale": ("layer_scale2.lambda1",)},
    norm="layernorm",
    ignored=("embeddings.mask_token", "classifier."),
)
DINOV2_RENAMED = dataclasses.replace(DINOV2, weights=DINOV2.weights | _RENAMED_ATTENTION)

DINOV3 = VitLayout(
    embedding={
        KERNEL: "embeddings.patch_embeddings.weight",
        "embedding.bias": "embeddings.patch_embeddings.bias",
        "cls": "embeddings.cls_token",
        REGISTERS: "embeddings.register_tokens",
    },
    block="layer.{layer}.",
    weights=_norm("attention_norm", "norm1")
    | _RENAMED_ATTENTION
    | {"attention_scale": ("layer_scale1.lambda1",)}
    | _norm("mlp_norm", "norm2")
    | _linear("mlp.up", "mlp.up_proj")
    | _linear("mlp.down", "mlp.down_proj")
    | {"mlp_scale": ("layer_scale2.lambda1",)},
    norm="norm",
    ignored=("embeddings.mask_token",),
)
DINOV3_RENAMED = dataclasses.replace(DINOV3, block="model.layer.{layer}.")

# OpenCLIP's names, which are those of OpenAI's own CLIP. A model without LayerScale has no tensors for it.
OPEN_CLIP = VitLayout(
    embedding={
        KERNEL: "conv1.weight",
        "cls": "class_embedding",
        "positions": "positional_embedding",
        "pre_norm.scale": "ln_pre.weight",
        "pre_norm.bias": "ln_pre.bias",
    },
    block="transformer.resblocks.{layer}.",
    weights=_norm("attention_norm", "ln_1")
    | {f"{QKV}.kernel": ("attn.in_proj_weight",), f"{QKV}.bias": ("attn.in_proj_bias",)}
    | _linear("attention.out", "attn.out_proj")
    | {"attention_scale": ("ls_1.gamma",)}
    | _norm("mlp_norm", "ln_2")
    | _linear("mlp.up", "mlp.c_fc")
    | _linear("mlp.down", "mlp.c_proj")
    | {"mlp_scale": ("ls_2.gamma",)},
    norm="ln_post",
    ignored=("proj",),
)

# timm's names. A model without LayerScale or registers has no tensors for them. Ignored are heads, and the parts
# that only pretraining needs: a decoder (MAE), a predictor, a projection.
TIMM = VitLayout(
    embedding={
        KERNEL: "patch_embed.proj.weight",
        "embedding.bias": "patch_embed.proj.bias",
        "cls": "cls_token",
        "positions": "pos_embed",
        REGISTERS: "reg_token",
        "pre_norm.scale": "norm_pre.weight",
        "pre_norm.bias": "norm_pre.bias",
    },
    block="blocks.{layer}.",
    weights=_norm("attention_norm", "norm1")
    | _linear(QKV, "attn.qkv")
    | _linear("attention.out", "attn.proj")
    | {"attention_scale": ("ls1.gamma",)}
    | _norm("mlp_norm", "norm2")
    | _MLP
    | {"mlp_scale": ("ls2.gamma",)},
    norm="norm",
    ignored=(
        "head.",
        "head_dist.",
        "heads.",
        "fc.",
        "classifier.",
        "pre_logits.",
        "mask_token",
        "decoder.",
        "decoder_",
        "predictor.",
        "projection.",
        "projector.",
        "dino_head.",
        "ibot_head.",
    ),
    pool={"probe": ("attn_pool.latent",)}
    | _linear(QKV, "attn_pool.q", "attn_pool.kv")
    | _linear("attention.out", "attn_pool.proj")
    | _norm("norm", "attn_pool.norm")
    | _linear("mlp.up", "attn_pool.mlp.fc1")
    | _linear("mlp.down", "attn_pool.mlp.fc2"),
)
# DINOv2's own checkpoints have the same names, except for the registers.
TIMM_OF_DINOV2 = dataclasses.replace(TIMM, embedding=TIMM.embedding | {REGISTERS: "register_tokens"})

# model_type -> its naming schemes.
LAYOUTS = {
    "clip_vision_model": (CLIP,),
    "blip_2_vision_model": (BLIP2,),
    "siglip_vision_model": (SIGLIP,),
    "vit": (VIT, VIT_RENAMED),
    "vit_mae": (VIT, VIT_RENAMED),
    "dinov2": (DINOV2, DINOV2_RENAMED),
    "dinov2_with_registers": (DINOV2, DINOV2_RENAMED),
    "dinov3_vit": (DINOV3, DINOV3_RENAMED),
}
# model_type of a checkpoint with a text encoder and a vision encoder -> that of the second.
OF_TWO = {"clip": "clip_vision_model", "siglip": "siglip_vision_model", "blip-2": "blip_2_vision_model"}
MODEL_TYPES = (*OF_TWO, *LAYOUTS)
