"""Encoders of `families` in timm's names: found by their tensors, checked, and read array by array."""

import dataclasses
import difflib
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxboost.convert.formats import adapters
from jaxboost.convert.formats.settings import Settings
from jaxboost.convert.formats.tensors import TensorInfo, Tensors, listed
from jaxboost.convert.tables import shapes
from jaxboost.convert.tables.families import FAMILIES
from jaxboost.convert.tables.family import Family, Found, Layout, leaf
from jaxboost.convert.tables.hints import Hints
from jaxboost.convert.tables.parts import NORM, VISION, Part, Selection, Shapes, check_tensors, check_whole, left_out
from jaxboost.convert.tables.preprocessing import Pixels, constants_of
from jaxboost.convert.tables.vit_timm import ARCHITECTURES
from jaxboost.errors import UserError
from jaxboost.models.backbones import BACKBONES

# Changes of the architecture that config.json may name and that no weight shows.
_INVISIBLE = (
    "act_layer",
    "aa_layer",
    "norm_layer",
    "output_stride",
    "kernel_sizes",
    "avg_down",
    "replace_stem_pool",
    "pad_type",
    "round_chs_fn",
    "always_partition",
)
# Entries of config.json that change the size of a model.
_SIZES = (
    "block",
    "layers",
    "channels",
    "depths",
    "dims",
    "embed_dim",
    "num_heads",
    "window_size",
    "patch_size",
    "channel_multiplier",
    "depth_multiplier",
    "mlp_ratio",
)
# Entries of config.json with one value that ours has too.
_FIXED = {"output_stride": 32, "kernel_sizes": 7}
# Poolings that are the mean over all places.
_MEANS = ("avg", "fast", "fastavg")
# Number of axes of a kernel -> the axes in torch, (out, in, [[slice,] h, w]), of ours: (in, out), (h, w, in, out) and
# (h, w, slice, in, out). A volume's stack of slices is the first axis there and the last one here.
_OUR_AXES = {2: (1, 0), 4: (2, 3, 1, 0), 5: (3, 4, 2, 1, 0)}
_SIDE = 224  # pixels; what config.json leaves out is the size of ImageNet


@dataclasses.dataclass(frozen=True, kw_only=True)
class WholeSource:
    """An encoder that is converted as one part, and the norm after it.

    Attributes:
      tensors: the checkpoint.
      name: the family's key in FAMILIES.
      layout: the naming scheme.
      prefix: the beginning of the names.
      arguments: of the encoder, those that the manifest records.
      image_size: side of the images that it was trained with, in pixels.
      notes: lines for the log about how the source was read.
      pixels: those that it was trained on; None: no file says it.
    """

    kind = VISION
    tensors: Tensors
    name: str
    layout: Layout
    prefix: str
    arguments: Mapping[str, Any]
    image_size: int
    notes: tuple[str, ...] = ()
    pixels: Pixels | None = None

    @property
    def family(self) -> Family:
        """The row of FAMILIES."""
        return FAMILIES[self.name]

    @functools.cached_property
    def shapes(self) -> dict[str, Shapes]:
        """Key of each part -> shapes of its arrays."""
        return shapes.parts_of(self.name, self.arguments, self.image_size)

    def select(self, layers: str, *, final_norm: bool) -> Selection:
        """Checks the encoder, which is only converted whole, and returns what is converted.

        Raises:
          UserError: `layers` is not "all", or the checkpoint is not the encoder that its tensors seem to be.
        """
        check_whole(self.tensors.source, layers, final_norm=final_norm)
        wanted = {
            self.tensor(key, ours): _stored_shape(ours, shape)
            for key, part in self.shapes.items()
            for ours, shape in part.items()
        }
        ignored = tuple(self.prefix + beginning for beginning in self.family.ignored)
        buffers = {name for name in self.tensors.names if name.endswith(self.family.buffers)}
        left = sorted(set(self.tensors.names) - set(wanted) - buffers)
        unread = [name for name in left if name.startswith(self.prefix) and not name.startswith(ignored)]

        def info(name: str) -> TensorInfo:
            # Linear maps may be stored as convolutions of one pixel.
            found = self.tensors.info(name)
            axes = len(wanted[name])
            return dataclasses.replace(found, shape=found.shape[:axes]) if set(found.shape[axes:]) == {1} else found

        described = f"{self.family.title} ({', '.join(f'{key} {value}' for key, value in self.arguments.items())})"
        check_tensors(
            self.tensors,
            wanted,
            unread,
            info=info,
            part=f"a plain {self.family.title}",
            whole=f"the {described} that its tensors seem to be",
            kind=f"{self.family.title} checkpoint, such as {self.family.example}",
        )
        notes = self.notes
        if left:
            notes += (f"not part of the encoder and not read: {listed(left_out(left, wanted))}",)
        return Selection(
            parts=tuple(
                Part(key=key, shapes=part, read=functools.partial(self._read, key)) for key, part in self.shapes.items()
            ),
            constants={
                "family": self.name,
                "arguments": self.arguments,
                "image_size": self.image_size,
                **constants_of(self.pixels),
            },
            notes=notes,
        )

    def tensor(self, key: str, ours: str) -> str:
        """The tensor's name of an array of a part."""
        if key == NORM:
            return f"{self.prefix}{self.family.norm}.{leaf(ours)}"
        return self.prefix + self.layout.name(ours, self.arguments)

    def _read(self, key: str, ours: str, dtype: np.dtype) -> np.ndarray:
        shape = self.shapes[key][ours]
        array = self.tensors.read(self.tensor(key, ours)).reshape(_stored_shape(ours, shape))
        if ours.endswith("kernel"):
            array = array.transpose(_OUR_AXES.get(array.ndim))
        return np.ascontiguousarray(array).astype(dtype)


