"""Several seeds in one program give what each seed gives alone."""

import json

import jax
import numpy as np
import pytest

from jaxboost import convert
from jaxboost.config import continuing
from jaxboost.errors import UserError
from jaxboost.io import read_json
from jaxboost.runs import seeds, train, workdir
from jaxboost.training import program, several, step
from jaxboost.training.engine import Together
from tests.metrics import records
from tests.reference.llama_checkpoints import tiny_llama, write_safetensors
from tests.training.small_runs import small_config
from tests.training.stopped_runs import send_in

# Two epochs of three steps, with everything that a seed decides: order, augmentation, mixing, dropped paths.
CHANGES = {
    "train.max_steps": 6,
    "train.epochs": 2,
    "train.log_every": 1,
    "train.ema": 0.5,
    "augment.volume_flips": True,
    "mix.mixup": 0.2,
    "model.drop_path": 0.2,
    "seed": 3,
}


def assert_near(folder, alone):
    """Stated tolerance: losses and predictions to 1e-5, as two programs may round differently."""
    found, expected = records(folder), records(alone)
    assert [record.keys() for record in found] == [record.keys() for record in expected]
    for ours, theirs in zip(found, expected, strict=True):
        for name, value in ours.items():
            assert value == pytest.approx(theirs[name], rel=2e-4 if name == "grad_norm" else 1e-5, abs=1e-5), name
    for split in ("val", "test"):
        ours, theirs = (predictions(each, split) for each in (folder, alone))
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    ours, theirs = (read_json(each / "config.json") for each in (folder, alone))
    ours["train"]["steps_per_call"] = theirs["train"]["steps_per_call"]
    assert ours == theirs


def predictions(folder, split):
    lines = (folder / "predictions" / f"{split}.csv").read_text().splitlines()[1:]
    return np.array([[float(value) for value in line.split(",")[-2:]] for line in lines])


def damage(checkpoint):
    """Changes a byte of the largest file."""
    file = max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)


def config_of(root, **changes):
    return small_config(root, {**CHANGES, **changes})


@pytest.fixture(scope="module")
def block(tmp_path_factory):
    """A converted layer of a tiny LLaMA."""
    folder = tmp_path_factory.mktemp("block")
    write_safetensors(tiny_llama(0), folder / "checkpoint")
    convert.convert(str(folder / "checkpoint"), "-1", folder / "block")
    return folder / "block"


def test_trees_are_divided_and_joined():
    tree = {"a": {"x": 1, "y": {"z": 2}}, "b": 3, "c": {"d": 4}}
    named, rest = several.divided(tree, [("a", "y"), ("c",)])
    assert named == {"a": {"y": {"z": 2}}, "c": {"d": 4}}
    assert rest == {"a": {"x": 1}, "b": 3}
    assert several.joined(named, rest) == several.joined(rest, named) == tree
    assert several.divided(tree, []) == ({}, tree)


@pytest.mark.parametrize(
    ("steps", "common"),
    [([(), ()], 0), ([(3, 6), (6, 9)], 6), ([(3, 6), (3, 6)], 6), ([(270, 300), ()], None), ([(3,), (6, 9)], None)],
)
def test_the_step_from_which_all_go_on(steps, common, tmp_path):
    folders = [tmp_path / str(index) for index in range(len(steps))]
    for folder, found in zip(folders, steps, strict=True):
        for number in found:
            (folder / "checkpoints/latest" / str(number)).mkdir(parents=True)
    assert train.common_step(folders) == common


def test_a_seed_that_is_further_along_is_never_thrown_back(few_lidc_root, tmp_path, monkeypatch):
    runs = seeds.of_config(config_of(few_lidc_root, **{"train.seeds": 2}), tmp_path)
    (tmp_path / "seed3/checkpoints/latest/300").mkdir(parents=True)
    alone = []
    monkeypatch.setattr(train, "train_and_evaluate", lambda config, folder: alone.append(folder.name) or {})
    monkeypatch.setattr(seeds, "_train", lambda todo: 1 / 0)
    assert seeds.train_and_evaluate(runs).keys() == runs.keys()
    assert alone == ["seed3", "seed4"]


