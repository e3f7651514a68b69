"""A study as an array on a real Slurm with two nodes; skipped where Slurm is not installed, or without root."""

import collections
import pathlib
import re
import subprocess
import threading

import pytest

from jaxboost.errors import UserError
from jaxboost.reporting import worst_errors
from jaxboost.runs import cross_validation, workdir
from jaxboost.studies import loading, plan
from jaxboost.studies.slurm import array, options, tools
from tests.scripts import REPOSITORY, run_inside
from tests.studies import slurm_cluster
from tests.studies.small_studies import small_study

EXAMPLES = REPOSITORY / "examples" / "clusters"

pytestmark = pytest.mark.skipif(bool(slurm_cluster.why_not()), reason=slurm_cluster.why_not())

# The task that trains is asked to save at its second batch, as `--signal=TERM@120` does, when the other task is at its
# second run. That one waits until the first is back, so that it does not resume the run itself.
STUDY = """
import os, pathlib, subprocess, time
from jaxboost import stopping
from jaxboost.reporting import worst_errors
from jaxboost.runs import cross_validation
from jaxboost.studies.study import Arm
from jaxboost.training import step
from tests.studies.small_studies import PLAIN, SMALL, small_study

HERE, TASK = pathlib.Path({here!r}), "{{SLURM_ARRAY_JOB_ID}}_{{SLURM_ARRAY_TASK_ID}}"
PREVALENCE, TRIVIAL = (
    Arm(name=name, title=name, config="baseline:" + name, seeds=1, overrides={{"baseline.ndim": 3}})
    for name in ("prevalence", "trivial")
)

def wait_for(name):
    for _ in range(2400):
        if (HERE / name).exists():
            return
        stopping.poll()
        time.sleep(0.05)

def train(config, folder, whole=cross_validation.train_and_evaluate):
    with (HERE / "starts").open("a") as file:
        file.write(f"{{folder.parent.name}} {{os.uname().nodename}} {{os.environ.get('SLURM_RESTART_COUNT', 0)}}\\n")
    if folder.parent.name == "trivial":
        (HERE / "other").touch()
        wait_for("back")
    return whole(config, folder)

def put(*arguments, put=step.put, calls=[]):
    calls.append(1)
    if os.environ.get("SLURM_RESTART_COUNT"):
        (HERE / "back").touch()
    elif len(calls) == 2:
        wait_for("other")
        subprocess.run(["scancel", "--signal=TERM", TASK.format_map(os.environ)], check=True)
        while not stopping.received():
            time.sleep(0.05)
    return put(*arguments)

def get_study():
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        cross_validation.train_and_evaluate, step.put = train, put
    shared = {{**SMALL, "data.root": {root!r}, "train.max_steps": 3}}
    arms = (PLAIN, PREVALENCE, TRIVIAL)
    return small_study(arms=arms, seeds=1, lr_grid=(), comparisons=(), shared=shared)
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A running cluster, which this process and those that it starts use."""
    with pytest.MonkeyPatch.context() as patch, slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as config:
        patch.setenv("SLURM_CONF", str(config))
        yield


def bring_forward(stop: threading.Event) -> None:
    """A requeued job waits for two minutes: this lets it start, though not in the second in which it was ended.

    Then its node would take it for the job that was ended.
    """
    while not stop.wait(0.2):
        words = ["squeue", "--noheader", "--array", "--format=%F_%K %r"]
        lines = subprocess.run(words, capture_output=True, text=True, timeout=30).stdout.splitlines()
        if waiting := [line.split()[0] for line in lines if line.endswith("BeginTime")]:
            stop.wait(2)
            for job in waiting:
                subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], timeout=30)


