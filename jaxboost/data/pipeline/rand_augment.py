"""RandAugment (Cubuk et al. 2019, arXiv:1909.13719) with the operations and ranges of timm's `rand-m9-mstd0.5[-inc1]`.

Pictures are Pillow's, grey ("L") or RGB. Grey ones stay grey: every operation gives what each channel of the same
picture in RGB would get, so that `Color` changes nothing; the fill is the grey value of the RGB fill.
"""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

HIGHEST = 10.0  # magnitude

# ImageNet's mean colour, in 0..255, and its luma (ITU-R 601): what comes into sight from outside the picture.
FILL = {"RGB": (124, 116, 104), "L": 117}

# Share of pictures to which a chosen operation is applied.
_PROBABILITY = 0.5

_ENHANCERS = {
    "Color": ImageEnhance.Color,
    "Contrast": ImageEnhance.Contrast,
    "Brightness": ImageEnhance.Brightness,
    "Sharpness": ImageEnhance.Sharpness,
}
# At the highest magnitude: degrees, shear, share of the side.
_GEOMETRIC = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3, "TranslateXRel": 0.45, "TranslateYRel": 0.45}
_OTHERS: dict[str, Callable[[Image.Image, int | None], Image.Image]] = {
    "AutoContrast": lambda picture, _: ImageOps.autocontrast(picture),
    "Equalize": lambda picture, _: ImageOps.equalize(picture),
    "Invert": lambda picture, _: ImageOps.invert(picture),
    "Posterize": lambda picture, bits: _posterize(picture, bits),
    "Solarize": ImageOps.solarize,
    "SolarizeAdd": lambda picture, add: _add_to_dark(picture, add),
}
OPERATIONS = (*_OTHERS, *_GEOMETRIC, *_ENHANCERS)


def rand_augment(
    picture: Image.Image,
    rng: np.random.Generator,
    *,
    ops: int,
    magnitude: float,
    std: float,
    increasing: bool,
    filters: Sequence[Image.Resampling],
) -> Image.Image:
    """The picture after `ops` operations, drawn with replacement, each of which is then left out half of the time.

    Args:
      magnitude: mean of each operation's level, 0 to 10.
      std: standard deviation of the level, which is cut to 0 to 10.
      increasing: see `argument`.
      filters: one is drawn for each operation, for those that resample.
    """
    for number in rng.integers(len(OPERATIONS), size=ops):
        name, applied = OPERATIONS[number], rng.random() < _PROBABILITY
        level = float(np.clip(rng.normal(magnitude, std), 0.0, HIGHEST))
        negative, resample = rng.random() < 0.5, filters[rng.integers(len(filters))]
        if applied:
            value = argument(name, level, negative=negative, increasing=increasing)
            picture = apply(name, picture, value, resample)
    return picture


def argument(name: str, level: float, *, negative: bool, increasing: bool) -> float | int | None:
    """What operation `name` takes at a level from 0 to 10.

    Returns:
      degrees (Rotate), shear in pixels per pixel, shift as a share of the side (Translate...), bits kept (Posterize),
      threshold (Solarize), grey values added (SolarizeAdd), or the factor of an enhancement, 1 for no change; None
      for operations without an argument.

    Args:
      negative: turn, shear or shift the other way; of `increasing` enhancements: weaken instead of strengthen.
      increasing: Posterize, Solarize and the enhancements change the picture the more, the higher the level (timm's
        `inc1`); otherwise Posterize and Solarize do so the lower it is, and enhancements go from 0.1 to 1.9.
    """
    share = level / HIGHEST
    if name in _GEOMETRIC:
        return (-share if negative else share) * _GEOMETRIC[name]
    if name in _ENHANCERS:
        return max(0.1, 1.0 + (-share if negative else share) * 0.9) if increasing else 0.1 + share * 1.8
    if name == "SolarizeAdd":
        return int(share * 110)
    if name in ("Posterize", "Solarize"):
        highest = {"Posterize": 4, "Solarize": 256}[name]
        return highest - int(share * highest) if increasing else int(share * highest)
    return None


def apply(
    name: str, picture: Image.Image, value: float | int | None, resample: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    """The picture after operation `name` with what `argument` gives."""
    if name in _ENHANCERS:
        return _ENHANCERS[name](picture).enhance(value)
    if name in _OTHERS:
        return _OTHERS[name](picture, value)
    if name == "Rotate":
        return picture.rotate(value, resample, fillcolor=FILL[picture.mode])
    # From a pixel's new place (x, y) to its old one: (ax + by + c, dx + ey + f).
    matrix = {
        "ShearX": (1, value, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, value, 1, 0),
        "TranslateXRel": (1, 0, value * picture.width, 0, 1, 0),
        "TranslateYRel": (1, 0, 0, 0, 1, value * picture.height),
    }[name]
    return picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, resample=resample, fillcolor=FILL[picture.mode]
    )


def _posterize(picture: Image.Image, bits: int) -> Image.Image:
    """Keeps the highest bits of each value. All black for 0, which Pillow's own function no longer takes."""
    return picture.point([grey >> 8 - bits << 8 - bits for grey in range(256)] * len(picture.getbands()))


def _add_to_dark(picture: Image.Image, add: int) -> Image.Image:
    """Adds to the values below the middle of the range, up to white."""
    table = [min(255, grey + add) if grey < 128 else grey for grey in range(256)]
    return picture.point(table * len(picture.getbands()))
