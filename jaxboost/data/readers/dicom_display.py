"""Converts a grey DICOM image to 8 bits, as its tags say.

The order is that of the standard (PS3.3 C.11.1, C.11.2): stored values without padding; modality LUT or rescale; then
the first of these that the file has: its first window (which the PneumoLLM paper uses), its first VOI LUT, the range of
its own values. MONOCHROME1 is inverted, so that more X-rays are always darker.

Enhanced files have the same tags in functional groups (PS3.3 C.7.6.16). Tags in the group of the frame take precedence
over those in the shared group, and these over tags outside of the groups.
"""

from collections.abc import Callable

import numpy as np
import pydicom

from jaxboost.data.problems import ProblemError
from jaxboost.data.readers.dicom_pixels import Layout, stored_values
from jaxboost.data.readers.dicom_tags import first_item, fix, numbers, word

_PADDING = {
    "PixelData": ("PixelPaddingValue", "PixelPaddingRangeLimit"),
    "FloatPixelData": ("FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit"),
    "DoubleFloatPixelData": ("DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit"),
}
# Alternatives of a step. The tags of an alternative are used together. All tags of a step come from one dataset: the
# first one that has all tags of any alternative.
_RESCALE = (("RescaleSlope",), ("RescaleIntercept",), ("ModalityLUTSequence",))
_VOI = (("WindowCenter", "WindowWidth"), ("VOILUTSequence",))
# Functional group of a step, and its alternatives.
_RESCALE_STEP = ("PixelValueTransformationSequence", _RESCALE)
_VOI_STEP = ("FrameVOILUTSequence", _VOI)


def to_grey(pixels: np.ndarray, layout: Layout, header: pydicom.Dataset, nan: float | None) -> np.ndarray:
    """Converts decoded samples to a picture, uint8 (rows, columns). Padding is always black.

    Args:
      pixels: samples (rows, columns) with all of their allocated bits.
      layout: their layout.
      header: the tags.
      nan: the number that replaces values that are not finite; None: such a file is refused.

    Raises:
      ProblemError: tags contradict each other or make no sense, or values are not finite.
    """
    inverted = _is_inverted(layout.photometric, header)
    rescale, voi = (_tags_of(header, *step) for step in (_RESCALE_STEP, _VOI_STEP))
    stored = stored_values(pixels, layout)
    shown = ~_padding(pixels, stored, layout, header)
    if not shown.any():
        raise ProblemError("is all padding (PixelPaddingValue): leave it out, or delete the tag if it is wrong")

    def display(values: np.ndarray) -> np.ndarray:
        values = _modality_values(values, rescale)
        wrong = ~np.isfinite(values)
        if wrong.any() and nan is None:
            raise ProblemError(
                "has pixels that are not finite numbers", fix="data.nan=0 reads them as 0", setting="data.nan=''"
            )
        values = np.where(wrong, nan, values) if wrong.any() else values
        grey = np.rint(np.clip(_display_values(values, voi), 0, 255)).astype(np.uint8)
        return 255 - grey if inverted else grey

    picture = np.zeros(stored.shape, np.uint8)
    picture[shown] = _by_level(stored[shown], display)
    return picture


def _is_inverted(photometric: str, header: pydicom.Dataset) -> bool:
    """Returns whether the least value is white. PresentationLUTShape must agree; it does not invert a second time."""
    inverted = photometric == "MONOCHROME1"
    shape = word(header, "PresentationLUTShape")
    if shape == "LIN OD":
        raise ProblemError("has PresentationLUTShape LIN OD, values for printing on film: export it for display")
    if shape and shape != ("INVERSE" if inverted else "IDENTITY"):
        text = f"has PhotometricInterpretation {photometric} and PresentationLUTShape {shape}: one of them is wrong"
        command = fix("del d.PresentationLUTShape")
        raise ProblemError(f"{text}; look at the image, and if the first is right, {command}")
    return inverted


def _tags_of(header: pydicom.Dataset, macro: str, wanted: tuple[tuple[str, ...], ...]) -> pydicom.Dataset:
    """Returns the dataset with the tags of a step: the group of the frame, the shared group, or the header itself."""
    for sequence in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        group = first_item(header, sequence)
        item = None if group is None else first_item(group, macro)
        if item is not None and any(all(_has(item, name) for name in names) for names in wanted):
            if (count := len(header.get(sequence))) > 1:
                raise ProblemError(f"has one frame, but {count} items in its {sequence}: leave the one of the frame")
            return item
    return header


def _has(dataset: pydicom.Dataset, name: str) -> bool:
    return name in dataset and (bool(dataset.get(name)) if name.endswith("Sequence") else bool(numbers(dataset, name)))


def _padding(pixels: np.ndarray, stored: np.ndarray, layout: Layout, header: pydicom.Dataset) -> np.ndarray:
    """Returns which samples are padding, bool (PS3.3 C.7.5.1.1.2). The tag is a stored value, before any rescale."""
    value, limit = (numbers(header, name)[:1] for name in _PADDING[layout.keyword])
    if not value:
        return np.zeros(stored.shape, np.bool_)
    ends = [*value, *limit]
    if stored.dtype.kind == "f":
        ends = [stored.dtype.type(end) for end in ends]
        return (stored >= min(ends)) & (stored <= max(ends))
    # Some writers write -2000 as 63536, or the reverse, because the tag has 16 bits.
    wrong = range(2**15, 2**16) if layout.signed else range(-(2**15), 0)
    ends = [int(end) + ((-1 if layout.signed else 1) * 2**16 if int(end) in wrong else 0) for end in ends]
    found = (stored >= min(ends)) & (stored <= max(ends))
    size = 2 ** (8 * pixels.dtype.itemsize)
    if not limit and -size // 2 <= ends[0] < size:
        # Padding may use bits that values do not.
        found |= pixels.view(f"u{pixels.dtype.itemsize}") == ends[0] % size
    return found


