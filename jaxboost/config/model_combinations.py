"""Checks of the fields about the model that contradict each other; see `combinations`."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from jaxboost.config.model_fields import ZERO_SHOT
from jaxboost.config.types import Config
from jaxboost.errors import UserError

if TYPE_CHECKING:
    from jaxboost.models.backbones import Backbone

Check = Callable[[Config], Iterator[str]]
# (fields or sections that a check reads, the check)
Table = tuple[tuple[tuple[str, ...], Check], ...]


def checks(config: Config) -> Table:
    """The checks for the config's system."""
    if "baseline" in config:
        return _BASELINE
    if "clip" in config:
        return _BOTH + _CLIP
    if "blip2" in config:
        return _BOTH + _BLIP2
    return _BOTH + (_PNEUMOLLM if "pneumollm" in config else _RLLM)


def ndim_of(config: Config) -> int | None:
    """Number of spatial dimensions of the model's images; None if the backbone is unknown."""
    if "baseline" in config:
        return config.baseline.ndim
    backbone = backbone_of(config)
    return backbone.ndim if backbone else None


def backbone_of(config: Config) -> "Backbone | None":
    """The backbone's row in the table of the config's system; None if the backbone is unknown."""
    from jaxboost.models.backbones import BACKBONES
    from jaxboost.models.image_llm import ENCODERS

    return (ENCODERS if "pneumollm" in config else BACKBONES).get(config.model.backbone)


def caught(check: Callable[[], object]) -> Iterator[str]:
    """Turns the UserError of a check in another package into a problem."""
    try:
        check()
    except UserError as error:
        yield str(error)


def _pixels(config: Config) -> Iterator[str]:
    for field in ("mean", "std"):
        values = config.model[field]
        if len(values) not in (1, 3) or not all(isinstance(x, int | float) for x in values):
            yield f"config field model.{field}: give 1 or 3 values, not {values}"
    if not all(config.model.std):
        yield f"config field model.std: {config.model.std} should not be 0"


def _patch(config: Config) -> Iterator[str]:
    backbone, size = backbone_of(config), config.model.image_size
    patch = backbone.arguments.get("patch") if backbone else None
    if patch and (size <= 0 or size % patch):
        yield (
            f"config field model.image_size: {size} is not a multiple of the patch size {patch} of backbone"
            f" {config.model.backbone}"
        )
    elif size <= 0:
        yield f"config field model.image_size: {size} should be above 0"
    elif backbone and (problem := backbone.traits.size_problem(size, backbone.arguments)):
        yield f"config field model.image_size: backbone {config.model.backbone}: {problem}"


def _layer_decay(config: Config) -> Iterator[str]:
    backbone = backbone_of(config)
    # Only R-LLM trains an encoder with layers.
    trained = backbone is not None and not config.model.get("frozen", True) and backbone.traits.stacks
    if backbone is not None and config.optim.layer_decay != 1 and not trained:
        yield "config field optim.layer_decay: it is for encoders with trained layers, set it to 1"


def _pooled(config: Config) -> Iterator[str]:
    """The fields that a backbone's encoder does not support."""
    name, backbone = config.model.backbone, backbone_of(config)
    if backbone is None:
        return
    if config.boost.kind != "none" and not backbone.traits.gives_tokens:
        yield f"backbone {name} gives one pooled feature, no tokens: set boost.kind=none"
    if config.model.drop_path and not backbone.traits.has_stochastic_depth:
        yield f"config field model.drop_path: backbone {name} has no layers to drop, set it to 0"
    if config.model.frozen and backbone.traits.has_statistics:
        yield f"config field model.frozen: the batch norms of {name} would still change, set it to False"


def _encoder_weights(config: Config) -> Iterator[str]:
    from jaxboost.models.backbones import BACKBONES

    model, backbone = config.model, backbone_of(config)
    # With batch norms it cannot be frozen at all.
    can_freeze = backbone is None or not backbone.traits.has_statistics
    if model.frozen and can_freeze and not model.weights:
        yield (
            "config field model.frozen: an untrained encoder would stay untrained: set model.weights to the folder that"
            ' `jaxboost convert` made, or to "random": the control'
        )
    if model.frozen and can_freeze and model.drop_path:
        yield "config field model.drop_path: it would only disturb a frozen encoder, set it to 0"
    if model.weights not in ("", "random") and backbone is not None and not backbone.loads_weights:
        fitting = ", ".join(name for name, row in BACKBONES.items() if row.loads_weights)
        yield (
            f"config field model.weights: backbone {model.backbone} cannot load weights, only {fitting} can:"
            " leave it empty"
        )


