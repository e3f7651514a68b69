"""What a study runs, skips, repeats and leaves; runs are written without training, except where the test says so."""

import dataclasses
import errno
import json
import os
import pathlib
import signal
import types

import numpy as np
import pytest

from jaxboost.errors import UserError
from jaxboost.io import refused
from jaxboost.runs import cross_validation, lock, workdir
from jaxboost.runs.result import VARYING
from jaxboost.stopping import Stopped
from jaxboost.studies import collect, data_check, definition, derived, plan, record, runner
from jaxboost.studies.progress import Bar
from jaxboost.training import log
from tests.studies.small_studies import BARE, PLAIN, RLLM, dataset, small_study, write_run

# What is replaced here are functions of the host.
pytestmark = pytest.mark.same_programs


class Trainer:
    """Takes the place of training; `before` is called with the folder of each run before it is written."""

    def __init__(self):
        self.runs: list[str] = []
        self.before = lambda folder: None

    def train(self, config, folder):
        self.runs.append(f"{folder.parent.name}/{folder.name}")
        self.before(folder)
        return write_run(config, folder, strengths={"val": config.optim.lr * 1000})

    def evaluate_again(self, source, config, folder):
        self.runs.append(f"{folder.parent.name}/{folder.name} from {source.name}")
        return write_run(config, folder)


@pytest.fixture
def trainer(monkeypatch):
    made = Trainer()
    monkeypatch.setattr(cross_validation, "train_and_evaluate", made.train)
    monkeypatch.setattr(derived, "evaluate_again", made.evaluate_again)
    monkeypatch.setattr(data_check, "check", lambda runs, known, folder: tuple(known))
    monkeypatch.setattr(runner, "_POLL", 0.01)
    # It takes longer than everything else here.
    monkeypatch.setattr(runner.gc, "collect", lambda: 0)
    return made


def run(folder: pathlib.Path, **arguments) -> runner.Outcome:
    study = arguments.pop("study", small_study())
    made = plan.make(study, folder, seeds=arguments.pop("seeds", 0))
    return runner.run(made, definition.check(made), **arguments)


ALL = [
    "plain/seed0",
    "plain/seed1",
    "rllm/lr=0.0001",
    "rllm/lr=0.001",
    "rllm/seed1",
    "bare/seed0 from lr=0.001",
    "bare/seed1 from seed1",
]


def test_all_runs_in_order_and_nothing_twice(tmp_path, trainer):
    assert run(tmp_path) == runner.Outcome()
    assert trainer.runs == ALL
    assert workdir.read_config(tmp_path / "runs" / "rllm" / "seed1")["optim"]["lr"] == 1e-3
    assert workdir.read_config(tmp_path / "runs" / "bare" / "seed1")["optim"]["lr"] == 1e-3
    trainer.runs.clear()
    assert run(tmp_path) == runner.Outcome()
    assert trainer.runs == []
    # More seeds add runs.
    assert run(tmp_path, seeds=3) == runner.Outcome()
    assert trainer.runs == ["plain/seed2", "rllm/seed2", "bare/seed2 from seed2"]
    assert definition.read(tmp_path).seeds == 3


def test_what_another_process_wrote_meanwhile_stays(tmp_path, trainer, monkeypatch):
    """While the data were read, another process asked for more seeds, or began another study."""
    made = plan.make(small_study(), tmp_path)
    stated = definition.check(made)
    ours = definition.DataDefinition(about="a", fingerprint={"labels": "1"}, figures={})
    theirs = dataclasses.replace(ours, about="b")
    other = small_study()

    def check(runs, known, folder):
        written = definition.of(plan.make(other, tmp_path, seeds=3))
        definition.write(tmp_path, dataclasses.replace(written, data=(theirs,)))
        return (ours,)

    monkeypatch.setattr(data_check, "check", check)
    runner.prepare(made, stated, made.runs)
    written = definition.read(tmp_path)
    assert (written.seeds, written.data) == (3, (theirs, ours))
    other = small_study(name="large")
    with pytest.raises(UserError, match="holds another study, which differs in name"):
        runner.prepare(made, stated, made.runs)
    assert definition.read(tmp_path).name == "large"


