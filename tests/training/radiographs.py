"""Drawn radiographs, and small PneumoLLM runs on them with random frozen parts."""

import csv
import pathlib

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from configs import pneumollm
from jaxboost.runs import assembly, datasets
from jaxboost.training.active_run import ActiveRun

PATIENTS, PER_PATIENT = 24, 2


def write_radiographs(folder: pathlib.Path) -> pathlib.Path:
    """48 images of 24 patients, half of them with a brighter middle: label "sick"."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    rows = []
    for patient in range(PATIENTS):
        for number in range(PER_PATIENT):
            image = rng.integers(0, 100, (28, 28), np.uint8)
            if patient % 2:
                image[8:20, 8:20] += 100
            name = f"p{patient:02d}_{number}.png"
            Image.fromarray(image).save(folder / "images" / name)
            rows.append((f"p{patient:02d}", name, "sick" if patient % 2 else "healthy"))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("patient_id", "file", "label"), *rows])
    return folder


SMALL = {
    "data.size": 28,
    "data.classes": ("healthy", "sick"),
    "data.folds": 3,
    "data.val_share": 0.25,
    "model.backbone": "vit_tiny",
    "model.image_size": 28,
    "model.dtype": "float32",
    "pneumollm.vision": "random",
    "pneumollm.every": 1,
    "llama.family": "llama-tiny",
    "llama.block": "random",
    "llama.layers": (0, 1),
    "llama.final_norm": "ones",
    "optim.lr": 1e-2,
    "optim.warmup_epochs": 0.0,
    "train.epochs": 2,
    "train.batch_size": 8,
    "eval.batch_size": 8,
    "eval.bootstrap": 20,
}


def small(root: pathlib.Path, argument: str = "", **changes: object) -> ConfigDict:
    """The PneumoLLM config made small, with random frozen parts; `optim__lr=1` changes optim.lr."""
    config = pneumollm.get_config(argument)
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    config.update_from_flattened_dict({**SMALL, "data.root": str(root), **changes})
    return config


def make_run(config: ConfigDict, folder: pathlib.Path) -> ActiveRun:
    """The run of the first fold, before its first step."""
    one = config.copy_and_resolve_references()
    one.data.fold = 0
    fold = datasets.Splits(
        load=lambda: datasets.fold_of(datasets.load(one), one, 0, None), prepare=lambda: None, folder=folder
    )
    return assembly.assemble(one, folder / "fold0", fold)


def int8_layers(block: pathlib.Path, **changes: object) -> dict[str, object]:
    """Config fields for the block's layers 2 and 0 as int8."""
    return {
        "llama__block": str(block),
        "llama__layers": (2, 0),
        "llama__final_norm": "loaded",
        "llama__weights": "int8",
        **changes,
    }
