"""Image towers of OpenCLIP: a folder with open_clip_config.json, or a single file of weights.

The tower is OpenCLIP's own ViT, whose names are those of OpenAI's CLIP too, or a ViT of timm.
"""

import dataclasses
import math
import reprlib
from collections.abc import Collection
from typing import Any

from jaxboost.convert.formats.huggingface import HuggingFaceTensors
from jaxboost.convert.formats.settings import MAX_LAYERS, Settings
from jaxboost.convert.formats.tensors import Tensors
from jaxboost.convert.tables import vit_timm
from jaxboost.convert.tables.hints import Hints
from jaxboost.convert.tables.positions import ANTIALIASED
from jaxboost.convert.tables.vit import VitSource, locate
from jaxboost.convert.tables.vit_names import KERNEL, OPEN_CLIP, POSITIONS
from jaxboost.errors import UserError

_EPS = 1e-5
# OpenCLIP's defaults for keys that its configuration leaves out.
_DEFAULTS = {"image_size": 224, "patch_size": 16, "width": 768, "layers": 12, "head_width": 64, "mlp_ratio": 4.0}
# Keys of the image tower that do not change its CLS token in evaluation, or that are read.
_HARMLESS = {
    *_DEFAULTS,
    "ls_init_value",
    "no_ln_pre",
    "pool_type",
    "act_kwargs",
    "norm_kwargs",
    "patch_dropout",
    "drop_path",
    "final_ln_after_pool",  # the norm of the pooled CLS token is that of the token
    "output_tokens",
    "pos_embed_type",
    "attn_pooler_queries",
    "attn_pooler_heads",
}


def is_native(names: Collection[str]) -> bool:
    """Whether a tower of OpenCLIP's own is among tensors of these names."""
    patches, block = OPEN_CLIP.embedding[KERNEL], OPEN_CLIP.names("0")["attention.qkv.kernel"][0]
    return any(name.endswith(patches) and name.removesuffix(patches) + block in names for name in names)


def encoder_of_folder(tensors: HuggingFaceTensors, hints: Hints) -> VitSource:
    """The image tower in a folder with open_clip_config.json.

    Args:
      tensors: of the folder.
      hints: what the user states about the encoder. Of a tower of OpenCLIP's own the configuration says all but
        `resizing` and `entry`.

    Raises:
      UserError: the tower is no `models.vit.ViT`, or a file is missing or broken.
    """
    model = tensors.settings.section("model_cfg")
    tower = _tower_of(model)
    if (name := tower.get("timm_model_name")) is not None:
        if not isinstance(name, str):
            raise UserError(f"{tower.where}: 'timm_model_name' is {reprlib.repr(name)} instead of a name of timm's")
        if not name.startswith(vit_timm.ARCHITECTURES):
            raise UserError(
                f"{tower.where}: the image tower is timm's {name:.80}, which is read only as a ViT"
                f" ({' or '.join(f'{each}...' for each in vit_timm.ARCHITECTURES)}): choose an OpenCLIP ViT, such as"
                f" laion/CLIP-ViT-B-16-laion2B-s34B-b88K{_timms_copy(name)}"
            )
        # OpenCLIP leaves the pooling of timm's model as it is where none is named.
        values = {"architecture": name, "global_pool": tower.get("timm_pool") or None}
        return vit_timm.encoder_of(tensors, Settings(values, tower.where), tensors.source, hints)
    dataclasses.replace(hints, resizing=None, entry=None).check_unused(tensors.source)
    arguments, image_size = parse_tower(model)
    return _source(tensors, arguments, image_size, hints, prefix=None)


def _timms_copy(architecture: str) -> str:
    """What else can be done about a tower that is not read, for the end of a message."""
    if not architecture.startswith("convnext_"):
        return ""
    return ", or a ConvNeXt in timm's names, such as timm/convnext_base.clip_laion2b_augreg_ft_in12k_in1k"


