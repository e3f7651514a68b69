"""`model.dtype=auto`: the device of a run's first start decides once, and everything follows what it decided."""

import jax
import pytest

from jaxboost import systems
from jaxboost.config import load_config
from jaxboost.errors import UserError
from jaxboost.runs import datasets, train, workdir
from jaxboost.studies import definition, plan
from tests import devices
from tests.studies.small_studies import small_study

CHANGES = {"model.weights": "nowhere", "model.frozen": True, "boost.block": "random", "boost.final_norm": "ones"}


@pytest.mark.parametrize("name", ["quickstart", "breastmnist_vits", "baseline"])
def test_a_packaged_config_leaves_it_to_the_device(name, monkeypatch):
    for given, dtype in ((devices.CPU, "float32"), (devices.A100, "bfloat16")):
        devices.stand_in(monkeypatch, given)
        config = load_config(name)
        assert config.model.dtype == "auto"
        assert systems.resolved(config).model.dtype == dtype
        # What the config says counts more.
        config.model.dtype = "float32"
        assert systems.resolved(config).model.dtype == "float32"


def test_a_run_goes_on_as_it_started(tmp_path, monkeypatch, package_warnings):
    devices.stand_in(monkeypatch, devices.A100)
    config = load_config("quickstart")
    workdir.create(tmp_path, train.resolved(config, tmp_path))
    devices.stand_in(monkeypatch, devices.CPU)
    assert train.resolved(config, tmp_path).model.dtype == "bfloat16"
    assert workdir.finished_result(tmp_path, train.resolved(config, tmp_path)) is None
    config.model.dtype = "float32"
    with pytest.raises(UserError, match=r"model\.dtype \('bfloat16' there, 'float32' now\)"):
        workdir.finished_result(tmp_path, train.resolved(config, tmp_path))
    assert package_warnings == []


@pytest.mark.parametrize(("given", "option"), [(devices.CPU, ""), (devices.A100, " --dtype bfloat16")])
def test_weights_follow(given, option, monkeypatch):
    """The dtype of conversion, of random frozen weights, and of the model's computation."""
    devices.stand_in(monkeypatch, given)
    config = load_config("breastmnist_vits", **CHANGES)
    info = datasets.describe(config)
    with pytest.raises(UserError, match=rf"--part encoder{option} --out"):
        systems.prepare(config, info)
    config.model.weights = "random"
    prepared = systems.prepare(config, info)
    assert [part.about["dtype"] for part in prepared.pretrained] == ["bfloat16" if option else "float32"] * 2
    # Trained weights stay float32.
    assert {leaf.dtype.name for leaf in jax.tree.leaves(prepared.params)} == {"float32"}


def test_all_arms_of_a_study_compute_alike(tmp_path, monkeypatch):
    shared = {name: value for name, value in small_study().shared.items() if name != "model.dtype"}
    study = small_study(shared=shared)

    def dtypes():
        made = definition.with_dtype(plan.make(study, tmp_path))
        definition.write(tmp_path, definition.check(made))
        return {config.model.dtype for config in (*made.configs.values(), *(run.config for run in made.runs))}

    devices.stand_in(monkeypatch, devices.H100)
    assert dtypes() == {"bfloat16"}
    # Another process of the study, on another machine.
    devices.stand_in(monkeypatch, devices.CPU)
    assert dtypes() == {"bfloat16"}
