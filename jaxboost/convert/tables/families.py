"""The families of encoders without CLS token: how timm stores them, and the arguments that their tensors show."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxboost.convert.formats.settings import Settings
from jaxboost.convert.tables.hints import Hints
from jaxboost.errors import UserError

# Our names of arrays -> torch's.
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "variance": "running_var",
}
_HEADS = ("fc.", "classifier.", "head.fc.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """The tensors of one encoder in a checkpoint.

    Attributes:
      shapes: name without the encoder's prefix -> shape.
      settings: config.json; empty for a single file of weights.
      hints: what the user states.
      where: the weights, for messages.
    """

    shapes: Mapping[str, tuple[int, ...]]
    settings: Settings
    hints: Hints
    where: str

    def shape(self, name: str, axes: int) -> tuple[int, ...]:
        """The shape of a tensor that every encoder of the family has.

        Raises:
          UserError: it is missing, or has another number of axes.
        """
        found = self.shapes.get(name)
        if found is None:
            raise UserError(f"{self.where} has no {name!r}: check that the download is complete")
        if len(found) != axes or 0 in found:
            raise UserError(f"{self.where}: {name} has the shape {found} instead of {axes} axes")
        return found

    def count(self, pattern: str) -> int:
        """The number of modules: 1 + the highest number in the names that match a pattern with one group."""
        numbers = [int(match[1]) for match in map(re.compile(pattern).match, self.shapes) if match]
        return 1 + max(numbers, default=-1)

    @property
    def architecture(self) -> str:
        """The name in timm, from config.json; "" for a single file."""
        return self.settings.get("architecture") or ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """One naming scheme of a family; names are without the encoder's prefix.

    Attributes:
      signature: a tensor that each encoder with these names has, and no encoder of another family.
      name: (our name of an array, arguments) -> the tensor's name.
    """

    signature: str
    name: Callable[[str, Mapping[str, Any]], str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A family of encoders.

    Attributes:
      title: for messages.
      architectures: timm's names of the models that are a row of BACKBONES -> the row.
      layouts: the naming schemes, timm's own last; the first whose signature is there is taken.
      arguments: of the encoder, as its manifest records them, from its tensors.
      norm: the module of the norm after the encoder; "" if there is none.
      ignored: beginnings of the names of tensors that do not affect the encoder's result.
      buffers: endings of the names of tensors that follow from the architecture, or are not used.
      takes: the fields of `Hints` that it reads.
      same: what a file alone does not show, and is assumed.
    """

    title: str
    architectures: Mapping[str, str]
    layouts: tuple[Layout, ...]
    arguments: Callable[[Found], dict[str, Any]]
    norm: str = ""
    ignored: tuple[str, ...] = _HEADS
    buffers: tuple[str, ...] = (".num_batches_tracked",)
    takes: tuple[str, ...] = ("entry",)
    same: str


def leaf(name: str) -> str:
    """The last word of a tensor's name for the last word of ours."""
    return _LEAVES[name]


def _resnet_arguments(found: Found) -> dict[str, Any]:
    stages = found.count(r"layer([1-9][0-9]?)\.") - 1
    width, _, size, _ = found.shape("conv1.weight", 4)
    if size != 7:
        raise UserError(
            f"{found.where}: the kernel of the first convolution has {size} x {size} pixels, ImageNet's has 7 x 7: "
            f"choose another checkpoint, such as {' or '.join(RESNET.architectures)}"
        )
    return {
        "block": "bottleneck" if "layer1.0.conv3.weight" in found.shapes else "basic",
        "depths": tuple(found.count(rf"layer{stage + 1}\.([0-9]{{1,4}})\.") for stage in range(stages)),
        "base_width": width,
        "stem": "large",
    }


def _resnet_name(ours: str, arguments: Mapping[str, Any]) -> str:
    *words, last = ours.split(".")
    conv = words[-1] == "conv"
    if words[0] == "stem":
        return f"{'conv1' if conv else 'bn1'}.{leaf(last)}"
    number, stage = int(words[1]), 0
    while number >= arguments["depths"][stage]:
        number -= arguments["depths"][stage]
        stage += 1
    inside = f"downsample.{0 if conv else 1}"
    if words[2] == "convs":
        inside = f"{'conv' if conv else 'bn'}{int(words[3]) + 1}"
    return f"layer{stage + 1}.{number}.{inside}.{leaf(last)}"


