"""The family of Swin Transformers."""

import math
from collections.abc import Mapping
from typing import Any

from jaxboost.convert.tables.family import Family, Found, Layout, eps_of, leaf
from jaxboost.errors import UserError

_BIASES = "attn.relative_position_bias_table"


def _swin_arguments(found: Found) -> dict[str, Any]:
    width, _, patch, _ = found.shape("patch_embed.proj.weight", 4)
    stages = range(found.count(r"layers\.([0-9]{1,2})\.blocks\."))
    tables = [found.shape(f"layers.{stage}.blocks.0.{_BIASES}", 2) for stage in stages]
    side = math.isqrt(tables[0][0])
    if side**2 != tables[0][0] or side % 2 == 0 or {length for length, _ in tables} != {side**2}:
        raise UserError(
            f"{found.where}: there are biases for {', '.join(str(length) for length, _ in tables)} relative positions,"
            f" which is not one square window for all stages: choose another model, such as {next(iter(_SWINS))}"
        )
    return {
        "patch": patch,
        "width": width,
        "depths": tuple(found.count(rf"layers\.{stage}\.blocks\.([0-9]{{1,4}})\.") for stage in stages),
        "heads": tuple(heads for _, heads in tables),
        "window": (side + 1) // 2,
        "eps": eps_of(found, "norm_eps", 1e-5),
    }


# Our module -> timm's.
_SWIN = {
    "embedding": "patch_embed.proj",
    "embedding_norm": "patch_embed.norm",
    "norm": "norm",
    "attention_norm": "norm1",
    "attention.qkv": "attn.qkv",
    "attention.out": "attn.proj",
    "mlp_norm": "norm2",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}


def _swin_name(ours: str, arguments: Mapping[str, Any], *, later: int = 0) -> str:
    del arguments
    *words, last = ours.split(".")
    if words[0] != "stages":
        return f"{_SWIN[words[0]]}.{leaf(last)}"
    stage = int(words[1])
    if words[2] == "merging":
        return f"layers.{stage - later}.downsample.{words[3]}.{leaf(last)}"
    block = f"layers.{stage}.blocks.{words[3]}"
    return f"{block}.{_BIASES}" if last == "biases" else f"{block}.{_SWIN['.'.join(words[4:])]}.{leaf(last)}"


_SWINS = {f"swin_{size}_patch4_window7_224": f"swin_{size}" for size in ("tiny", "small", "base")}
SWIN = Family(
    title="Swin Transformer",
    architectures=_SWINS,
    layouts=(
        # The authors' checkpoints, and older ones of timm, have the merging at the end of a stage.
        Layout(
            signature="layers.0.downsample.reduction.weight",
            also=(f"layers.0.blocks.0.{_BIASES}",),
            name=lambda ours, arguments: _swin_name(ours, arguments, later=1),
        ),
        Layout(signature=f"layers.0.blocks.0.{_BIASES}", name=_swin_name),
    ),
    arguments=_swin_arguments,
    ignored=("head.",),
    buffers=(".relative_position_index", ".attn_mask"),
    takes=("entry", "eps"),
    same="eps 1e-05 (--eps), GELU by erf",
)
