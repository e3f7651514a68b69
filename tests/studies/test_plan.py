"""A study becomes a list of runs; nothing is trained here."""

import dataclasses

import pytest

from configs import pneumollm
from jaxboost.analysis import describe
from jaxboost.errors import UserError
from jaxboost.runs import lock
from jaxboost.studies import definition, estimate, loading, plan
from jaxboost.studies.study import Arm
from tests.studies.small_studies import BARE, PLAIN, RLLM, small_study, write_run

KNN = Arm(name="knn", title="Nearest neighbours", config="baseline:knn")


def test_tuning_runs_come_first_and_are_the_run_of_the_first_seed(tmp_path):
    made = plan.make(small_study(), tmp_path)
    assert [run.key for run in made.runs] == [
        *("plain:0", "plain:1", "rllm:lr=0.0001", "rllm:lr=0.001", "rllm:1", "bare:0", "bare:1")
    ]
    assert [run.config.optim.lr for run in made.of("rllm")][:2] == [1e-4, 1e-3]
    assert [run.follows for run in made.of("rllm")] == [False, False, True]
    assert made.run("rllm:lr=0.001").folder == tmp_path / "runs" / "rllm" / "lr=0.001"
    assert made.run("plain:1").folder == tmp_path / "runs" / "plain" / "seed1"
    assert (made.run("plain:1").config.seed, made.run("rllm:lr=0.001").config.seed) == (1, 0)
    with pytest.raises(UserError, match="--only: 'plain:7' is unknown"):
        made.run("plain:7")


def test_number_of_seeds(tmp_path):
    study = small_study(arms=(dataclasses.replace(PLAIN, seeds=1), RLLM, BARE))
    assert len(plan.make(study, tmp_path).of("plain")) == 1
    more = plan.make(study, tmp_path, seeds=4)
    assert (len(more.of("plain")), len(more.of("rllm")), len(more.of("bare"))) == (1, 2 + 3, 4)


def test_a_trial_has_one_seed_few_epochs_and_no_tuning(tmp_path):
    study = small_study(seeds=5, arms=(dataclasses.replace(PLAIN, overrides={"train.epochs": 50}), RLLM, BARE))
    made = plan.make(study.as_trial(), tmp_path)
    assert [run.key for run in made.runs] == ["plain:0", "rllm:0", "bare:0"]
    assert {run.config.train.epochs for run in made.runs} == {2}
    assert made.study.quick


def test_one_rate_needs_no_tuning(tmp_path):
    made = plan.make(small_study(lr_grid=(0.25,)), tmp_path)
    assert [(run.key, run.config.optim.lr) for run in made.of("rllm")] == [("rllm:0", 0.25), ("rllm:1", 0.25)]
    assert made.of("plain")[0].config.optim.lr != 0.25


def test_overrides_hold_for_all_arms_that_have_the_field(tmp_path):
    pneumollm = dataclasses.replace(PLAIN, name="pneumo", config="pneumollm_quickstart", overrides={})
    study = small_study(arms=(PLAIN, RLLM, BARE, pneumollm))
    arguments = ["--config.train.epochs=7", "--config.boost.rope=true", "--config.data.window=1,2"]
    values = plan.parse_overrides(study, arguments)
    assert values == {"train.epochs": 7, "boost.rope": True, "data.window": (1, 2)}
    configs = plan._configs(study, values)
    assert {config.train.epochs for config in configs.values()} == {7}
    assert configs["rllm"].boost.rope
    assert "boost" not in configs["pneumo"]