def test_what_was_interrupted_is_run_again(tmp_path, trainer):
    run(tmp_path)
    (tmp_path / "runs" / "plain" / "seed1" / "result.json").unlink()
    trainer.runs.clear()
    run(tmp_path)
    assert trainer.runs == ["plain/seed1"]


@pytest.mark.parametrize("error", [UserError("the loss is nan"), ZeroDivisionError("division by zero")])
def test_a_run_that_fails_does_not_stop_the_others(tmp_path, trainer, error):
    def fail(folder):
        if folder.parts[-2:] == ("plain", "seed0"):
            raise error

    trainer.before = fail
    assert run(tmp_path) == runner.Outcome(failed=("plain:0",))
    assert trainer.runs == ALL
    text = (tmp_path / "failures" / "plain_seed0.txt").read_text()
    assert str(error) in text.splitlines()[1]
    assert "Traceback" in text
    found = collect.collect(tmp_path)
    left_out = [(each.what, each.why) for each in found.left_out]
    assert left_out == [("plain, seed 0", f"it failed: {text.splitlines()[1]}")]
    assert [each.seed for each in found.runs_of("plain")] == [1]
    # The next start tries it again, and forgets the failure.
    trainer.before = lambda folder: None
    trainer.runs.clear()
    assert run(tmp_path) == runner.Outcome()
    assert trainer.runs == ["plain/seed0"]
    assert list((tmp_path / "failures").iterdir()) == []


def test_what_needs_a_failed_run_fails_too(tmp_path, trainer):
    def fail(folder):
        if folder.parent.name == "rllm":
            raise UserError("out of memory")

    trainer.before = fail
    failed = run(tmp_path).failed
    assert failed == ("rllm:lr=0.0001", "rllm:lr=0.001", "rllm:1", "bare:0", "bare:1")
    assert "no learning rate can be chosen" in (tmp_path / "failures" / "rllm_seed1.txt").read_text()


def test_a_rate_that_fails_is_left_out(tmp_path, trainer):
    def fail(folder):
        if folder.name == "lr=0.001":
            raise UserError("the loss is nan")

    trainer.before = fail
    assert run(tmp_path).failed == ("rllm:lr=0.001",)
    assert workdir.read_config(tmp_path / "runs" / "rllm" / "seed1")["optim"]["lr"] == 1e-4
    found = collect.collect(tmp_path)
    assert found.arms[1].learning_rates.keys() == {"0.0001"}
    assert found.left_out[0].what == "rllm, learning rate 0.001"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "file"),
        refused("a file", OSError(errno.ENOSPC, "No space left on device")),
    ],
)
def test_a_full_disk_stops_the_study_and_loses_nothing(tmp_path, trainer, error):
    if isinstance(error, UserError):
        error.__cause__ = OSError(errno.ENOSPC, "No space left on device")

    def fail(folder):
        if folder.name == "seed1":
            raise error

    trainer.before = fail
    with pytest.raises((OSError, UserError), match="No space left on device"):
        run(tmp_path)
    assert trainer.runs == ALL[:2]
    assert not (tmp_path / "failures").exists() or list((tmp_path / "failures").iterdir()) == []
    trainer.before = lambda folder: None
    trainer.runs.clear()
    assert run(tmp_path) == runner.Outcome()
    assert trainer.runs == ALL[1:]


def test_a_signal_stops_the_study(tmp_path, trainer):
    def stop(folder):
        if folder.name == "seed1":
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.before = stop
    with pytest.raises(Stopped):
        run(tmp_path)
    assert trainer.runs == ALL[:2]
    assert not (tmp_path / "failures" / "plain_seed1.txt").exists()


