"""BreastMNIST, ViT-S/16 + R-LLM at 224 pixels, with LLaMA-7B's last layer.

    python convert_weights.py --source huggyllama/llama-7b --layers 31 --out blocks/llama-7b
    python train.py --config configs/breastmnist_vits.py

The paper (Table 1): ACC 87.17, AUC 88.23; without the booster 87.17, 86.17; both from ImageNet weights, this config
from random ones. Strongest published, chosen on validation (any size, three seeds): ACC 90.60, AUC 93.97.
Without the booster: --config.boost.kind=none.
"""

from ml_collections import ConfigDict

from configs import default

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.name = "breastmnist"
    config.model.backbone = "vit_s"
    config.model.image_size = 224
    config.model.mean = IMAGENET_MEAN
    config.model.std = IMAGENET_STD
    config.boost.block = "blocks/llama-7b"
    config.boost.source = "huggyllama/llama-7b"
    config.optim.lr = 5e-4
    return config
