"""LLM layers in the layouts of Hugging Face and Meta: their configurations -> `models.families.LlamaConfig`."""

import difflib
import pathlib
import re

from jaxboost.convert.formats import adapters
from jaxboost.convert.formats.huggingface import HuggingFaceTensors
from jaxboost.convert.formats.meta import MetaTensors
from jaxboost.convert.formats.settings import MAX_INTEGER, MAX_LAYERS, MAX_NUMBER, MIN_NUMBER, Settings
from jaxboost.convert.tables import llama, llm_families, rope, vit_names
from jaxboost.convert.tables.llama import LlamaSource
from jaxboost.convert.tables.llama_names import Layout
from jaxboost.convert.tables.llm_families import Family
from jaxboost.errors import UserError
from jaxboost.models.families import LAYER_NORM, LlamaConfig

# Endings of the names of quantized repositories; without them it is the name of the original, as a rule.
_QUANTIZED = re.compile(
    r"[-_.](awq|gptq|bnb|unsloth-bnb|int[48]|[2-8]bit|fp8|nvfp4|mxfp4|hqq|aqlm|exl[23]|w[48]a\d+|quantized).*$",
    re.IGNORECASE,
)
# model_type that is not read -> what is nearest.
_BOTH_TOWERS = "a CLIP with both towers, for its vision encoder with --layers all, for its texts with --prompts"
_INSTEAD = {
    "convnext": "the same model in timm's names, such as timm/convnext_tiny.fb_in22k_ft_in1k",
    "convnextv2": "the same model in timm's names, such as timm/convnextv2_tiny.fcmae_ft_in22k_in1k",
    "resnet": "the same model in timm's names, such as timm/resnet50.a1_in1k",
    "swin": "the same model in timm's names, such as timm/swin_tiny_patch4_window7_224.ms_in1k",
    "efficientnet": "EfficientNet-Lite0, such as timm/tf_efficientnet_lite0.in1k",
    "clip_text_model": _BOTH_TOWERS,
    "clip_text_model_with_projection": _BOTH_TOWERS,
    "siglip_text_model": _BOTH_TOWERS,
    "mixtral": "mistral, without a mixture of experts",
    "qwen2_moe": "qwen2, without a mixture of experts",
    "qwen3_moe": "qwen3, without a mixture of experts",
}
# A repository in the hub's cache: models--OWNER--NAME/snapshots/REVISION.
_CACHED = re.compile(r"models--(.+?)--(.+)")


def of_hugging_face(tensors: HuggingFaceTensors) -> LlamaSource:
    """The layers in a folder of Hugging Face's layout.

    Raises:
      UserError: see `parse_config`; or an adapter is not merged; or a file is missing or broken.
    """
    config, n_layers = parse_config(tensors.settings)
    adapters.check(tensors.names, tensors.source)
    family, settings = _known(tensors.settings)
    layouts = [with_biases(family.layout, config).below(base) for base in family.bases]
    sliding = family.sliding_layers(settings, n_layers)
    # The first layer shows where the names begin.
    found = (each for each in layouts if any(name.startswith(each.prefix.format(layer=0)) for name in tensors.names))
    return LlamaSource(
        tensors=tensors,
        layout=next(found, layouts[0]),
        config=config,
        n_layers=n_layers,
        sliding=sliding if config.window or family.rope_bases else frozenset(),
        sliding_rotation=(
            rope.of_config(settings, head_dim=config.head_dim, **family.rotation(rope.SLIDING))
            if family.rope_bases
            else {}
        ),
    )


def with_biases(layout: Layout, config: LlamaConfig) -> Layout:
    """The layout with the biases that the layers have."""
    return layout.with_biases((*config.biased, *config.stream_norms * (config.norm == LAYER_NORM)))


def of_meta(tensors: MetaTensors) -> LlamaSource:
    """The layers in a folder of Meta's.

    Raises:
      UserError: params.json is incomplete, or the tensors are not those of LLaMA.
    """
    settings = tensors.settings
    n_layers = settings.integer("n_layers", limit=MAX_LAYERS)
    config = checked(_meta_config(tensors), settings.where)
    return LlamaSource(tensors=tensors, layout=llama.META, config=config, n_layers=n_layers)


