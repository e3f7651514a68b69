"""Augmentation of single training images on the CPU: 2-D images with Pillow, volumes with NumPy.

Inputs and outputs are uint8. Grey images stay grey: a change of saturation is the identity on them.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from jaxboost.data.pipeline import rand_augment
from jaxboost.errors import UserError

FILTERS = {
    "bicubic": (Image.Resampling.BICUBIC,),
    "random": (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC),
}

_RANDOM_2D = ("crop_scale", "flip", "vertical_flip", "color_jitter", "rand_augment_ops")
_RANDOM_3D = ("volume_flips", "volume_rotations", "shift", "noise")
_ONLY_2D = (
    *_RANDOM_2D,
    *("resize", "crop_ratio", "interpolation", "rgb"),
    *("rand_augment_magnitude", "rand_augment_std", "rand_augment_increasing"),
)
# Attempts to draw a crop that fits into the image.
ATTEMPTS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
    """The config section `augment`, whose fields config/data_fields.py explains; by default nothing is changed.

    Sources: timm 0.4.12, torchvision; repeated augmentation: Hoffer et al. 2020.
    """

    resize: int = 0
    crop_scale: Sequence[float] = ()
    crop_ratio: Sequence[float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"
    flip: float = 0.0
    vertical_flip: float = 0.0
    color_jitter: float = 0.0
    rand_augment_ops: int = 0
    rand_augment_magnitude: float = 9.0
    rand_augment_std: float = 0.5
    rand_augment_increasing: bool = False
    rgb: bool = False
    volume_flips: bool = False
    volume_rotations: bool = False
    shift: int = 0
    noise: float = 0.0
    repeats: int = 1

    @property
    def random_fields(self) -> tuple[str, ...]:
        """The names of the fields that are set and change images at random."""
        return tuple(name for name in (*_RANDOM_2D, *_RANDOM_3D) if getattr(self, name))

    def check(self, ndim: int) -> None:
        """Raises UserError if a field is no pair (low, high), or is not for images of `ndim` dimensions, 2 or 3."""
        other, dimensions = (_RANDOM_3D, 3) if ndim == 2 else (_ONLY_2D, 2)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in other and value != field.default:
                raise UserError(
                    f"config field augment.{field.name}: {value!r} is for {dimensions}-D images, these are {ndim}-D: "
                    f"leave it at {field.default!r}"
                )
        self._check_pairs()

    def check_source_tokens(self) -> None:
        """Raises UserError if a field is no pair (low, high), or changes images that are encoded only once."""
        if fields := self.random_fields:
            raise UserError(
                f"config field augment.{fields[0]}: {getattr(self, fields[0])!r} changes images, but the encoder that "
                f"sees them is frozen and sees each only once: leave it at {getattr(Augment, fields[0])!r}"
            )
        self._check_pairs()

    def _check_pairs(self) -> None:
        if self.crop_scale:
            _check_pair("crop_scale", self.crop_scale, highest=1)
        _check_pair("crop_ratio", self.crop_ratio, highest=math.inf)


def augment_image(image: np.ndarray, rng: np.random.Generator, augment: Augment, *, image_size: int) -> np.ndarray:
    """Augments a 2-D image in timm's order: crop, flips, RandAugment, color jitter.

    timm leaves out the jitter if it uses RandAugment.

    Args:
      image: uint8 (S', S', C), C = 1 or 3.
      rng: the only source of randomness.
      augment: the augmentation.
      image_size: S, the size in pixels of a random crop; without one S = S'.

    Returns:
      uint8 (S, S, C).
    """
    filters = FILTERS[augment.interpolation]
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    if augment.crop_scale:
        box = crop_box(picture.width, rng, scale=augment.crop_scale, ratio=augment.crop_ratio)
        # Cropped first, because `resize` with a box would also use the pixels around it.
        picture = picture.crop(box).resize((image_size, image_size), filters[rng.integers(len(filters))])
    if rng.random() < augment.flip:
        picture = ImageOps.mirror(picture)
    if rng.random() < augment.vertical_flip:
        picture = ImageOps.flip(picture)
    picture = rand_augment.rand_augment(
        picture,
        rng,
        ops=augment.rand_augment_ops,
        magnitude=augment.rand_augment_magnitude,
        std=augment.rand_augment_std,
        increasing=augment.rand_augment_increasing,
        filters=filters,
    )
    if augment.color_jitter:
        picture = jitter(picture, rng, augment.color_jitter)
    return np.asarray(picture).reshape(picture.height, picture.width, image.shape[-1])


def crop_box(
    side: int, rng: np.random.Generator, *, scale: Sequence[float], ratio: Sequence[float]
) -> tuple[int, int, int, int]:
    """The (left, upper, right, lower) edges, in pixels, of a random crop of a square image.

    Its fraction of the area is drawn from U(scale) and the logarithm of its aspect ratio from U(log ratio), until it
    fits; its position is uniform. After ten failed attempts it is the largest centre crop.
    """
    low, high = ratio
    for _ in range(ATTEMPTS):
        area = side * side * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(low), math.log(high)))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= side and 0 < height <= side:
            upper, left = (int(rng.integers(side - length + 1)) for length in (height, width))
            break
    else:
        # As near to a square as the ratio allows; at least one pixel.
        width, height = max(1, round(side * min(high, 1))), max(1, round(side / max(low, 1)))
        upper, left = (side - height) // 2, (side - width) // 2
    return left, upper, left + width, upper + height


def jitter(picture: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Scales brightness, contrast and saturation in random order by factors from U(1 - strength, 1 + strength)."""
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for number in rng.permutation(len(enhancers)):
        picture = enhancers[number](picture).enhance(rng.uniform(1 - strength, 1 + strength))
    return picture


