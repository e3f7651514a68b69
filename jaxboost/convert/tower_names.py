"""Which tensor of a vision checkpoint is which weight of `models.vit.ViT`: one table per naming scheme."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from jaxboost.convert.names import TensorInfo, Tensors, check_tensors

# Keys of a tower's parts, beside the numbers of its blocks.
EMBEDDING, NORM = "embedding", "norm"
_CHANNELS = 3
_KERNEL, _QKV = "embedding.kernel", "attention.qkv"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerLayout:
    """One naming scheme of vision checkpoints; names are those below the tower's prefix.

    Attributes:
      embedding: our name of a weight before the first block -> the tensor's name.
      block: beginning of a block's tensor names, with `{layer}` for its number.
      weights: our name of a block's weight -> the rest of the names of the tensors that lie in it side by side.
      norm: the final LayerNorm.
      ignored: beginnings of what is no part of the tower's result.
    """

    embedding: Mapping[str, str]
    block: str
    weights: Mapping[str, tuple[str, ...]]
    norm: str
    ignored: tuple[str, ...]

    def names(self, key: str) -> dict[str, tuple[str, ...]]:
        """Our name of each weight of a part -> its tensors' names."""
        if key == EMBEDDING:
            return {weight: (name,) for weight, name in self.embedding.items()}
        if key == NORM:
            return {"scale": (f"{self.norm}.weight",), "bias": (f"{self.norm}.bias",)}
        prefix = self.block.format(layer=key)
        return {weight: tuple(prefix + ending for ending in endings) for weight, endings in self.weights.items()}


def _linear(ours: str, *theirs: str) -> dict[str, tuple[str, ...]]:
    return {
        f"{ours}.kernel": tuple(f"{name}.weight" for name in theirs),
        f"{ours}.bias": tuple(f"{name}.bias" for name in theirs),
    }


def _norm(ours: str, theirs: str) -> dict[str, tuple[str, ...]]:
    return {f"{ours}.scale": (f"{theirs}.weight",), f"{ours}.bias": (f"{theirs}.bias",)}