@pytest.mark.parametrize(
    ("argument", "name", "value"),
    [
        ("--config.train.epochs=7", "train.epochs", 7),
        ("--config.optim.lr=1e-3", "optim.lr", 1e-3),
        ("--config.optim.lr=1", "optim.lr", 1.0),
        ("--config.boost.rope=True", "boost.rope", True),
        ("--config.boost.rope", "boost.rope", True),
        ("--noconfig.boost.rope", "boost.rope", False),
        ("-config.boost.rope=0", "boost.rope", False),
        ("--config.data.root=/a=b", "data.root", "/a=b"),
        ("--config.data.classes=normal,sick", "data.classes", ("normal", "sick")),
        ("--config.data.classes=('normal', 'sick')", "data.classes", ("normal", "sick")),
        ("--config.boost.layers=(3,)", "boost.layers", (3,)),
        ("--config.boost.layers=3", "boost.layers", (3,)),
        ("--config.boost.layers=()", "boost.layers", ()),
        ("--config.data.shares=0.5,0.25,0.25", "data.shares", (0.5, 0.25, 0.25)),
    ],
)
def test_values_of_overrides(argument, name, value):
    found = plan.parse_overrides(small_study(), [argument])
    assert found == {name: value}
    assert type(found[name]) is type(value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--config.train.epoch=3"],
            r"--config\.train\.epoch: no arm of the study has it, did you mean 'train\.epochs'",
        ),
        (["--config.train.epochs=few"], r"config field train\.epochs: 'few' should be a whole number"),
        (["--config.train.epochs"], r"config field train\.epochs: 'True' should be a whole number"),
        (["--config.boost.rope=maybe"], r"config field boost\.rope: 'maybe' should be True or False"),
    ],
)
def test_wrong_overrides(arguments, words):
    with pytest.raises(UserError, match=words):
        plan.parse_overrides(small_study(), arguments)


def test_a_given_rate_is_not_tuned(tmp_path):
    made = plan.make(small_study(), tmp_path, overrides={"optim.lr": 0.5})
    assert [run.key for run in made.of("rllm")] == ["rllm:0", "rllm:1"]
    assert {run.config.optim.lr for run in made.runs} == {0.5}


def test_a_users_folder_gets_a_name(tmp_path):
    overrides = {"data.source": "folder", "data.root": str(tmp_path / "My images (2)")}
    made = plan.make(small_study(), tmp_path / "out", overrides=overrides)
    assert made.configs["plain"].data.name == "My_images_2"
    assert plan.own_name("/data/breastmnist") == plan.own_name("") == "own_images"


def test_a_users_images_keep_the_detail_that_an_arm_takes(tmp_path):
    given = {"data.source": "folder", "data.root": str(tmp_path), "data.classes": ("a", "b")}
    of_images, of_volumes = (loading.load_study(name).as_trial() for name in ("ladder:2d", "ladder"))

    def sizes(study, **overrides):
        made = plan.make(study, tmp_path / "out", overrides=given | overrides)
        return {config.data.size for config in made.configs.values()}

    assert sizes(of_images) == {98}
    assert sizes(of_images, **{"data.size": 64}) == {64}
    assert sizes(of_volumes) == {28}


def test_all_problems_of_all_arms_in_one_message(tmp_path):
    study = small_study(
        arms=(
            dataclasses.replace(PLAIN, overrides={"boost.kind": "none", "train.epochs": 0}),
            dataclasses.replace(RLLM, overrides={"model.backbone": "vit_tiny"}),
        )
    )
    with pytest.raises(UserError) as raised:
        plan.make(study, tmp_path)
    text = str(raised.value)
    assert "arm plain: config field train.epochs: 0 should be above 0" in text
    assert "arm rllm: data set lidcshapes3d is 3-D but backbone vit_tiny takes 2-D input" in text


def test_a_problem_of_several_arms_is_said_once(tmp_path):
    arms = (PLAIN, RLLM, KNN)
    with pytest.raises(UserError) as raised:
        plan.make(small_study(arms=arms), tmp_path, overrides={"data.source": "medmnist", "train.epochs": 0})
    text = str(raised.value)
    assert text.count("'medmnist' is unknown") == text.count("0 should be above 0") == 1
    assert "all arms: config field data.source: 'medmnist' is unknown" in text
    assert ": arms plain, rllm: config field train.epochs: 0 should be above 0" in text


