"""What a config says of its encoder."""

from typing import TYPE_CHECKING

from jaxboost.config.types import Config

# What `backbone_of` reads.
BACKBONE_FIELDS = ("model.backbone", "model.slices", "model.slice_axes", "model.slice_size", "model.slice_pooling")

if TYPE_CHECKING:
    from jaxboost.models.backbones import Backbone
    from jaxboost.models.slices import Slices


def ndim_of(config: Config) -> int | None:
    """Number of spatial dimensions of the model's images; None if the backbone is unknown."""
    if "baseline" in config:
        return config.baseline.ndim
    backbone = backbone_of(config)
    return backbone.ndim if backbone else None


def backbone_of(config: Config) -> "Backbone | None":
    """The backbone's row in the table of the config's system; None if the backbone is unknown.

    Of a 2D backbone that sees slices, it is the row that takes volumes.
    """
    from jaxboost.models.backbones import BACKBONES
    from jaxboost.models.image_llm import ENCODERS
    from jaxboost.models.slices import sliced

    row = (ENCODERS if "pneumollm" in config else BACKBONES).get(config.model.backbone)
    return sliced(row, slices_of(config)) if row is not None and row.ndim == 2 else row


def slices_of(config: Config) -> "Slices | None":
    """The slices of a volume that the 2D encoder of a config sees; None: it sees images, or takes whole volumes."""
    from jaxboost.models.slices import Slices

    # A system without these fields has no slices; nor have runs of earlier versions.
    if not (count := config.model.get("slices", 0)):
        return None
    model = config.model
    return Slices(count=count, axes=tuple(model.slice_axes), size=model.slice_size, pooling=model.slice_pooling)


def encoder_side(config: Config) -> int:
    """The side of what the encoder sees, in pixels or voxels."""
    slices = slices_of(config)
    return (slices.size if slices else 0) or config.model.image_size
