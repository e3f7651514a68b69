"""Small baselines inside the test's process: 60 grey images of three classes, each patient's in one split."""

import csv
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from jaxboost.config import load_config

CLASSES = ("dark", "grey", "light")
SIDE = 14


def write_images(root: pathlib.Path, *, classes: int = 3, seed: int = 0) -> pathlib.Path:
    """Images whose mean tells the class, not quite; two for each patient, who have one class."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True)
    rows = []
    for number in range(60):
        patient = number // 2
        label = patient % classes
        split = ("train", "train", "train", "val", "test")[patient // classes % 5]
        level = 60 + 40 * label + rng.normal(0, 30)
        pixels = np.clip(rng.normal(level, 40, (SIDE, SIDE)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{number:02d}.png")
        rows.append((f"{number:02d}.png", CLASSES[label], f"p{patient}", split))
    with (root / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label", "patient_id", "split"), *rows])
    return root


def small_config(root: pathlib.Path, rung: str = "trivial", **changes: Any) -> ConfigDict:
    """The packaged config of a rung on a folder of `write_images`, with a tiny random encoder."""
    return load_config(
        f"baseline:{rung}",
        **{
            "data.source": "folder",
            "data.name": "small",
            "data.root": str(root),
            "data.size": SIDE,
            "baseline.ndim": 2,
            "model.backbone": "vit_tiny",
            "model.weights": "random",
            "model.image_size": SIDE,
            "eval.batch_size": 16,
            "eval.bootstrap": 10,
            **{name.replace("__", "."): value for name, value in changes.items()},
        },
    )
