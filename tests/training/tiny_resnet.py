"""A tiny ResNet with batch norms, and a small run of it on the silhouettes of the LIDC shapes."""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from jaxboost.models.backbones import Backbone
from jaxboost.models.resnet import ResNet
from tests.training.small_runs import small_config

TINY = Backbone(
    encoder=ResNet,
    ndim=2,
    arguments=dict(block="basic", depths=(1, 1), convolution="2d", base_width=4),
    head_eps=None,
)


def tiny_config(root: pathlib.Path, changes: dict[str, Any] | None = None) -> ConfigDict:
    """Four steps with a checkpoint after the second; the backbone must be registered as `resnet_tiny`."""
    fields = {
        "data.name": "lidcsilhouettes",
        "model.backbone": "resnet_tiny",
        "boost.kind": "none",
        "optim.lr": 1e-2,
        # Six steps an epoch of 48 samples, one sample on each of eight devices.
        "train.batch_size": 8,
        "eval.batch_size": 24,
        "train.max_steps": 4,
        "train.checkpoint_every": 2,
    }
    return small_config(root, fields | (changes or {}))
