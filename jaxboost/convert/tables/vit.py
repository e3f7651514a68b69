"""Vision encoders in checkpoints: found by their tensor names, checked, and read weight by weight."""

import dataclasses
import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxboost.convert.formats.tensors import TensorInfo, Tensors, listed
from jaxboost.convert.tables import positions, shapes
from jaxboost.convert.tables.parts import (
    EMBEDDING,
    VISION,
    Part,
    Selection,
    Shapes,
    check_tensors,
    check_whole,
    left_out,
)
from jaxboost.convert.tables.preprocessing import Pixels, constants_of
from jaxboost.convert.tables.vit_names import KERNEL, POSITIONS, QKV, REGISTERS, VitLayout
from jaxboost.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class VitSource:
    """A vision encoder in a checkpoint.

    Attributes:
      tensors: the checkpoint.
      layout: the naming scheme of the encoder's tensors.
      prefix: the beginning of the names.
      arguments: of `models.vit.ViT` or `models.pooled_vit.PooledViT`, those that the manifest records.
      image_size: side of the images that the positions are for, in pixels.
      absent: ends of the names of tensors, biases, that this model lacks; zeros are stored.
      placed_tokens: how many tokens before the grid have positions: only CLS; none (zeros are stored for CLS); or CLS
        and the registers, to which their positions are added.
      resizing: one of `positions.RESIZINGS`.
      others: beginnings of names, after the prefix, that do not belong to the encoder.
      notes: lines for the log about how the source was read.
      pixels: those that it was trained on; None: no file says it.
    """

    kind = VISION
    tensors: Tensors
    layout: VitLayout
    prefix: str
    arguments: Mapping[str, Any]
    image_size: int
    absent: tuple[str, ...] = ()
    placed_tokens: int = 1
    resizing: str = positions.BICUBIC
    others: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    pixels: Pixels | None = None

    @functools.cached_property
    def shapes(self) -> dict[str, Shapes]:
        """Key of each part -> shapes of its weights."""
        return shapes.vit_parts(self.arguments, self.image_size)

    def select(self, layers: str, *, final_norm: bool) -> Selection:
        """Checks the encoder, which is only converted whole, and returns what is converted.

        Raises:
          UserError: `layers` is not "all", or the checkpoint is not the encoder that its configuration describes.
        """
        check_whole(self.tensors.source, layers, final_norm=final_norm)
        check(self)
        notes = self.notes
        read = {name for key in self.shapes for names in self.names(key).values() for name in names}
        if left := left_out(set(self.tensors.names) - read, read):
            notes += (f"not part of the encoder and not read: {listed(left)}",)
        return Selection(
            parts=tuple(
                Part(key=key, shapes=of_part, read=functools.partial(read_weight, self, key))
                for key, of_part in self.shapes.items()
            ),
            constants={
                "arguments": self.arguments,
                "image_size": self.image_size,
                "resizing": self.resizing,
                **constants_of(self.pixels),
            },
            notes=notes,
        )

    def names(self, key: str) -> dict[str, tuple[str, ...]]:
        """Our name of each weight of a part -> its tensors' full names, "" for zeros."""
        found = {weight: self.layout.names(key)[weight] for weight in self.shapes[key]}
        return {
            weight: tuple("" if name.endswith(self.absent) else self.prefix + name for name in names)
            for weight, names in found.items()
        }


def locate(
    names: Collection[str], layouts: Sequence[VitLayout], *, where: str, entry: str | None = None
) -> tuple[VitLayout, str]:
    """The naming scheme and the prefix with the most weights of an embedding and a first block.

    Args:
      names: of all tensors.
      layouts: the naming schemes to try.
      where: the checkpoint, for messages.
      entry: beginning of the prefix to choose, in whole words; None: there must be only one prefix.

    Raises:
      UserError: several prefixes have as many weights, such as a student and its teacher, or `entry` is none of them.
    """
    found: dict[str, tuple[int, VitLayout]] = {}
    for layout in layouts:
        # The prefix is what stands before names that only a vision encoder has.
        endings = [layout.embedding[weight] for weight in (KERNEL, "cls") if weight in layout.embedding]
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