RESNET = Family(
    title="ResNet",
    architectures={"resnet18": "resnet18", "resnet50": "resnet50"},
    layouts=(Layout(signature="layer1.0.conv1.weight", name=_resnet_name),),
    arguments=_resnet_arguments,
    same="strides and pooling as torchvision's ResNet has them",
)


def _eps(found: Found, entry: str, default: float) -> float:
    """The eps of all LayerNorms: stated by the user, or by config.json, or timm's default."""
    eps = found.hints.eps
    if eps is None:
        return found.settings.section("model_args").number(entry, default)
    if not 0 < eps <= 1:
        raise UserError(f"--eps {eps} is not above 0 and at most 1")
    return eps


def _convnext_arguments(found: Found) -> dict[str, Any]:
    first = "stages.0.blocks.0."
    if "head.norm.weight" not in found.shapes:
        why = "was pretrained alone, as a masked autoencoder (FCMAE)"
        if "norm_pre.weight" in found.shapes:
            why = "has a norm before the mean of its tokens (hnf)"
        raise UserError(
            f"{found.where}: this ConvNeXt {why}, and has no norm after the mean, which is needed: choose a fine-tuned"
            " model, such as convnext_tiny.fb_in22k_ft_in1k or convnextv2_tiny.fcmae_ft_in22k_in1k"
        )
    stages = found.count(r"stages\.([0-9]{1,2})\.")
    return {
        "depths": tuple(found.count(rf"stages\.{stage}\.blocks\.([0-9]{{1,4}})\.") for stage in range(stages)),
        "widths": tuple(found.shape(f"stages.{stage}.blocks.0.norm.weight", 1)[0] for stage in range(stages)),
        "eps": _eps(found, "norm_eps", 1e-6),
        "layer_scale": f"{first}gamma" in found.shapes,
        "response_norm": f"{first}mlp.grn.weight" in found.shapes,
    }


# Our module -> timm's.
_CONVNEXT_STEM = {"conv": "0", "norm": "1"}
_CONVNEXT_DOWNSAMPLING = {"norm": "0", "conv": "1"}
_CONVNEXT_BLOCK = {
    "conv": "conv_dw",
    "norm": "norm",
    "up": "mlp.fc1",
    "response_norm": "mlp.grn",
    "down": "mlp.fc2",
}


def _convnext_name(ours: str, arguments: Mapping[str, Any]) -> str:
    del arguments
    *words, last = ours.split(".")
    if words[0] == "stem":
        return f"stem.{_CONVNEXT_STEM[words[1]]}.{leaf(last)}"
    stage = f"stages.{words[1]}"
    if words[2] == "downsample":
        return f"{stage}.downsample.{_CONVNEXT_DOWNSAMPLING[words[3]]}.{leaf(last)}"
    block = f"{stage}.blocks.{words[3]}"
    return f"{block}.gamma" if last == "layer_scale" else f"{block}.{_CONVNEXT_BLOCK[words[4]]}.{leaf(last)}"


CONVNEXT = Family(
    title="ConvNeXt",
    architectures={
        f"{version}_{size}": f"{version}_{size}"
        for version in ("convnext", "convnextv2")
        for size in ("atto", "femto", "pico", "nano", "tiny", "small", "base")
    },
    layouts=(Layout(signature="stages.0.blocks.0.conv_dw.weight", name=_convnext_name),),
    arguments=_convnext_arguments,
    norm="head.norm",
    takes=("entry", "eps"),
    same="eps 1e-06 (--eps), GELU by erf",
)

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
        "eps": _eps(found, "norm_eps", 1e-5),
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

# `Traits.names` of an encoder -> its family. ViTs have modules of their own, `vit` and `vit_timm`.
FAMILIES = {"resnet": RESNET, "convnext": CONVNEXT, "swin": SWIN}