def test_seeds_that_began_with_other_choices_are_refused(few_lidc_root, tmp_path):
    runs = seeds.of_config(config_of(few_lidc_root, **{"train.seeds": 2, "model.dtype": "auto"}), tmp_path)
    workdir.create(tmp_path / "seed4", continuing.with_values(runs[tmp_path / "seed4"], {"model.dtype": "bfloat16"}))
    with pytest.raises(UserError, match=r"seed4 was started with model\.dtype='bfloat16', .* with 'float32'"):
        seeds.train_and_evaluate(runs)


@pytest.mark.parametrize("on_device", ["false", "true"])
def test_two_seeds_are_those_alone_also_after_a_stop(few_lidc_root, tmp_path, monkeypatch, block, on_device):
    """A random block, which each seed draws; and with data on the devices a loaded one, which is there once."""
    config = config_of(few_lidc_root, **{"data.on_device": on_device, "train.seeds": 2})
    if on_device == "true":
        config.train.steps_per_call = 2
        config.boost.block = str(block)
        config.boost.layers = ()
    runs = seeds.of_config(config, tmp_path)
    assert [folder.name for folder in runs] == ["seed3", "seed4"]
    with monkeypatch.context() as patched:
        # In the second epoch, after step 5: calls of two steps and one, or of one step each.
        send_in(patched, step, "put", call=3 if on_device == "true" else 5)
        held = []
        monkeypatch.setattr(seeds, "Together", lambda *arguments: held.append(Together(*arguments)) or held[-1])
        assert seeds.train_and_evaluate(runs) is None
    count = {name: len(jax.tree.leaves(tree)) for name, tree in held[0]._frozen.items()}
    assert (count[several.SHARED] > 0) == (on_device == "true")
    assert (count[several.OWN] > 0) == (on_device == "false")
    program.forget()  # as in another process
    # A kill may have come between the saves of the two.
    steps = {folder: sorted(path.name for path in folder.glob("checkpoints/latest/*")) for folder in runs}
    assert steps[tmp_path / "seed3"] == steps[tmp_path / "seed4"] == ["3", "5"]
    if on_device == "false":
        (tmp_path / "seed4/checkpoints/latest/5").rename(tmp_path / "gone")
    else:
        # Damaged: it is found only when it is read.
        damage(tmp_path / "seed4/checkpoints/latest/5")
    found = seeds.train_and_evaluate(runs)
    assert found.keys() == runs.keys()
    for folder, content in found.items():
        assert json.loads((folder / "result.json").read_text()) == content
        assert (folder / "checkpoints").exists()
    number, alone = 3 if on_device == "true" else 4, tmp_path / "alone"
    one_by_one = {"seed": number, "train.seeds": 1, "train.steps_per_call": 1}
    train.train_and_evaluate(continuing.with_values(config, one_by_one), alone)
    assert_near(tmp_path / f"seed{number}", alone)
    losses = [[record["train_loss"] for record in records(folder) if "train_loss" in record] for folder in runs]
    assert all(one != other for one, other in zip(*losses, strict=True))
    # Finished runs are left as they are.
    assert seeds.train_and_evaluate(runs) == found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.folds": 3}, "data.folds, as its folds"),
        ({"data.train_fraction": 0.5}, "data.train_fraction, as each seed draws other samples"),
        ({"train.fsdp": True}, "train.fsdp"),
    ],
)
def test_what_does_not_go_together_is_refused(few_lidc_root, tmp_path, changes, words):
    config = config_of(few_lidc_root, **{**changes, "train.seeds": 2})
    with pytest.raises(UserError, match=rf"train\.seeds: it does not go together with {words}.*set train\.seeds=1"):
        seeds.train_and_evaluate(seeds.of_config(config, tmp_path))
    assert not list(tmp_path.iterdir())


def test_one_folder_is_not_enough(few_lidc_root, tmp_path):
    with pytest.raises(UserError, match=r"train\.seeds: 2 runs need several folders"):
        train.train_and_evaluate(config_of(few_lidc_root, **{"train.seeds": 2}), tmp_path / "run")
