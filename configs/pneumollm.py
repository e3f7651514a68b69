r"""PneumoLLM on a folder of chest radiographs: CLIP ViT-L/14 and the whole of LLaMA-7B, five folds by patient.

    python convert_weights.py --source openai/clip-vit-large-patch14 --layers all --dtype bfloat16 \
        --out blocks/clip-vit-l14
    python convert_weights.py --source huggyllama/llama-7b --layers all --dtype bfloat16 --out blocks/llama-7b-all
    python train.py --config configs/pneumollm.py --config.data.root=FOLDER

FOLDER holds images (DICOM, PNG, JPEG, ...) and labels.csv (file, label, patient_id): see docs/pneumollm.md.
`describe` estimates 16 GB for a step.
The paper (630 private radiographs, Table 2): sensitivity 80.54, specificity 67.66, ACC 75.87, AUC 78.98, AVG 75.76.
`configs/pneumollm.py:ROW` is a row of its tables (jaxboost/config/pneumollm.py lists them), `:reference` has the
settings of its released code, and `:ROW+reference` combines both. `:resnet50`, `:vit`, `:swin`, `:convnext` and
`:dinov2` are pretrained encoders alone, of which all weights are trained (Table 2; weights of timm). `:clip_zero_shot`,
`:clip_probe`, `:coop_clip` and `:cocoop_clip` are CLIP without LLaMA (Table 3); all but the probe need CLIP's text
encoder with prompts (see the docs). `:blip2` is BLIP-2 (Table 3), whose four parts are converted from one checkpoint
(see the docs).
"""

from ml_collections import ConfigDict

from jaxboost.config import pneumollm


def get_config(argument: str = "") -> ConfigDict:
    """The config; `argument` is what follows the colon in --config FILE:ARGUMENT."""
    return pneumollm.apply(pneumollm.radiographs(), argument)