def path_problem(config: Config, architecture: Any = None) -> str | None:
    """Why `boost.path` cannot compute the booster of a config; None if it can.

    Args:
      config: with a section `boost`.
      architecture: of the booster's layers, see `boost.check_path`.
    """
    from jaxboost.models.boost import FIRST, MEAN, check_path

    boost, backbone = config.boost, backbone_of(config)
    pool = FIRST if backbone is None or backbone.traits.cls_first else MEAN
    lora = boost.lora_rank > 0
    try:
        check_path(boost.path, boost.kind, rope=boost.rope, lora=lora, pool=pool, architecture=architecture)
    except ValueError as error:
        return f"config field boost.path: {error}; set it to auto"
    return None


def _path(config: Config) -> Iterator[str]:
    if config.boost.kind != "none" and (problem := path_problem(config)):
        yield problem


def _llm(section: str) -> Check:
    def check(config: Config) -> Iterator[str]:
        from jaxboost.models.boost import has_block

        fields = config[section]
        layers = fields.layers
        if not all(isinstance(layer, int) and layer >= 0 for layer in layers):
            yield (
                f"config field {section}.layers: {layers} should be layer numbers from 0, such as (31,) or (15, 31), or"
                " () for all layers of the block"
            )
        used = fields.get("used", True) if section == "llama" else has_block(fields.kind)
        if used and fields.block == "random" and fields.final_norm == "loaded":
            yield f"config field {section}.final_norm: a random block has no norm to load, set it to ones"

    return check


def _controls(config: Config) -> Iterator[str]:
    """The fields about other weights of the block, and about LoRA."""
    from jaxboost.models.boost import has_block

    boost = config.boost
    used = has_block(boost.kind)
    for field, empty in (("control", '""'), ("lora_rank", "0")):
        if boost[field] and not used:
            yield f"config field boost.{field}: boost.kind={boost.kind} has no LLM layers, set it to {empty}"
    if boost.control and used and boost.block in ("", "random"):
        named = f"is {boost.block}" if boost.block else "is empty"
        yield (
            f"config field boost.control: {boost.control} changes the weights of a converted block, but boost.block"
            f' {named}: name its folder, or set boost.control to ""'
        )
    if boost.control_seed and not boost.control:
        yield "config field boost.control_seed: it has no effect without boost.control, set it to 0"
    if boost.lora_rank and boost.trainable:
        yield (
            "config field boost.lora_rank: boost.trainable=True trains the whole matrices, set boost.lora_rank to 0 or"
            " boost.trainable to False"
        )
    if boost.lora_alpha and not boost.lora_rank:
        yield "config field boost.lora_alpha: it has no effect without boost.lora_rank, set it to 0"


def _every(config: Config) -> Iterator[str]:
    every, backbone = config.pneumollm.every, backbone_of(config)
    # conv14 has no layers, and reads no interval.
    depth = backbone.arguments.get("depth") if backbone else None
    if depth and every > depth:
        yield f"config field pneumollm.every: {every} is more than the {depth} layers of the encoder"


def _question(config: Config) -> Iterator[str]:
    """What LaVIN needs, and PneumoLLM does not have."""
    fields, llama, backbone = config.pneumollm, config.llama, backbone_of(config)
    if not fields.question:
        if fields.adapters == "mixture":
            yield (
                "config field pneumollm.adapters: the modality token that routes a mixture is LaVIN's: set"
                " pneumollm.question too, or pneumollm.adapters=rep"
            )
        return
    for field, value, wanted, why in (
        ("llama.used", llama.used, True, "the LLM answers the question"),
        ("llama.causal", llama.causal, True, "the next token is scored under the LLM's causal mask"),
        ("pneumollm.tokens", fields.tokens, "none", "LaVIN has no diagnosis tokens"),
        ("pneumollm.emitter", fields.emitter, False, "LaVIN has no diagnosis tokens to hide"),
        ("train.loss", config.get("train", {}).get("loss", "auto"), "auto", "the zero of a score means nothing"),
    ):
        if value != wanted:
            yield f"config field {field}: {why} (pneumollm.question is set): set it to {wanted}"
    if llama.block != "random" and llama.final_norm != "loaded":
        yield "config field llama.final_norm: scores are read after the LLM's own norm: set it to loaded"
    if backbone is not None and not backbone.traits.has_first_tokens:
        yield (
            f"config field model.backbone: {config.model.backbone} has no CLS tokens for pneumollm.question: choose a"
            " pretrained ViT"
        )


