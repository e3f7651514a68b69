"""RandAugment (Cubuk et al. 2019, arXiv:1909.13719) with the operations and ranges of timm's `rand-m9-mstd0.5[-inc1]`.

Images are Pillow's, grey ("L") or RGB. A grey image gets the same values as each channel of the same image in RGB, so
that `Color` changes nothing; the fill value is the grey value of the RGB fill.
"""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

HIGHEST = 10.0  # largest magnitude

# Fill value for pixels from outside the image: ImageNet's mean colour, 0..255, and its luma (ITU-R 601).
FILL = {"RGB": (124, 116, 104), "L": 117}

# Probability that a chosen operation is applied.
PROBABILITY = 0.5

ENHANCERS = {
    "Color": ImageEnhance.Color,
    "Contrast": ImageEnhance.Contrast,
    "Brightness": ImageEnhance.Brightness,
    "Sharpness": ImageEnhance.Sharpness,
}
# At the largest magnitude: degrees; shear; translation as a fraction of the width or height.
GEOMETRIC = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3, "TranslateXRel": 0.45, "TranslateYRel": 0.45}
# Posterize's bits, and Solarize's threshold.
LEVELS = {"Posterize": 4, "Solarize": 256}
_OTHERS: dict[str, Callable[[Image.Image, int | None], Image.Image]] = {
    "AutoContrast": lambda picture, _: ImageOps.autocontrast(picture),
    "Equalize": lambda picture, _: ImageOps.equalize(picture),
    "Invert": lambda picture, _: ImageOps.invert(picture),
    "Posterize": lambda picture, bits: _posterize(picture, bits),
    "Solarize": ImageOps.solarize,
    "SolarizeAdd": lambda picture, add: _add_to_dark(picture, add),
}
OPERATIONS = (*_OTHERS, *GEOMETRIC, *ENHANCERS)


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
    """Applies operations that are drawn with replacement; each is applied with probability 0.5.

    Args:
      picture: the image.
      rng: the only source of randomness.
      ops: number of operations.
      magnitude: mean of each operation's magnitude, 0 to 10.
      std: standard deviation of the magnitude, which is clipped to 0..10.
      increasing: see `argument`.
      filters: interpolation filters; one is drawn for each operation.
    """
    for number in rng.integers(len(OPERATIONS), size=ops):
        name, applied = OPERATIONS[number], rng.random() < PROBABILITY
        level = float(np.clip(rng.normal(magnitude, std), 0.0, HIGHEST))
        negative, resample = rng.random() < 0.5, filters[rng.integers(len(filters))]
        if applied:
            value = argument(name, level, negative=negative, increasing=increasing)
            picture = apply(name, picture, value, resample)
    return picture


def argument(name: str, level: float, *, negative: bool, increasing: bool) -> float | int | None:
    """The argument of an operation at a magnitude.

    Args:
      name: one of `OPERATIONS`.
      level: the magnitude, 0 to 10.
      negative: rotate, shear or translate in the other direction; of `increasing` enhancements: weaken.
      increasing: the severity of Posterize, Solarize and the enhancements increases with the magnitude (timm's `inc1`);
        otherwise that of Posterize and Solarize decreases, and enhancement factors go from 0.1 to 1.9.

    Returns:
      Degrees (Rotate), shear in pixels per pixel, translation as a fraction of the side, bits kept (Posterize),
      threshold (Solarize), grey values added (SolarizeAdd), or the factor of an enhancement, 1 for no change; None for
      operations without an argument.
    """
    fraction = level / HIGHEST
    if name in GEOMETRIC:
        return (-fraction if negative else fraction) * GEOMETRIC[name]
    if name in ENHANCERS:
        return max(0.1, 1.0 + (-fraction if negative else fraction) * 0.9) if increasing else 0.1 + fraction * 1.8
    if name == "SolarizeAdd":
        return int(fraction * 110)
    if name in LEVELS:
        highest = LEVELS[name]
        return highest - int(fraction * highest) if increasing else int(fraction * highest)
    return None


def apply(
    name: str, picture: Image.Image, value: float | int | None, resample: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    """Applies one operation with the value that `argument` returns."""
    if name in ENHANCERS:
        return ENHANCERS[name](picture).enhance(value)
    if name in _OTHERS:
        return _OTHERS[name](picture, value)
    if name == "Rotate":
        return picture.rotate(value, resample, fillcolor=FILL[picture.mode])
    # Output pixel (x, y) -> input pixel (ax + by + c, dx + ey + f).
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
    """Keeps the highest bits of each value. For 0 bits, which Pillow's own function does not accept, all is black."""
    return picture.point([grey >> 8 - bits << 8 - bits for grey in range(256)] * len(picture.getbands()))


def _add_to_dark(picture: Image.Image, add: int) -> Image.Image:
    """Adds to the values below 128, clipped to 255."""
    table = [min(255, grey + add) if grey < 128 else grey for grey in range(256)]
    return picture.point(table * len(picture.getbands()))
