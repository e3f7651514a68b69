"""PneumoLLM runs from end to end on radiographs that the test draws, with tiny random frozen parts."""

import csv
import json
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest

from configs import pneumollm
from jaxboost.errors import UserError
from jaxboost.models import frozen
from jaxboost.runs import cross_validation, datasets, train
from jaxboost.tasks import TASKS
from jaxboost.training import optim, source_tokens
from tests.scripts import KILL, devices, interrupted_training, run_inside, run_script
from tests.training.radiographs import PATIENTS, PER_PATIENT, SMALL, make_run, small, write_radiographs
from tests.training.small_runs import on_host, take_steps

# What is replaced here are functions of the host.
pytestmark = pytest.mark.same_programs


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory):
    return write_radiographs(tmp_path_factory.mktemp("radiographs"))


@pytest.fixture(scope="module")
def finished(radiographs, tmp_path_factory):
    """All folds of a small run: its folder and its result."""
    folder = tmp_path_factory.mktemp("runs") / "seed0"
    return folder, cross_validation.train_and_evaluate(small(radiographs), folder)


def test_all_folds_in_one_command(finished):
    folder, result = finished
    assert result == json.loads((folder / "result.json").read_text())
    assert [fold["fold"] for fold in result["folds"]] == [0, 1, 2]
    assert sum(fold["splits"]["test"] for fold in result["folds"]) == PATIENTS * PER_PATIENT
    assert {"vision", "llama", "config"} <= result.keys()
    assert result["boost"] == "pneumollm"
    for name in cross_validation.METRICS:
        values = [fold[name] for fold in result["folds"]]
        assert result["test"][name]["mean"] == pytest.approx(np.mean(values))
        assert result["test"][name]["sd"] == pytest.approx(np.std(values, ddof=1))
    # The classes can be told apart by brightness; a model that learns nothing has 50.
    assert result["test"]["auc"]["mean"] > 0.8


def test_no_patient_is_on_two_sides(finished):
    folder, _ = finished
    assert len(_patients(folder / "folds.csv")) == PATIENTS
    tests = []
    for number in range(3):
        predictions = folder / f"fold{number}" / "predictions"
        val, test = _patients(predictions / "val.csv"), _patients(predictions / "test.csv")
        assert val
        assert not val & test
        tests += test
    assert len(tests) == len(set(tests)) == PATIENTS


def _patients(table: pathlib.Path) -> set[str]:
    with table.open(newline="") as file:
        return {row["patient_id"] for row in csv.DictReader(file)}


def test_training_has_nobody_of_the_other_splits(radiographs):
    config = small(radiographs)
    whole = datasets.load(config)
    for number in range(3):
        splits = datasets.fold_of(whole, config, number, None).splits
        members = {name: set(split.groups) for name, split in splits.items()}
        assert sum(map(len, members.values())) == PATIENTS
        assert set.union(*members.values()) == set(whole.splits["all"].groups)


def test_folds_of_another_config_are_not_mixed(finished, radiographs, tmp_path):
    folder, result = finished
    with pytest.raises(UserError, match=r"differs in optim\.lr"):
        cross_validation.train_and_evaluate(small(radiographs, optim__lr=2e-2, data__fold=1), folder)
    # The data may have moved, but not changed.
    moved = shutil.copytree(radiographs, tmp_path / "moved")
    assert cross_validation.train_and_evaluate(small(moved), folder)["folds"] == result["folds"]
    table = (moved / "labels.csv").read_text()
    (moved / "labels.csv").write_text(
        table.replace("p00_0.png,healthy", "p00_0.png,sick").replace("p00_1.png,healthy", "p00_1.png,sick")
    )
    with pytest.raises(UserError, match=r"fold0 is a finished run with other data than those in .*moved"):
        cross_validation.train_and_evaluate(small(moved), folder)
    with pytest.raises(UserError, match=r"data\.folds \(3 there, 0 now\)"):
        cross_validation.train_and_evaluate(
            small(radiographs, data__folds=0, data__source="", data__name="breastmnist", data__classes=()), folder
        )


KILLED_IN_SECOND_FOLD = interrupted_training(10, "fold1/checkpoints/latest/3", KILL)


def test_killed_fold_goes_on_to_the_same_end(finished, radiographs, tmp_path):
    _, result = finished
    workdir = tmp_path / "killed"
    fields = {**SMALL, "data.root": str(radiographs)}
    arguments = ["--config=configs/pneumollm.py", f"--workdir={workdir}"]
    arguments += [f"--config.{name}={value}" for name, value in fields.items()]
    killed = run_script("-c", KILLED_IN_SECOND_FOLD, workdir, *arguments)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (workdir / "fold0" / "result.json").exists()
    assert not (workdir / "result.json").exists()

    again = run_inside("train.py", *arguments)
    assert again.returncode == 0, again.stderr
    assert "fold0 is finished" in again.stdout
    assert "resumed from step 3" in again.stdout
    resumed = json.loads((workdir / "result.json").read_text())
    assert resumed["folds"] == result["folds"]
    assert resumed["test"] == result["test"]