def encoder_of_file(tensors: Tensors, where: str, hints: Hints) -> VitSource:
    """The image tower of OpenCLIP's own in a file of weights.

    Args:
      tensors: the checkpoint.
      where: the file, for messages.
      hints: what the user states about the encoder; the activation is needed.

    Raises:
      UserError: see `encoder_of_folder`; or the activation is not stated.
    """
    if hints.activation is None:
        raise UserError(
            f"{where}: the weights do not say the activation, and CLIP models of the same shape differ in it: pass the "
            "folder with open_clip_config.json, or give --activation quick_gelu (OpenAI, MetaCLIP, DFN, PubMedCLIP) "
            "or --activation gelu (LAION, DataComp)"
        )
    _, prefix = locate(tensors.names, (OPEN_CLIP,), where=where, entry=hints.entry)
    block = OPEN_CLIP.names("0")

    def shape(name: str, axes: int) -> tuple[int, ...]:
        found = tensors.info(prefix + name).shape if prefix + name in tensors.names else ()
        if len(found) != axes or 0 in found:
            raise UserError(f"{where}: {prefix + name} has the shape {found} instead of {axes} axes")
        return found

    width, _, _, patch = shape(OPEN_CLIP.embedding[KERNEL], 4)
    tokens = shape(OPEN_CLIP.embedding[POSITIONS], 2)[0]
    grid = math.isqrt(max(0, tokens - 1))
    if grid < 1 or 1 + grid**2 != tokens:
        raise UserError(
            f"{where}: there are positions for {tokens} tokens, which are not a CLS token and a square grid: "
            "choose another model"
        )
    heads, note = vit_timm.heads_of(width, where, hints.heads)
    eps = _EPS if hints.eps is None else hints.eps
    arguments = {
        "patch": patch,
        "width": width,
        "depth": vit_timm.depth_of(tensors, prefix, OPEN_CLIP, where),
        "heads": heads,
        "mlp_width": shape(block["mlp.up.kernel"][0], 2)[0],
        "eps": eps,
        "activation": hints.activation,
        "patch_bias": False,
        "pre_norm": prefix + OPEN_CLIP.embedding["pre_norm.scale"] in tensors.names,
        "layer_scale": prefix + block["attention_scale"][0] in tensors.names,
    }
    assumed = [note] * bool(note) + [f"eps {eps} (--eps)"] * (hints.eps is None)
    assumed += [f"square images of {patch * grid} pixels in patches of {patch} without overlap"]
    notes = (f"assumed, because the weights do not say it: {'; '.join(assumed)}",)
    found = _source(tensors, arguments, patch * grid, hints, prefix=prefix)
    return dataclasses.replace(found, notes=found.notes + notes)


def parse_tower(model: Settings) -> tuple[dict[str, Any], int]:
    """Arguments of `models.vit.ViT`, and the image size in pixels, from `model_cfg`.

    Raises:
      UserError: `models.vit.ViT` cannot be this tower.
    """
    tower = _tower_of(model)
    where = tower.where
    present = {key: value for key, value in tower.values.items() if value is not None}
    tower = Settings(_DEFAULTS | present, where)
    if isinstance(tower.get("layers"), list):
        raise UserError(f"{where}: the image tower is a ResNet: choose an OpenCLIP model whose name begins with ViT")
    changed = sorted(key for key, value in present.items() if value and key not in _HARMLESS)
    if tower.get("pool_type") not in (None, "tok"):
        changed.append("pool_type")
    if changed:
        raise UserError(
            f"{where}: {changed[0]} is {reprlib.repr(tower.get(changed[0]))}, which is not supported: choose an "
            "OpenCLIP ViT without it, such as ViT-B-16"
        )
    width, head_width = tower.integer("width"), tower.integer("head_width")
    patch, image_size = tower.integer("patch_size", limit=1024), tower.integer("image_size", limit=1 << 14)
    if width % head_width:
        raise UserError(f"{where}: the width {width} is not a multiple of the heads' {head_width}")
    if image_size < patch:
        raise UserError(f"{where}: images of {image_size} pixels are smaller than the patch of {patch}")
    arguments = {
        "patch": patch,
        "width": width,
        "depth": tower.integer("layers", limit=MAX_LAYERS),
        "heads": width // head_width,
        "mlp_width": int(width * tower.number("mlp_ratio")),
        "eps": tower.section("norm_kwargs").number("eps", _EPS),
        "activation": _activation(tower, bool(model.get("quick_gelu"))),
        "patch_bias": False,
        "pre_norm": not tower.get("no_ln_pre"),
        "layer_scale": tower.get("ls_init_value") is not None,
    }
    return arguments, image_size


def _tower_of(model: Settings) -> Settings:
    """The section of the image tower. Without it OpenCLIP's defaults would stand for a model that nobody described."""
    if model.get("vision_cfg") is None:
        raise UserError(
            f"{model.where} has no 'vision_cfg': the file does not describe an image tower, download it again"
        )
    return model.section("vision_cfg")


def _activation(tower: Settings, quick_gelu: bool) -> str:
    changes = tower.section("act_kwargs").values
    if changes and (quick_gelu or changes != {"approximate": "none"}):
        raise UserError(f"{tower.where}: act_kwargs is {reprlib.repr(dict(changes))}, which is not supported")
    return "quick_gelu" if quick_gelu else "gelu"


def _source(
    tensors: Tensors, arguments: dict[str, Any], image_size: int, hints: Hints, *, prefix: str | None
) -> VitSource:
    if prefix is None:
        _, prefix = locate(tensors.names, (OPEN_CLIP,), where=tensors.source, entry=hints.entry)
    return VitSource(
        tensors=tensors,
        layout=OPEN_CLIP,
        prefix=prefix,
        arguments=arguments,
        image_size=image_size,
        # As OpenCLIP resizes them.
        resizing=hints.resizing or ANTIALIASED,
        notes=(f"the weights are those under {prefix.rstrip('.')!r}",) * bool(prefix),
        others=() if prefix else tuple(f"{entry}." for entry in getattr(tensors, "entries", ())),
    )
