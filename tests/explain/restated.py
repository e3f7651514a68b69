"""The restatement in torch (`tests.reference.rllm`) with a run's weights."""

from collections.abc import Sequence

import numpy as np
import torch

from jaxboost.inference.open_run import FinishedRun
from jaxboost.models.backbones import BACKBONES
from jaxboost.models.llama import FAMILIES
from tests.models import small
from tests.reference import rllm, weights


def classifier(run: FinishedRun) -> rllm.Classifier:
    """The run's classifier."""
    row, boost = BACKBONES[run.config.model.backbone], run.config.boost
    made = small.RESTATED[row.encoder](image_size=small.IMAGE_SIZE, channels=small.CHANNELS, **row.arguments)
    width, booster = row.arguments["width"], None
    if boost.kind != "none":
        shape = FAMILIES[boost.family]
        block = rllm.LlamaBlock(**shape.shape, depth=len(boost.layers), eps=shape.eps)
        booster = rllm.Boost(boost.kind, width=width, block_width=shape.width, block=block)
    model = rllm.Classifier(made, booster, width=width, classes=len(run.labels.classes), head_eps=row.head_eps)
    tree = weights.join(run.weights[0], run.weights[1])
    return weights.copy(weights.classifier_state(tree, ndim=row.ndim), model).eval()


def pixels(run: FinishedRun, images: np.ndarray) -> torch.Tensor:
    """Normalised images as the restatement reads them."""
    return rllm.pixels(torch.from_numpy(images), _three(run.config.model.mean), _three(run.config.model.std))


def _three(values: Sequence[float]) -> Sequence[float]:
    return values if len(values) == 3 else tuple(values) * 3
