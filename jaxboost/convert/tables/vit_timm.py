"""ViTs in timm's names: a single file of weights, or a folder whose config.json names the architecture.

The weights give the shapes. The other arguments come from the user's hints, config.json, or the defaults of timm, MAE,
DINO and DINOv2, in this order. The log names what was assumed.
"""

import math
import re

from jaxboost.convert.formats import adapters
from jaxboost.convert.formats.settings import MAX_LAYERS, Settings
from jaxboost.convert.formats.tensors import Tensors
from jaxboost.convert.tables.hints import Hints
from jaxboost.convert.tables.positions import ANTIALIASED, BICUBIC
from jaxboost.convert.tables.vit import VitSource, locate
from jaxboost.convert.tables.vit_names import REGISTERS, TIMM, TIMM_OF_DINOV2, VitLayout
from jaxboost.errors import UserError

LAYOUTS = (TIMM, TIMM_OF_DINOV2)
_EPS, _ACTIVATION = 1e-6, "gelu"
_CLIP_EPS = 1e-5  # of models with a norm before the first block
# Width -> heads, of all of timm's plain ViTs.
_HEADS = {
    **{width: width // 64 for width in (192, 256, 320, 384, 512, 640, 768, 832, 896, 1024)},
    **dict.fromkeys((1152, 1280, 1408, 1664), 16),
}
# The beginnings of the names of timm's SigLIPs whose GELU is by tanh; the others' is by erf.
_TANH = (
    "vit_base_patch32_siglip_",
    "vit_large_patch16_siglip_512",
    "vit_so400m_patch16_siglip_",
    "vit_giantopt_patch16_siglip_",
)
# Beginnings of the tags of timm's CLIPs that were trained with QuickGELU, but for a few.
_QUICK = ("openai", "metaclip", "dfn")
# The beginnings of the names of timm's ViTs.
ARCHITECTURES = ("vit_", "deit")
# Changes of the architecture that config.json may name and that no weight shows.
_INVISIBLE = ("act_layer", "norm_layer", "block_fn", "attn_layer", "mlp_layer")
# Beginning of a tensor's name -> why `models.vit.ViT` cannot be a model with it, and what to do.
_OTHER = "choose another model"
_DINOV3 = "choose Hugging Face's copy, such as facebook/dinov3-vits16-pretrain-lvd1689m"
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
    "blocks.0.attn.q_norm.": ("has norms of queries and keys (qk_norm)", _OTHER),
    "blocks.0.attn.q_bias": ("has separate biases of queries and values (BEiT, EVA)", _OTHER),
    "blocks.0.attn.relative_position": ("has relative positions (BEiT)", _OTHER),
    "rel_pos_bias.": ("has relative positions (BEiT)", _OTHER),
    "blocks.0.gamma_1": ("has LayerScale under the names of BEiT and CaiT", "choose timm's copy of the model"),
    "rope.": ("has a rotary embedding", _OTHER),
    "rope_embed.": ("has rotary positions (DINOv3)", _DINOV3),
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
    # An attention pool in the place of CLS; with both, the pool is refused as a part that no ViT has.
    pooled = prefix + layout.embedding["cls"] not in tensors.names
    placed, grid = _grid(shape(layout.embedding["positions"], 3)[1], registers, layout, where, pooled=pooled)
    pre_norm = prefix + layout.embedding["pre_norm.scale"] in tensors.names
    heads, eps, activation, resizing, assumed = _unseen(
        width, settings, where, hints, pre_norm=pre_norm, registers=registers, pooled=pooled
    )
    if pooled and (registers or pre_norm):
        raise UserError(
            f"{where}: this ViT has an attention pool with {'registers' if registers else 'a norm before the blocks'}, "
            "which is not supported: choose a SigLIP, such as vit_base_patch16_siglip_224"
        )
    arguments = {
        "patch": patch,
        "width": width,
        "depth": depth_of(tensors, prefix, TIMM, where),
        "heads": heads,
        "mlp_width": shape(block["mlp.up.kernel"][0], 2)[0],
        "eps": eps,
        "activation": activation,
        # timm leaves the bias out only where a norm follows; elsewhere a missing one is a damaged file.
        "patch_bias": not pre_norm or prefix + layout.embedding["embedding.bias"] in tensors.names,
        "pre_norm": pre_norm,
        "layer_scale": prefix + block["attention_scale"][0] in tensors.names,
    }
    notes = [f"the weights are those under {prefix.rstrip('.')!r}"] if prefix else []
    if not settings.values:
        assumed += [f"square images of {patch * grid} pixels in patches of {patch} without overlap"]
    if assumed:
        notes.append(f"assumed, because the weights do not say it: {'; '.join(assumed)}")
    if not pooled and settings.get("global_pool") in ("avg", "avgmax", "max", "map"):
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
        arguments=arguments | ({REGISTERS: registers} if registers else {}) | ({"pooling": "map"} if pooled else {}),
        image_size=patch * grid,
        placed_tokens=placed,
        resizing=resizing,
        notes=tuple(notes),
        others=() if prefix else tuple(f"{entry}." for entry in getattr(tensors, "entries", ())),
    )