def test_a_run_of_another_process_is_passed_over_and_visited_again(tmp_path, trainer):
    folder = tmp_path / "runs" / "plain" / "seed0"
    folder.mkdir(parents=True)
    other = lock.RunLock(folder)
    other.acquire()

    def end(started):
        if started.name == "lr=0.001":
            write_run(plan.make(small_study(), tmp_path).run("plain:0").config, folder)
            other.release()

    trainer.before = end
    assert run(tmp_path) == runner.Outcome()
    assert trainer.runs == ALL[1:]


def test_a_worker_ends_when_only_runs_of_others_are_left(tmp_path, trainer):
    folder = tmp_path / "runs" / "plain" / "seed0"
    folder.mkdir(parents=True)
    other = lock.RunLock(folder)
    other.acquire()
    assert run(tmp_path, worker=True) == runner.Outcome()
    assert trainer.runs == ALL[1:]
    assert not (tmp_path / "study.json").exists()
    other.release()


def test_a_worker_with_patience_leaves_what_waits_for_others(tmp_path, trainer, monkeypatch):
    """It tunes first; then it waits for the tuning run of another process, as long as its patience lasts."""
    folder = tmp_path / "runs" / "rllm" / "lr=0.001"
    folder.mkdir(parents=True)
    other = lock.RunLock(folder)
    other.acquire()
    clock = iter(range(10_000))
    monkeypatch.setattr(runner.time, "monotonic", lambda: next(clock))
    outcome = run(tmp_path, worker=True, patience=150)
    assert outcome == runner.Outcome(waiting=("rllm:1", "bare:0", "bare:1"))
    assert trainer.runs == ["rllm/lr=0.0001", "plain/seed0", "plain/seed1"]
    # After it was started again, the other one is killed while this one waits.
    monkeypatch.setattr(runner, "_wait", lambda: (other.release(), (folder / "config.json").touch()))
    assert run(tmp_path, worker=True, patience=150) == runner.Outcome()
    assert sorted(trainer.runs) == sorted(ALL)


def test_a_fold_of_another_process_is_a_run_of_another_process(tmp_path):
    study = small_study(arms=(PLAIN,), comparisons=())
    made = plan.make(study, tmp_path, overrides={"data.folds": 3}).run("plain:0")
    assert plan.state_of(made) == "waiting"
    with lock.locked(made.folder / "fold1"):
        assert plan.state_of(made) == "running"


def test_a_run_that_was_evaluated_meanwhile_is_not_evaluated_again(tmp_path, monkeypatch):
    made = plan.make(small_study(), tmp_path)
    source, again = made.run("plain:0"), made.run("plain:1")
    write_run(source.config, source.folder)
    written = write_run(again.config, again.folder)
    monkeypatch.setattr(derived, "_evaluate", lambda *words: pytest.fail("evaluated twice"))
    assert derived.evaluate_again(source.folder, again.config, again.folder)["data_sha256"] == written["data_sha256"]


def test_a_run_that_another_process_takes_at_the_same_moment_is_no_failure(tmp_path, trainer):
    def taken(folder):
        trainer.before = lambda folder: None
        raise lock.InUseError("in use")

    trainer.before = taken
    assert run(tmp_path) == runner.Outcome()
    assert sorted(trainer.runs) == sorted(["plain/seed0", *ALL])


@pytest.mark.parametrize(
    ("key", "runs"),
    [
        ("plain:1", ["plain/seed1"]),
        ("rllm:lr=0.001", ["rllm/lr=0.001"]),
        ("rllm:1", ["rllm/lr=0.0001", "rllm/lr=0.001", "rllm/seed1"]),
        ("bare:1", ["rllm/lr=0.0001", "rllm/lr=0.001", "rllm/seed1", "bare/seed1 from seed1"]),
    ],
)
def test_one_run_with_those_that_it_needs(tmp_path, trainer, key, runs):
    assert run(tmp_path, only=key) == runner.Outcome()
    assert trainer.runs == runs


