"""The families of encoders without CLS token. ViTs have modules of their own, `vit` and `vit_timm`."""

from jaxboost.convert.tables.convnets import CONVNEXT, EFFICIENTNET, INFLATED_RESNET, RESNET
from jaxboost.convert.tables.swin import SWIN

# `Traits.names` of an encoder -> its family.
FAMILIES = {
    "resnet": RESNET,
    "convnext": CONVNEXT,
    "swin": SWIN,
    "efficientnet": EFFICIENTNET,
    "inflated_resnet": INFLATED_RESNET,
}