@pytest.mark.parametrize(
    ("arms", "overrides", "words"),
    [
        ((PLAIN, RLLM), {"boost.kind": "none"}, ""),
        ((PLAIN, dataclasses.replace(RLLM, tuned=False)), {"boost.kind": "none"}, "arms plain and rllm have the same"),
        ((PLAIN, RLLM), {"seed": 3}, "give their number with --seeds"),
        (
            (PLAIN, RLLM),
            {"train.deterministic": True},
            "all arms: config field train.deterministic: a study starts jax",
        ),
        ((PLAIN, RLLM), {"data.folds": 3, "data.fold": 1}, "all arms: config field data.fold: a study runs all folds"),
        (
            (PLAIN, dataclasses.replace(RLLM, overrides={"eval.protocol": "reference"})),
            {},
            "eval.protocol is reference in some arms only",
        ),
        ((PLAIN, RLLM), {"eval.protocol": "reference"}, "arm rllm: with eval.protocol=reference the learning rate"),
        ((PLAIN, RLLM), {"eval.protocol": "reference", "optim.lr": 0.1}, ""),
        (
            (KNN, dataclasses.replace(KNN, name="again", after="knn")),
            {},
            "arm again: baselines are not evaluated again",
        ),
        (
            (PLAIN, RLLM, dataclasses.replace(BARE, overrides={"train.epochs": 3})),
            {},
            "arm bare: config field train.epochs: runs of rllm are evaluated again",
        ),
        ((PLAIN, dataclasses.replace(RLLM, config="quikstart")), {}, "study small, arm rllm: config quikstart"),
        (
            (PLAIN, dataclasses.replace(RLLM, overrides={"boost.kin": 1})),
            {},
            "arm rllm: unknown config field boost.kin",
        ),
    ],
)
def test_impossible_studies(tmp_path, arms, overrides, words):
    study = small_study(arms=arms, comparisons=())
    if not words:
        plan.make(study, tmp_path, overrides=overrides)
        return
    with pytest.raises(UserError, match=words):
        plan.make(study, tmp_path, overrides=overrides)


def test_arms(tmp_path):
    assert {run.arm.name for run in plan.make(small_study(), tmp_path, arms=["plain"]).runs} == {"plain"}
    with pytest.raises(UserError, match="--arms: 'plan' is unknown, did you mean 'plain'"):
        plan.make(small_study(), tmp_path, arms=["plan"])


def test_states_and_the_table(tmp_path):
    made = plan.make(small_study(), tmp_path)
    write_run(made.run("plain:0").config, made.run("plain:0").folder, seconds=80.0)
    folder = made.run("plain:1").folder
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    made.run("rllm:lr=0.001").failure.parent.mkdir()
    made.run("rllm:lr=0.001").failure.write_text("...")
    with lock.RunLock(_made(made.run("rllm:1").folder))._lease:
        now = estimate.with_seconds(made.refreshed())
        states = {run.key: run.state for run in now.runs}
        text = estimate.table(now)
    assert states == {
        "plain:0": "finished",
        "plain:1": "interrupted",
        "rllm:lr=0.0001": "waiting",
        "rllm:lr=0.001": "failed",
        "rllm:1": "running",
        "bare:0": "waiting",
        "bare:1": "waiting",
    }
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["arm", "run", "state", "time"]
    assert lines[1] == ["plain", "seed", "0", "finished", "80", "s"]
    # The plain ViT took 80 s: the other arms with its backbone are taken to last as long.
    assert lines[2] == ["plain", "seed", "1", "interrupted", "~80", "s"]
    assert lines[3] == ["rllm", "lr=0.0001", "waiting", "~80", "s"]
    assert lines[6] == ["bare", "seed", "0", "waiting", "?"]
    assert text.splitlines()[-1] == "7 runs, 1 finished, 6 to do: about 5 min and 2 runs of unknown length"


def test_the_lock_of_a_process_that_has_ended_is_not_in_use(tmp_path, monkeypatch):
    def gone(pid, signal):
        raise ProcessLookupError

    with lock.RunLock(tmp_path)._lease:
        assert lock.in_use(tmp_path)
        monkeypatch.setattr(lock.os, "kill", gone)
        assert not lock.in_use(tmp_path)
    assert not lock.in_use(tmp_path / "none")


