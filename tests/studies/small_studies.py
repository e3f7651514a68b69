"""A small study on the LIDC shapes, and runs that are written without any training."""

import pathlib
from typing import Any

import numpy as np

from jaxboost.config import continuing
from jaxboost.config.types import Config
from jaxboost.data.dataset import Dataset, DatasetInfo, Split
from jaxboost.evaluation import prediction_table
from jaxboost.io import write_text
from jaxboost.runs import workdir
from jaxboost.runs.result import Figures, Parameters, RunResult, Selection
from jaxboost.studies.study import CONTROL, Arm, Comparison, Study

# As `small_runs.small_config`.
SMALL = {
    "model.backbone": "vit3d_tiny",
    "model.dtype": "float32",
    "boost.block": "random",
    "boost.family": "llama-tiny",
    "boost.layers": (0,),
    "boost.source": "",
    "boost.convert": False,
    "optim.warmup_epochs": 0.0,
    "train.batch_size": 16,
    "eval.batch_size": 24,
    "train.epochs": 1,
    "train.max_steps": 2,
    "eval.bootstrap": 20,
}
PLAIN = Arm(name="plain", title="Plain ViT", config="quickstart", overrides={"boost.kind": "none"}, rung=0)
RLLM = Arm(name="rllm", title="R-LLM", config="quickstart", rung=1, tuned=True)
BARE = Arm(
    name="bare",
    title="R-LLM, evaluated without its residual",
    config="quickstart",
    overrides={"boost.kind": "bare"},
    group=CONTROL,
    after="rllm",
)
CLAIM = Comparison(arm="rllm", reference="plain", claim="the layer helps", main=True)
CLASSES = ("benign", "malignant")


def small_study(root: pathlib.Path | str = "", **changes: Any) -> Study:
    """Three arms, two seeds and two learning rates; `root` has the LIDC shapes."""
    fields: dict[str, Any] = {
        "name": "small",
        "question": "Does it run?",
        "expected": "Yes.",
        "arms": (PLAIN, RLLM, BARE),
        "comparisons": (CLAIM,),
        "seeds": 2,
        "lr_grid": (1e-3, 1e-4),
        "shared": {"data.root": str(root), **SMALL},
    }
    return Study(**{**fields, **changes})


def dataset(n: int = 24, shift: int = 0) -> Dataset:
    """Samples without images; `shift` moves their labels."""
    info = DatasetInfo(
        name="lidcshapes3d", task="binary-class", classes=CLASSES, channels=1, ndim=3, size=28, license="CC"
    )
    splits = {}
    for split in ("train", "val", "test"):
        labels = (np.arange(n) + shift) % 3 // 2
        groups = np.array([f"p{number // 2}" for number in range(n)])
        splits[split] = Split(images=np.zeros((n, 0), np.uint8), labels=labels[:, np.newaxis], groups=groups)
    return Dataset(info=info, splits=splits, baselines={})


def _figures(positive: np.ndarray, scores: np.ndarray) -> Figures:
    above = scores[positive][:, np.newaxis] - scores[~positive]
    return Figures(
        acc=float(((scores > 0.5) == positive).mean()),
        auc=float(((above > 0) + (above == 0) / 2).mean()),
        majority_acc=float(max(positive.mean(), 1 - positive.mean())),
        n=len(scores),
        ci95={},
    )


def write_run(
    config: Config,
    folder: pathlib.Path,
    *,
    given: Dataset | None = None,
    strengths: dict[str, float] | None = None,
    data_sha256: str | None = None,
    **entries: Any,
) -> dict[str, Any]:
    """Writes the folder of a finished run; `strengths`: split -> how well its scores tell the classes apart."""
    given = given or dataset()
    reference = config.eval.protocol == "reference"
    info, rng, figures = given.info, np.random.default_rng(config.seed), {}
    for split in ("test",) if reference else ("val", "test"):
        labels = given.splits[split].labels
        signal = (strengths or {}).get(split, 1.0) * (2 * labels[:, 0] - 1)
        positive = 1 / (1 + np.exp(-signal - rng.normal(0, 1, len(labels))))
        scores = np.column_stack([1 - positive, positive]).astype(np.float32)
        figures[split] = _figures(labels[:, 0] == 1, scores[:, 1])
        name = f"{'reference-' if reference else ''}{split}.csv"
        write_text(folder / workdir.PREDICTIONS / name, prediction_table.named_table(given, split, scores))
    workdir.create(folder, config)
    picked = "test" if reference else "val"
    result = RunResult(
        **{
            "dataset": info.name,
            "task": info.task,
            "classes": info.classes,
            "splits": {name: len(split) for name, split in given.splits.items()},
            "seed": config.seed,
            "protocol": config.eval.protocol,
            "warning": None,
            "model": config.model.backbone,
            "boost": config.boost.kind,
            "parameters": Parameters(trainable=100, frozen=10),
            "data_sha256": data_sha256,
            "config": continuing.to_dict(config),
            "versions": {"jaxboost": "0"},
            "selection": Selection(split=picked, metric="auc", epoch=1, step=2, value=figures[picked].auc),
            "val": figures.get("val"),
            "test": figures["test"],
            "baselines": {},
            "threshold": None,
            "steps": 2,
            "seconds": 10.0,
            **entries,
        }
    )
    return workdir.write_result(folder, result)
