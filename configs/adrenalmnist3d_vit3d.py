"""AdrenalMNIST3D, ViT3D + R-LLM, with LLaMA-7B's last layer.

    python convert_weights.py --source huggyllama/llama-7b --layers 31 --out blocks/llama-7b
    python train.py --config configs/adrenalmnist3d_vit3d.py

Cost: 42.6 M trained parameters, 28.6 GFLOP an image forward (22.7 without the booster); 1,188 images.
The paper (Table 3): ACC 82.89, AUC 83.86; without the booster 81.88, 81.98.
Strongest other method in the paper (Table 4, auto-sklearn): ACC 80.2. ResNet-50 3D, five runs by a third party:
ACC 80.92, AUC 84.43.
Without the booster: --config.boost.kind=none. `:reference`, `:resnet18_3d` and others: see jaxboost/config/paper.py.
"""

from ml_collections import ConfigDict

from jaxboost.config import paper


def get_config(argument: str = "") -> ConfigDict:
    """The config; `argument` is what follows the colon in --config FILE:ARGUMENT."""
    return paper.volumes("adrenalmnist3d", "vit3d", argument)