def _made(folder):
    folder.mkdir(parents=True)
    return folder


def test_estimates_by_epochs(tmp_path):
    longer = dataclasses.replace(RLLM, tuned=False, overrides={"train.epochs": 3})
    made = plan.make(small_study(arms=(PLAIN, longer), seeds=1), tmp_path)
    assert [run.seconds for run in estimate.with_seconds(made).runs] == [None, None]
    write_run(made.run("plain:0").config, made.run("plain:0").folder, seconds=100.0)
    assert [run.seconds for run in estimate.with_seconds(made.refreshed()).runs] == [100.0, 300.0]


def test_estimates_by_flops(tmp_path, few_lidc_root, monkeypatch):
    """Where nothing has run yet."""
    monkeypatch.setattr(estimate, "_speed", lambda: 1e9)
    longer = dataclasses.replace(PLAIN, name="longer", overrides={"boost.kind": "none", "train.epochs": 3})
    made = plan.make(small_study(few_lidc_root, arms=(PLAIN, longer, RLLM, BARE), seeds=1, lr_grid=()), tmp_path)
    found = {run.arm.name: run.seconds for run in estimate.with_seconds(made, flops=True).runs}
    flops = describe.describe(made.configs["plain"])["flops_per_image"]["with_boost"]
    # Three passes over 48 samples, at a quarter of the speed of a matrix product.
    assert found["plain"] == pytest.approx(3 * 48 * flops / 0.25e9)
    assert found["longer"] == pytest.approx(3 * found["plain"])
    assert found["rllm"] > found["plain"] > found["bare"] > 0


def test_a_frozen_encoder_is_estimated_once(tmp_path, monkeypatch):
    """The first run that needs the encoded images makes them for all runs with the same tokens."""
    monkeypatch.setattr(estimate, "_speed", lambda: 1e9)
    monkeypatch.setattr(estimate, "_images", lambda config: (48, 80))
    fields = {"model.frozen": True, "model.weights": "random", "train.epochs": 2}
    arms = (
        dataclasses.replace(PLAIN, overrides={"boost.kind": "none", **fields}),
        dataclasses.replace(RLLM, overrides=fields, tuned=False),
        dataclasses.replace(PLAIN, name="random", overrides={**fields, "optim.lr": 0.5}),
    )
    made = plan.make(small_study(arms=arms, comparisons=()), tmp_path)
    found = {run.key: run.seconds for run in estimate.with_seconds(made, flops=True).runs}
    least = estimate._LEAST
    flops = describe.describe(made.configs["rllm"])["flops_per_image"]["with_boost"]
    assert found["rllm:1"] == found["random:0"] == found["random:1"]
    encoder = (found["rllm:0"] - found["rllm:1"]) * 0.75e9 / 80
    # Three passes over 48 samples in two epochs, at a quarter of the speed.
    assert found["rllm:1"] == pytest.approx(least + 2 * 3 * 48 * (flops - encoder) / 0.25e9)
    assert 0 < encoder < flops
    # The plain ViT keeps the first token alone: in its last layer the encoder has less to do.
    assert found["plain:0"] - found["plain:1"] < found["rllm:0"] - found["rllm:1"]
    assert found["plain:1"] == pytest.approx(least, abs=0.1)
    # A finished run has encoded the images.
    write_run(made.run("rllm:0").config, made.run("rllm:0").folder, seconds=100.0)
    now = {run.key: run.seconds for run in estimate.with_seconds(made.refreshed(), flops=True).runs}
    assert (now["rllm:1"], now["plain:0"]) == (100.0, 100.0)
    # At each step, where the tokens are too large.
    never = plan.make(made.study, tmp_path / "never", overrides={"model.cache_gb": 0.0})
    changed = plan.make(made.study, tmp_path / "changed", overrides={"augment.volume_flips": True})
    encoded = [estimate._is_encoded_once(each.run("rllm:0").config) for each in (made, never, changed)]
    assert encoded == [True, False, False]
    every = {run.key: run.seconds for run in estimate.with_seconds(never, flops=True).runs}
    assert every["rllm:0"] == every["rllm:1"] == pytest.approx(2 * 3 * 48 * flops / 0.25e9)


