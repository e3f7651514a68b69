"""The fields of the sections `optim`, `train` and `eval`."""

from collections.abc import Iterable

from jaxboost.config.fields import BATCH_SIZE, MAX_EPOCHS, MAX_STEPS, Field, Range
from jaxboost.evaluation.metrics import SELECTION
from jaxboost.tasks import LOSSES


def _samplings() -> Iterable[str]:
    from jaxboost.data.pipeline import SAMPLINGS

    return SAMPLINGS


def _last_batches() -> Iterable[str]:
    from jaxboost.data.pipeline import LAST_BATCHES

    return LAST_BATCHES


OPTIM = {
    "name": Field("adamw", "optimiser", choices=("adamw", "adam")),
    "lr": Field(1e-5, "peak learning rate, per optimiser update", range=Range(above=0)),
    "schedule": Field(
        "cosine",
        'learning rate schedule: "cosine" (to optim.final_lr over all epochs), "constant", or "steps" (divided by 10'
        " after 1/2 and after 3/4 of the epochs)",
        choices=("cosine", "constant", "steps"),
    ),
    "warmup_epochs": Field(
        0.0,
        "linear warm-up, may be a fraction",
        unit="epochs",
        range=Range(least=0, most=MAX_EPOCHS),
    ),
    "warmup_from": Field(0.0, "learning rate at the start of the warm-up", range=Range(least=0)),
    "final_lr": Field(0.0, "learning rate at the end of the cosine", range=Range(least=0)),
    "schedule_epochs": Field(
        0.0,
        "length of warm-up and cosine together; 0: train.epochs",
        unit="epochs",
        range=Range(least=0, most=MAX_EPOCHS),
    ),
    "schedule_from": Field(
        0.0,
        "position in the schedule at which the run starts",
        unit="epochs",
        range=Range(least=0, most=MAX_EPOCHS),
    ),
    "by_epoch": Field(
        False,
        "keep the learning rate constant within an epoch, at the schedule's value at the start of the previous epoch;"
        " the first epoch has warmup_from",
        before=False,
    ),
    "layer_decay": Field(
        1.0,
        "layer-wise learning rate decay: factor from each encoder layer to the layer below it; 1: none",
        range=Range(above=0, most=1),
    ),
    "weight_decay": Field(
        0.05,
        "weight decay, adamw only; not on biases, norms, positions and CLS tokens",
        range=Range(least=0),
    ),
    "b1": Field(0.9, "Adam's beta1: decay of the gradient's mean", range=Range(least=0, below=1)),
    "b2": Field(0.999, "Adam's beta2: decay of the squared gradient's mean", range=Range(least=0, below=1)),
    "eps": Field(1e-8, "Adam's epsilon", range=Range(above=0)),
    "clip_norm": Field(0.0, "gradient clipping by global norm; 0: off", range=Range(least=0)),
}

