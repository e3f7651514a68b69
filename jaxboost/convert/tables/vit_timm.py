"""ViTs in timm's names: a single file of weights, or a folder whose config.json names the architecture.

The weights give the shapes. The other arguments come from the user's hints, config.json, or the defaults of timm, MAE,
DINO and DINOv2, in this order. The log names what was assumed.
"""

import difflib
import math
import re

from jaxboost.convert.formats import adapters
from jaxboost.convert.formats.settings import MAX_LAYERS, Settings
from jaxboost.convert.formats.tensors import Tensors
from jaxboost.convert.tables.families import FAMILIES
from jaxboost.convert.tables.hints import Hints
from jaxboost.convert.tables.positions import ANTIALIASED, BICUBIC, RESIZINGS
from jaxboost.convert.tables.vit import VitSource, locate
from jaxboost.convert.tables.vit_names import REGISTERS, TIMM, TIMM_OF_DINOV2, VitLayout
from jaxboost.errors import UserError
from jaxboost.models.transformer import ACTIVATIONS

LAYOUTS = (TIMM, TIMM_OF_DINOV2)
_EPS, _ACTIVATION = 1e-6, "gelu"
# Width -> heads, of all of timm's plain ViTs.
_HEADS = {
    **{width: width // 64 for width in (192, 256, 320, 384, 512, 640, 768, 832, 896, 1024)},
    **dict.fromkeys((1152, 1280, 1408, 1664), 16),
}

_ARCHITECTURES = ("vit_", "deit")
# Changes of the architecture that config.json may name and that no weight shows.
_INVISIBLE = ("act_layer", "norm_layer", "block_fn", "attn_layer", "mlp_layer")
# Beginning of a tensor's name -> why `models.vit.ViT` cannot be a model with it, and what to do.
_OTHER = "choose another model"
_FOREIGN = {
    "dist_token": (
        "has CLS and a distillation token (DeiT, distilled), and its result is the mean of both",
        "choose the model without distillation, such as deit_base_patch16_224",
    ),
    "fc_norm.": (
        "was fine-tuned with the mean of its patches as its result (fc_norm in the place of norm): its CLS token, "
        "which is used here, was not trained for that",
        "choose the pretrained checkpoint, not the fine-tuned one",
    ),
    "norm_pre.": ("has a norm before the first block (CLIP)", "choose Hugging Face's copy of the model"),
    "blocks.0.attn.q_norm.": ("has norms of queries and keys (qk_norm)", _OTHER),
    "blocks.0.attn.q_bias": ("has separate biases of queries and values (BEiT, EVA)", _OTHER),
    "blocks.0.attn.relative_position": ("has relative positions (BEiT)", _OTHER),
    "rel_pos_bias.": ("has relative positions (BEiT)", _OTHER),
    "blocks.0.gamma_1": ("has LayerScale under the names of BEiT and CaiT", "choose timm's copy of the model"),
    "rope.": ("has a rotary embedding", _OTHER),
}


def is_timm(settings: Settings) -> bool:
    """Whether config.json is timm's own, or transformers' wrapper of it."""
    return settings.get("model_type") in (None, "timm_wrapper") and isinstance(settings.get("architecture"), str)


def encoder_of(tensors: Tensors, settings: Settings, where: str, hints: Hints | None = None) -> VitSource:
    """The ViT in timm's names among `tensors`.

    Args:
      tensors: the checkpoint.
      settings: config.json; empty for a single file of weights.
      where: the weights, for messages.
      hints: what the user states about the encoder.

    Raises:
      UserError: there is no ViT, or several; it is not a `models.vit.ViT`; its number of heads is not known; or a file
        is missing or broken.
    """
    hints = hints or Hints()
    _check_architecture(settings)
    adapters.check(tensors.names, where)
    layout, prefix = locate(tensors.names, LAYOUTS, where=where, entry=hints.entry)
    _check_kind(tensors, prefix, settings, where)
    block = layout.names("0")

    def shape(name: str, axes: int) -> tuple[int, ...]:
        found = tensors.info(prefix + name).shape
        if len(found) != axes or 0 in found:
            raise UserError(f"{where}: {prefix + name} has the shape {found} instead of {axes} axes")
        return found

    width, _, _, patch = shape(layout.embedding["embedding.kernel"], 4)
    registers = 0
    if prefix + layout.embedding[REGISTERS] in tensors.names:
        registers = shape(layout.embedding[REGISTERS], 3)[1]
    placed, grid = _grid(shape(layout.embedding["positions"], 3)[1], registers, layout, where)
    heads, eps, activation, resizing, assumed = _unseen(width, settings, where, hints, layout, registers)
    arguments = {
        "patch": patch,
        "width": width,
        "depth": _depth(tensors, prefix, where),
        "heads": heads,
        "mlp_width": shape(block["mlp.up.kernel"][0], 2)[0],
        "eps": eps,
        "activation": activation,
        "patch_bias": True,
        "pre_norm": False,
        "layer_scale": prefix + block["attention_scale"][0] in tensors.names,
    }
    notes = [f"the weights are those under {prefix.rstrip('.')!r}"] if prefix else []
    if not settings.values:
        assumed += [f"square images of {patch * grid} pixels in patches of {patch} without overlap"]
    if assumed:
        notes.append(f"assumed, because the weights do not say it: {'; '.join(assumed)}")
    if settings.get("global_pool") in ("avg", "avgmax", "max", "map"):
        notes.append(
            f"the model was trained with {settings.get('global_pool')} pooling of its tokens: its CLS token, which is "
            "used here, was not trained for its result"
        )
    if others := getattr(tensors, "others", ()):
        notes.append(f"not read, because these are no tensors: {', '.join(others[:20])}")
    return VitSource(
        tensors=tensors,
        layout=layout,
        prefix=prefix,
        arguments=arguments | ({REGISTERS: registers} if registers else {}),
        image_size=patch * grid,
        qkv_bias=True,
        placed_tokens=placed,
        resizing=resizing,
        notes=tuple(notes),
        others=() if prefix else tuple(f"{entry}." for entry in getattr(tensors, "entries", ())),
    )


def _check_architecture(settings: Settings) -> None:
    architecture = settings.get("architecture")
    if architecture is None:
        return
    if not architecture.startswith(_ARCHITECTURES):
        others = [name for family in FAMILIES.values() for name in family.architectures]
        nearest = difflib.get_close_matches(architecture, others, n=1, cutoff=0.4)
        raise UserError(
            f"{settings.where}: timm's {architecture!r} is not read: choose a ViT, whose name begins with "
            f"{' or '.join(_ARCHITECTURES)}, or one of {', '.join(others)}"
            + (f"; the nearest is {nearest[0]}" if nearest else "")
        )
    changed = [name for name in _INVISIBLE if settings.section("model_args").get(name) is not None]
    if changed:
        raise UserError(f"{settings.where}: this {architecture} has another {changed[0]}: choose another model")


def _check_kind(tensors: Tensors, prefix: str, settings: Settings, where: str) -> None:
    """Raises UserError if there is no ViT in timm's names, or if it has parts that `models.vit.ViT` lacks."""
    block = TIMM.names("0")
    needed = [TIMM.embedding["embedding.kernel"], TIMM.embedding["positions"], block["mlp.up.kernel"][0]]
    for name in needed:
        if prefix + name not in tensors.names:
            fix = _OTHER
            if not settings.values:
                fix = "for a checkpoint in Hugging Face's or Meta's layout pass the folder that holds the file"
            raise UserError(f"{where} holds no ViT in timm's names, there is no {prefix + name!r}: {fix}")
    for beginning, (what, fix) in _FOREIGN.items():
        if any(name.startswith(prefix + beginning) for name in tensors.names):
            raise UserError(f"{where}: this ViT {what}, which is not supported: {fix}")
    kernel, bias = (prefix + block[f"attention.qkv.{part}"][0] for part in ("kernel", "bias"))
    if kernel in tensors.names and bias not in tensors.names:
        raise UserError(
            f"{where}: queries, keys and values have no biases, which is not supported: choose another model"
        )


def _grid(tokens: int, registers: int, layout: VitLayout, where: str) -> tuple[int, int]:
    """`VitSource.placed_tokens`, and the side of the grid of patches."""
    # In DINOv2's checkpoints registers have no positions. In timm's all tokens before the patches have one, or none.
    ways = (1,) if registers and layout is TIMM_OF_DINOV2 else (0, 1 + registers)
    fitting = [
        (placed, side)
        for placed in ways
        if (side := math.isqrt(max(0, tokens - placed))) and placed + side**2 == tokens
    ]
    if len(fitting) != 1:
        expected = f"CLS, {registers} registers" if registers else "a CLS token"
        raise UserError(
            f"{where}: there are positions for {tokens} tokens, which are not {expected} and a square grid: "
            "choose another model"
        )
    return fitting[0]


def _depth(tensors: Tensors, prefix: str, where: str) -> int:
    numbered = re.compile(re.escape(prefix) + r"blocks\.([0-9]{1,9})\.")
    depth = 1 + max(int(match[1]) for match in map(numbered.match, tensors.names) if match)
    if depth > MAX_LAYERS:
        raise UserError(f"{where} names {depth} blocks, more than {MAX_LAYERS}: download it again")
    return depth


def _unseen(
    width: int, settings: Settings, where: str, hints: Hints, layout: VitLayout, registers: int
) -> tuple[int, float, str, str, list[str]]:
    """Heads, eps, activation and resizing, and texts about those that were assumed."""
    assumed = []
    said = settings.section("model_args").get("num_heads")
    if said is not None:
        heads = settings.section("model_args").integer("num_heads")
        if hints.heads not in (None, heads):
            raise UserError(f"{settings.where} says {heads} heads, not {hints.heads}: leave --heads out")
    elif hints.heads is not None:
        heads = hints.heads
    elif width in _HEADS:
        heads = _HEADS[width]
        assumed.append(f"{heads} heads of {width // heads}, as timm's ViTs of width {width} have (--heads)")
    else:
        raise UserError(
            f"{where}: the number of heads is not known for a width of {width}, which none of timm's ViTs has: "
            "give it with --heads"
        )
    if heads < 1 or width % heads:
        raise UserError(f"{where}: a width of {width} is not a multiple of {heads} heads: check --heads")
    eps, activation = hints.eps, hints.activation
    if eps is None:
        eps = _EPS
        assumed.append(f"eps {eps} (--eps)")
    elif not 0 < eps <= 1:
        raise UserError(f"--eps {eps} is not above 0 and at most 1")
    if activation is None:
        activation = _ACTIVATION
        assumed.append("GELU by erf (--activation)")
    elif activation not in ACTIVATIONS:
        raise UserError(f"--activation {activation!r} is not one of {', '.join(ACTIVATIONS)}")
    resizing = hints.resizing
    if resizing is None:
        # Hugging Face's copies, MAE and DINO resize without antialiasing; timm and DINOv2 with registers with it.
        resizing = ANTIALIASED if settings.values or registers else BICUBIC
        if not settings.values:
            assumed.append(f"{resizing} resizing of positions (--resizing)")
    elif resizing not in RESIZINGS:
        raise UserError(f"--resizing {resizing!r} is not one of {', '.join(RESIZINGS)}")
    # A config.json with an architecture of timm's has these values: they are not assumed.
    return heads, eps, activation, resizing, [] if settings.values else assumed
