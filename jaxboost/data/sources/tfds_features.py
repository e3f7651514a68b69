"""Finds the image and label features of a TFDS data set, and converts examples to arrays."""

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
_MODES = {1: "L", 3: "RGB"}  # channels -> Pillow's name
# Pillow's errors for a damaged image (SyntaxError: a damaged PNG header).
_DAMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclasses.dataclass(frozen=True)
class ImageKind:
    """The kind of images in a feature.

    Attributes:
      ndim: spatial dimensions, 2 or 3.
      channels: 1 or 3.
      edge: edge length S of volumes, else 0.
      encoded: whether they are PNG or JPEG files.
    """

    ndim: int
    channels: int
    edge: int = 0
    encoded: bool = False


@dataclasses.dataclass(frozen=True)
class LabelKind:
    """The kind of labels in a feature: a class number unless `multi_label`.

    Attributes:
      classes: class names.
      multi_label: a sample may have several labels.
      listed: the labels are a list of class numbers; otherwise there is a 0 or 1 for each class.
    """

    classes: tuple[str, ...]
    multi_label: bool = False
    listed: bool = False


@dataclasses.dataclass(frozen=True)
class Fields:
    """Names of the features that are read; `patient` and `file` may be "": there is no such feature."""

    image: str
    label: str
    patient: str
    file: str
    image_kind: ImageKind
    label_kind: LabelKind

    def image_of(self, example: Mapping[str, Any], size: int) -> np.ndarray:
        """The image uint8 (S, S, C), resized to S = `size` if needed, or the stored volume uint8 (S, S, S, 1).

        Args:
          example: a record; encoded images are bytes.
          size: S.

        Raises:
          ProblemError: the image is missing or damaged.
        """
        kind, stored = self.image_kind, example[self.image]
        # A truncated file may have empty records.
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
        """The labels, int64 (L,).

        Raises:
          ProblemError: a class number in a list is out of range.
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
    """Finds the features to read by their types.

    If several have the right type, the one in `supervised_keys` is chosen, then the one named `image` or `label`.

    Args:
      info: TFDS's description of the data set.
      where: the data set, for messages.

    Raises:
      UserError: no feature, or more than one, may be the images or the labels; the message lists all features.
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
    """Decodes a PNG or JPEG image and converts it to 1 or 3 channels."""
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
    """The kind of images; None for a feature without images, or with images that no model takes."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Image):
        # The pixels of a LabeledImage are class numbers.
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
    """The kind of labels; None for a feature without labels, or with fewer than two classes."""
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