def family_of(tensors: Tensors, settings: Settings, where: str, entry: str | None) -> str | None:
    """The key in FAMILIES of the encoder in a checkpoint in timm's names: by config.json, else by its tensors.

    Args:
      tensors, settings, where: see `encoder_of`.
      entry: see `Hints`.

    Returns:
      The key, None for a ViT.

    Raises:
      UserError: config.json names an architecture that is neither in FAMILIES nor a ViT; or there are encoders of
        several families.
    """
    if architecture := settings.get("architecture"):
        found = next((name for name, row in FAMILIES.items() if architecture in row.architectures), None)
        if found is None and not architecture.startswith(ARCHITECTURES):
            others = [name for row in FAMILIES.values() for name in row.architectures]
            nearest = difflib.get_close_matches(architecture, others, n=1, cutoff=0.4)
            raise UserError(
                f"{settings.where}: timm's {architecture!r} is not read: choose a ViT, whose name begins with "
                f"{' or '.join(ARCHITECTURES)}, or one of {', '.join(others)}"
                + (f"; the nearest is {nearest[0]}" if nearest else "")
            )
        _check_named(tensors, found, architecture, where)
        return found
    beginning = _beginning(entry)
    found = {name: {p for each in row.layouts for p in _prefixes(tensors, each)} for name, row in FAMILIES.items()}
    if any(found.values()):
        vits = Layout(signature="pos_embed", also=("blocks.0.norm1.weight",), name=lambda ours, _: ours)
        found[""] = set(_prefixes(tensors, vits))
    chosen = {name: {p for p in prefixes if _is_chosen(p, beginning)} for name, prefixes in found.items()}
    names = [name for name, prefixes in chosen.items() if prefixes]
    if len(names) > 1:
        shown = sorted(prefix.rstrip(".") or "." for prefixes in chosen.values() for prefix in prefixes)
        raise UserError(_ambiguous(where, shown))
    # Where nothing has the name that the user chose, the family that is there says so.
    return next((name for name in names or found if found[name]), "") or None


def _check_named(tensors: Tensors, named: str | None, architecture: str, where: str) -> None:
    """Raises UserError if the tensors are those of one of FAMILIES, and not of the one that config.json names."""
    held = [name for name, row in FAMILIES.items() if any(_prefixes(tensors, layout) for layout in row.layouts)]
    if held and named not in held:
        raise UserError(
            f"{where}: config.json names timm's {architecture}, but the tensors are those of a"
            f" {FAMILIES[held[0]].title}: take the weights and the config.json of one model"
        )