TRAIN = {
    "epochs": Field(100, "passes over the training split", unit="epochs", range=Range(above=0, most=MAX_EPOCHS)),
    "batch_size": Field(128, "samples per step, over all devices", range=BATCH_SIZE),
    "last_batch": Field(
        "drop",
        'samples at the end of an epoch that do not fill a batch: "drop" (different samples in each epoch) or "keep" (a'
        " smaller batch)",
        choices=_last_batches,
        before="drop",
    ),
    "epoch_multiple": Field(
        0,
        "round the samples of an epoch down to a multiple of this; 0: all are used",
        range=Range(least=0, most=MAX_STEPS),
        before=0,
    ),
    "accumulate": Field(
        1,
        "gradient accumulation: micro-batches per optimiser update; micro-batches left over at the end of the run"
        " change nothing",
        unit="steps",
        range=Range(above=0, most=10**6),
    ),
    "sampling": Field(
        "uniform",
        '"uniform", or "balanced": class-balanced sampling, equally many samples of each class per epoch',
        choices=_samplings,
    ),
    "loss": Field(
        "auto",
        '"auto": the loss of the task, or "columns": binary cross-entropy on each column of the one-hot label',
        choices=LOSSES,
    ),
    "class_weights": Field(
        "", 'class weights in the loss: "balanced", one number per class such as "1,2.5", or empty for none'
    ),
    "ema": Field(
        0.0,
        "exponential moving average of the weights: decay per optimiser update; 0: none",
        range=Range(least=0, below=1),
    ),
    "max_steps": Field(
        0,
        "stop after this many steps, without changing the schedule; 0: no limit",
        unit="steps",
        range=Range(least=0, most=MAX_STEPS),
    ),
    "seeds": Field(
        1,
        "runs that are trained at once in one program: with the seeds seed, seed + 1, ...; each has a folder as a run"
        " of that seed alone has",
        range=Range(least=1, most=1000),
        resume="free",
        before=1,
    ),
    "steps_per_call": Field(
        1,
        "steps that run in one call of the compiled program, with data.on_device: for small models; 0: an epoch",
        unit="steps",
        range=Range(least=0, most=MAX_STEPS),
        resume="free",
        before=1,
    ),
    "log_every": Field(
        10,
        "interval of the records in metrics.jsonl",
        unit="steps",
        range=Range(above=0, most=MAX_STEPS),
        resume="free",
    ),
    "deterministic": Field(
        False,
        "on a GPU: only kernels that give the same bits each time, and none chosen by measuring; slower. A CPU gives"
        " the same bits without it",
        before=False,
    ),
    "fsdp": Field(
        False,
        "split trained weights, the optimiser's state and averages over all devices instead of copying them to each:"
        " less memory for large encoders, and more traffic between the devices",
        resume="free",
        before=False,
    ),
    "compilation_cache": Field(
        True, "keep compiled programs in the user's cache folder for the next start", resume="free"
    ),
    "checkpoint_every": Field(
        0,
        "interval of checkpoints within an epoch; 0: only at the end of each epoch",
        unit="steps",
        range=Range(least=0, most=MAX_STEPS),
        resume="free",
    ),
}

EVAL = {
    "protocol": Field(
        "validation",
        'split that picks the epoch: "validation", or "reference": the test split, as the papers\' released code does',
        choices=("validation", "reference"),
    ),
    "metric": Field(
        "auc",
        'metric that picks the epoch: "auc", "acc", or "avg": the mean of both, sensitivity and specificity',
        choices=SELECTION,
    ),
    "ties": Field(
        "earlier",
        'which of two epochs with the same metric is picked: "earlier" or "later"',
        choices=("earlier", "later"),
        before="earlier",
    ),
    "ema": Field(True, "evaluate the moving average of the weights if train.ema is on"),
    "specificity": Field(
        0.0,
        "binary tasks: also report the operating point with at least this specificity on validation; 0: only"
        " threshold 0.5",
        range=Range(least=0, below=1),
    ),
    "batch_size": Field(128, "samples per evaluation step, over all devices", range=BATCH_SIZE),
    "unit": Field(
        "image",
        'what metrics, intervals, the choice by validation and the threshold count: "image", or "patient": the mean of'
        " the probabilities of a patient's images",
        choices=("image", "patient"),
        before="image",
    ),
    "bootstrap": Field(1000, "bootstrap resamples for the 95 % intervals", range=Range(above=0, most=10**6)),
}
# Validation chooses a baseline's hyper-parameters: test figures of the protocol "reference" would be useless.
BASELINE_EVAL = {
    "protocol": Field("validation", 'split that picks the hyper-parameters: "validation"', choices=("validation",)),
    "metric": Field(
        "auc",
        'metric that picks the hyper-parameters: "auc", "acc", or "avg", see eval.metric of a trained model',
        choices=SELECTION,
    ),
    **{name: EVAL[name] for name in ("specificity", "batch_size", "unit", "bootstrap")},
}
