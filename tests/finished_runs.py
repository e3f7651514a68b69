"""Small runs that are finished, and their test images as files."""

import csv
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from configs import quickstart
from jaxboost.data.dataset import Split
from jaxboost.runs import cross_validation, train
from tests.training.radiographs import small, write_radiographs
from tests.training.small_runs import small_config

SHORT = {"train.epochs": 1, "train.max_steps": 2, "eval.bootstrap": 10}


def volumes(root: pathlib.Path, folder: pathlib.Path, **changes: Any) -> pathlib.Path:
    """R-LLM on the LIDC shapes, with a threshold; a random block."""
    config = small_config(root, {**SHORT, "eval.specificity": 0.9, "eval.batch_size": 10, **changes})
    train.train_and_evaluate(config, folder)
    return folder


def radiographs(root: pathlib.Path, folder: pathlib.Path, **changes: Any) -> pathlib.Path:
    """One fold of PneumoLLM, with adapters in both of its parts that are not the identity any more."""
    if not root.exists():
        write_radiographs(root)
    fields = {"data__fold": 0, "train__epochs": 1, "optim__lr": 3e-2, "eval__bootstrap": 10, **changes}
    cross_validation.train_and_evaluate(small(root, **fields), folder)
    return folder / "fold0"


def colours(root: pathlib.Path, folder: pathlib.Path, **changes: Any) -> pathlib.Path:
    """Several labels of colour images that are resized and cropped."""
    if not root.exists():
        _write_colours(root)
    config = quickstart.get_config()
    config.update_from_flattened_dict(
        {
            **SHORT,
            "data.source": "folder",
            "data.name": "colours",
            "data.root": str(root),
            "data.size": 32,
            "data.multi_label": True,
            "model.backbone": "vit_tiny",
            "model.mean": (0.5, 0.4, 0.3),
            "model.std": (0.2, 0.3, 0.4),
            "augment.resize": 30,
            "boost.kind": "none",
            "boost.family": "",
            "boost.source": "",
            "boost.convert": False,
            "optim.warmup_epochs": 0.0,
            "train.batch_size": 8,
            "eval.batch_size": 8,
            **changes,
        }
    )
    train.train_and_evaluate(config, folder)
    return folder


def _write_colours(root: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    rows = []
    for number in range(30):
        labels = [name for bit, name in enumerate(("blue", "green", "red")) if number >> bit & 1]
        name = f"{number:02d}.png"
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), np.uint8)).save(root / "images" / name)
        rows.append((name, "|".join(labels), f"p{number}", ("train", "val", "test")[number % 3]))
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label", "patient_id", "split"), *rows])


def write_test_images(split: Split, folder: pathlib.Path) -> pathlib.Path:
    """The images of a split as .npy files, whose names sort in their order."""
    folder.mkdir()
    for number, image in enumerate(split.images):
        np.save(folder / f"{number:04d}.npy", image[..., 0] if image.shape[-1] == 1 else image)
    return folder


def own_predictions(run: pathlib.Path) -> np.ndarray:
    """What the run itself predicted for its test split, (n, classes)."""
    (file,) = (run / "predictions").glob("*_test_*@*.csv")
    return np.loadtxt(file, delimiter=",", ndmin=2)[:, 1:]


def named_predictions(run: pathlib.Path) -> list[str]:
    """The files of a folder's test split, in the order of `own_predictions`."""
    with (run / "predictions" / "test.csv").open(newline="") as file:
        return [row["file"] for row in csv.DictReader(file)]


def read_table(path: pathlib.Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