def test_processes_share_the_time(tmp_path):
    made = plan.make(small_study(arms=(PLAIN,), comparisons=()), tmp_path)
    runs = tuple(dataclasses.replace(run, seconds=3600.0) for run in made.runs)
    text = estimate.table(dataclasses.replace(made, runs=runs), jobs=3)
    assert text.splitlines()[-1] == ("2 runs, 0 finished, 2 to do: about 40 min in 3 processes, 2.0 h divided by 3")


def test_lavin_takes_other_times_than_pneumollm():
    simplified, lavin = (estimate._kind(pneumollm.get_config(row)) for row in ("simplified", "lavin"))
    assert simplified == estimate._kind(pneumollm.get_config("engine")) != lavin


def test_an_arm_that_is_evaluated_again_takes_about_an_epoch(tmp_path):
    study = small_study(arms=(dataclasses.replace(RLLM, tuned=False), BARE), comparisons=(), seeds=1)
    made = plan.make(study, tmp_path, overrides={"train.epochs": 4})
    write_run(made.run("rllm:0").config, made.run("rllm:0").folder, seconds=100.0)
    assert [run.seconds for run in estimate.with_seconds(made.refreshed()).runs] == [100.0, 25.0]


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "?"), (89.4, "89 s"), (100, "2 min"), (5000, "83 min"), (9000, "2.5 h")]
)
def test_times_in_words(seconds, text):
    assert estimate.in_words(seconds) == text


def test_a_folder_holds_one_study(tmp_path):
    made = plan.make(small_study(), tmp_path)
    definition.write(tmp_path, definition.check(made))
    assert definition.read(tmp_path) == definition.of(made)
    # More seeds, other texts and data that moved are the same study.
    same = small_study(root="elsewhere", question="What else?", arms=(dataclasses.replace(PLAIN, note="x"), RLLM, BARE))
    assert definition.check(plan.make(same, tmp_path, seeds=5)).seeds == 5
    definition.write(tmp_path, definition.check(plan.make(same, tmp_path, seeds=5)))
    assert definition.check(made).seeds == 5


@pytest.mark.parametrize(
    ("changes", "overrides", "words"),
    [
        ({"name": "large"}, {}, r"name \('small' there, 'large' now\)"),
        ({"lr_grid": (1.0, 2.0)}, {}, "lr_grid"),
        ({"arms": (PLAIN, RLLM)}, {}, "names"),
        ({"comparisons": ()}, {}, r"the comparisons \(1 there, 0 now\)"),
        ({"quick": True}, {}, "quick"),
        ({}, {"train.epochs": 3}, r"train\.epochs \(1 there, 3 now\) of arm plain, train"),
        ({"arms": (dataclasses.replace(PLAIN, tuned=True), RLLM, BARE)}, {}, "tuned of arm plain"),
        ({}, {"boost.block": "blocks/a"}, r"boost\.block \('random' there, 'a folder' now\)"),
    ],
)
def test_another_study_in_the_same_folder(tmp_path, changes, overrides, words):
    definition.write(tmp_path, definition.check(plan.make(small_study(), tmp_path)))
    with pytest.raises(UserError, match=f"{tmp_path} holds another study, which differs in .*{words}"):
        definition.check(plan.make(small_study(**changes), tmp_path, overrides=overrides))


def test_a_damaged_definition(tmp_path):
    (tmp_path / "study.json").write_text('{"format": 1}')
    with pytest.raises(UserError, match=r"study\.json is damaged or of another version"):
        definition.read(tmp_path)
    (tmp_path / "study.json").write_text('{"format": 9}')
    with pytest.raises(UserError, match="later version"):
        definition.read(tmp_path)
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        definition.read(tmp_path)
