"""Size and cost of a config's model, computed without weights or data: the work of `jaxboost describe`."""

from typing import TYPE_CHECKING, Any

from jaxboost.config.overrides import with_overrides
from jaxboost.config.types import Config

if TYPE_CHECKING:
    from jaxboost.data.dataset import DatasetInfo
    from jaxboost.systems import System


def describe(config: Config, *, memory: bool = False) -> dict[str, Any]:
    """Computes the size and the cost of a config's model.

    Args:
      config: config of a run. The shapes of the LLM layers come from the block if it is on disk, else from the
        config's `family`.
      memory: compile a training step to estimate its memory, which takes some seconds.

    Returns:
      A dict. trainable, frozen: numbers of parameters, without those of the head that read clinical columns.
      trainable_mib, frozen_mib: their size as float32 in MiB, which the R-LLM paper calls "number of parameters".
      tokens: number of tokens that the booster gets. flops_per_image: FLOPs of one forward pass, with and without the
      booster, of BLIP-2 of the encoder alone, or without CLIP's text encoder, whose share is that of a training batch,
      with class names of one token. step_memory_gb: see `memory.step_memory_gb`; only with `memory`. A baseline has no
      training step and other entries, see `_describe_baseline`.
    """
    # Imported here: a mistyped flag should be reported before jax loads.
    import jax
    import jax.numpy as jnp

    from jaxboost.analysis.memory import step_memory_gb
    from jaxboost.config import validate
    from jaxboost.config.combinations import check_data
    from jaxboost.models.frozen import count, merge, mib
    from jaxboost.runs import datasets
    from jaxboost.systems import prepare
    from jaxboost.training.flops import count_flops

    validate(config)
    info = datasets.describe(config)
    check_data(config, info)
    if "baseline" in config:
        return _describe_baseline(config, info)
    with_boost = prepare(config, info, with_weights=False)
    # CoOp encodes the classes once for a whole batch.
    batch = config.train.batch_size if "clip" in config else 1
    images = jax.ShapeDtypeStruct((batch, *[config.model.image_size] * info.ndim, info.channels), jnp.uint8)

    def flops(system: "System", *, encoder_alone: bool = False) -> int:
        def run(images: jax.Array, *weights: Any) -> jax.Array:
            model = merge(system.graphdef, *weights)
            return model.encode(images) if encoder_alone else model(images)

        return count_flops(run, images, system.params, system.frozen, system.stats) // batch

    if "clip" in config or "blip2" in config:
        plain = flops(with_boost, encoder_alone=True)
    else:
        without: dict[str, Any] = {"llama.used": False, "pneumollm.question": ""}
        fields = without if "pneumollm" in config else {"boost.kind": "none"}
        plain = flops(prepare(with_overrides(config, fields), info, with_weights=False))

    return {
        "dataset": info.name,
        "backbone": config.model.backbone,
        "boost": with_boost.boost,
        "classes": len(info.classes),
        "trainable": count(with_boost.params),
        "frozen": count(with_boost.frozen),
        "trainable_mib": round(mib(with_boost.params), 2),
        "frozen_mib": round(mib(with_boost.frozen), 2),
        "tokens": with_boost.tokens,
        "flops_per_image": {"with_boost": flops(with_boost), "without_boost": plain},
        **({"step_memory_gb": step_memory_gb(config, info)} if memory else {}),
    }


def _describe_baseline(config: Config, info: "DatasetInfo") -> dict[str, Any]:
    """Describes a baseline.

    Returns:
      As `describe`. boost: "baseline". trainable: numbers that are fitted; None: they depend on the data. features:
      numbers that the classifier sees of an image, without clinical columns. flops_per_image: of all views of an image,
      without the classifier.
    """
    import jax
    import jax.numpy as jnp

    from jaxboost.baselines import embeddings, features
    from jaxboost.models.backbones import BACKBONES
    from jaxboost.models.frozen import count, merge, mib
    from jaxboost.models.slices import AXES
    from jaxboost.systems import prepare
    from jaxboost.systems.baseline import reads_columns
    from jaxboost.tasks import TASKS
    from jaxboost.training.flops import count_flops

    fields, classes = config.baseline, len(info.classes)
    system, flops, width = prepare(config, info, with_weights=False), 0, 0
    if fields.features == "trivial":
        width = len(features.names(info.ndim, info.channels))
    elif fields.features == "encoder":

        def embed(images: jax.Array, *weights: Any) -> jax.Array:
            return merge(system.graphdef, *weights)(images)

        side, channels = config.model.image_size, info.channels
        sides = [side] * BACKBONES[config.model.backbone].ndim
        arguments = (jax.ShapeDtypeStruct((1, *sides, channels), jnp.uint8), system.params, system.frozen)
        flops = count_flops(embed, *arguments, system.stats)
        flops *= len(AXES) * embeddings.slices_along_axis(config) or 1
        width = jax.eval_shape(embed, *arguments, system.stats).shape[-1]
    # A binary problem has one row of coefficients.
    rows = 1 if TASKS[info.task].binary else classes
    fitted = {"prevalence": classes, "knn": 0, "zero_shot": 0, "logistic": rows * (width + 1), "boosting": None}
    # How many features columns have, the data decide.
    known = None if reads_columns(config) else fitted[fields.classifier]
    return {
        "dataset": info.name,
        "backbone": config.model.backbone if fields.features == "encoder" else fields.features,
        "boost": system.boost,
        "classifier": fields.classifier,
        "features": width,
        "classes": classes,
        "trainable": known,
        "frozen": count(system.frozen),
        "frozen_mib": round(mib(system.frozen), 2),
        "tokens": system.tokens,
        "flops_per_image": flops,
    }


def as_text(result: dict[str, Any]) -> str:
    """Formats the result of `describe` as a few lines of text."""
    from jaxboost.models.prompted_clip import METHODS

    if "classifier" in result:
        fitted = result["trainable"]
        return "\n".join(
            [
                f"{result['dataset']}, {result['classifier']} on {result['backbone']}, {result['classes']} classes",
                f"features   {result['features']:>13,} numbers per image",
                f"fitted     {'with the data' if fitted is None else f'{fitted:,}':>13} numbers",
                f"frozen     {result['frozen']:>13,} parameters {result['frozen_mib']:>9.2f} MiB",
                f"forward    {result['flops_per_image'] / 1e9:>13.3f} GFLOP per image",
            ]
        )
    cost = result["flops_per_image"]
    rest = "of the encoder of images" if result["boost"] in (*METHODS, "blip2") else "without the booster"
    lines = [
        f"{result['dataset']}, {result['backbone']}, boost {result['boost']}, {result['classes']} classes",
        f"trainable  {result['trainable']:>13,} parameters {result['trainable_mib']:>9.2f} MiB",
        f"frozen     {result['frozen']:>13,} parameters {result['frozen_mib']:>9.2f} MiB",
        f"tokens     {result['tokens']:>13,} seen by the booster",
        f"forward    {cost['with_boost'] / 1e9:>13.3f} GFLOP per image, {cost['without_boost'] / 1e9:.3f} {rest}",
    ]
    if memory := result.get("step_memory_gb"):
        lines.append(
            f"step       {memory['total']:>13.2f} GB of memory estimated, {memory['weights']:.2f} of them"
            " weights, optimiser and batch"
        )
    return "\n".join(lines)