def test_an_arm_that_needs_another(tmp_path, trainer):
    made = plan.make(small_study(), tmp_path, arms=["bare"])
    assert runner.run(made, definition.check(made)).failed == ("bare:0", "bare:1")
    assert "name it in --arms too" in (tmp_path / "failures" / "bare_seed0.txt").read_text()


def test_runs_of_other_processes_are_counted(tmp_path, caplog):
    """When they are finished, and each number once: this process passes over them later."""
    made = plan.make(small_study(), tmp_path)
    texts = []
    with caplog.at_level("INFO", logger="jaxboost"), Bar(made, made.runs, jobs=2) as bar:
        for own, other in zip(made.runs[:2], made.runs[-2:], strict=True):
            for each in (own, other):
                write_run(each.config, each.folder)
            bar.show([each for each in made.runs if each.key != own.key])
            texts.append([record.getMessage().partition(",")[0] for record in caplog.records])
        bar.show(made.runs[2:])
    total = len(made.runs)
    assert texts == [[f"2 of {total} runs are done"], [f"{done} of {total} runs are done" for done in (2, 4)]]
    assert len(caplog.records) == 2


def test_a_study_has_the_only_bar(caplog):
    with caplog.at_level("INFO", logger="jaxboost"), log.ProgressBar(0, 3) as bar:
        bar.report(1, loss=0.5, images_per_second=None)
    assert [record.getMessage() for record in caplog.records] == ["step 1/3: loss 0.5000"]
    caplog.clear()
    with log.without_bars(), caplog.at_level("INFO", logger="jaxboost"), log.ProgressBar(0, 3) as bar:
        bar.report(1, loss=0.5, images_per_second=None)
    assert caplog.records == []


def _check(folder, given, monkeypatch, known=()):
    monkeypatch.setattr(data_check, "_with_splits", lambda config, folder: given)
    monkeypatch.setattr(data_check, "_weights_problem", lambda *arguments: [])
    return data_check.check(plan.make(small_study(), folder).runs, known, folder)


def test_data_that_changed_are_said(tmp_path, monkeypatch):
    known = _check(tmp_path, dataset(), monkeypatch)
    assert [each.figures["splits"] for each in known] == [{"train": 24, "val": 24, "test": 24}]
    assert known[0].figures["patients"] == {"train": 12, "val": 12, "test": 12}
    assert known[0].figures["prevalence"]["test"] == {"benign": 0.666667, "malignant": 0.333333}
    assert _check(tmp_path, dataset(), monkeypatch, known) == known
    for changed, words in ((dataset(shift=1), "as many samples, with other content"), (dataset(n=20), "20 test now")):
        with pytest.raises(UserError, match=f"the data lidcshapes3d have changed since the study.*{words}"):
            _check(tmp_path, changed, monkeypatch, known)


def test_data_that_do_not_suit_an_arm(tmp_path, monkeypatch):
    given = dataset()
    info = dataclasses.replace(given.info, task="multi-class", classes=("a", "b", "c"))
    monkeypatch.setattr(data_check, "_with_splits", lambda config, folder: dataclasses.replace(given, info=info))
    monkeypatch.setattr(data_check, "_weights_problem", lambda *arguments: [])
    study = small_study(arms=(PLAIN, dataclasses.replace(RLLM, overrides={"eval.specificity": 0.9})))
    made = plan.make(study, tmp_path)
    with pytest.raises(UserError, match=r"^arm rllm: config field eval\.specificity: 0\.9 is for binary tasks"):
        data_check.check(made.runs, (), tmp_path)


def test_more_samples_in_a_batch_than_there_are(tmp_path, monkeypatch):
    """Found before the first run, not after those that come before."""
    monkeypatch.setattr(data_check, "_with_splits", lambda config, folder: dataset())
    monkeypatch.setattr(data_check, "_weights_problem", lambda *arguments: [])
    half = dataclasses.replace(RLLM, overrides={"data.train_fraction": 0.5})
    made = plan.make(small_study(arms=(PLAIN, half)), tmp_path, overrides={"train.batch_size": 24})
    with pytest.raises(UserError, match=r"^arm rllm: train\.batch_size=24: use 1 to 1\d, the samples of an epoch$"):
        data_check.check(made.runs, (), tmp_path)
    assert not (tmp_path / "study.json").exists()