def encoder_of(tensors: Tensors, name: str, settings: Settings, where: str, hints: Hints) -> WholeSource:
    """The encoder of a family among `tensors`.

    Args:
      tensors: the checkpoint.
      name: the family's key in FAMILIES.
      settings: config.json; empty for a single file of weights.
      where: the weights, for messages.
      hints: what the user states about the encoder.

    Raises:
      UserError: there is no such encoder, or several; or config.json describes one that ours cannot be.
    """
    row = FAMILIES[name]
    hints.check_unused(where, used=row.takes)
    _check_settings(settings)
    adapters.check(tensors.names, where)
    layout = next((layout for layout in row.layouts if _prefixes(tensors, layout)), row.layouts[-1])
    prefix = _prefix(tensors, row, layout, settings, where, hints.entry)
    inside = {
        tensor.removeprefix(prefix): tensors.info(tensor).shape for tensor in tensors.names if tensor.startswith(prefix)
    }
    arguments = row.arguments(Found(shapes=inside, settings=settings, hints=hints, where=where))
    _check_size(arguments, row, settings, where)
    notes = [f"the weights are those under {prefix.rstrip('.')!r}"] if prefix else []
    if not settings.values:
        notes.append(f"assumed, because the weights do not say it: {row.same}")
    if others := getattr(tensors, "others", ()):
        notes.append(f"not read, because these are no tensors: {', '.join(others[:20])}")
    return WholeSource(
        tensors=tensors,
        name=name,
        layout=layout,
        prefix=prefix,
        arguments=arguments,
        image_size=_image_size(settings),
        notes=tuple(notes),
    )


def _check_settings(settings: Settings) -> None:
    given = settings.section("model_args").values
    for name in _INVISIBLE:
        # Switches that are off, and names that are empty, are timm's defaults.
        if given.get(name) and given[name] != _FIXED.get(name):
            raise UserError(
                f"{settings.where}: this {settings.get('architecture')} has another {name}: choose another model"
            )
    for pooling in (settings.get("global_pool"), given.get("global_pool")):
        if pooling and pooling not in _MEANS:
            raise UserError(
                f"{settings.where}: this {settings.get('architecture')} pools by {pooling!r}, not by the mean:"
                " choose another model"
            )
    if given.get("in_chans", 3) != 3:
        raise UserError(
            f"{settings.where}: images have {given['in_chans']} channels instead of 3: choose another model"
        )


def _check_size(arguments: Mapping[str, Any], row: Family, settings: Settings, where: str) -> None:
    """Raises UserError if the weights are not of the size that config.json names."""
    architecture = settings.get("architecture")
    if architecture is None or not settings.section("model_args").values.keys().isdisjoint(_SIZES):
        return
    if problems := BACKBONES[row.architectures[architecture]].differing(arguments):
        raise UserError(
            f"{where} has {', '.join(problems)} as timm's {architecture}, which its config.json names: take the weights"
            " and the config.json of one model"
        )


def _prefixes(tensors: Tensors, layout: Layout) -> list[str]:
    """What stands before the names of the tensors of each encoder with these names."""
    end = layout.signature
    found = {name.removesuffix(end) for name in tensors.names if name == end or name.endswith(f".{end}")}
    if layout.axes:
        found = {prefix for prefix in found if len(tensors.info(prefix + end).shape) == layout.axes}
    return sorted(prefix for prefix in found if all(prefix + name in tensors.names for name in layout.also))


def _beginning(entry: str | None) -> str | None:
    return None if entry is None else f"{entry.strip('.')}.".removeprefix(".")


def _is_chosen(prefix: str, beginning: str | None) -> bool:
    return beginning is None or (prefix.startswith(beginning) and bool(beginning or not prefix))


def _ambiguous(where: str, shown: list[str]) -> str:
    choose = f"choose one with --entry, such as --entry {shown[0]}"
    return f"{where} holds {len(shown)} vision encoders ({listed(shown)}): {choose}"


def _prefix(tensors: Tensors, row: Family, layout: Layout, settings: Settings, where: str, entry: str | None) -> str:
    """The only one of `_prefixes`, or the one that the user chose."""
    found = _prefixes(tensors, layout)
    if not found:
        raise UserError(
            f"{where} holds no {row.title} in timm's names, there is no {layout.signature!r}: check that the weights "
            f"are those of {settings.get('architecture')}"
        )
    shown = [prefix.rstrip(".") or "." for prefix in found]
    found = [prefix for prefix in found if _is_chosen(prefix, _beginning(entry))]
    if not found:
        raise UserError(f"{where} has no {row.title} in --entry {entry}: there are {listed(shown)}")
    if len(found) > 1:
        raise UserError(_ambiguous(where, [prefix.rstrip(".") or "." for prefix in found]))
    return found[0]


def _image_size(settings: Settings) -> int:
    size = settings.section("pretrained_cfg").get("input_size")
    given = isinstance(size, list) and len(size) == 3 and isinstance(size[-1], int)
    return size[-1] if given else _SIDE


def _stored_shape(ours: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in torch of our kernels; that of other arrays is the same."""
    if not ours.endswith("kernel"):
        return shape
    stored = np.empty_like(shape)
    stored[list(_OUR_AXES[len(shape)])] = shape
    return tuple(stored.tolist())