def test_radiographs_that_changed_are_not_resumed(radiographs, tmp_path):
    folder = write_radiographs(tmp_path / "changing")
    run = tmp_path / "run"
    cross_validation.train_and_evaluate(small(folder, data__fold=0), run)
    (run / "fold0" / "result.json").unlink()
    table = folder / "labels.csv"
    table.write_text(
        table.read_text().replace("p00_0.png,healthy", "p00_0.png,sick").replace("p00_1.png,healthy", "p00_1.png,sick")
    )
    with pytest.raises(UserError, match=r"fold0/checkpoints was trained with other data \("):
        cross_validation.train_and_evaluate(small(folder, data__fold=0), run)


def test_each_fold_says_what_it_is(finished):
    folder, _ = finished
    result = json.loads((folder / "fold1" / "result.json").read_text())
    assert result["config"]["data"]["fold"] == 1
    assert result["selection"]["split"] == "val"
    assert result["selection"]["metric"] == "avg"
    assert {"vision", "llama"} <= result.keys()
    assert result["llama"]["source"] == result["vision"]["source"] == "random"
    assert len(result["llama"]["sha256"]) == 64
    assert result["test"]["avg"] == pytest.approx(
        np.mean([result["test"][name] for name in ("sensitivity", "specificity", "acc", "auc")])
    )


def test_finished_folds_are_not_run_again(finished, radiographs):
    folder, result = finished
    before = {path: path.stat().st_mtime_ns for path in folder.glob("fold*/result.json")}
    assert cross_validation.train_and_evaluate(small(radiographs), folder) == result
    assert {path: path.stat().st_mtime_ns for path in folder.glob("fold*/result.json")} == before


def test_one_fold_alone_is_the_same(finished, radiographs, tmp_path):
    folder, _ = finished
    assert cross_validation.train_and_evaluate(small(radiographs, data__fold=1), tmp_path) is None
    alone = json.loads((tmp_path / "fold1" / "result.json").read_text())
    whole = json.loads((folder / "fold1" / "result.json").read_text())
    assert alone["test"] == whole["test"]
    assert not (tmp_path / "fold0").exists()
    assert not (tmp_path / "result.json").exists()


def test_checkpoints_hold_the_trained_weights_alone(finished, radiographs, tmp_path):
    folder, result = finished
    with train.Checkpointer(folder / "fold0" / "checkpoints") as checkpointer:
        fold = json.loads((folder / "fold0" / "result.json").read_text())
        run = make_run(small(radiographs), tmp_path)
        params, stats = checkpointer.restore_best(fold["selection"]["step"], run.state.params, {})
    assert stats == {}
    assert frozen.count(params) == result["parameters"]["trainable"]
    size = sum(path.stat().st_size for path in (folder / "fold0" / "checkpoints" / "best").rglob("*") if path.is_file())
    assert size < 2 * 4 * (result["parameters"]["trainable"] + 50_000)


def test_everything_that_is_to_be_trained_is(radiographs, tmp_path):
    """The released code leaves the engine at its random start."""
    run = make_run(small(radiographs), tmp_path)
    before, kept = on_host(run.state.params), on_host(run.frozen)
    take_steps(run, 2)
    after = on_host(run.state.params)
    # A bias that all scores share cancels in their softmax.
    still = [path for path in before if np.array_equal(before[path], after[path]) and "['scores']['bias']" not in path]
    assert still == []
    for path, leaf in on_host(run.frozen).items():
        np.testing.assert_array_equal(leaf, kept[path], err_msg=path)


def test_images_are_encoded_once_where_the_encoder_stays_as_it_is(radiographs, tmp_path, monkeypatch):
    config = small(radiographs, pneumollm__vision_adapters=False, train__batch_size=16)
    once = make_run(config, tmp_path / "once")
    tokens = once.dataset.splits["train"].images
    assert tokens.dtype == np.float32
    assert tokens.shape[1:] == (2, 128)
    assert len(list((tmp_path / "once").glob("source-tokens-*/*.npy"))) == 1
    losses = take_steps(once, 3)

    with monkeypatch.context() as patch:
        patch.setattr(source_tokens.batches, "eval_batches", lambda *_, **__: 1 / 0)
        again = make_run(config, tmp_path / "once")
    assert take_steps(again, 3) == losses
    monkeypatch.setattr(train.systems, "fixed_tokens", lambda config: None)
    plain = make_run(config, tmp_path / "each")
    np.testing.assert_allclose(take_steps(plain, 3), losses, rtol=1e-5)


