"""LLaMA layers in the layouts of Hugging Face, Meta and GGUF: their configurations -> `models.llama.LlamaConfig`."""

from jaxboost.convert.formats import adapters
from jaxboost.convert.formats.gguf_file import GgufTensors
from jaxboost.convert.formats.huggingface import HuggingFaceTensors
from jaxboost.convert.formats.meta import MetaTensors
from jaxboost.convert.formats.settings import MAX_LAYERS, MAX_NUMBER, MIN_NUMBER, Settings
from jaxboost.convert.tables import llama, rope, vit_names
from jaxboost.convert.tables.llama import LlamaSource
from jaxboost.errors import UserError
from jaxboost.models.llama import LlamaConfig

MODEL_TYPES = ("llama", "mistral")
_ROPE_FACTORS = "rope_freqs.weight"


def of_hugging_face(tensors: HuggingFaceTensors) -> LlamaSource:
    """The layers in a folder of Hugging Face's layout.

    Raises:
      UserError: see `parse_config`; or an adapter is not merged; or a file is missing or broken.
    """
    config, n_layers = parse_config(tensors.settings)
    adapters.check(tensors.names, tensors.source)
    is_headless = llama.HUGGING_FACE_HEADLESS.final_norm in tensors.names
    layout = llama.HUGGING_FACE_HEADLESS if is_headless else llama.HUGGING_FACE
    return LlamaSource(tensors=tensors, layout=layout, config=config, n_layers=n_layers)


def of_meta(tensors: MetaTensors) -> LlamaSource:
    """The layers in a folder of Meta's.

    Raises:
      UserError: params.json is incomplete, or the tensors are not those of LLaMA.
    """
    settings = tensors.settings
    n_layers = settings.integer("n_layers", limit=MAX_LAYERS)
    config = _checked(_meta_config(tensors), settings.where)
    return LlamaSource(tensors=tensors, layout=llama.META, config=config, n_layers=n_layers)


def of_gguf(tensors: GgufTensors) -> LlamaSource:
    """The layers in a GGUF file.

    Raises:
      UserError: the model is not of the LLaMA family, or its metadata is incomplete.
    """
    settings = tensors.settings
    if tensors.architecture != "llama":
        raise UserError(
            f"{settings.where} is a {tensors.architecture!r:.60} checkpoint, not of the LLaMA family: choose another "
            "file"
        )
    n_layers = settings.integer("llama.block_count", limit=MAX_LAYERS)
    config = _checked(_gguf_config(tensors), settings.where)
    return LlamaSource(tensors=tensors, layout=llama.GGUF, config=config, n_layers=n_layers)


def parse_config(settings: Settings) -> tuple[LlamaConfig, int]:
    """Shape and number of the layers, from config.json with the defaults of Hugging Face's LlamaConfig.

    Raises:
      UserError: the model is not of the LLaMA family, is quantized, or has another activation.
    """
    model_type = settings.get("model_type")
    if model_type not in MODEL_TYPES:
        raise UserError(
            f"{settings.where}: this is a {model_type!r} checkpoint, not of the LLaMA family: "
            f"choose one of the type {' or '.join(MODEL_TYPES)}, or as an encoder one of the type "
            + ", ".join(vit_names.MODEL_TYPES)
        )
    activation = settings.get("hidden_act") or "silu"
    if activation != "silu":
        raise UserError(f"{settings.where}: the activation is {activation!r}, LLaMA layers have 'silu'")
    if settings.get("quantization_config"):
        method = settings.section("quantization_config").get("quant_method")
        raise UserError(f"{settings.where}: the weights are quantized ({method}): convert from the original model")

    # Since transformers 5 one section holds the base and the scaling; before, there were two.
    scaling = (
        settings.section("rope_parameters") if settings.get("rope_parameters") else settings.section("rope_scaling")
    )
    rope_base = scaling.number("rope_theta", settings.number("rope_theta", 10000.0))
    rotated = [section.number("partial_rotary_factor", 1.0) for section in (settings, scaling)]
    width, heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    # The two families differ only in this default. A null means one key/value head per head in both.
    absent_kv_heads = 8 if model_type == "mistral" and "num_key_value_heads" not in settings.values else heads
    head_dim = settings.integer("head_dim", max(1, width // heads))
    if min(rotated) != 1 or max(rotated) != 1:
        rotation = rope.partial(f"a fraction of {min(rotated)}")
    else:
        rotation = rope.fields(scaling, head_dim=head_dim, rope_base=rope_base)
    config = LlamaConfig(
        width=width,
        heads=heads,
        kv_heads=settings.integer("num_key_value_heads", absent_kv_heads),
        head_dim=head_dim,
        mlp_width=settings.integer("intermediate_size"),
        eps=settings.number("rms_norm_eps", 1e-6),
        rope_base=rope_base,
        **rotation,
    )
    return _checked(config, settings.where), settings.integer("num_hidden_layers", limit=MAX_LAYERS)


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


def _gguf_config(tensors: GgufTensors) -> LlamaConfig:
    settings = tensors.settings
    width, heads = settings.integer("llama.embedding_length"), settings.integer("llama.attention.head_count")
    head_dim = settings.integer("llama.attention.key_length", max(1, width // heads))
    key = "llama.attention.value_length"
    if settings.integer(key, head_dim) != head_dim:
        raise UserError(f"{settings.where}: {key!r} is not the head width {head_dim}: not a LLaMA layer")
    rope_base = settings.number("llama.rope.freq_base", 10000.0)
    rotated = settings.integer("llama.rope.dimension_count", head_dim)
    if rotated != head_dim:
        rotation = rope.partial(f"{rotated} of {head_dim}")
    else:
        rotation = rope.fields(_gguf_scaling(settings), head_dim=head_dim, rope_base=rope_base)
        if _ROPE_FACTORS in tensors.names and rotation["rope_unsupported"] is None:
            # llama.cpp divides by both.
            linear = (rotation["rope_factors"] or (1.0,))[0]
            factors = tuple(linear * float(factor) for factor in tensors.read(_ROPE_FACTORS).reshape(-1))
            rotation = {"rope_factors": factors, "rope_unsupported": None}
    return LlamaConfig(
        width=width,
        heads=heads,
        kv_heads=settings.integer("llama.attention.head_count_kv", heads),
        head_dim=head_dim,
        mlp_width=settings.integer("llama.feed_forward_length"),
        eps=settings.number("llama.attention.layer_norm_rms_epsilon"),
        rope_base=rope_base,
        **rotation,
    )


def _gguf_scaling(settings: Settings) -> Settings:
    """The scaling of a GGUF file under Hugging Face's names, as llama.cpp reads it.

    Without a type, a factor other than 0 and 1 is linear. Files of 2023 have another key for the factor.
    """
    kind, factor = settings.get("llama.rope.scaling.type"), settings.get("llama.rope.scaling.factor")
    if factor is None:
        factor = settings.get("llama.rope.scale_linear")
    if kind is None and factor not in (None, 0, 1):
        kind = "linear"
    return Settings({"rope_type": None if kind == "none" else kind, "factor": factor}, settings.where)


def _checked(config: LlamaConfig, where: str) -> LlamaConfig:
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
