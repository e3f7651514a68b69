"""VesselMNIST3D, ViViT-M + R-LLM, with LLaMA-7B's last layer.

    python convert_weights.py --source huggyllama/llama-7b --layers 31 --out blocks/llama-7b
    python train.py --config configs/vesselmnist3d_vivitm.py

Cost: 76.2 M trained parameters, 22.7 GFLOP an image forward (22.1 without the booster); 1,335 images.
The paper (Table 3): ACC 90.58, AUC 87.03; without the booster 89.27, 82.31.
Strongest other method in the paper (Table 4, ResNet-18 ACS): ACC 92.8. ResNet-50 3D, five runs by a third party:
ACC 93.20, AUC 88.83.
Without the booster: --config.boost.kind=none. `:reference`, `:resnet18_3d` and others: see jaxboost/config/paper.py.
"""

from ml_collections import ConfigDict

from jaxboost.config import paper


def get_config(argument: str = "") -> ConfigDict:
    """The config; `argument` is what follows the colon in --config FILE:ARGUMENT."""
    return paper.volumes("vesselmnist3d", "vivit_m", argument)