def _baseline(config: Config) -> Iterator[str]:
    """The features that a baseline's classifier needs, and the encoder that gives them."""
    from jaxboost.models.backbones import BACKBONES

    fields, backbone = config.baseline, backbone_of(config)
    if (fields.features == "none") != (fields.classifier == "prevalence"):
        if fields.features == "none":
            needs = f"{fields.classifier} needs features"
            yield f'config field baseline.features: {needs}, set it to "trivial" or "encoder"'
        else:
            yield 'config field baseline.features: prevalence reads none, set it to "none"'
    yield from _zero_shot(config)
    if fields.features != "encoder":
        return
    if backbone is None or not (backbone.loads_weights and backbone.ndim == 2):
        fitting = ", ".join(name for name, row in BACKBONES.items() if row.loads_weights and row.ndim == 2)
        yield (
            f"config field model.backbone: {config.model.backbone!r} gives no features of a pretrained encoder: set it"
            f" to one of {fitting}"
        )
        return
    if not config.model.weights:
        yield (
            "config field model.weights is empty: set it to the folder that `jaxboost convert` made, or to"
            ' "random": the control'
        )
    yield from _patch(config)


def _clip(config: Config) -> Iterator[str]:
    """What CLIP with learned prompts needs."""
    from jaxboost.models.text import TEXT_ENCODERS

    if backbone_of(config) is not None and config.model.backbone not in TEXT_ENCODERS:
        yield (
            f"config field model.backbone: {config.model.backbone} is no CLIP: set it to one of"
            f" {', '.join(TEXT_ENCODERS)}"
        )
    for field, value, how in (
        ("model.weights", config.model.weights, '`jaxboost convert` made, or to "random": the control'),
        ("clip.text", config.clip.text, "`jaxboost convert --source SOURCE --prompts FILE` made"),
    ):
        if not value:
            yield f"config field {field} is empty: set it to the folder that {how}"
    if config.train.loss != "auto":
        yield (
            f"config field train.loss: {config.train.loss} compares logits with 0, and scaled cosines have no such"
            " meaning: set it to auto"
        )


def _blip2(config: Config) -> Iterator[str]:
    """What BLIP-2 needs."""
    from jaxboost.models.backbones import BACKBONES

    backbone = backbone_of(config)
    fitting = [name for name, row in BACKBONES.items() if row.loads_weights and row.head_eps is not None]
    if backbone is not None and config.model.backbone not in fitting:
        yield (
            f"config field model.backbone: {config.model.backbone} has no tokens with a final norm for a Q-Former: set"
            " it to blip2_vit_g14, or to the encoder that the Q-Former was trained with"
        )
    for field, value, how in (
        ("model.weights", config.model.weights, '`jaxboost convert --part encoder` made, or to "random": the control'),
        ("blip2.qformer", config.blip2.qformer, '`jaxboost convert --part qformer` made, or to "random"'),
        ("blip2.question", config.blip2.question, "`jaxboost convert --question TEXT --answers ANSWERS` made"),
    ):
        if not value:
            yield f"config field {field} is empty: set it to the folder that {how}"
    if config.train.loss != "auto":
        yield (
            f"config field train.loss: {config.train.loss} compares logits with 0, and an LLM's scores have no such"
            " meaning: set it to auto"
        )


def _zero_shot(config: Config) -> Iterator[str]:
    fields = config.baseline
    if fields.classifier != ZERO_SHOT:
        if fields.text:
            yield f'config field baseline.text: {fields.classifier} reads no prompts, set it to ""'
        return
    if fields.features == "trivial":
        yield 'config field baseline.features: zero_shot compares prompts with embeddings, set it to "encoder"'
    if not fields.text:
        yield (
            "config field baseline.text is empty: set it to the folder that `jaxboost convert --source SOURCE --prompts"
            " FILE` made"
        )


_BOTH: Table = (
    (("model.mean", "model.std"), _pixels),
    (("model.backbone", "model.image_size"), _patch),
    (("model", "optim.layer_decay"), _layer_decay),
)
_BASELINE: Table = (
    (("model.mean", "model.std"), _pixels),
    (("model", "baseline"), _baseline),
)
_RLLM: Table = (
    (("model", "boost.kind"), _pooled),
    (("model",), _encoder_weights),
    (("model.backbone", "boost.path", "boost.kind", "boost.rope", "boost.lora_rank"), _path),
    (("boost",), _llm("boost")),
    (("boost",), _controls),
)
_CLIP: Table = ((("model", "clip", "train.loss"), _clip),)
_BLIP2: Table = (
    (("model", "blip2", "train.loss"), _blip2),
    (("llama",), _llm("llama")),
)
_PNEUMOLLM: Table = (
    (("llama",), _llm("llama")),
    (("model.backbone", "pneumollm.every"), _every),
    (("model.backbone", "pneumollm", "llama", "train.loss"), _question),
)
