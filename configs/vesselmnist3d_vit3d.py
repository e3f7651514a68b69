"""VesselMNIST3D, ViT3D + R-LLM, with LLaMA-7B's last layer.

    python convert_weights.py --source huggyllama/llama-7b --layers 31 --out blocks/llama-7b
    python train.py --config configs/vesselmnist3d_vit3d.py

The paper (Table 3): ACC 91.10, AUC 83.71; without the booster 90.05, 82.55.
Strongest published: ResNet-50 3D, five runs: ACC 93.20, AUC 88.83.
Without the booster: --config.boost.kind=none.
"""

from ml_collections import ConfigDict

from configs import vesselmnist3d_vivitm


def get_config() -> ConfigDict:
    config = vesselmnist3d_vivitm.get_config()
    config.model.backbone = "vit3d"
    return config
