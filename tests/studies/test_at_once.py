"""Which seeds of a study are trained at once; what they find is in tests/runs/test_seeds.py."""

import os
import signal
import types

import pytest

from jaxboost.runs import cross_validation, seeds, workdir
from jaxboost.studies import at_once, data_check, definition, derived, plan, runner
from tests.studies.small_studies import small_study, write_run
from tests.training.small_runs import small_config


class Trainer:
    """Takes the place of training; `at_once` has the groups, `alone` the runs."""

    def __init__(self):
        self.at_once: list[list[str]] = []
        self.alone: list[str] = []
        self.before = lambda: None

    def several(self, runs):
        self.at_once.append([f"{folder.parent.name}/{folder.name}" for folder in runs])
        self.before()
        return {folder: write_run(config, folder) for folder, config in runs.items()}

    def one(self, config, folder):
        self.alone.append(f"{folder.parent.name}/{folder.name}")
        return write_run(config, folder, strengths={"val": config.optim.lr * 1000})

    def again(self, source, config, folder):
        return write_run(config, folder)


@pytest.fixture
def trainer(monkeypatch):
    made = Trainer()
    monkeypatch.setattr(seeds, "train_and_evaluate", made.several)
    monkeypatch.setattr(cross_validation, "train_and_evaluate", made.one)
    monkeypatch.setattr(derived, "evaluate_again", made.again)
    monkeypatch.setattr(data_check, "check", lambda runs, known, folder: tuple(known))
    monkeypatch.setattr(runner.gc, "collect", lambda: 0)
    return made


def run(folder, **arguments):
    made = plan.make(small_study(seeds=3), folder)
    return runner.run(made, definition.check(made), **arguments)


TUNING = ["rllm/lr=0.0001", "rllm/lr=0.001"]


def test_seeds_of_an_arm_are_trained_at_once(tmp_path, trainer):
    assert run(tmp_path, seeds_at_once="true") == runner.Outcome()
    # The tuning run with the best rate is the first seed.
    assert trainer.at_once == [["plain/seed0", "plain/seed1", "plain/seed2"], ["rllm/seed1", "rllm/seed2"]]
    assert trainer.alone == TUNING
    assert workdir.read_config(tmp_path / "runs/rllm/seed2")["optim"]["lr"] == 1e-3
    assert run(tmp_path, seeds_at_once="true") == runner.Outcome()
    assert len(trainer.at_once) == 2


def test_seeds_that_fail_together_are_trained_alone(tmp_path, trainer, caplog):
    def fail():
        raise ValueError("the loss is nan")

    trainer.before = fail
    assert run(tmp_path, seeds_at_once="true") == runner.Outcome()
    assert len(trainer.at_once) == 2
    assert {*trainer.alone} == {*TUNING, "plain/seed0", "plain/seed1", "plain/seed2", "rllm/seed1", "rllm/seed2"}


def test_a_signal_in_a_group_stops_the_study(tmp_path, trainer, monkeypatch):
    def stop(runs):
        trainer.several(runs)
        os.kill(os.getpid(), signal.SIGTERM)

    from jaxboost import stopping

    def deferred(runs):
        with stopping.deferred():
            return stop(runs)

    monkeypatch.setattr(seeds, "train_and_evaluate", deferred)
    assert run(tmp_path, seeds_at_once="true").stopped
    assert trainer.alone == []
    assert len(trainer.at_once) == 1


def test_an_interrupted_group_goes_on_as_a_group(tmp_path, trainer):
    for number in (0, 2):
        (tmp_path / f"runs/plain/seed{number}").mkdir(parents=True)
        (tmp_path / f"runs/plain/seed{number}/config.json").touch()
    assert run(tmp_path, seeds_at_once="true") == runner.Outcome()
    assert trainer.at_once[0] == ["plain/seed0", "plain/seed1", "plain/seed2"]


@pytest.mark.parametrize("arguments", [{}, {"seeds_at_once": "true", "jobs": 2}, {"seeds_at_once": "false"}])
def test_one_by_one_on_a_cpu_and_where_processes_share_the_runs(tmp_path, trainer, arguments):
    assert run(tmp_path, **arguments) == runner.Outcome()
    assert trainer.at_once == []
    assert len(trainer.alone) == 7


@pytest.mark.parametrize(
    ("limit", "changes", "expected"),
    [
        (10**9, {}, True),
        (10**7, {}, False),  # the states do not fit
        (10**9, {"data.folds": 3}, False),
    ],
)
def test_what_pays_on_an_accelerator(few_lidc_root, monkeypatch, limit, changes, expected):
    config = small_config(few_lidc_root, changes)
    device = types.SimpleNamespace(memory_stats=lambda: {"bytes_limit": limit})
    assert not at_once.pays("auto", config, 5)  # this is a CPU
    monkeypatch.setattr(at_once.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(at_once.jax, "local_devices", lambda: [device])
    assert at_once.pays("auto", config, 5) == expected
    assert not at_once.pays("auto", config, 1)
    assert at_once.pays("true", config, 2)
    assert not at_once.pays("false", config, 5)