def test_accumulation_is_the_mean_over_the_steps():
    """Two half batches make the change of a whole one, and none before the second."""
    section = dict(
        name="adamw", lr=1e-2, schedule="constant", warmup_epochs=0.0, warmup_from=0.0, final_lr=0.0, weight_decay=0.1,
        b1=0.9, b2=0.95, eps=1e-8, clip_norm=0.5, steps_per_epoch=4, epochs=2,
    )  # fmt: skip
    params = {"kernel": np.array([1.0, -2.0], np.float32)}
    first, second = {"kernel": np.array([3.0, 1.0], np.float32)}, {"kernel": np.array([-1.0, 2.0], np.float32)}
    whole, _ = optim.make_optimizer(**section)
    halves, rate = optim.make_optimizer(**section, accumulate=2)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
    expected, _ = whole.update(mean, whole.init(params), params)
    state = halves.init(params)
    nothing, state = halves.update(first, state, params)
    np.testing.assert_array_equal(nothing["kernel"], 0)
    change, _ = halves.update(second, state, params)
    np.testing.assert_allclose(change["kernel"], expected["kernel"], rtol=1e-6)
    assert rate(7) == pytest.approx(1e-2)


def test_accumulated_schedule_counts_changes():
    section = dict(
        name="adamw", lr=1.0, schedule="cosine", warmup_epochs=1.0, warmup_from=0.25, final_lr=0.0, weight_decay=0.0,
        b1=0.9, b2=0.95, eps=1e-8, clip_norm=0.0, steps_per_epoch=8, epochs=3,
    )  # fmt: skip
    _, rate = optim.make_optimizer(**section, accumulate=4)
    # Two changes an epoch: the warm-up's two, then the cosine over four.
    assert [float(rate(number)) for number in (0, 3, 4, 8)] == pytest.approx([0.25, 0.25, 0.625, 1.0])
    assert float(rate(16)) == pytest.approx(0.5)


def test_columns_is_the_codes_loss():
    import torch
    from torch.nn import functional

    logits = np.random.default_rng(0).standard_normal((6, 2)).astype(np.float32)
    labels = np.array([[0], [1], [1], [0], [1], [0]], np.int32)
    ours = _loss(logits, labels, "columns")
    columns = functional.one_hot(torch.from_numpy(labels[:, 0]).long(), 2).float()
    theirs = functional.binary_cross_entropy_with_logits(torch.from_numpy(logits), columns, reduction="none").mean(1)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def _loss(logits: np.ndarray, labels: np.ndarray, loss: str) -> jax.Array:
    targets = jax.nn.one_hot(labels[:, 0], 2)
    return TASKS["binary-class"].losses(logits, targets, loss=loss)


def test_two_class_cross_entropy_is_the_papers_binary_one():
    """Equation 5, of the difference of the two logits."""
    logits = np.random.default_rng(0).standard_normal((6, 2)).astype(np.float32)
    labels = np.array([[0], [1], [1], [0], [1], [0]], np.int32)
    ours = _loss(logits, labels, "auto")
    p = 1 / (1 + np.exp(-(logits[:, 1] - logits[:, 0]).astype(np.float64)))
    np.testing.assert_allclose(ours, -np.log(np.where(labels[:, 0] == 1, p, 1 - p)), rtol=1e-5)


def test_reference_protocol_is_marked_and_has_no_validation_part(radiographs, tmp_path):
    config = small(radiographs, "reference", train__epochs=1, data__fold=0)
    cross_validation.train_and_evaluate(config, tmp_path)
    result = json.loads((tmp_path / "fold0" / "result.json").read_text())
    assert result["protocol"] == "reference"
    assert "optimistic" in result["warning"]
    assert result["splits"].keys() == {"train", "test"}
    assert sum(result["splits"].values()) == PATIENTS * PER_PATIENT
    assert result["selection"]["split"] == "test"
    assert all("reference-" in path.name for path in (tmp_path / "fold0" / "predictions").glob("*@*.csv"))


