"""vision encoders in checkpoints: found by their names, checked both ways, and read weight by weight."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxboost.convert import positions
from jaxboost.convert.encoder_layouts import EMBEDDING, KERNEL, NORM, POSITIONS, QKV, REGISTERS, EncoderLayout
from jaxboost.convert.names import TensorInfo, Tensors, check_tensors, listed
from jaxboost.errors import UserError

_CHANNELS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderSource:
    """A vision encoder in a checkpoint.

    Attributes:
      tensors: the checkpoint.
      layout, prefix: how the encoder's tensors are named.
      arguments: of `models.vit.ViT`, those that a `encoders.EncoderManifest` records.
      image_size: side of the images that the positions are for, in pixels.
      qkv_bias: whether queries, keys and values have biases; else zeros stand for them.
      placed_tokens: how many tokens have positions before the grid's: CLS, none (zeros stand for it), or CLS and the
        registers, whose positions are added to them.
      resizing: one of `positions.RESIZINGS`.
      beside: beginnings of names, below the prefix, of what belongs to something else.
      notes: what the user should know of how the source was read, a line each.
    """

    tensors: Tensors
    layout: EncoderLayout
    prefix: str
    arguments: Mapping[str, Any]
    image_size: int
    qkv_bias: bool
    placed_tokens: int = 1
    resizing: str = positions.BICUBIC
    beside: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def names(self, key: str) -> dict[str, tuple[str, ...]]:
        """Our name of each weight of a part -> its tensors' full names, () for zeros."""
        shapes = part_shapes(self.arguments, self.image_size)[key]
        found = {weight: self.layout.names(key)[weight] for weight in shapes}
        if not self.qkv_bias:
            found |= {weight: () for weight in found if weight == f"{QKV}.bias"}
        return {weight: tuple(self.prefix + name for name in names) for weight, names in found.items()}


def locate(
    names: Collection[str], layouts: Sequence[EncoderLayout], *, where: str, entry: str | None = None
) -> tuple[EncoderLayout, str]:
    """The naming scheme and the prefix under which most is found of what lies before the blocks, and of the first.

    Args:
      where: the checkpoint, for messages.
      entry: beginning of the prefix that is wanted, whole words; None where one alone is expected.

    Raises:
      UserError: several prefixes have as much, as a student and its teacher, or `entry` is none of them.
    """
    found: dict[str, tuple[int, EncoderLayout]] = {}
    for layout in layouts:
        # The prefix is what stands before names that only a vision encoder has.
        endings = (layout.embedding[KERNEL], layout.embedding["cls"])
        for prefix in sorted({name.removesuffix(end) for name in names for end in endings if name.endswith(end)}):
            wanted = [name for key in (EMBEDDING, "0") for parts in layout.names(key).values() for name in parts]
            count = sum(prefix + name in names for name in wanted)
            if count > found.get(prefix, (0, layout))[0]:
                found[prefix] = (count, layout)
    prefixes = list(found)
    if entry is not None:
        beginning = f"{entry.strip('.')}.".removeprefix(".")
        prefixes = [prefix for prefix in prefixes if prefix.startswith(beginning) and (beginning or not prefix)]
        if not prefixes:
            raise UserError(f"{where} has no vision encoder in --entry {entry}: there are {_shown(found) or 'none'}")
    if not prefixes:
        return layouts[0], ""
    most = max(found[prefix][0] for prefix in prefixes)
    best = [prefix for prefix in prefixes if found[prefix][0] == most]
    if len(best) > 1:
        raise UserError(
            f"{where} holds {len(best)} vision encoders ({_shown(best)}): choose one with --entry, such as "
            f"--entry {_shown(best[:1])}"
        )
    return found[best[0]][1], best[0]


def _shown(prefixes: Iterable[str]) -> str:
    """Prefixes as --entry takes them."""
    return listed([prefix.rstrip(".") or "." for prefix in prefixes])


