"""Checks of the fields about the model that contradict each other; see `combinations`."""

from collections.abc import Iterator

from jaxboost.config import llm_combinations
from jaxboost.config.backbone import BACKBONE_FIELDS, backbone_of, encoder_side, slices_of
from jaxboost.config.checks import Table
from jaxboost.config.model_fields import ENCODER, ZERO_SHOT
from jaxboost.config.types import Config


def checks(config: Config) -> Table:
    """The checks for the config's system."""
    if "baseline" in config:
        return _BASELINE
    if "clip" in config:
        return _BOTH + _CLIP
    if "blip2" in config:
        return _BOTH + _BLIP2
    return _BOTH + (_PNEUMOLLM if "pneumollm" in config else _RLLM)


def _slices(config: Config) -> Iterator[str]:
    """The fields about slices."""
    from jaxboost.models.slices import ATTENTION, AXES, SlicedBackbone

    model, backbone, slices = config.model, backbone_of(config), slices_of(config)
    if slices is None:
        for name in ("slice_axes", "slice_size", "slice_pooling"):
            value, plain = model[name], ENCODER[name].default
            if (tuple(value) if isinstance(plain, tuple) else value) != plain:
                yield f"config field model.{name}: it has no effect without model.slices, set it to {plain}"
        return
    if backbone is not None and not isinstance(backbone, SlicedBackbone):
        yield f"config field model.slices: backbone {model.backbone} takes whole volumes, set it to 0"
    # 2.0 and True are equal to an axis, but are none.
    are_axes = all(type(axis) is int and axis in AXES for axis in slices.axes)
    if not are_axes or len(set(slices.axes)) != len(slices.axes) or not slices.axes:
        yield f"config field model.slice_axes: {slices.axes} should name axes once each, such as (0, 1, 2) or (2,)"
    if slices.count > model.image_size:
        yield f"config field model.slices: {slices.count} is more than model.image_size, {model.image_size}"
    if slices.pooling == ATTENTION and config.boost.kind != "none":
        yield (
            "config field model.slice_pooling: a booster gives the mean of the slices' tokens: set it to mean, or"
            " boost.kind to none"
        )


def _pixels(config: Config) -> Iterator[str]:
    for field in ("mean", "std"):
        values = config.model[field]
        if len(values) not in (1, 3) or not all(isinstance(x, int | float) for x in values):
            yield f"config field model.{field}: give 1 or 3 values, not {values}"
    if not all(config.model.std):
        yield f"config field model.std: {config.model.std} should not be 0"


def _patch(config: Config) -> Iterator[str]:
    backbone, size, slices = backbone_of(config), encoder_side(config), slices_of(config)
    field = "slice_size" if slices and slices.size else "image_size"
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
        why = "also drop the frozen blocks below the last one" if model.last_block else "only disturb a frozen encoder"
        yield f"config field model.drop_path: it would {why}, set it to 0"
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
    if fields.slices:
        yield from _baseline_slices(config)
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
    yield from _patch(config)


def _baseline_slices(config: Config) -> Iterator[str]:
    fields, backbone = config.baseline, backbone_of(config)
    if fields.features != "encoder":
        what = 'only features="encoder" have slices'
    elif fields.ndim == 2:
        what = "images have no slices"
    elif backbone is not None and backbone.ndim == 3:
        what = f"backbone {config.model.backbone} takes whole volumes"
    else:
        return
    yield f"config field baseline.slices: {what}, set it to 0"


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


_BOTH: Table = (
    (("model.mean", "model.std"), _pixels),
    ((*BACKBONE_FIELDS, "model.image_size"), _patch),
    (("model", "optim.layer_decay"), _layer_decay),
)
_BASELINE: Table = (
    (("model.mean", "model.std"), _pixels),
    (("model", "baseline", "data.columns"), _baseline),
)
_RLLM: Table = (
    ((*BACKBONE_FIELDS, "model.image_size", "boost.kind"), _slices),
    (("model", "boost.kind"), _pooled),
    (("model",), _encoder_weights),
    (("model",), _partly_trained),
    (
        (*BACKBONE_FIELDS, "boost.path", "boost.kind", "boost.rope", "boost.lora_rank"),
        llm_combinations.path,
    ),
    (("boost",), llm_combinations.llm("boost")),
    (("boost",), llm_combinations.controls),
)
_CLIP: Table = ((("model", "clip", "train.loss"), _clip),)
_BLIP2: Table = (
    (("model", "blip2", "llama", "train.loss"), llm_combinations.blip2),
    (("llama",), llm_combinations.llm("llama")),
)
_PNEUMOLLM: Table = (
    (("llama",), llm_combinations.llm("llama")),
    (("model.backbone", "pneumollm.every"), llm_combinations.every),
    (("model.backbone", "pneumollm", "llama", "train.loss"), llm_combinations.question),
)
