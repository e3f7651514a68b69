"""ViTs in timm's names: a file of weights alone, or a folder whose config.json names the architecture.

Shapes are read off the weights. What no weight says is the same in all of timm's ViTs that are read (eps 1e-6, GELU by
erf), but for the number of heads.
"""

import math
import re
from pathlib import Path

from jaxboost.convert.huggingface import LocalFolder
from jaxboost.convert.names import Tensors
from jaxboost.convert.safetensors_file import SafetensorsFile
from jaxboost.convert.settings import Settings
from jaxboost.convert.torch_files import TorchFile
from jaxboost.convert.tower_names import TIMM, TowerSource, locate
from jaxboost.errors import UserError

FILE_ENDINGS = (".safetensors", ".pth", ".pt", ".bin")
_EPS, _ACTIVATION = 1e-6, "gelu"
_HEAD_WIDTH = 64
# ViT-So400m, -H, -g and -G, of the widths 1152, 1280, 1408 and 1664, share their number of heads instead.
_LARGEST_WITH_THAT_HEAD, _HEADS_ABOVE = 1024, 16

_ARCHITECTURES = ("vit_", "deit")
# Changes of the architecture, which config.json may hold, that no weight shows.
_INVISIBLE = ("act_layer", "norm_layer", "block_fn", "attn_layer", "mlp_layer")
# Beginning of a tensor's name -> what a model with it has beyond `models.vit.ViT`.
_FOREIGN = {
    "reg_token": "register tokens",
    "register_tokens": "register tokens",
    "dist_token": "a distillation token (DeiT)",
    "fc_norm.": "a norm of the mean of all tokens (fc_norm) in the place of the CLS token's",
    "norm_pre.": "a norm before the first block (CLIP; Hugging Face's copy of the model can be read)",
    "blocks.0.attn.q_norm.": "norms of queries and keys (qk_norm)",
}


class FileTensors:
    """The weights of one file; see `names.Tensors`."""

    def __init__(self, path: Path, source: str):
        """Reads the header of a safetensors file, or maps a PyTorch file.

        Args:
          source: what the manifest records.

        Raises:
          UserError: see `SafetensorsFile` and `TorchFile`.
        """
        self.source = source
        if path.suffix == ".safetensors":
            folder = LocalFolder(path.parent)
            file = SafetensorsFile(
                str(path), folder.size(path.name), lambda start, stop: folder.read_range(path.name, start, stop)
            )
            self.source_format = "safetensors"
        else:
            file = TorchFile(path, may_be_wrapped=True)
            self.source_format = "torch"
        self.names, self.info, self.read = file.names, file.info, file.read


def is_timm(settings: Settings) -> bool:
    """Whether config.json is that of timm, alone or as transformers wraps it."""
    return settings.get("model_type") in (None, "timm_wrapper") and isinstance(settings.get("architecture"), str)


def tower_of_file(path: Path, source: str) -> TowerSource:
    """The ViT in a file of weights; see `tower_of`.

    Args:
      source: what the manifest records.
    """
    return tower_of(FileTensors(path, source), Settings({}, str(path)), str(path))


def tower_of(tensors: Tensors, settings: Settings, where: str) -> TowerSource:
    """The ViT in timm's names among `tensors`.

    Args:
      settings: config.json, empty for a file of weights alone.
      where: the weights, for messages.

    Raises:
      UserError: there is none, or it is not what `models.vit.ViT` can be, or a file is missing or broken.
    """
    _check_architecture(settings)
    layout, prefix = locate(tensors.names, (TIMM,))
    _check_kind(tensors, prefix, settings, where)
    block = layout.names("0")

    def shape(name: str, axes: int) -> tuple[int, ...]:
        found = tensors.info(prefix + name).shape
        if len(found) != axes:
            raise UserError(f"{where}: {prefix + name} has the shape {found} instead of {axes} axes")
        return found

    width, _, _, patch = shape(layout.embedding["embedding.kernel"], 4)
    tokens = shape(layout.embedding["positions"], 3)[1]
    grid = math.isqrt(max(0, tokens - 1))
    if 1 + grid * grid != tokens or not grid:
        raise UserError(
            f"{where}: there are positions for {tokens} tokens, the ViT's are a CLS token and a square grid: "
            "choose another model"
        )
    numbered = re.compile(re.escape(prefix) + r"blocks\.(\d+)\.")
    arguments = {
        "patch": patch,
        "width": width,
        "depth": 1 + max(int(match[1]) for match in map(numbered.match, tensors.names) if match),
        "heads": _heads(width, settings, where),
        "mlp_width": shape(block["mlp.up.kernel"][0], 2)[0],
        "eps": _EPS,
        "activation": _ACTIVATION,
        "patch_bias": True,
        "pre_norm": False,
        "layer_scale": prefix + block["attention_scale"][0] in tensors.names,
    }
    return TowerSource(
        tensors=tensors, layout=layout, prefix=prefix, arguments=arguments, image_size=patch * grid, qkv_bias=True
    )


def _check_architecture(settings: Settings) -> None:
    architecture = settings.get("architecture")
    if architecture is None:
        return
    if not architecture.startswith(_ARCHITECTURES):
        raise UserError(
            f"{settings.where}: timm's {architecture!r} is no ViT: choose a model whose name begins with "
            + " or ".join(_ARCHITECTURES)
        )
    changed = [name for name in _INVISIBLE if settings.section("model_args").get(name) is not None]
    if changed:
        raise UserError(f"{settings.where}: this {architecture} has another {changed[0]}: choose another model")


def _check_kind(tensors: Tensors, prefix: str, settings: Settings, where: str) -> None:
    """Raises a `UserError` where there is no ViT in timm's names, or one with more or less than ours."""
    block = TIMM.names("0")
    needed = [TIMM.embedding["embedding.kernel"], TIMM.embedding["positions"], block["mlp.up.kernel"][0]]
    for name in needed:
        if prefix + name not in tensors.names:
            mend = "choose another model"
            if not settings.values:
                mend = "for a checkpoint in Hugging Face's or Meta's layout pass the folder that holds the file"
            raise UserError(f"{where} holds no ViT in timm's names, there is no {prefix + name!r}: {mend}")
    for beginning, what in _FOREIGN.items():
        if any(name.startswith(prefix + beginning) for name in tensors.names):
            raise UserError(f"{where}: this ViT has {what}, which is not supported: choose another model")
    kernel, bias = (prefix + block[f"attention.qkv.{part}"][0] for part in ("kernel", "bias"))
    if kernel in tensors.names and bias not in tensors.names:
        raise UserError(
            f"{where}: queries, keys and values have no biases, which is not supported: choose another model"
        )


def _heads(width: int, settings: Settings, where: str) -> int:
    derived = _HEADS_ABOVE if width > _LARGEST_WITH_THAT_HEAD else max(1, width // _HEAD_WIDTH)
    heads = settings.section("model_args").integer("num_heads", derived)
    if width % heads or (heads == derived and width <= _LARGEST_WITH_THAT_HEAD and width % _HEAD_WIDTH):
        raise UserError(
            f"{where}: the number of heads is not known for a width of {width}, timm's ViTs have heads of "
            f"{_HEAD_WIDTH}: choose another model"
        )
    return heads