def _by_level(pixels: np.ndarray, display: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Returns `display(pixels)`, computed once per value, because float64 copies of a radiograph take 100 MB each."""
    if pixels.dtype.kind not in "iu" or pixels.dtype.itemsize > 2:
        return display(pixels)
    lowest = int(pixels.min())
    shifted = pixels.astype(np.int32) - lowest
    levels = np.flatnonzero(np.bincount(shifted.ravel()))
    table = np.zeros(levels[-1] + 1, np.uint8)
    table[levels] = display(levels + lowest)
    return table[shifted]


def _modality_values(stored: np.ndarray, tags: pydicom.Dataset) -> np.ndarray:
    item = first_item(tags, "ModalityLUTSequence")
    if item is not None:
        return look_up(stored, item)[0]
    slope, intercept = (numbers(tags, name) for name in ("RescaleSlope", "RescaleIntercept"))
    if len(slope) > 1 or len(intercept) > 1:
        raise ProblemError(f"has several values for its rescale ({slope}, {intercept}): leave one")
    if slope == (0,):
        raise ProblemError(f"has RescaleSlope 0, which makes all of its pixels equal: {fix('del d.RescaleSlope')}")
    with np.errstate(over="ignore"):
        return stored.astype(np.float64) * (slope or (1,))[0] + (intercept or (0,))[0]


def _display_values(values: np.ndarray, tags: pydicom.Dataset) -> np.ndarray:
    """Returns levels, float64, from 0 (black) to 255 (white), before MONOCHROME1 is inverted."""
    centres, widths = (numbers(tags, name) for name in _VOI[0])
    if centres and widths:
        if len(centres) != len(widths):
            raise ProblemError(
                f"has {len(centres)} window centres and {len(widths)} widths: correct or delete its tags"
            )
        return _window(values, centres[0], widths[0], word(tags, "VOILUTFunction") or "LINEAR")
    item = first_item(tags, "VOILUTSequence")
    if item is not None:
        shown, bits = look_up(values, item)
        return shown * (255 / (2**bits - 1))
    lowest, highest = float(values.min()), float(values.max())
    return (values - lowest) * (255 / (highest - lowest)) if highest > lowest else np.zeros(values.shape)


def _window(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """Applies a window (PS3.3 C.11.2.1.2 and C.11.2.1.3); returns float64 from 0 to 255."""
    least = {"LINEAR": "1 or more", "LINEAR_EXACT": "more than 0", "SIGMOID": "more than 0"}.get(function)
    if least is None:
        raise ProblemError(f"has a window of the unknown VOILUTFunction {function}: correct or delete its tags")
    if width <= 0 or (function == "LINEAR" and width < 1):
        text = f"has a window that cannot be applied (its width is {width:g}, {function} needs {least})"
        raise ProblemError(f"{text}: correct or delete its tags")
    if function == "SIGMOID":
        # The exponential overflows far below the centre.
        with np.errstate(over="ignore"):
            return 255 / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    if width == 0:
        return np.where(values > centre, 255.0, 0.0)
    return np.clip((values - centre) / width + 0.5, 0, 1) * 255


def look_up(
    values: np.ndarray, item: pydicom.Dataset, descriptor: str = "LUTDescriptor", data: str = "LUTData"
) -> tuple[np.ndarray, int]:
    """Applies a lookup table (PS3.3 C.11.1.1).

    Values beyond the ends of the table get its end entries. The functions of pydicom 3 are not used: their index wraps
    around for an 8-bit table of more than 256 entries, and they fail for unsigned pixels with a negative first value.

    Returns:
      The entries of `values`, float64, and the bits of an entry.

    Raises:
      ProblemError: the descriptor and the entries of the table do not agree.
    """
    if len(described := numbers(item, descriptor)) != 3:
        raise ProblemError(f"has a lookup table whose {descriptor} is not three numbers: correct or delete its tags")
    entries, first, bits = map(int, described)
    entries = entries % 2**16 or 2**16
    if not 1 <= bits <= 16:
        raise ProblemError(f"has a lookup table of {bits} bits: correct or delete its tags")
    table = item.get(data)
    if isinstance(table, bytes):
        wide = len(table) >= 2 * entries
        order = ">" if item.original_encoding[1] is False else "<"
        table = np.frombuffer(table, np.dtype(f"{order}u2") if wide else np.uint8)
    table = np.asarray([] if table is None else table, np.float64).ravel()[:entries]
    if len(table) != entries:
        found = f"{len(table)} entries, {entries} were announced"
        raise ProblemError(f"has a lookup table of {found}: correct or delete its tags")
    if table.max() >= 2**bits:
        raise ProblemError(
            f"has a lookup table of {bits} bits with the entry {table.max():g}: correct or delete its tags"
        )
    if first >= 2**15 and (values.min() < 0 or values.max() < first):
        # A negative number, written as an unsigned one.
        first -= 2**16
    return table[np.clip(np.rint(values).astype(np.int64) - first, 0, entries - 1)], bits
