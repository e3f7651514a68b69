"""The shared part of the configs of R-LLM's Tables 1 and 3, and the arguments of --config configs/X.py:ARGUMENT.

`reference`: the settings of the paper's released code, which picks the epoch on the test split; docs/papers.md lists
the remaining differences.
`resnet18`, `resnet50` (2D), `resnet18_3d`, `resnet18_acs`, `resnet50_3d`, `resnet50_acs` (3D): the baselines of Tables
2 and 4, trained like in MedMNIST's code, with the epoch picked on validation.
"""

from typing import Any

from ml_collections import ConfigDict

from jaxboost.config.table import get_config

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

REFERENCE = {
    "eval.protocol": "reference",
    "eval.metric": "acc",
}
# The released code trains the last quarter of DeiT's 400 epochs (Touvron et al. 2021). It sets a colour jitter, which
# its library ignores because RandAugment is on. It keeps a moving average of the weights but does not evaluate it.
REFERENCE_2D = {
    **REFERENCE,
    "optim.lr": 5e-4 * 128 / 512,
    "optim.final_lr": 1e-5,
    "optim.by_epoch": True,
    "optim.warmup_from": 1e-6,
    "optim.schedule_epochs": 400.0,
    "optim.schedule_from": 300.0,
    "model.drop_path": 0.1,
    "augment.resize": 256,
    "augment.crop_scale": (0.08, 1.0),
    "augment.flip": 0.5,
    "augment.rand_augment_ops": 2,
    "augment.rand_augment_increasing": True,
    "augment.repeats": 3,
    "augment.rgb": True,
    "boost.init": "normal",
    # Its repeated augmentation sampler rounds an epoch down to a multiple of 256 samples.
    "train.epoch_multiple": 256,
    "mix.mixup": 0.8,
    "mix.cutmix": 1.0,
    "mix.erase": 0.25,
    "mix.label_smoothing": 0.1,
    "train.ema": 0.99996,
    "eval.ema": False,
}
REFERENCE_3D = {
    **REFERENCE,
    "optim.name": "adam",
    "optim.schedule": "constant",
    "optim.weight_decay": 0.0,
    "train.batch_size": 32,
    "train.last_batch": "keep",
    "eval.ties": "later",
}
# MedMNIST v2 (Yang et al. 2023): Adam; the learning rate is divided by 10 after 50 and after 75 of 100 epochs.
_BASELINE = {
    "boost.kind": "none",
    "model.weights": "",
    "model.image_size": 28,
    "optim.name": "adam",
    "optim.lr": 1e-3,
    "optim.schedule": "steps",
    "optim.weight_decay": 0.0,
}
_BASELINE_2D = {**_BASELINE, "model.mean": (0.5,), "model.std": (0.5,)}
_BASELINE_3D = {**_BASELINE, "train.batch_size": 32}
ARGUMENTS_2D = {
    "reference": REFERENCE_2D,
    **{name: {**_BASELINE_2D, "model.backbone": name} for name in ("resnet18", "resnet50")},
}
ARGUMENTS_3D = {
    "reference": REFERENCE_3D,
    **{
        name: {**_BASELINE_3D, "model.backbone": name}
        for name in ("resnet18_3d", "resnet18_acs", "resnet50_3d", "resnet50_acs")
    },
}


def vit_s(flag: str, argument: str) -> ConfigDict:
    """Config of a 2D data set at 224 pixels with ViT-S/16 and ImageNet weights."""
    config: Any = _config(flag)
    config.model.backbone = "vit_s"
    config.model.weights = "blocks/deit-s16"
    config.model.weights_source = "facebook/deit-small-patch16-224"
    config.model.image_size = 224
    config.model.mean = IMAGENET_MEAN
    config.model.std = IMAGENET_STD
    config.optim.lr = 5e-4
    return _apply(config, argument, ARGUMENTS_2D)


def volumes(flag: str, backbone: str, argument: str) -> ConfigDict:
    """Config of a 3D data set with one of the paper's three encoders."""
    config: Any = _config(flag)
    config.model.backbone = backbone
    return _apply(config, argument, ARGUMENTS_3D)


def _config(flag: str) -> ConfigDict:
    config: Any = get_config()
    config.data.name = flag
    config.boost.block = "blocks/llama-7b"
    config.boost.source = "huggyllama/llama-7b"
    return config


def _apply(config: ConfigDict, argument: str, known: dict[str, dict[str, object]]) -> ConfigDict:
    if argument and argument not in known:
        raise ValueError(f"unknown argument {argument!r}: give one of {', '.join(known)}")
    config.update_from_flattened_dict(known.get(argument, {}))
    return config
