"""The fields of the section `model` about slices: a 2D encoder on volumes."""

from collections.abc import Iterable

from jaxboost.config.fields import MAX_SIDE, Field, Range


def _slice_poolings() -> Iterable[str]:
    from jaxboost.models.slices import POOLINGS

    return POOLINGS


SLICE_FIELDS = {
    "slices": Field(
        0,
        "2D backbone on volumes: number of slices along each axis of model.slice_axes, evenly spaced; each is encoded"
        " as an image. 0: images, or a 3D backbone",
        range=Range(least=0, most=MAX_SIDE),
        before=0,
    ),
    "slice_axes": Field(
        (0, 1, 2),
        "axes of a volume along which slices are taken; of a NIfTI file (2,) gives the axial slices",
        range=Range(least=0, most=2, words="0, 1 or 2"),
        before=(0, 1, 2),
    ),
    "slice_size": Field(
        0,
        "side to which slices are resized for the encoder, bicubic; 0: model.image_size, the side of the volume",
        unit="pixels",
        range=Range(least=0, most=MAX_SIDE),
        before=0,
    ),
    "slice_pooling": Field(
        "mean",
        'what the head reads of the slices\' features: "mean", or "attention" (a trained gated attention); with a'
        " booster the mean of what it makes of them",
        choices=_slice_poolings,
        before="mean",
    ),
}
