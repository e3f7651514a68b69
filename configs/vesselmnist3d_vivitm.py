"""VesselMNIST3D, ViViT-M + R-LLM (the paper's best AUC on this set), with LLaMA-7B's last layer.

    python convert_weights.py --source huggyllama/llama-7b --layers 31 --out blocks/llama-7b
    python train.py --config configs/vesselmnist3d_vivitm.py

The paper (Table 3): ACC 90.58, AUC 87.03; without the booster 89.27, 82.31.
Strongest published: ResNet-50 3D, five runs: ACC 93.20, AUC 88.83.
Without the booster: --config.boost.kind=none.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.name = "vesselmnist3d"
    config.model.backbone = "vivit_m"
    config.boost.block = "blocks/llama-7b"
    config.boost.source = "huggyllama/llama-7b"
    return config
