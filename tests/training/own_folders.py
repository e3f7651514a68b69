"""A user's own files: class folders of pictures and labelled volumes, and a small config for them."""

import csv
import pathlib

import nibabel
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from configs import quickstart

COUNT = 16


def make_config(root: pathlib.Path | str, **changes: object) -> ConfigDict:
    """The quick start's config for a folder, without a block; `optim__lr=1` changes optim.lr."""
    config = quickstart.get_config()
    config.update_from_flattened_dict(
        {
            "data.source": "folder",
            "data.name": "mine",
            "data.root": str(root),
            "data.size": 28,
            "data.shares": (0.5, 0.25, 0.25),
            "model.backbone": "vit_tiny",
            "boost.kind": "none",
            "optim.lr": 1e-2,
            "optim.warmup_epochs": 0.0,
            "train.epochs": 2,
            "train.batch_size": 4,
            "eval.batch_size": 8,
            "eval.bootstrap": 20,
            **{name.replace("__", "."): value for name, value in changes.items()},
        }
    )
    return config


def write_pictures(folder: pathlib.Path) -> pathlib.Path:
    """Class folders of pictures, some in colour; those of `bright` have a brighter middle."""
    rng = np.random.default_rng(0)
    for label in ("bright", "dark"):
        (folder / label).mkdir(parents=True)
        for number in range(COUNT):
            image = rng.integers(0, 100, (20, 24, 3), np.uint8)
            if label == "bright":
                image[5:15, 5:15] += 100
            Image.fromarray(image if number % 2 else image[..., 0]).save(folder / label / f"{number:02}.png")
    return folder


def write_volumes(folder: pathlib.Path) -> pathlib.Path:
    """labels.csv and two NIfTI volumes of each of 24 patients with thick slices; half have a bright ball."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    rows = []
    for patient in range(24):
        for number in range(2):
            values = rng.integers(-1000, 0, (14, 14, 7)).astype(np.int16)
            if patient % 2:
                values[4:10, 4:10, 2:5] += 900
            name = f"{patient}_{number}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.0, 1.0, 2.0, 1.0])), folder / name)
            rows.append((name, ("healthy", "sick")[patient % 2], f"P{patient}"))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label", "patient_id"), *rows])
    return folder