def test_missing_weights_are_found_before_the_first_run(tmp_path, few_lidc_root):
    """With the real data."""
    study = small_study(few_lidc_root, arms=(PLAIN, dataclasses.replace(RLLM, overrides={"boost.block": "gone"}), BARE))
    made = plan.make(study, tmp_path)
    with pytest.raises(UserError, match=r"^arm rllm: .*gone"):
        runner.run(made, definition.check(made))
    assert not (tmp_path / "study.json").exists()


def _without_times(folder: pathlib.Path) -> tuple[dict, dict]:
    content = json.loads((folder / record.RECORD).read_text())
    for each in content["runs"]:
        assert each["result"]["seconds"] > 0
        for name in VARYING:
            each["result"].pop(name, None)
    with np.load(folder / record.SCORES) as arrays:
        return content, {name: arrays[name].tobytes() for name in arrays.files}


def test_an_interrupted_run_ends_with_the_same_record(tmp_path, few_lidc_root, monkeypatch):
    """Trains: a signal comes during the run. Then the study goes on with its other arm."""
    study = small_study(few_lidc_root, seeds=1, arms=(dataclasses.replace(RLLM, tuned=False), BARE), comparisons=())
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run(whole, study=study, only="rllm:0") == runner.Outcome()
    write = log.MetricsLog.write

    def write_and_stop(self, step, values):
        write(self, step, values)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(log.MetricsLog, "write", write_and_stop)
        outcome = run(stopped, study=study)
    assert outcome.stopped
    assert [each.state for each in plan.make(study, stopped).runs] == ["interrupted", "waiting"]
    assert run(stopped, study=study, only="rllm:0") == runner.Outcome()
    for folder in (whole, stopped):
        record.write(collect.collect(folder), folder)
    assert _without_times(whole) == _without_times(stopped)
    assert run(whole, study=study) == runner.Outcome()
    _check_evaluated_again(whole)


def _check_evaluated_again(folder: pathlib.Path) -> None:
    """The run without the residual has the weights of R-LLM's, and other scores."""
    found = collect.collect(folder)
    rllm, bare = (found.runs_of(name)[0].result for name in ("rllm", "bare"))
    assert (rllm["boost"], bare["boost"]) == ("rllm", "bare")
    assert rllm["selection"] == bare["selection"]
    assert rllm["block"] == bare["block"]
    assert np.abs(found.scores_of("rllm", "test") - found.scores_of("bare", "test")).max() > 1e-4
    # Evaluated again as it is, it has the scores that it had.
    source, again = folder / "runs" / "rllm" / "seed0", folder / "again"
    config = plan.make(small_study(), folder).configs["rllm"]
    saved = workdir.read_config(source)
    config.data.root = saved["data"]["root"]
    derived.evaluate_again(source, derived.with_rate_of(config, source), again)
    table = pathlib.Path("predictions", "test.csv")
    assert (again / table).read_bytes() == (source / table).read_bytes()


def test_weights_that_do_not_fit_are_not_evaluated(tmp_path, monkeypatch):
    """Another number of trained parameters; no model is made."""
    source = plan.make(small_study(), tmp_path).run("plain:0")
    write_run(source.config, source.folder)
    model = types.SimpleNamespace(system=types.SimpleNamespace(params={"kernel": np.zeros((9, 9))}))
    monkeypatch.setattr(derived.assembly, "assemble", lambda *arguments: model)
    words = "has 100 trained parameters, and the model of the new config 81: give a variant with the same"
    with pytest.raises(UserError, match=words):
        derived.evaluate_again(source.folder, source.config, tmp_path / "again")
    assert not list((tmp_path / "again").iterdir())