def test_multi_label_radiographs(radiographs, tmp_path):
    folder = tmp_path / "multi"
    write_radiographs(folder)
    table = folder / "labels.csv"
    lines = table.read_text().splitlines()
    # Every third patient has both findings.
    table.write_text(
        "\n".join(line + "|sick" if line.startswith(("p00", "p06", "p12", "p18")) else line for line in lines) + "\n"
    )
    config = small(folder, data__multi_label=True, eval__metric="auc", train__epochs=1, data__fold=0)
    cross_validation.train_and_evaluate(config, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "fold0" / "result.json").read_text())
    assert result["task"] == "multi-label, binary-class"
    assert 0 <= result["test"]["auc"] <= 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pneumollm__tokens": "engin"}, ["pneumollm.tokens", "engine"]),
        ({"pneumollm__every": 3}, ["pneumollm.every", "2 layers"]),
        ({"pneumollm__count": 0}, ["pneumollm.count"]),
        ({"pneumollm__vision": ""}, ["pneumollm.vision", "jaxboost convert"]),
        ({"pneumollm__vision": "nowhere"}, ["nowhere", "jaxboost convert"]),
        ({"model__backbone": "vivit_m"}, ["model.backbone"]),
        ({"model__image_size": 30}, ["model.image_size"]),
        ({"data__source": "", "data__name": "lidcshapes3d", "data__classes": ()}, ["3-D"]),
        ({"data__folds": 1}, ["data.folds"]),
        ({"data__fold": 3}, ["data.fold", "0 to 2"]),
        ({"train__loss": "bce"}, ["train.loss"]),
        ({"train__accumulate": 0}, ["train.accumulate"]),
        ({"train__accumulate": 4, "train__max_steps": 3}, ["train.max_steps", "train.accumulate"]),
        ({"train__accumulate": 1000}, ["train.accumulate"]),
        ({"data__folds": 0, "data__shares": (0.7, 0.3)}, ["data.shares", "add up to 1"]),
        ({"data__folds_file": "nowhere.csv"}, ["data.folds_file", "nowhere.csv"]),
        ({"data__val_share": 0.9}, ["data.val_share"]),
        ({"data__val_share": 0.0}, ["data.val_share", "above 0"]),
        # Found once the data are there.
        ({"optim__name": "sgd"}, ["optim.name"]),
        ({"train__batch_size": 1000}, ["train.batch_size"]),
        ({"seed": -1}, ["seed"]),
    ],
)
def test_mistakes(radiographs, tmp_path, changes, words):
    with pytest.raises(UserError) as mistake:
        cross_validation.train_and_evaluate(small(radiographs, **changes), tmp_path / "run")
    for word in words:
        assert word in str(mistake.value)
    assert not (tmp_path / "run").exists()


def test_two_rows_are_refused():
    with pytest.raises(ValueError, match="two rows"):
        pneumollm.get_config("simplified+coop")


def test_accumulation_in_a_run(radiographs, tmp_path):
    """Weights stay in the steps between; a run that is cut off within an accumulation goes on to the same end."""
    config = small(radiographs, train__accumulate=3)
    run = make_run(config, tmp_path)
    start = on_host(run.state.params)
    take_steps(run, 2)
    for path, leaf in on_host(run.state.params).items():
        np.testing.assert_array_equal(leaf, start[path], err_msg=path)
    take_steps(run, 1)
    assert any(not np.array_equal(leaf, start[path]) for path, leaf in on_host(run.state.params).items())


def test_avg_is_of_binary_tasks(tmp_path):
    folder = write_radiographs(tmp_path / "three")
    table = folder / "labels.csv"
    lines = [
        line.replace("healthy", "other") if line.startswith("p0") else line for line in table.read_text().split("\n")
    ]
    table.write_text("\n".join(lines))
    config = small(folder, data__classes=("healthy", "other", "sick"), data__fold=0)
    with pytest.raises(UserError, match=r"eval\.metric: avg"):
        cross_validation.train_and_evaluate(config, tmp_path / "run")


SHARDED = """
import json, sys
import pathlib, numpy as np
from tests.training.radiographs import make_run, small
from tests.training.small_runs import scores_of, take_steps
root, folder = map(pathlib.Path, sys.argv[1:])
losses = {}
for shard in (False, True):
    run = make_run(small(root, llama__shard=shard), folder / str(shard))
    up = run.frozen["llama"]["layers"]["up"]
    steps = take_steps(run, 3)
    losses[str(shard)] = [up.sharding.is_fully_replicated, *steps, scores_of(run, run.state.params, {}, "val")[0]]
print(json.dumps(losses))
"""


def test_llama_spread_over_devices_gives_the_same(radiographs, tmp_path):
    process = run_script("-c", SHARDED, radiographs, tmp_path, env=devices(2))
    assert process.returncode == 0, process.stderr
    losses = json.loads(process.stdout.splitlines()[-1])
    assert (losses["False"][0], losses["True"][0]) == (True, False)
    np.testing.assert_allclose(losses["True"][1:], losses["False"][1:], rtol=1e-4)