@pytest.mark.timeout(300)
def test_two_tasks_share_a_study_and_one_is_preempted(slurm, few_lidc_root, tmp_path, monkeypatch):
    # Pictures cost as much as the rest of the report, and have their own tests.
    monkeypatch.setattr(worst_errors, "find", lambda *words: ([], []))
    file, out = tmp_path / "mine.py", tmp_path / "out"
    file.write_text(STUDY.format(here=str(tmp_path), root=str(few_lidc_root)))
    words = ["-m", "jaxboost", "study", "--study", file, "--out", out, "--slurm", "--time=10", "--partition=all"]
    stop = threading.Event()
    helper = threading.Thread(target=bring_forward, args=(stop,))
    helper.start()
    try:
        done = run_inside(*words, "--tasks=2", "--cpus=4", "--setup=export FROM_SETUP=1")
    finally:
        stop.set()
        helper.join()
    logs = "".join(log.read_text() for log in sorted((out / "slurm").glob("*_log.*")))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    assert (out / "report" / "report.html").exists()
    assert re.search(r"array \d+: 2 running, 0 queued; \d of 3 runs are done", done.stdout)

    # On two machines, and nothing twice: the run that was interrupted was continued by its own task.
    starts = [line.split() for line in (tmp_path / "starts").read_text().splitlines()]
    assert collections.Counter(name for name, *_ in starts)["prevalence"] == 1
    assert [restart for name, _, restart in starts if name == "plain"] == ["0", "1"]
    assert {node for _, node, _ in starts} == set(slurm_cluster.NODES)
    assert logs.count("requeued: Slurm starts this task again") == 1
    assert logs.count("resum") == 1, logs

    # As undisturbed, to the bit.
    made = plan.make(loading.load_study(str(file)), tmp_path / "whole")
    run = made.run("plain:0")
    cross_validation.train_and_evaluate(run.config, run.folder)
    again = out / "runs" / "plain" / "seed0"
    for table in ("val.csv", "test.csv"):
        name = pathlib.Path(workdir.PREDICTIONS, table)
        assert (again / name).read_bytes() == (run.folder / name).read_bytes()


def test_an_array_is_found_again_and_its_end_is_noticed(slurm, tmp_path, caplog, monkeypatch):
    """It is held, so no task starts: a second command submits nothing, and sees that the array was cancelled."""
    monkeypatch.setattr(array, "_LATE", 0.5)
    made = plan.make(small_study(), tmp_path)
    held = options.Options(minutes=10, tasks=2, sbatch=options.further(["--hold"]))
    first = array._submitted(made, ["--study=x"], held)
    again = array._submitted(made, ["--study=x"], held)
    assert (first.found, again.found, again.id) == (False, True, first.id)
    found = tools.tasks(array.job_name(made))
    assert [(each.array, each.state) for each in found] == [(first.id, "PENDING")] * 2
    text = f"array {first.id}: 0 running, 2 queued (JobHeldUser: it is held: scontrol release lets it go)"
    assert array._in_words(again, found, 0) == text
    subprocess.run(["scancel", first.id], check=True)
    with pytest.raises(
        UserError, match=rf"^array {first.id} has ended, and 7 of 7 runs are not done; no task wrote a log"
    ):
        array._watch(made, again)
    (tmp_path / "slurm" / f"{first.id}_0_0_log.out").touch()
    assert len(array._watch(made, again).waiting) == 7
    assert "the same command submits what remains" in caplog.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"partition": "nowhere"}, "invalid partition specified: nowhere"),
        ({"sbatch": {"nonsense": "1"}}, "unrecognized option '--nonsense=1'"),
    ],
)
def test_sbatchs_own_words(slurm, tmp_path, capsys, changes, words):
    given = options.Options(minutes=10, **changes)
    with pytest.raises(UserError, match=f"^sbatch refuses the array: .*{words}") as error:
        array._sbatch(tmp_path, ["--study=x"], given.parameters("jaxboost-x"), 2)
    assert "\n" not in str(error.value)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.sbatch")), ids=lambda path: path.stem)
def test_sbatch_takes_the_examples(slurm, file, tmp_path):
    done = subprocess.run(["sbatch", "--test-only", str(file)], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, "to start at" in done.stderr) == (0, True), done.stderr