def parse_config(settings: Settings) -> tuple[LlamaConfig, int]:
    """Shape and number of the layers, from config.json with the defaults of Hugging Face's configuration classes.

    Of layers that differ it describes those without a sliding window.

    Raises:
      UserError: the family of the model is not known, it is quantized, or it has another activation.
    """
    _check_plain(settings)
    family, settings = _known(settings)

    def integer(key: str, default: int | None = None, limit: int = MAX_INTEGER) -> int:
        return settings.integer(family.key(key), family.default(key, default), limit=limit)

    activation = family.activation(settings)
    width, heads = integer("hidden_size"), integer("num_attention_heads")
    # A missing number has the family's default, a null means one key/value head per head.
    is_null = "num_key_value_heads" in settings.values and settings.get("num_key_value_heads") is None
    head_dim = integer("head_dim", max(1, width // heads))
    config = LlamaConfig(
        width=width,
        heads=heads,
        kv_heads=heads if is_null else integer("num_key_value_heads", heads),
        head_dim=head_dim,
        mlp_width=integer("intermediate_size", family.mlp_ratio and family.mlp_ratio * width),
        eps=settings.number(family.key("rms_norm_eps"), family.default("rms_norm_eps", 1e-6)),
        activation=activation,
        window=family.window(settings),
        **family.architecture(settings),
        **rope.of_config(settings, head_dim=head_dim, **family.rotation(rope.FULL)),
    )
    return checked(config, settings.where), integer("num_hidden_layers", limit=MAX_LAYERS)


def _known(settings: Settings) -> tuple[Family, Settings]:
    """See `llm_families.family_of`. Raises UserError if the family is not known."""
    found = llm_families.family_of(settings)
    if found is None:
        raise UserError(
            f"{settings.where}: this is a {settings.get('model_type')!r:.60} checkpoint, not of a known family: "
            f"choose an LLM of the type {', '.join(llm_families.MODEL_TYPES)}, or as an encoder one of the type "
            + ", ".join(vit_names.MODEL_TYPES)
            + _nearest(settings.get("model_type"))
        )
    return found


def _nearest(model_type: object) -> str:
    """What is nearest to a type of checkpoint that is not read, for the end of a message; "" if nothing is."""
    if not isinstance(model_type, str):
        return ""
    if model_type in _INSTEAD:
        return f"; the nearest is {_INSTEAD[model_type]}"
    known = (*llm_families.MODEL_TYPES, *vit_names.MODEL_TYPES)
    near = difflib.get_close_matches(model_type, known, n=1, cutoff=0.7)
    return f"; the nearest is {near[0]}" if near else ""


def _check_plain(settings: Settings) -> None:
    """Raises UserError if the weights are quantized."""
    if settings.get("quantization_config"):
        section = settings.section("quantization_config")
        # Old files of bitsandbytes name no method.
        in_bits = next((f"bitsandbytes, {n} bits" for n in (4, 8) if section.get(f"load_in_{n}bit")), "no method named")
        original = _original(settings)
        raise UserError(
            f"{settings.where}: the weights are quantized ({section.get('quant_method') or in_bits!s:.40}): convert the"
            " original repository, whose weights are float16, bfloat16 or float32, "
            + (f"perhaps {original}" if original else "or a GGUF file of the model")
        )


def _original(settings: Settings) -> str | None:
    """What the repository of the weights before they were quantized is called, by the names that are known here."""
    path = pathlib.PurePosixPath(pathlib.PurePath(settings.where).parent.as_posix())
    cached = next((match for part in path.parts if (match := _CACHED.fullmatch(part))), None)
    own = pathlib.PurePosixPath(*cached.groups()) if cached else path
    plain = _QUANTIZED.sub("", own.name)
    if plain not in ("", own.name):
        return _repository(own.with_name(plain))
    named = settings.get("_name_or_path")
    if not isinstance(named, str) or not 0 < len(named) < 200 or not named.isprintable():
        return None
    other = pathlib.PurePosixPath(named)
    is_other = len(other.parts) == 2 and not other.is_absolute() and other.name != own.name
    return _repository(other.with_name(_QUANTIZED.sub("", other.name) or other.name)) if is_other else None


def _repository(path: pathlib.PurePosixPath) -> str:
    """OWNER/NAME, or NAME alone of a folder that is not called as a repository."""
    return str(path) if len(path.parts) == 2 and not path.is_absolute() else path.name


def _meta_config(tensors: MetaTensors) -> LlamaConfig:
    settings = tensors.settings
    width, heads = settings.integer("dim"), settings.integer("n_heads")
    head_dim = max(1, width // heads)
    gate = llama.META.names(0)["gate"]
    if gate not in tensors.names:
        raise UserError(f"{tensors.source} has no tensor {gate!r}: it is not a LLaMA checkpoint, or is incomplete")
    rope_base = settings.number("rope_theta", 10000.0)
    factors = None
    if settings.get("use_scaled_rope"):
        # params.json does not say whether it is LLaMA 3.1's factor of 8 or 3.2's of 32; only the text models of
        # 3.2 are narrower than 4096.
        factors = rope.llama3_factors(
            head_dim=head_dim,
            rope_base=rope_base,
            factor=settings.number("rope_scaling_factor", 8.0 if width >= 4096 else 32.0),
            low_freq_factor=1.0,
            high_freq_factor=settings.number("rope_high_freq_factor", 4.0),
            original_context=8192.0,
        )
    return LlamaConfig(
        width=width,
        heads=heads,
        kv_heads=settings.integer("n_kv_heads", heads),
        head_dim=head_dim,
        mlp_width=tensors.info(gate).shape[0],
        eps=settings.number("norm_eps"),
        rope_base=rope_base,
        rope_factors=factors,
    )


def checked(config: LlamaConfig, where: str) -> LlamaConfig:
    """The same config. Raises UserError if its numbers do not fit together."""
    heads, kv_heads, head_dim, factors = config.heads, config.kv_heads, config.head_dim, config.rope_factors
    if heads % kv_heads:
        raise UserError(f"{where}: {heads} heads are not a multiple of {kv_heads} key/value heads")
    if head_dim % 2:
        raise UserError(f"{where}: the head width {head_dim} is odd, the rotary embedding needs pairs")
    if factors is not None and len(factors) != head_dim // 2:
        raise UserError(f"{where}: {len(factors)} rotary factors for a head width of {head_dim}")
    if factors is not None and not all(MIN_NUMBER <= factor <= MAX_NUMBER for factor in factors):
        raise UserError(f"{where}: its rotary factors are not all positive numbers: download it again")
    return config
