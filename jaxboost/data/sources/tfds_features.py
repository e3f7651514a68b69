"""Which features of a TFDS data set are its images and labels, and what one example holds of them."""

import dataclasses
import io
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from jaxboost.data.problems import ProblemError, reason
from jaxboost.errors import UserError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_PATIENTS = ("patient", "patient_id")
_FILES = ("file",)
_MODES = {1: "L", 3: "RGB"}  # channels -> pillow's name
# What pillow raises for a damaged picture (SyntaxError: a broken PNG header).
_DAMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclasses.dataclass(frozen=True)
class ImageKind:
    """What images a feature holds: `ndim` 2 or 3, channels C; `edge`: S of volumes, else 0; `encoded`: PNG or JPEG."""

    ndim: int
    channels: int
    edge: int = 0
    encoded: bool = False


@dataclasses.dataclass(frozen=True)
class LabelKind:
    """What labels a feature holds: the number of a class; or, `multi_label`, the numbers of several (`listed`) or 0/1
    for each."""

    classes: tuple[str, ...]
    multi_label: bool = False
    listed: bool = False


@dataclasses.dataclass(frozen=True)
class Fields:
    """Names of the features that are read, `patient` and `file` "" where there is none."""

    image: str
    label: str
    patient: str
    file: str
    image_kind: ImageKind
    label_kind: LabelKind

    def image_of(self, example: Mapping[str, Any], size: int) -> np.ndarray:
        """uint8 (S, S, C) with S = `size`, resized where it differs, or a volume (S, S, S, 1) as it is stored.

        Args:
          example: with encoded images as bytes.

        Raises:
          ProblemError: there is none, or the picture is damaged.
        """
        kind, stored = self.image_kind, example[self.image]
        # A cut file may give empty records.
        if not isinstance(stored, bytes | np.ndarray) or not len(stored):
            raise ProblemError("its image is empty")
        if kind.encoded:
            picture = _decoded(stored, kind.channels)
        elif kind.ndim == 3:
            return stored.reshape(kind.edge, kind.edge, kind.edge, 1)
        else:
            picture = Image.fromarray(stored[..., 0] if kind.channels == 1 else stored)
        if picture.size != (size, size):
            picture = picture.resize((size, size), Image.Resampling.BICUBIC)
        return np.asarray(picture).reshape(size, size, kind.channels)

    def labels_of(self, example: Mapping[str, Any]) -> np.ndarray:
        """int64 (L,).

        Raises:
          ProblemError: a number in a list is not that of a class.
        """
        kind, stored = self.label_kind, np.asarray(example[self.label], np.int64)
        if not kind.listed:
            return stored.reshape(-1)
        if ((stored < 0) | (stored >= len(kind.classes))).any():
            raise ProblemError(f"has the labels {stored.tolist()}, expected 0..{len(kind.classes) - 1}")
        labels = np.zeros(len(kind.classes), np.int64)
        labels[stored] = 1
        return labels


def find_fields(info: "tfds.core.DatasetInfo", where: str) -> Fields:
    """The features of a data set that are read: those of the right type, of several the `supervised_keys`, then `image`
    and `label`.

    Args:
      where: the data set, for messages.

    Raises:
      UserError: no feature, or more than one, can be the images, or the labels; the message lists the features.
    """
    import tensorflow_datasets as tfds

    features = dict(info.features) if isinstance(info.features, tfds.features.FeaturesDict) else {}
    images = {name: kind for name, feature in features.items() if (kind := _image_kind(feature))}
    labels = {name: kind for name, feature in features.items() if (kind := _label_kind(feature))}
    keys = [key for key in info.supervised_keys or () if isinstance(key, str)]
    texts = [name for name, feature in features.items() if isinstance(feature, tfds.features.Text)]
    numbers = [
        name
        for name, feature in features.items()
        if isinstance(feature, tfds.features.Tensor)
        and feature.shape == ()
        and np.issubdtype(feature.np_dtype, np.integer)
    ]
    listed = _one_line(info.features)
    image = _choose(images, keys, "image", f"{where}: which feature holds the images (uint8, 1 or 3 channels)", listed)
    label = _choose(labels, keys, "label", f"{where}: which feature holds the labels (2 or more classes)", listed)
    return Fields(
        image=image,
        label=label,
        patient=next((name for name in _PATIENTS if name in (*texts, *numbers)), ""),
        file=next((name for name in _FILES if name in texts), ""),
        image_kind=images[image],
        label_kind=labels[label],
    )


def _decoded(content: bytes, channels: int) -> Image.Image:
    """A PNG or JPEG picture with 1 or 3 channels, whatever it is stored with: grey, colour or a palette."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return picture.convert(_MODES[channels])
    except Image.UnidentifiedImageError:
        raise ProblemError("its image is not a picture") from None
    except _DAMAGE as error:
        raise ProblemError(f"its image cannot be read ({reason(error)})") from error


def _choose(candidates: Mapping[str, object], keys: Iterable[str], usual: str, question: str, listed: str) -> str:
    supervised = [key for key in keys if key in candidates]
    for found in (supervised, [usual] if usual in candidates else [], list(candidates)):
        if len(found) == 1:
            return found[0]
    answer = f"{', '.join(candidates)}, and none is named {usual!r}" if candidates else "none of them"
    raise UserError(f"{question}? {answer}; its features: {listed}")


def _image_kind(feature: object) -> ImageKind | None:
    """None where the feature holds no images that a model could take."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Image):
        # Pixels of a LabeledImage are classes.
        if isinstance(feature, tfds.features.LabeledImage) or feature.np_dtype != np.uint8:
            return None
        channels = feature.shape[-1]
        return ImageKind(ndim=2, channels=channels, encoded=True) if channels in _MODES else None
    if not isinstance(feature, tfds.features.Tensor) or feature.np_dtype != np.uint8:
        return None
    match feature.shape:
        case (_, _, channels) if channels in _MODES:
            return ImageKind(ndim=2, channels=channels)
        case (depth, height, width) | (depth, height, width, 1) if depth and depth == height == width:
            return ImageKind(ndim=3, channels=1, edge=depth)
    return None


def _label_kind(feature: object) -> LabelKind | None:
    """None where the feature holds no labels, or those of fewer than two classes."""
    import tensorflow_datasets as tfds

    listed = isinstance(feature, tfds.features.Sequence)
    one = feature.feature if listed else feature
    if isinstance(one, tfds.features.ClassLabel):
        several = (one.num_classes or 0) > 1
        return LabelKind(tuple(one.names), multi_label=listed, listed=listed) if several else None
    if listed or not isinstance(one, tfds.features.Tensor) or len(one.shape) != 1 or (one.shape[0] or 0) < 2:
        return None
    if not np.issubdtype(one.np_dtype, np.integer) and one.np_dtype != np.bool_:
        return None
    return LabelKind(tuple(map(str, range(one.shape[0]))), multi_label=True)


def _one_line(feature: object) -> str:
    return " ".join(repr(feature).split())
