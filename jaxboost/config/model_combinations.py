"""Checks of the fields about the model that contradict each other; see `combinations`."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from jaxboost.config.model_fields import ENCODER, SLICES, ZERO_SHOT
from jaxboost.config.types import Config
from jaxboost.errors import UserError

if TYPE_CHECKING:
    from jaxboost.models.backbones import Backbone
    from jaxboost.models.slices import Slices

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
    """The backbone's row in the table of the config's system; None if the backbone is unknown.

    Of a 2D backbone that sees slices, it is the row that takes volumes.
    """
    from jaxboost.models.backbones import BACKBONES
    from jaxboost.models.image_llm import ENCODERS
    from jaxboost.models.slices import sliced

    row = (ENCODERS if "pneumollm" in config else BACKBONES).get(config.model.backbone)
    return sliced(row, slices_of(config)) if row is not None and row.ndim == 2 else row


def slices_of(config: Config) -> "Slices | None":
    """The slices of a volume that the 2D encoder of a config sees; None: it sees images, or takes whole volumes."""
    from jaxboost.models.slices import Slices

    # A system without these fields has no slices; nor have runs of earlier versions.
    if not (count := config.model.get("slices", 0)):
        return None
    model = config.model
    return Slices(count=count, axes=tuple(model.slice_axes), size=model.slice_size, pooling=model.slice_pooling)


def encoder_side(config: Config) -> int:
    """The side of what the encoder sees, in pixels or voxels."""
    slices = slices_of(config)
    return (slices.size if slices else 0) or config.model.image_size


def _slices(config: Config) -> Iterator[str]:
    """The fields about slices."""
    from jaxboost.models.slices import ATTENTION, SlicedBackbone

    model, backbone, slices = config.model, backbone_of(config), slices_of(config)
    if slices is None:
        for name in ("slice_axes", "slice_size", "slice_pooling"):
            value, plain = model[name], ENCODER[name].default
            if (tuple(value) if isinstance(plain, tuple) else value) != plain:
                yield f"config field model.{name}: it has no effect without model.slices, set it to {plain}"
        return
    if backbone is not None and not isinstance(backbone, SlicedBackbone):
        yield f"config field model.slices: backbone {model.backbone} takes whole volumes, set it to 0"
    if len(set(slices.axes)) != len(slices.axes) or not slices.axes:
        yield f"config field model.slice_axes: {slices.axes} should name axes once each, such as (0, 1, 2) or (2,)"
    if slices.count > model.image_size:
        yield f"config field model.slices: {slices.count} is more than model.image_size, {model.image_size}"
    if slices.pooling == ATTENTION and config.boost.kind != "none":
        yield (
            "config field model.slice_pooling: a booster gives the mean of the slices' tokens: set it to mean, or"
            " boost.kind to none"
        )


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
    backbone, size = backbone_of(config), encoder_side(config)
    field = "slice_size" if config.model.get("slice_size", 0) else "image_size"
    patch = backbone.arguments.get("patch") if backbone else None
    if patch and (size <= 0 or size % patch):
        yield (
            f"config field model.{field}: {size} is not a multiple of the patch size {patch} of backbone"
            f" {config.model.backbone}"
        )
    elif size <= 0:
        yield f"config field model.{field}: {size} should be above 0"
    elif backbone and (problem := backbone.traits.size_problem(size, backbone.arguments)):
        yield f"config field model.{field}: backbone {config.model.backbone}: {problem}"


def _layer_decay(config: Config) -> Iterator[str]:
    backbone = backbone_of(config)
    model = config.model
    # Only R-LLM trains an encoder with layers.
    trains = not model.get("frozen", True) or model.get("last_block") or model.get("lora_rank")
    if backbone is not None and config.optim.layer_decay != 1 and not (trains and backbone.traits.stacks):
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


def _encoder_weights(config: Config) -> Iterator[str]:
    from jaxboost.models.backbones import BACKBONES

    model, backbone = config.model, backbone_of(config)
    if model.frozen and not model.weights:
        yield (
            "config field model.frozen: an untrained encoder would stay untrained: set model.weights to the folder that"
            ' `jaxboost convert` made, or to "random": the control'
        )
    # With LoRA all blocks are trained.
    if model.frozen and not model.lora_rank and model.drop_path:
        yield "config field model.drop_path: it would only disturb a frozen encoder, set it to 0"
    if model.weights not in ("", "random") and backbone is not None and not backbone.loads_weights:
        fitting = ", ".join(name for name, row in BACKBONES.items() if row.loads_weights)
        yield (
            f"config field model.weights: backbone {model.backbone} cannot load weights, only {fitting} can:"
            " leave it empty"
        )


def _partly_trained(config: Config) -> Iterator[str]:
    """What of a frozen encoder is trained all the same."""
    model, backbone = config.model, backbone_of(config)
    for field, empty in (("last_block", False), ("lora_rank", 0)):
        if model[field] and not model.frozen:
            yield (
                f"config field model.{field}: the whole encoder is trained: set model.frozen=True, or model.{field} to"
                f" {empty}"
            )
        elif model[field] and slices_of(config):
            yield f"config field model.{field}: it does not go with model.slices, set it to {empty}"
    if model.last_block and model.lora_rank:
        yield (
            "config fields model.last_block and model.lora_rank: both say what is trained: set model.lora_rank=0, or"
            " model.last_block=False"
        )
    if not model.lora_rank:
        given = {"lora_alpha": model.lora_alpha, "lora_targets": tuple(model.lora_targets)}
        for field, value in given.items():
            if value != (default := ENCODER[field].default):
                yield f"config field model.{field}: it has no effect without model.lora_rank, set it to {default}"
    elif backbone is not None and not slices_of(config):
        yield from _lora_targets(config, backbone.traits.matrices)


def _lora_targets(config: Config, known: tuple[str, ...]) -> Iterator[str]:
    name, targets = config.model.backbone, tuple(config.model.lora_targets)
    if not known:
        yield (
            f"config field model.lora_rank: backbone {name} has convolutions, no linear layers that LoRA changes: set"
            " it to 0, and model.last_block=True or model.frozen=False"
        )
    elif not targets or len({*targets}) < len(targets) or not {*targets} <= {*known}:
        yield (
            f"config field model.lora_targets: {', '.join(map(str, targets)) or 'it'} should be one or more of"
            f" {', '.join(known)}, the matrices of {name}, each once"
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
    if fields.features == "columns" and not config.data.columns:
        yield "config field data.columns is empty: name the clinical columns that the baseline reads, such as age,sex"
    yield from _zero_shot(config)
    if fields.features != "encoder":
        return
    if backbone is None or not (backbone.loads_weights and backbone.ndim <= fields.ndim):
        fitting = ", ".join(name for name, row in BACKBONES.items() if row.loads_weights and row.ndim <= fields.ndim)
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
    sees_slices = fields.views == SLICES
    if sees_slices and (fields.ndim == 2 or backbone.ndim == 3):
        what = f"backbone {config.model.backbone} takes whole volumes" if fields.ndim == 3 else "images have no slices"
        yield f"config field baseline.views: {what}, set it to middle, and baseline.slices to 0"
    elif sees_slices != bool(fields.slices):
        needs = "views=slices needs their number, such as 4" if sees_slices else "it needs baseline.views=slices"
        yield f"config field baseline.slices: {needs}"
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
    if fields.features in ("trivial", "columns"):
        yield 'config field baseline.features: zero_shot compares prompts with embeddings, set it to "encoder"'
    if not fields.text:
        yield (
            "config field baseline.text is empty: set it to the folder that `jaxboost convert --source SOURCE --prompts"
            " FILE` made"
        )


_SLICE_FIELDS = ("model.slices", "model.slice_axes", "model.slice_size", "model.slice_pooling")
_BOTH: Table = (
    (("model.mean", "model.std"), _pixels),
    (("model.backbone", "model.image_size", *_SLICE_FIELDS), _patch),
    (("model", "optim.layer_decay"), _layer_decay),
)
_BASELINE: Table = (
    (("model.mean", "model.std"), _pixels),
    (("model", "baseline", "data.columns"), _baseline),
)
_RLLM: Table = (
    ((*_SLICE_FIELDS, "model.backbone", "model.image_size", "boost.kind"), _slices),
    (("model", "boost.kind"), _pooled),
    (("model",), _encoder_weights),
    (("model",), _partly_trained),
    (("model.backbone", *_SLICE_FIELDS, "boost.path", "boost.kind", "boost.rope", "boost.lora_rank"), _path),
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
