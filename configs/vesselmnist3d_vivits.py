"""VesselMNIST3D, ViViT-S + R-LLM, with LLaMA-7B's last layer.

    python convert_weights.py --source huggyllama/llama-7b --layers 31 --out blocks/llama-7b
    python train.py --config configs/vesselmnist3d_vivits.py

The paper (Table 3): ACC 90.31, AUC 84.56; without the booster 88.74, 83.88.
Strongest published: ResNet-50 3D, five runs: ACC 93.20, AUC 88.83.
Without the booster: --config.boost.kind=none.
"""

from ml_collections import ConfigDict

from configs import vesselmnist3d_vivitm


def get_config() -> ConfigDict:
    config = vesselmnist3d_vivitm.get_config()
    config.model.backbone = "vivit_s"
    return config