def part_shapes(arguments: Mapping[str, Any], image_size: int) -> dict[str, dict[str, tuple[int, ...]]]:
    """Key of each part -> our name of each weight -> its shape, linear maps as (in, out)."""
    P, D, F = arguments["patch"], arguments["width"], arguments["mlp_width"]
    embedding = {KERNEL: (P * P * _CHANNELS, D), "cls": (D,), POSITIONS: (1 + (image_size // P) ** 2, D)}
    if arguments.get(REGISTERS):
        embedding[REGISTERS] = (arguments[REGISTERS], D)
    if arguments["patch_bias"]:
        embedding["embedding.bias"] = (D,)
    if arguments["pre_norm"]:
        embedding |= {"pre_norm.scale": (D,), "pre_norm.bias": (D,)}
    block = {f"{norm}.{name}": (D,) for norm in ("attention_norm", "mlp_norm") for name in ("scale", "bias")}
    for name, fan_in, fan_out in ((QKV, D, 3 * D), ("attention.out", D, D), ("mlp.up", D, F), ("mlp.down", F, D)):
        block |= {f"{name}.kernel": (fan_in, fan_out), f"{name}.bias": (fan_out,)}
    if arguments["layer_scale"]:
        block |= {"attention_scale": (D,), "mlp_scale": (D,)}
    blocks = {str(layer): block for layer in range(arguments["depth"])}
    return {EMBEDDING: embedding} | blocks | {NORM: {"scale": (D,), "bias": (D,)}}


def check(source: EncoderSource) -> None:
    """Raises one `UserError` with everything of the encoder that is missing, unread, misshapen or unreadable."""
    tensors, wanted = _WithoutLeadingOnes(source.tensors), {}
    for key, shapes in part_shapes(source.arguments, source.image_size).items():
        for weight, names in source.names(key).items():
            shape = _stored_shape(weight, shapes[weight], len(names), source)
            wanted |= dict.fromkeys(names, _without_leading_ones(shape))
    beside = (
        name
        for name in source.beside
        if not any(wanted_name.startswith(source.prefix + name) for wanted_name in wanted)
    )
    ignored = tuple(source.prefix + beginning for beginning in (*source.layout.ignored, *beside))
    unread = [
        name
        for name in sorted(tensors.names)
        # A model may keep the name of registers that it has none of.
        if name.startswith(source.prefix)
        and name not in wanted
        and not name.startswith(ignored)
        and 0 not in tensors.info(name).shape
    ]
    check_tensors(
        tensors,
        wanted,
        unread,
        part="a ViT's embedding, blocks and norm",
        whole="a vision encoder as its configuration describes it",
        kind="ViT, CLIP or DINOv2 checkpoint (no SwiGLU)",
    )


def left_out(source: EncoderSource) -> list[str]:
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


def read_weight(source: EncoderSource, key: str, weight: str, dtype: np.dtype) -> np.ndarray:
    """Reads one weight of a part as it is stored: linear maps (in, out), those of q, k and v side by side."""
    out = np.zeros(part_shapes(source.arguments, source.image_size)[key][weight], dtype)
    names = source.names(key)[weight]
    if key == EMBEDDING and weight in (POSITIONS, REGISTERS):
        out[...] = _tokens(source, weight)
        return out
    for name, columns in zip(names, np.split(out, max(1, len(names)), axis=-1), strict=False):
        array = source.tensors.read(name)
        if weight == KERNEL:
            # (D, C, P, P) to rows in the order of `layers.patches_2d`: rows, columns, channels.
            P = source.arguments["patch"]
            columns.reshape(P, P, _CHANNELS, -1)[...] = array.transpose(2, 3, 1, 0)
        elif weight.endswith(".kernel"):
            columns[...] = array.T
        else:
            columns[...] = array.reshape(columns.shape)
    return out


def _tokens(source: EncoderSource, weight: str) -> np.ndarray:
    """The positions of CLS and grid, or the registers, with which the positions that they have are merged."""

    def read(name: str) -> np.ndarray:
        array = source.tensors.read(source.names(EMBEDDING)[name][0])
        return array.reshape(-1, array.shape[-1])

    placed = source.placed_tokens
    if weight == REGISTERS:
        registers = read(REGISTERS)
        return registers if placed <= 1 else registers.astype(np.float32) + read(POSITIONS)[1:placed]
    rows = read(POSITIONS)
    cls = rows[:1] if placed else np.zeros_like(rows[:1])
    return np.concatenate([cls, rows[placed:]])


def _stored_shape(weight: str, shape: tuple[int, ...], parts: int, source: EncoderSource) -> tuple[int, ...]:
    patch = source.arguments["patch"]
    if weight == KERNEL:
        return (shape[1], _CHANNELS, patch, patch)
    if weight.endswith(".kernel"):
        return (shape[1] // parts, shape[0])
    if weight == POSITIONS:
        return (shape[0] - 1 + source.placed_tokens, shape[1])
    return (*shape[:-1], shape[-1] // max(1, parts))


def _without_leading_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


class _WithoutLeadingOnes:
    """Tensors whose batch axes of length 1, as tokens and positions have in some schemes, are left out of shapes."""

    def __init__(self, tensors: Tensors):
        self._tensors = tensors
        self.source, self.names = tensors.source, tensors.names

    def info(self, name: str) -> TensorInfo:
        info = self._tensors.info(name)
        return dataclasses.replace(info, shape=_without_leading_ones(info.shape))