def augment_volume(volume: np.ndarray, rng: np.random.Generator, augment: Augment) -> np.ndarray:
    """Augments a volume, uint8 (S, S, S, C), by rotation, flips, shift and noise, in this order."""
    if augment.volume_rotations:
        volume = rotate(volume, int(rng.integers(len(ROTATIONS))))
    if augment.volume_flips:
        volume = np.flip(volume, [axis for axis in range(3) if rng.random() < 0.5])
    if augment.shift:
        volume = translate(volume, rng.integers(-augment.shift, augment.shift, size=3, endpoint=True))
    if augment.noise:
        noise = rng.standard_normal(volume.shape, np.float32) * np.float32(255 * augment.noise)
        volume = np.clip(np.rint(volume + noise), 0, 255).astype(np.uint8)
    return volume


# A rotation of the cube moves axis axes[i] to axis i, and reverses it if signs[i] is -1. Half of the 48 combinations
# are reflections, whose matrix has the determinant -1.
ROTATIONS = tuple(
    (axes, signs)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
    if np.linalg.det(np.diag(signs)[:, axes]) > 0
)


def rotate(volume: np.ndarray, number: int) -> np.ndarray:
    """Applies one of the 24 rotations of a cube to a volume (S, S, S, C), 0 <= number < 24; 0 is the identity."""
    axes, signs = ROTATIONS[number]
    return volume.transpose(*axes, 3)[tuple(slice(None, None, sign) for sign in signs)]


def translate(volume: np.ndarray, offsets: Sequence[int]) -> np.ndarray:
    """Translates a volume (S, S, S, C) by the given voxels along each axis, at most S; new voxels are 0."""
    moved = np.zeros_like(volume)
    pairs = zip(volume.shape, offsets, strict=False)
    spans = [(slice(max(0, by), size + min(0, by)), slice(max(0, -by), size - max(0, by))) for size, by in pairs]
    moved[tuple(new for new, _ in spans)] = volume[tuple(old for _, old in spans)]
    return moved


def _check_pair(name: str, pair: Sequence[float], *, highest: float) -> None:
    numbers = all(isinstance(end, int | float) for end in pair)
    if not numbers or len(pair) != 2 or not 0 < pair[0] <= pair[1] <= highest or math.inf in pair:
        limit = "" if highest == math.inf else f" <= {highest:g}"
        raise UserError(f"config field augment.{name}: {pair!r} should be (low, high) with 0 < low <= high{limit}")
