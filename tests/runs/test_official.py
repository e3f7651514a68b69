"""The official MedMNIST files: the configs' models train on them, and MedMNIST's evaluator reads what a run wrote."""

import dataclasses
import importlib
import json
import pathlib
import shutil

import numpy as np
import pytest
from medmnist.evaluator import Evaluator

from jaxboost.models.backbones import BACKBONES
from jaxboost.runs import assembly, train
from tests.training.small_runs import on_host, small_config, take_steps

SIZES = {
    "vesselmnist3d": {"train": 1335, "val": 191, "test": 382},
    "breastmnist": {"train": 546, "val": 78, "test": 156},
}


def _needs(root: pathlib.Path, name: str) -> None:
    if not (root / f"{name}.npz").exists():
        pytest.skip(f"official MedMNIST file not found: {name}.npz in MEDMNIST_ROOT")


@pytest.mark.parametrize("name", ["vesselmnist3d_vivits", "vesselmnist3d_vit3d", "breastmnist_vits"])
def test_two_steps_of_the_configs_run(name, official_root, tmp_path, monkeypatch):
    """With one layer of each kind, as wide as in the paper: each further one takes seconds to compile."""
    config = importlib.import_module(f"configs.{name}").get_config()
    _needs(official_root, config.data.name)
    backbone = BACKBONES[config.model.backbone]
    shallow = {field: 1 for field in backbone.arguments if field.endswith("depth")}
    assert shallow
    changed = dataclasses.replace(backbone, arguments=backbone.arguments | shallow)
    monkeypatch.setitem(BACKBONES, config.model.backbone, changed)
    config.update_from_flattened_dict(
        {
            "data.root": str(official_root),
            "model.weights": "",
            "boost.block": "random",
            "boost.family": "llama-tiny",
            "boost.layers": (0,),
            "train.batch_size": 4,
        }
    )
    run = assembly.assemble(config, tmp_path / "run")
    assert {split: len(held) for split, held in run.dataset.splits.items()} == SIZES[config.data.name]
    before, frozen = on_host(run.state.params), on_host(run.frozen)
    losses = take_steps(run, 2)
    assert np.isfinite(losses).all()
    after = on_host(run.state.params)
    unchanged = [path for path, array in after.items() if np.array_equal(array, before[path])]
    assert unchanged == []
    assert all(np.isfinite(array).all() for array in after.values())
    assert all(np.array_equal(array, frozen[path]) for path, array in on_host(run.frozen).items())
    assert int(run.state.step) == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "backbone", "majority"), [("vesselmnist3d", "vit3d_tiny", 0.887), ("breastmnist", "vit_tiny", 0.731)]
)
def test_whole_run_and_medmnists_own_evaluator(name, backbone, majority, official_root, tmp_path):
    _needs(official_root, name)
    files_before = {path: path.stat().st_mtime_ns for path in official_root.iterdir()}
    config = small_config(official_root, {"data.name": name, "model.backbone": backbone, "model.image_size": 28})
    train.train_and_evaluate(config, tmp_path / "run")
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["dataset"] == name
    assert result["task"] == "binary-class"
    assert result["splits"] == SIZES[name]
    assert result["test"]["n"] == SIZES[name]["test"]
    assert round(result["test"]["majority_acc"], 3) == majority

    class OfficialEvaluator(Evaluator):
        def __init__(self, flag, split, size=None):
            super().__init__(flag, split, size, root=str(official_root))

    # The evaluator writes into the folder of the file that it reads.
    copy = shutil.copytree(tmp_path / "run/predictions", tmp_path / "copy")
    for split in ("val", "test"):
        (file,) = copy.glob(f"{name}_{split}_*@seed0.csv")
        figures = OfficialEvaluator.parse_and_evaluate(str(file))
        ours = [result[split][name] for name in ("auc", "acc")]
        assert list(figures) == pytest.approx(ours, abs=1e-9)
    # Under the names that the evaluator gives, that is over our own files.
    assert {file.name for file in copy.iterdir()} == {file.name for file in (tmp_path / "run/predictions").iterdir()}
    assert files_before == {path: path.stat().st_mtime_ns for path in official_root.iterdir()}
