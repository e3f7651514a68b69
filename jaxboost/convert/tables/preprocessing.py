"""The pixels that an encoder was trained on, as the files beside its weights say them.

They change no weight: a run compares them with its config, and warns.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxboost.convert.formats.settings import MAX_NUMBER, MIN_NUMBER, Settings

# In transformers' folders.
FILE = "preprocessor_config.json"
# What rescales pixels 0..255 to [0, 1], to float32's precision.
_UNIT = (0.9999 / 255, 1.0001 / 255)


class Pixels(NamedTuple):
    """Pixels in [0, 1] become (pixel - mean) / std; one number for each channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def constants_of(pixels: Pixels | None) -> dict[str, tuple[float, ...]]:
    """The entries of a manifest."""
    return {} if pixels is None else {"pixel_mean": pixels.mean, "pixel_std": pixels.std}


def of_transformers(settings: Settings) -> Pixels | None:
    """The pixels in preprocessor_config.json; None if it does not say them, or describes something else."""
    rescaled = settings.get("rescale_factor")
    if settings.get("do_rescale") is False or not (rescaled is None or _UNIT[0] < _number(rescaled) < _UNIT[1]):
        return None
    if settings.get("do_normalize") is False:
        return Pixels((0.0,) * 3, (1.0,) * 3)
    return _pixels(settings.get("image_mean"), settings.get("image_std"))


def of_timm(settings: Settings) -> Pixels | None:
    """The pixels in timm's config.json, or in the `preprocess_cfg` of OpenCLIP's."""
    for name in ("pretrained_cfg", "preprocess_cfg"):
        section = settings.get(name)
        if isinstance(section, dict) and (found := _pixels(section.get("mean"), section.get("std"))):
            return found
    return None


def _pixels(mean: Any, std: Any) -> Pixels | None:
    found = [tuple(map(_number, each)) for each in (mean, std) if isinstance(each, Sequence) and len(each) == 3]
    if len(found) != 2 or not all(0 <= each <= MAX_NUMBER for each in found[0]):
        return None
    return Pixels(*found) if all(MIN_NUMBER <= each <= MAX_NUMBER for each in found[1]) else None


def _number(value: Any) -> float:
    """The number, -1 for anything else."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else -1.0