CLIP = TowerLayout(
    embedding={
        _KERNEL: "embeddings.patch_embedding.weight",
        "cls": "embeddings.class_embedding",
        "positions": "embeddings.position_embedding.weight",
        "pre_norm.scale": "pre_layrnorm.weight",
        "pre_norm.bias": "pre_layrnorm.bias",
    },
    block="encoder.layers.{layer}.",
    weights=_norm("attention_norm", "layer_norm1")
    | _linear(_QKV, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    | _linear("attention.out", "self_attn.out_proj")
    | _norm("mlp_norm", "layer_norm2")
    | _linear("mlp.up", "mlp.fc1")
    | _linear("mlp.down", "mlp.fc2"),
    norm="post_layernorm",
    ignored=("embeddings.position_ids",),
)

_EMBEDDING = {
    _KERNEL: "embeddings.patch_embeddings.projection.weight",
    "embedding.bias": "embeddings.patch_embeddings.projection.bias",
    "cls": "embeddings.cls_token",
    "positions": "embeddings.position_embeddings",
}
_SELF_ATTENTION = _linear(
    _QKV, "attention.attention.query", "attention.attention.key", "attention.attention.value"
) | _linear("attention.out", "attention.output.dense")
# How transformers 5 names them in memory, and in files where it is told not to keep to the published names.
_RENAMED_ATTENTION = _linear(_QKV, "attention.q_proj", "attention.k_proj", "attention.v_proj") | _linear(
    "attention.out", "attention.o_proj"
)
_MLP = _linear("mlp.up", "mlp.fc1") | _linear("mlp.down", "mlp.fc2")

VIT = TowerLayout(
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

DINOV2 = TowerLayout(
    embedding=_EMBEDDING,
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

# timm's, of which LayerScale is left out where a model has none. DINOv2's own checkpoints have the same names.
TIMM = TowerLayout(
    embedding={
        _KERNEL: "patch_embed.proj.weight",
        "embedding.bias": "patch_embed.proj.bias",
        "cls": "cls_token",
        "positions": "pos_embed",
    },
    block="blocks.{layer}.",
    weights=_norm("attention_norm", "norm1")
    | _linear(_QKV, "attn.qkv")
    | _linear("attention.out", "attn.proj")
    | {"attention_scale": ("ls1.gamma",)}
    | _norm("mlp_norm", "norm2")
    | _MLP
    | {"mlp_scale": ("ls2.gamma",)},
    norm="norm",
    ignored=("head.", "pre_logits.", "mask_token"),
)

# model_type -> its naming schemes.
LAYOUTS = {"clip_vision_model": (CLIP,), "vit": (VIT, VIT_RENAMED), "dinov2": (DINOV2, DINOV2_RENAMED)}
CLIP_OF_TWO = "clip"  # a text tower beside the vision tower
MODEL_TYPES = (CLIP_OF_TWO, *LAYOUTS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerSource:
    """A vision tower in a checkpoint.

    Attributes:
      tensors: the checkpoint.
      layout, prefix: how the tower's tensors are named.
      arguments: of `models.vit.ViT`, those that a `towers.TowerManifest` records.
      image_size: side of the images that the positions are for, in pixels.
      qkv_bias: whether queries, keys and values have biases; else zeros stand for them.
    """

    tensors: Tensors
    layout: TowerLayout
    prefix: str
    arguments: Mapping[str, Any]
    image_size: int
    qkv_bias: bool

    def names(self, key: str) -> dict[str, tuple[str, ...]]:
        """Our name of each weight of a part -> its tensors' full names, () for zeros."""
        shapes = part_shapes(self.arguments, self.image_size)[key]
        found = {weight: self.layout.names(key)[weight] for weight in shapes}
        if not self.qkv_bias:
            found |= {weight: () for weight in found if weight == f"{_QKV}.bias"}
        return {weight: tuple(self.prefix + name for name in names) for weight, names in found.items()}


def locate(names: Collection[str], layouts: Sequence[TowerLayout]) -> tuple[TowerLayout, str]:
    """The naming scheme and the prefix under which most is found of what lies before the blocks, and of the first."""
    best, most = (layouts[0], ""), 0
    for layout in layouts:
        # The prefix is what stands before names that only a vision tower has.
        endings = (layout.embedding[_KERNEL], layout.embedding["cls"])
        for prefix in sorted({name.removesuffix(end) for name in names for end in endings if name.endswith(end)}):
            wanted = [name for key in (EMBEDDING, "0") for parts in layout.names(key).values() for name in parts]
            count = sum(prefix + name in names for name in wanted)
            if count > most:
                best, most = (layout, prefix), count
    return best


def part_shapes(arguments: Mapping[str, Any], image_size: int) -> dict[str, dict[str, tuple[int, ...]]]:
    """Key of each part -> our name of each weight -> its shape, linear maps as (in, out)."""
    P, D, F = arguments["patch"], arguments["width"], arguments["mlp_width"]
    embedding = {_KERNEL: (P * P * _CHANNELS, D), "cls": (D,), "positions": (1 + (image_size // P) ** 2, D)}
    if arguments["patch_bias"]:
        embedding["embedding.bias"] = (D,)
    if arguments["pre_norm"]:
        embedding |= {"pre_norm.scale": (D,), "pre_norm.bias": (D,)}
    block = {f"{norm}.{name}": (D,) for norm in ("attention_norm", "mlp_norm") for name in ("scale", "bias")}
    for name, fan_in, fan_out in ((_QKV, D, 3 * D), ("attention.out", D, D), ("mlp.up", D, F), ("mlp.down", F, D)):
        block |= {f"{name}.kernel": (fan_in, fan_out), f"{name}.bias": (fan_out,)}
    if arguments["layer_scale"]:
        block |= {"attention_scale": (D,), "mlp_scale": (D,)}
    blocks = {str(layer): block for layer in range(arguments["depth"])}
    return {EMBEDDING: embedding} | blocks | {NORM: {"scale": (D,), "bias": (D,)}}


def check(source: TowerSource) -> None:
    """Raises one `UserError` with everything of the tower that is missing, unread, misshapen or unreadable."""
    tensors, wanted = _WithoutLeadingOnes(source.tensors), {}
    for key, shapes in part_shapes(source.arguments, source.image_size).items():
        for weight, names in source.names(key).items():
            wanted |= dict.fromkeys(names, _stored_shape(weight, shapes[weight], len(names), source.arguments["patch"]))
    ignored = tuple(source.prefix + beginning for beginning in source.layout.ignored)
    unread = [
        name
        for name in sorted(tensors.names)
        if name.startswith(source.prefix) and name not in wanted and not name.startswith(ignored)
    ]
    check_tensors(
        tensors,
        wanted,
        unread,
        part="a ViT's embedding, blocks and norm",
        whole="a vision tower as its configuration describes it",
        kind="ViT, CLIP or DINOv2 checkpoint (no SwiGLU, no register tokens)",
    )


def left_out(source: TowerSource) -> list[str]:
    """What of the checkpoint is not read, as the beginnings of names that nothing that is read shares."""
    keys = part_shapes(source.arguments, source.image_size)
    read = {name for key in keys for names in source.names(key).values() for name in names}
    shared = {".".join(words[:count]) for words in (name.split(".") for name in read) for count in range(len(words))}
    beginnings = set()
    for name in set(source.tensors.names) - read:
        words = name.split(".")
        steps = (".".join(words[:count]) for count in range(1, len(words)))
        beginnings.add(next((beginning for beginning in steps if beginning not in shared), name))
    return sorted(beginnings)


def read_weight(source: TowerSource, key: str, weight: str, dtype: np.dtype) -> np.ndarray:
    """Reads one weight of a part as it is stored: linear maps (in, out), those of q, k and v side by side."""
    out = np.zeros(part_shapes(source.arguments, source.image_size)[key][weight], dtype)
    names = source.names(key)[weight]
    for name, columns in zip(names, np.split(out, max(1, len(names)), axis=-1), strict=False):
        array = source.tensors.read(name)
        if weight == _KERNEL:
            # (D, C, P, P) to rows in the order of `layers.patches_2d`: rows, columns, channels.
            P = source.arguments["patch"]
            columns.reshape(P, P, _CHANNELS, -1)[...] = array.transpose(2, 3, 1, 0)
        elif weight.endswith(".kernel"):
            columns[...] = array.T
        else:
            columns[...] = array.reshape(columns.shape)
    return out


def _stored_shape(weight: str, shape: tuple[int, ...], parts: int, patch: int) -> tuple[int, ...]:
    if weight == _KERNEL:
        return (shape[1], _CHANNELS, patch, patch)
    if weight.endswith(".kernel"):
        return (shape[1] // parts, shape[0])
    return (*shape[:-1], shape[-1] // max(1, parts))


class _WithoutLeadingOnes:
    """Tensors whose batch axes of length 1, as tokens and positions have in some schemes, are left out of shapes."""

    def __init__(self, tensors: Tensors):
        self._tensors = tensors
        self.source, self.names = tensors.source, tensors.names

    def info(self, name: str) -> TensorInfo:
        info = self._tensors.info(name)
        shape = info.shape
        while len(shape) > 1 and shape[0] == 1:
            shape = shape[1:]
        return dataclasses.replace(info, shape=shape)
