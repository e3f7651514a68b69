"""BreastMNIST, ViT-S/16 from ImageNet weights + R-LLM at 224 pixels, with LLaMA-7B's last layer.

    python convert_weights.py --source facebook/deit-small-patch16-224 --layers all --out blocks/deit-s16
    python convert_weights.py --source huggyllama/llama-7b --layers 31 --out blocks/llama-7b
    python train.py --config configs/breastmnist_vits.py

Cost: 24.8 M trained parameters, 10.3 GFLOP an image forward (8.6 without the booster); 546 images.
The paper (Table 1): ACC 87.17, AUC 88.23; without the booster 87.17, 86.17.
Strongest published, chosen on validation (any size, three seeds): ACC 90.60, AUC 93.97; chosen on test
(MedViTV2-L, 224 pixels): ACC 91.0.
Without the booster: --config.boost.kind=none. `:reference`, `:resnet18`, `:resnet50`: see jaxboost/config/paper.py.
"""

from ml_collections import ConfigDict

from jaxboost.config import paper


def get_config(argument: str = "") -> ConfigDict:
    """The config; `argument` is what follows the colon in --config FILE:ARGUMENT."""
    return paper.vit_s("breastmnist", argument)
