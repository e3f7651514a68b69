"""One DICOM radiograph as 8-bit grey, shown as its tags say. Needs the package pydicom (the extra `dicom`).

The order is the standard's (PS3.3 C.11.1, C.11.2): stored values, modality LUT or rescale, then the first of these that
the file has: its first window (the one that the PneumoLLM paper uses), its first VOI LUT, the range of its own values.
MONOCHROME1 is inverted, so that more X-rays are always darker.
"""

import pathlib
from collections.abc import Callable

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_rescale, apply_windowing, get_decoder

from jaxboost.data.faults import FaultError, reason

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
# Tags that some writers leave empty, where the standard would have them absent.
_OFTEN_EMPTY = ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction")


def read_dicom(path: pathlib.Path) -> np.ndarray:
    """The image, uint8 (H, W).

    Raises:
        FaultError: it is no DICOM file, no single grey image, compressed in a way that no installed package can read,
            damaged, or its tags or pixels make no sense.
    """
    try:
        dataset = pydicom.dcmread(path)
        _check_kind(dataset)
        _check_decoder(dataset)
        return _to_grey(dataset.pixel_array, dataset)
    except FaultError:
        raise
    except InvalidDicomError:
        raise FaultError("is not a DICOM file") from None
    # Damaged files make pydicom and its decoders raise nearly anything.
    except Exception as error:
        raise FaultError(f"cannot be read ({reason(error)})") from error


def _check_kind(dataset: pydicom.Dataset) -> None:
    if not any(name in dataset for name in _PIXELS):
        raise FaultError("is a DICOM file without an image")
    photometric = dataset.get("PhotometricInterpretation")
    if photometric not in _MONOCHROME or dataset.get("SamplesPerPixel", 1) != 1:
        raise FaultError(f"is a colour image ({photometric}): only MONOCHROME1 and MONOCHROME2 are read")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise FaultError(f"has {frames} frames: give one file for each image")


def _check_decoder(dataset: pydicom.Dataset) -> None:
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise FaultError(
            f"has the transfer syntax {syntax.name}, which pydicom cannot read: save it uncompressed"
        ) from None
    if not decoder.is_available:
        needed = " or ".join(" ".join(text.split()) for text in decoder.missing_dependencies)
        raise FaultError(
            f"is compressed ({syntax.name}) and no decoder is installed: `pip install 'jaxboost[dicom]'` ({needed})"
        )


def _to_grey(pixels: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    for name in _OFTEN_EMPTY:
        if name in dataset and dataset[name].is_empty:
            del dataset[name]

    def display(stored: np.ndarray) -> np.ndarray:
        values = _modality_values(stored, dataset)
        if not np.isfinite(values).all():
            raise FaultError("has pixels that are not finite numbers")
        grey = np.rint(np.clip(_display_values(values, dataset), 0, 255)).astype(np.uint8)
        return 255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey

    return _by_level(pixels, display)


def _by_level(pixels: np.ndarray, display: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`display(pixels)`, computed once for each value that occurs: float64 copies of a radiograph are 100 MB each."""
    if pixels.dtype.kind not in "iu" or pixels.dtype.itemsize > 2:
        return display(pixels)
    lowest = int(pixels.min())
    shifted = pixels.astype(np.int32) - lowest
    levels = np.flatnonzero(np.bincount(shifted.ravel()))
    table = np.zeros(levels[-1] + 1, np.uint8)
    table[levels] = display(levels + lowest)
    return table[shifted]


def _modality_values(stored: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    if dataset.get("ModalityLUTSequence"):
        return _look_up(stored, dataset.ModalityLUTSequence[0], dataset)[0]
    return apply_rescale(stored, dataset)


def _display_values(values: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """What is shown, float64, 0 (black) to 255 (white) before MONOCHROME1 is inverted."""
    if "WindowCenter" in dataset and "WindowWidth" in dataset:
        # apply_windowing's range follows from the bits and the rescale tags of its dataset: with these it is 0..255.
        window = pydicom.Dataset()
        window.PhotometricInterpretation, window.BitsStored, window.PixelRepresentation = "MONOCHROME2", 8, 0
        for name in ("WindowCenter", "WindowWidth", "VOILUTFunction"):
            if name in dataset:
                window[name] = dataset[name]
        try:
            # Far below the centre of a sigmoid.
            with np.errstate(over="ignore"):
                return apply_windowing(values, window)
        except ValueError as error:
            text = f"has a window that cannot be applied ({reason(error)}): correct or delete its tags"
            raise FaultError(text) from error
    if dataset.get("VOILUTSequence"):
        shown, bits = _look_up(values, dataset.VOILUTSequence[0], dataset)
        return shown * (255 / (2**bits - 1))
    lowest, highest = float(values.min()), float(values.max())
    return (values - lowest) * (255 / (highest - lowest)) if highest > lowest else np.zeros(values.shape)


def _look_up(values: np.ndarray, item: pydicom.Dataset, dataset: pydicom.Dataset) -> tuple[np.ndarray, int]:
    """`values` through a LUT, float64, and the bits of its entries. Values beyond its ends get its end entries.

    The functions of pydicom 3 hold the index in the type of the entries or of the pixels, which wraps around for an
    8-bit LUT of more than 256 entries, and fail for unsigned pixels with a negative first value.
    """
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    entries = entries or 2**16
    table = item.LUTData
    if isinstance(table, bytes):
        wide = len(table) >= 2 * entries
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        table = np.frombuffer(table, np.dtype(f"{order}u2") if wide else np.uint8)
    table = np.asarray(table, np.float64)[:entries]
    if len(table) != entries:
        found = f"{len(table)} entries, {entries} were announced"
        raise FaultError(f"has a lookup table of {found}: correct or delete its tags")
    return table[np.clip(np.rint(values).astype(np.int64) - first, 0, entries - 1)], bits