def _check_architecture(settings: Settings) -> None:
    architecture = settings.get("architecture")
    if architecture is None:
        return
    if not architecture.startswith(ARCHITECTURES):
        raise UserError(
            f"{settings.where}: timm's {architecture!r} is no ViT: choose a model whose name begins with "
            + " or ".join(ARCHITECTURES)
        )
    if "_dinov3" in architecture:
        raise UserError(f"{settings.where}: timm's {architecture} has DINOv3's rotary positions: {_DINOV3}")
    changed = [name for name in _INVISIBLE if settings.section("model_args").get(name) is not None]
    if changed:
        raise UserError(f"{settings.where}: this {architecture} has another {changed[0]}: choose another model")


def _check_kind(tensors: Tensors, prefix: str, settings: Settings, where: str) -> None:
    """Raises UserError if there is no ViT in timm's names, or if it has parts that `models.vit.ViT` lacks."""
    block = TIMM.names("0")
    registers, table = (prefix + TIMM.embedding[weight] for weight in (REGISTERS, "positions"))
    if registers in tensors.names and table not in tensors.names:
        raise UserError(
            f"{where}: this ViT has registers and no table of positions, as DINOv3 in timm's names, which is not "
            f"supported: {_DINOV3}"
        )
    for beginning, (what, fix) in _FOREIGN.items():
        if any(name.startswith(prefix + beginning) for name in tensors.names):
            raise UserError(f"{where}: this ViT {what}, which is not supported: {fix}")
    needed = [TIMM.embedding["embedding.kernel"], TIMM.embedding["positions"], block["mlp.up.kernel"][0]]
    for name in needed:
        if prefix + name not in tensors.names:
            fix = _OTHER
            if not settings.values:
                fix = "for a checkpoint in Hugging Face's or Meta's layout pass the folder that holds the file"
            raise UserError(f"{where} holds no ViT in timm's names, there is no {prefix + name!r}: {fix}")
    cls, probe = prefix + TIMM.embedding["cls"], prefix + TIMM.pool["probe"][0]
    if cls not in tensors.names and probe not in tensors.names:
        raise UserError(
            f"{where}: this ViT has neither a CLS token, {cls}, nor an attention pool: choose a model with one of "
            "them, such as vit_base_patch16_224 or vit_base_patch16_siglip_224"
        )
    kernel, bias = (prefix + block[f"attention.qkv.{part}"][0] for part in ("kernel", "bias"))
    if kernel in tensors.names and bias not in tensors.names:
        raise UserError(
            f"{where}: queries, keys and values have no biases, which is not supported: choose another model"
        )


def _grid(tokens: int, registers: int, layout: VitLayout, where: str, *, pooled: bool) -> tuple[int, int]:
    """`VitSource.placed_tokens`, and the side of the grid of patches."""
    # In DINOv2's checkpoints registers have no positions. In timm's all tokens before the patches have one, or none.
    ways = (1,) if registers and layout is TIMM_OF_DINOV2 else (0, 1 + registers)
    if pooled:
        ways = (0,)
    fitting = [
        (placed, side)
        for placed in ways
        if (side := math.isqrt(max(0, tokens - placed))) and placed + side**2 == tokens
    ]
    if len(fitting) != 1:
        expected = f"CLS, {registers} registers and " if registers else "a CLS token and "
        raise UserError(
            f"{where}: there are positions for {tokens} tokens, which are not {'' if pooled else expected}a square "
            "grid: choose another model"
        )
    return fitting[0]


def depth_of(tensors: Tensors, prefix: str, layout: VitLayout, where: str) -> int:
    """Number of blocks, by the names under the prefix. Raises UserError if there are none, or too many."""
    beginning, end = layout.block.split("{layer}")
    numbered = re.compile(re.escape(prefix + beginning) + r"([0-9]{1,9})" + re.escape(end))
    depth = 1 + max((int(match[1]) for match in map(numbered.match, tensors.names) if match), default=-1)
    if not depth:
        raise UserError(
            f"{where} holds no block, no tensor's name begins with {prefix + layout.block.format(layer=0)}: "
            "check --entry, or choose another model"
        )
    if depth > MAX_LAYERS:
        raise UserError(f"{where} names {depth} blocks, more than {MAX_LAYERS}: download it again")
    return depth