def check(source: VitSource) -> None:
    """Raises one `UserError` that names every problem of the encoder; see `check_tensors`."""
    tensors: Tensors = source.tensors
    wanted: dict[str, tuple[int, ...]] = {}

    def info(name: str) -> TensorInfo:
        # Tokens and positions have batch axes of length 1 in some schemes.
        found = tensors.info(name)
        return dataclasses.replace(found, shape=_without_leading_ones(found.shape))

    for key, of_part in source.shapes.items():
        for weight, names in source.names(key).items():
            for part, name in enumerate(names):
                shape = _stored_shape(weight, of_part[weight], part, len(names), source)
                wanted |= {name: _without_leading_ones(shape)} if name else {}
    others = (
        name
        for name in source.others
        if not any(wanted_name.startswith(source.prefix + name) for wanted_name in wanted)
    )
    ignored = tuple(source.prefix + beginning for beginning in (*source.layout.ignored, *others))
    unread = [
        name
        for name in sorted(tensors.names)
        # A model without registers may still have an empty tensor for them.
        if name.startswith(source.prefix)
        and name not in wanted
        and not name.startswith(ignored)
        and 0 not in tensors.info(name).shape
    ]
    check_tensors(
        tensors,
        wanted,
        unread,
        info=info,
        part=f"a ViT's embedding, blocks{', norm and pooling' if shapes.is_pooled(source.arguments) else ' and norm'}",
        whole="a vision encoder as its configuration describes it",
        kind="ViT, MAE, CLIP, SigLIP, DINOv2 or DINOv3 checkpoint (no SwiGLU)",
    )


def read_weight(source: VitSource, key: str, weight: str, dtype: np.dtype) -> np.ndarray:
    """A weight of a part as it is stored: linear maps (in, out), those of q, k and v side by side."""
    out = np.zeros(source.shapes[key][weight], dtype)
    names = source.names(key)[weight]
    if key == EMBEDDING and weight in (POSITIONS, REGISTERS):
        out[...] = _tokens(source, weight)
        return out
    ends = np.cumsum(_widths(weight, out.shape, len(names)))
    for name, columns in zip(names, np.split(out, ends[:-1], axis=-1), strict=True):
        if not name:
            continue
        array = source.tensors.read(name)
        if weight == KERNEL:
            # (D, C, P, P) to rows in the order of `layers.patches_2d`: rows, columns, channels.
            P = source.arguments["patch"]
            columns.reshape(P, P, shapes.CHANNELS, -1)[...] = array.transpose(2, 3, 1, 0)
        elif weight.endswith(".kernel"):
            columns[...] = array.T
        else:
            columns[...] = array.reshape(columns.shape)
    return out


def _tokens(source: VitSource, weight: str) -> np.ndarray:
    """The positions of CLS and grid, or the registers with their own positions added."""

    def read(name: str) -> np.ndarray:
        array = source.tensors.read(source.names(EMBEDDING)[name][0])
        return array.reshape(-1, array.shape[-1])

    placed = source.placed_tokens
    if weight == REGISTERS:
        registers = read(REGISTERS)
        return registers if placed <= 1 else registers.astype(np.float32) + read(POSITIONS)[1:placed]
    rows = read(POSITIONS)
    if shapes.is_pooled(source.arguments):
        return rows
    cls = rows[:1] if placed else np.zeros_like(rows[:1])
    return np.concatenate([cls, rows[placed:]])


def _stored_shape(weight: str, shape: tuple[int, ...], part: int, parts: int, source: VitSource) -> tuple[int, ...]:
    """Shape of one of the tensors that a weight of this shape joins."""
    patch, width = source.arguments["patch"], _widths(weight, shape, parts)[part]
    if weight == KERNEL:
        return (shape[1], shapes.CHANNELS, patch, patch)
    if weight.endswith(".kernel"):
        return (width, shape[0])
    if weight == POSITIONS:
        ours = 0 if shapes.is_pooled(source.arguments) else 1
        return (shape[0] - ours + source.placed_tokens, shape[1])
    return (*shape[:-1], width)


def _widths(weight: str, shape: tuple[int, ...], parts: int) -> tuple[int, ...]:
    """Widths of the tensors that a weight joins side by side."""
    if parts == 2 and weight.startswith(QKV):
        # Queries apart from keys and values.
        return (shape[-1] // 3, 2 * shape[-1] // 3)
    return (shape[-1] // parts,) * parts


def _without_leading_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape
