"""Checks of fields that contradict each other or the data set of a config.

Each check is a generator of problems. It is skipped if one of the fields that it reads is invalid by itself.
"""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from jaxboost.config import class_weights, model_combinations
from jaxboost.config.backbone import BACKBONE_FIELDS, backbone_of, ndim_of, slices_of
from jaxboost.config.checks import Table, caught
from jaxboost.config.model_fields import ZERO_SHOT
from jaxboost.config.types import Config
from jaxboost.errors import UserError
from jaxboost.tasks import TASKS

if TYPE_CHECKING:
    from jaxboost.data.dataset import DatasetInfo


def combination_problems(config: Config, wrong: Collection[str]) -> list[str]:
    """Returns the problems of fields that are valid one by one but contradict each other.

    Args:
      config: see `validation.validate`.
      wrong: dotted names of the fields that are invalid by themselves.
    """
    # A baseline has no training that fields could contradict.
    shared = _SHARED if "baseline" in config else _TRAINED + _SHARED
    checks = shared + model_combinations.checks(config)

    def is_right(name: str) -> bool:
        return name not in wrong and not any(each.startswith(f"{name}.") for each in wrong)

    found = [text for names, check in checks if all(map(is_right, names)) for text in check(config)]
    info = None
    if is_right("data"):
        known = all(map(is_right, ("baseline.ndim",) if "baseline" in config else BACKBONE_FIELDS))
        info, text = _described(config, ndim_of(config) if known else None)
        found += [text] if text else []
    if info and all(map(is_right, _READ_WITH_DATA)):
        found += data_problems(config, info)
    return found


def data_problems(config: Config, info: "DatasetInfo") -> list[str]:
    """Returns the problems of fields that contradict the data set of a config."""
    checks = (_baseline_dimensions, _binary, _prompts) if "baseline" in config else _WITH_DATA
    return [text for check in checks for text in check(config, info)]


def check_data(config: Config, info: "DatasetInfo") -> None:
    """Raises UserError that names all fields that contradict the data set."""
    if found := data_problems(config, info):
        raise UserError("; ".join(found))


def _described(config: Config, ndim: int | None) -> tuple["DatasetInfo | None", str]:
    """Describes the data set if that needs no file. Returns the description or None, and the problem or "".

    Args:
      config: its section `data` is right.
      ndim: spatial dimensions of the model's images; None: unknown.
    """
    from jaxboost import data

    fields = config.data
    # The classes of a user's folder, and a prepared set's own description, are read later.
    if fields.source.startswith("tfds:") or (fields.source == "folder" and not fields.classes):
        return None, ""
    options = {name: fields[name] for name in ("source", "root", "classes", "multi_label", "masks")}
    try:
        return data.describe_dataset(fields.name, fields.size, ndim=ndim or 2, **options), ""
    except UserError as error:
        return None, str(error)


def _max_steps(config: Config) -> Iterator[str]:
    if config.train.max_steps and config.train.max_steps < config.train.accumulate:
        yield (
            f"config field train.max_steps: {config.train.max_steps} is less than train.accumulate,"
            f" {config.train.accumulate}: nothing would be trained"
        )


def _schedule(config: Config) -> Iterator[str]:
    optim, epochs = config.optim, config.train.epochs
    total = optim.schedule_epochs or epochs
    if optim.schedule_from + epochs > total:
        yield (
            "config field optim.schedule_epochs: the schedule ends before the run, after"
            f" {total} epochs: set it to optim.schedule_from + train.epochs or more"
        )
    if optim.warmup_epochs >= total:
        yield f"config field optim.warmup_epochs: {optim.warmup_epochs} warm-up epochs do not fit in {total} epochs"


def _adam(config: Config) -> Iterator[str]:
    if config.optim.name == "adam" and config.optim.weight_decay:
        decay = config.optim.weight_decay
        yield f"config field optim.weight_decay: adam has none, set it to 0 (it is {decay})"


def _splits(config: Config) -> Iterator[str]:
    """The fields about splits and folds."""
    from jaxboost.data.splits import ratios

    fields, without_val = config.data, config.eval.protocol == "reference"
    folds = fields.folds
    if not folds:
        if fields.folds_file or fields.fold != -1:
            yield "config fields data.fold and data.folds_file belong to a cross-validation: set data.folds"
        yield from caught(lambda: ratios.check_ratios(fields.shares, without_val=without_val))
        return
    if folds < 2:
        yield f"config field data.folds: {folds} should be 2 or more, or 0 for no cross-validation"
    elif not -1 <= fields.fold < folds:
        yield f"config field data.fold: {fields.fold} should be 0 to {folds - 1}, or -1 for all folds"
    if not without_val and not 0 < fields.val_share <= 0.5:
        yield (
            f"config field data.val_share: {fields.val_share} should be above 0 and at most 0.5: the"
            " validation split picks the epoch"
        )


def _folder(config: Config) -> Iterator[str]:
    """The fields about a folder of the user's own images."""
    from jaxboost.data.readers import arrays

    if config.data.source == "folder":
        if config.data.groups:
            yield (
                "config field data.groups: it is for published sets; a folder names its patients in labels.csv (column"
                " patient_id): leave it empty"
            )
        yield from caught(lambda: arrays.check_window(config.data.window))
        yield from caught(lambda: arrays.nan_value(config.data.nan))


def _window(config: Config) -> Iterator[str]:
    """The window of a folder's values, for weights that were trained on a physical scale."""
    backbone = backbone_of(config)
    is_read = "baseline" not in config or config.baseline.features == "encoder"
    window = backbone.traits.window if backbone is not None and is_read else None
    if window and config.data.source == "folder" and not config.data.window:
        yield (
            f"config field data.window is empty, so that each file has a scale of its own: set it to {window}, that of"
            f" the weights of backbone {config.model.backbone}"
        )


def _columns(config: Config) -> Iterator[str]:
    """The clinical columns, and what reads them."""
    from jaxboost.data.sources.folder import table_columns

    fields = config.data
    if fields.columns:
        yield from caught(lambda: table_columns.parse(fields.columns))
        if fields.source != "folder" and not fields.groups:
            yield (
                "config field data.columns: it names columns of a table: give a CSV file with the columns file"
                " (train/0, val/3, ...) and these as data.groups"
            )
        asks = "pneumollm" in config and config.pneumollm.question
        if "clip" in config or "blip2" in config or asks:
            who = "CLIP compares images with texts" if "clip" in config else "the LLM answers a question"
            yield f"config field data.columns: {who}, without a head that reads columns: leave it empty"


def _augmentation(config: Config) -> Iterator[str]:
    """The fields of `augment` and `mix` that do not apply to the number of dimensions of the images."""
    from jaxboost.data.pipeline.augment import Augment

    ndim = ndim_of(config) or 2
    for name, value in config.augment.items():
        yield from caught(lambda name=name, value=value: Augment(**{name: value}).check(ndim))
    if config.mix.erase and ndim != 2:
        yield "config field mix.erase: it is only for 2-D images, set it to 0"


def _resize(config: Config) -> Iterator[str]:
    first, size = config.augment.resize, config.model.image_size
    if 0 < first < size:
        yield (
            f"config field augment.resize: {first} is less than model.image_size={size}, to which it is cropped: use 0,"
            f" or {size} or more"
        )


def _class_weights(config: Config) -> Iterator[str]:
    yield from caught(lambda: class_weights.parse(config.train.class_weights))


def _last_batch(config: Config) -> Iterator[str]:
    mix, backbone = config.mix, backbone_of(config)
    mixes = mix.prob > 0 and (mix.mixup > 0 or mix.cutmix > 0)
    # Frozen batch norms compute as in evaluation.
    is_frozen = config.model.get("frozen", False) and not config.model.get("last_block", False)
    norms = backbone is not None and backbone.traits.has_statistics and not is_frozen
    if config.train.last_batch == "keep" and (norms or mixes):
        what = "batch norms" if norms else "mixup and cutmix"
        yield f'config field train.last_batch: {what} need whole batches: set it to "drop"'


def _deterministic(config: Config) -> Iterator[str]:
    if config.train.deterministic and config.model.attention == "fused":
        yield (
            "config field model.attention: fused attention has no fixed order of sums in its gradient, against"
            ' train.deterministic: set it to "auto", or train.deterministic=False'
        )


def _dimensions(config: Config, info: "DatasetInfo") -> Iterator[str]:
    from jaxboost.models.backbones import BACKBONES

    name = config.model.backbone
    if "pneumollm" in config:
        if info.ndim != 2:
            yield f"data set {info.name} is {info.ndim}-D, PneumoLLM takes 2-D images: choose another data.name"
        return
    if slices_of(config) and info.ndim == 2:
        yield f"config field model.slices: data set {info.name} is 2-D, set it to 0"
    elif ndim_of(config) != info.ndim:
        by_slices = ", or model.slices to a number such as 4" if info.ndim == 3 and "slices" in config.model else ""
        fitting = ", ".join(other for other, row in BACKBONES.items() if row.ndim == info.ndim)
        yield (
            f"data set {info.name} is {info.ndim}-D but backbone {name} takes {ndim_of(config)}-D input:"
            f" set model.backbone to one of {fitting}{by_slices}"
        )
    elif info.ndim == 3:
        yield from _side(config, info)


def _side(config: Config, info: "DatasetInfo") -> Iterator[str]:
    """The side of whole volumes."""
    if (size := config.model.image_size) != info.size:
        yield (
            f"config field model.image_size: volumes are not resampled, set it to data.size ({info.size}), not {size}"
        )


def _baseline_dimensions(config: Config, info: "DatasetInfo") -> Iterator[str]:
    backbone = backbone_of(config)
    # What no baseline takes is reported without the data.
    takes_volumes = backbone is not None and backbone.ndim == 3 and backbone.loads_weights
    if takes_volumes and config.baseline.features == "encoder" and info.ndim == 3:
        yield from _side(config, info)
    if config.baseline.slices > info.size:
        yield f"config field baseline.slices: {config.baseline.slices} is more than the {info.size} that a volume has"
    if config.baseline.ndim != info.ndim:
        yield (
            f"config field baseline.ndim: data set {info.name} is {info.ndim}-D, set it to {info.ndim}, not"
            f" {config.baseline.ndim}"
        )


def _prompts(config: Config, info: "DatasetInfo") -> Iterator[str]:
    """CLIP's comparison of classes, and an LLM's of answers."""
    if "pneumollm" in config and config.pneumollm.get("question") and TASKS[info.task].multi_label:
        yield (
            "config field pneumollm.question: its answers exclude each other, and"
            f' {info.name} is multi-label: set it to "" (PneumoLLM)'
        )
    is_baseline = "baseline" in config
    compares = config.baseline.classifier == ZERO_SHOT if is_baseline else "clip" in config or "blip2" in config
    if compares and TASKS[info.task].multi_label:
        field, name = ("baseline.classifier", ZERO_SHOT) if is_baseline else ("blip2.question", "BLIP-2")
        if "clip" in config:
            field, name = "clip.method", config.clip.method
        yield (
            f"config field {field}: {name} compares classes that exclude each other, and {info.name} is multi-label:"
            f" {'set it to logistic' if is_baseline else 'choose another system'}"
        )


def _binary(config: Config, info: "DatasetInfo") -> Iterator[str]:
    for name, asked, fix in (
        ("metric", config.eval.metric == "avg", "auc"),
        ("specificity", config.eval.specificity, 0),
    ):
        if asked and info.task != "binary-class":
            yield (
                f"config field eval.{name}: {config.eval[name]} is for binary tasks, and {info.name} is {info.task}:"
                f" set it to {fix}"
            )


def _labels(config: Config, info: "DatasetInfo") -> Iterator[str]:
    """The fields that do not suit the labels of the data set."""
    fields = config.train
    # What is no list of weights at all has been reported without the data set.
    if not any(_class_weights(config)):
        yield from caught(lambda: class_weights.parse(fields.class_weights, len(info.classes)))
    if fields.sampling == "balanced" and TASKS[info.task].multi_label:
        yield (
            "config field train.sampling: balanced draws a sample by its class, but these have several labels: set it"
            " to uniform"
        )


_SHARED: Table = (
    (("data", "eval.protocol"), _splits),
    (("data",), _folder),
    (("data.source", "data.window", *BACKBONE_FIELDS, "baseline.features"), _window),
    (("data", "pneumollm.question"), _columns),
)
_TRAINED: Table = (
    (("train.max_steps", "train.accumulate"), _max_steps),
    (("optim", "train.epochs"), _schedule),
    (("optim",), _adam),
    (("augment.resize", "model.image_size"), _resize),
    (("train.class_weights",), _class_weights),
    ((*BACKBONE_FIELDS, "augment", "mix.erase"), _augmentation),
    ((*BACKBONE_FIELDS, "train.last_batch", "mix"), _last_batch),
    (("train.deterministic", "model.attention"), _deterministic),
)
_WITH_DATA = (_dimensions, _binary, _labels, _prompts)
_READ_WITH_DATA = (
    *(*BACKBONE_FIELDS, "model.image_size", "baseline", "clip", "pneumollm", "eval"),
    *("train.class_weights", "train.sampling"),
)