def heads_of(width: int, where: str, hint: int | None, said: int | None = None) -> tuple[int, str]:
    """Number of heads, and what was assumed, "" if nothing was.

    Args:
      width: of the tokens.
      where: the weights, for messages.
      hint: `Hints.heads`.
      said: what the configuration says; None: nothing.

    Raises:
      UserError: the number is not known, or does not divide the width.
    """
    heads, assumed = said if said is not None else hint, ""
    if heads is None:
        if width not in _HEADS:
            raise UserError(
                f"{where}: the number of heads is not known for a width of {width}, which none of timm's ViTs has: "
                "give it with --heads"
            )
        heads = _HEADS[width]
        assumed = f"{heads} heads of {width // heads}, as timm's ViTs of width {width} have (--heads)"
    if heads < 1 or width % heads:
        raise UserError(f"{where}: a width of {width} is not a multiple of {heads} heads: check --heads")
    return heads, assumed


def _unseen(
    width: int, settings: Settings, where: str, hints: Hints, *, pre_norm: bool, registers: int, pooled: bool
) -> tuple[int, float, str, str, list[str]]:
    """Heads, eps, activation and resizing, and texts about those that were assumed."""
    said = settings.section("model_args").get("num_heads")
    if said is not None:
        said = settings.section("model_args").integer("num_heads")
        if hints.heads not in (None, said):
            raise UserError(f"{settings.where} says {said} heads, not {hints.heads}: leave --heads out")
    heads, note = heads_of(width, where, hints.heads, said)
    assumed = [note] * bool(note)
    eps, activation, resizing = hints.eps, hints.activation, hints.resizing
    untold = None
    if eps is None:
        eps = _CLIP_EPS if pre_norm else _EPS
        assumed.append(f"eps {eps} (--eps)")
    if activation is None:
        if pre_norm and not settings.values:
            raise UserError(
                f"{where}: the weights do not say the activation, and CLIP models of the same shape differ in it: give "
                "--activation quick_gelu (OpenAI, MetaCLIP, DFN) or --activation gelu (LAION, DataComp)"
            )
        untold = _check_gelu(settings) if pre_norm else None
        # A file alone does not say whether timm computes SigLIP's GELU by erf: Hugging Face and its authors do not.
        activation = _activation_of(settings.get("architecture")) if settings.values or not pooled else "gelu_tanh"
        assumed.append(f"GELU by {'tanh' if pooled else 'erf'} (--activation)")
    if resizing is None:
        # Hugging Face's copies, MAE and DINO resize without antialiasing; timm and DINOv2 with registers with it.
        resizing = ANTIALIASED if settings.values or registers else BICUBIC
        if not settings.values:
            assumed.append(f"{resizing} resizing of positions (--resizing)")
    # A config.json with an architecture of timm's has these values: they are not assumed.
    return heads, eps, activation, resizing, [untold] * bool(untold) if settings.values else assumed


def _check_gelu(settings: Settings) -> str | None:
    """Raises UserError if a CLIP of timm's may have been trained with QuickGELU though its architecture has GELU.

    If nothing says how it was trained, the text about what is assumed.

    timm has such weights under both architectures, and computes what the name says. Fine-tuned weights are timm's own,
    trained with the GELU of their architecture.
    """
    architecture, published = settings.get("architecture") or "", settings.section("pretrained_cfg")
    tag = published.get("tag")
    tag = tag if isinstance(tag, str) else ""
    said = "quickgelu" in str(published.get("notes")).lower()
    if "_quickgelu_" in architecture or "_ft_" in tag:
        return None
    if not tag and not published.get("notes"):
        return (
            f"GELU by erf, as timm's {architecture} computes it: its config.json has neither tag nor notes, which would"
            " show weights that were trained with QuickGELU (--activation quick_gelu: OpenAI, MetaCLIP, DFN)"
        )
    if not (said or tag.startswith(_QUICK)):
        return None
    raise UserError(
        f"{settings.where}: the weights {tag or 'of these notes'!r} were trained with QuickGELU, or may have been, but "
        f"timm's {architecture} has GELU: give --activation quick_gelu for the function of their training, or "
        "--activation gelu for what timm computes"
    )


def _activation_of(architecture: str | None) -> str:
    """The activation of timm's model of this name."""
    name = architecture or ""
    if "_quickgelu_" in name:
        return "quick_gelu"
    return "gelu_tanh" if name.startswith(_TANH) else _ACTIVATION
