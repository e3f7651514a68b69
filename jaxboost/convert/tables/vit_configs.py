"""What a vision checkpoint's config.json says: the arguments of `models.vit.ViT`."""

import dataclasses
import reprlib
from typing import Any

from jaxboost.convert.formats.huggingface import HuggingFaceTensors
from jaxboost.convert.formats.settings import MAX_LAYERS, Settings
from jaxboost.convert.tables.positions import ANTIALIASED, BICUBIC
from jaxboost.convert.tables.vit import VitSource, locate
from jaxboost.convert.tables.vit_names import LAYOUTS, MODEL_TYPES, OF_TWO, QKV, REGISTERS, VitLayout
from jaxboost.errors import UserError

# Hugging Face's name of an activation -> ours.
ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}
_WITH_REGISTERS, _DINOV3 = "dinov2_with_registers", "dinov3_vit"
# Of transformers; its attention pool has no part in its result.
_MEAN_OF_PATCHES = "SiglipForImageClassification"
# The longest side of an image, in pixels.
_MAX_SIDE = 1 << 14


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """What all models of one type have in common.

    Attributes:
      defaults: of Hugging Face's configuration class, for keys that config.json leaves out.
      fixed: arguments of the ViT that no key gives.
    """

    defaults: dict[str, Any]
    fixed: dict[str, Any]


_BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "num_channels": 3,
}
_VIT = Family(
    defaults=_BASE | {"intermediate_size": 3072, "patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-12},
    fixed={"patch_bias": True, "pre_norm": False, "layer_scale": False},
)
_DINOV2 = Family(
    defaults=_BASE | {"mlp_ratio": 4, "patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-6},
    fixed={"patch_bias": True, "pre_norm": False, "layer_scale": True},
)
FAMILIES = {
    "clip_vision_model": Family(
        defaults=_BASE
        | {"intermediate_size": 3072, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
        fixed={"patch_bias": False, "pre_norm": True, "layer_scale": False},
    ),
    "blip_2_vision_model": Family(
        defaults=_BASE
        | {"hidden_size": 1408, "num_hidden_layers": 39, "num_attention_heads": 16, "intermediate_size": 6144}
        | {"patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-6},
        fixed={"patch_bias": True, "pre_norm": False, "layer_scale": False},
    ),
    "siglip_vision_model": Family(
        defaults=_BASE
        | {"intermediate_size": 3072, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
        fixed={"patch_bias": True, "pre_norm": False, "layer_scale": False, "pooling": "map"},
    ),
    "vit": _VIT,
    "vit_mae": _VIT,
    "dinov2": _DINOV2,
    _WITH_REGISTERS: dataclasses.replace(_DINOV2, defaults=_DINOV2.defaults | {"num_register_tokens": 4}),
    _DINOV3: Family(
        defaults=_BASE
        | {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "patch_size": 16}
        | {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "num_register_tokens": 0, "rope_theta": 100.0}
        | {"key_bias": False},
        fixed={"patch_bias": True, "pre_norm": False, "layer_scale": True},
    ),
}
# Key of a configuration -> the modules that have no bias where it is false.
_BIASES = {
    "query_bias": (".q_proj.",),
    "key_bias": (".k_proj.",),
    "value_bias": (".v_proj.",),
    "proj_bias": (".o_proj.",),
    "mlp_bias": (".up_proj.", ".down_proj."),
}


def is_encoder(settings: Settings) -> bool:
    """Whether config.json describes a vision checkpoint of a known type."""
    return settings.get("model_type") in MODEL_TYPES


def encoder_of(tensors: HuggingFaceTensors) -> VitSource:
    """The vision encoder of a checkpoint in Hugging Face's layout.

    Raises:
      UserError: config.json describes a model that `models.vit.ViT` cannot be, or a file is missing or broken.
    """
    settings = tensors.settings
    model_type = settings.get("model_type")
    if settings.get("architectures") == [_MEAN_OF_PATCHES]:
        raise UserError(
            f"{settings.where}: {_MEAN_OF_PATCHES} was fine-tuned with the mean of its patches as its result: the "
            "pooled feature, which is used here, was not trained for that: choose the checkpoint that it was made "
            "from, such as google/siglip-base-patch16-224"
        )
    if model_type in OF_TWO:
        model_type, settings = OF_TWO[model_type], _vision_section(settings)
    arguments, image_size = parse_vision(settings, model_type)
    layout, prefix = locate(tensors.names, LAYOUTS[model_type], where=tensors.source)
    return VitSource(
        tensors=tensors,
        layout=layout,
        prefix=prefix,
        arguments=arguments,
        image_size=image_size,
        absent=_absent(settings, model_type, layout),
        placed_tokens=0 if "pooling" in arguments else 1,
        # As transformers resizes the positions of each.
        resizing=ANTIALIASED if model_type == _WITH_REGISTERS else BICUBIC,
    )


def _absent(settings: Settings, model_type: str, layout: VitLayout) -> tuple[str, ...]:
    """The biases that the model lacks, see `VitSource`."""
    if model_type != _DINOV3:
        return () if settings.get("qkv_bias") is not False else layout.weights[f"{QKV}.bias"]
    values = FAMILIES[model_type].defaults | {key: value for key, value in settings.values.items() if value is not None}
    modules = [module for key, modules in _BIASES.items() if values.get(key) is False for module in modules]
    names = [name for names in layout.weights.values() for name in names]
    return tuple(name for name in names if any(name.endswith(f"{module}bias") for module in modules))


def parse_vision(settings: Settings, model_type: str) -> tuple[dict[str, Any], int]:
    """Arguments of `models.vit.ViT`, and the image size in pixels.

    Raises:
      UserError: `models.vit.ViT` cannot be this model.
    """
    family, where = FAMILIES[model_type], settings.where
    present = {key: value for key, value in settings.values.items() if value is not None}
    settings = Settings(family.defaults | present, where)
    if settings.get("use_swiglu_ffn"):
        raise UserError(f"{where}: the MLPs are SwiGLU (DINOv2 giant), the ViT's are not: choose a smaller model")
    if settings.get("use_gated_mlp"):
        raise UserError(
            f"{where}: the MLPs are SwiGLU (DINOv3 S+, H+ and 7B), the ViT's are not: choose DINOv3 S, B or L, such as "
            "facebook/dinov3-vitb16-pretrain-lvd1689m"
        )
    if settings.get("vision_use_head") is False:
        raise UserError(
            f"{where}: the model has no pooling (vision_use_head is false), and no CLS token in its place: choose a "
            "SigLIP checkpoint with its head, such as google/siglip-base-patch16-224"
        )
    activation = settings.get("hidden_act")
    if activation not in tuple(ACTIVATIONS):
        raise UserError(
            f"{where}: the activation is {reprlib.repr(activation)}, the ViT's is one of {', '.join(ACTIVATIONS)}: "
            "choose another checkpoint"
        )
    if settings.integer("num_channels") != 3:
        raise UserError(f"{where}: images have {settings.get('num_channels')} channels instead of 3")
    width, heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    if width % heads:
        raise UserError(f"{where}: the width {width} is not a multiple of {heads} heads")
    patch, image_size = _side(settings, "patch_size"), _side(settings, "image_size")
    if "mlp_ratio" in family.defaults:
        mlp_width = int(width * settings.number("mlp_ratio"))
        Settings({"width of the MLPs": mlp_width}, where).integer("width of the MLPs")
    else:
        mlp_width = settings.integer("intermediate_size")
    if image_size < patch:
        raise UserError(f"{where}: images of {image_size} pixels are smaller than the patch of {patch}")
    arguments = {
        "patch": patch,
        "width": width,
        "depth": settings.integer("num_hidden_layers", limit=MAX_LAYERS),
        "heads": heads,
        "mlp_width": mlp_width,
        "eps": settings.number("layer_norm_eps"),
        "activation": ACTIVATIONS[activation],
    }
    if "num_register_tokens" in family.defaults:
        registers = settings.count("num_register_tokens", 0, limit=1024)
        arguments |= {REGISTERS: registers} if registers else {}
    if model_type == _DINOV3:
        if width // heads % 4:
            raise UserError(f"{where}: rotary positions need heads of a multiple of 4, not {width // heads}")
        arguments |= {"rope": _rope_of(settings)}
        arguments |= {"key_bias": False} if settings.get("key_bias") is False else {}
    return arguments | dict(family.fixed), image_size


def _rope_of(settings: Settings) -> float:
    """The base of DINOv3's rotary positions: transformers reads `rope_theta` alone."""
    theta, others = settings.number("rope_theta"), settings.section("rope_parameters")
    if others.get("rope_type") not in (None, "default") or others.number("rope_theta", theta) != theta:
        raise UserError(
            f"{settings.where}: rope_parameters is {reprlib.repr(dict(others.values))}, but DINOv3's rotary positions "
            f"have no other form and rope_theta is {theta}: choose another checkpoint"
        )
    return theta


def _vision_section(settings: Settings) -> Settings:
    # Early files have a second section, which wins in transformers.
    older = settings.section("vision_config_dict")
    return older if older.values else settings.section("vision_config")


def _side(settings: Settings, key: str) -> int:
    """A side in pixels, written as a number or as two equal ones."""
    value = settings.get(key)
    if isinstance(value, list):
        if len(value) != 2 or value[0] != value[1]:
            raise UserError(f"{settings.where}: {key!r} is {reprlib.repr(value)}, the ViT takes squares")
        settings = Settings({key: value[0]}, settings.where)
    return settings.integer(key, limit=_MAX_SIDE)
