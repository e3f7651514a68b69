"""The programs of examples/ run, train, and are as short as README says."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess

import jax
import numpy as np
import pytest
import yaml
from flax import nnx

from examples import boost_a_function, boost_your_model
from jaxboost.models import frozen

CLUSTERS = pathlib.Path(boost_your_model.__file__).parent / "clusters"
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
# Stands for the command: it says that it has started, and ends as `train` does.
STUB = """#!/usr/bin/env bash
while [ "$1" != --workdir ]; do shift; done
mkdir -p "$2"
trap 'exit 0' TERM
echo started
[ "$ENDS" = finished ] && { touch "$2/result.json"; exit 0; }
[ "$ENDS" = failed ] && exit 2
while true; do sleep 0.05; done
"""
TEXT = pathlib.Path(boost_your_model.__file__).read_text()


def test_your_model_is_trained_and_the_block_is_not():
    images, labels = boost_your_model.two_kinds()
    model, losses = boost_your_model.train(None, images, labels, steps=10)
    assert losses[-1] < 0.5 * losses[0]
    found = nnx.to_pure_dict(nnx.state(model.boost.block, frozen.Frozen))
    drawn = nnx.to_pure_dict(nnx.state(boost_your_model.random_block(), frozen.Frozen))
    jax.tree.map(np.testing.assert_array_equal, found, drawn)


def test_a_function_is_trained():
    _, losses = boost_a_function.train(None, *boost_your_model.two_kinds(), steps=10)
    assert losses[-1] < 0.5 * losses[0]


def test_the_boosting_is_six_lines_of_twenty():
    assert sum(line.endswith("# boost") for line in TEXT.splitlines()) == 6
    start, end = TEXT.index("class YourClassifier"), TEXT.index("def random_block")
    lines = [line for line in TEXT[start:end].splitlines() if line.strip() and '"""' not in line]
    assert len(lines) <= 22


@needs_bash
@pytest.mark.parametrize(
    "file", sorted([*CLUSTERS.glob("*.sh"), *CLUSTERS.glob("*.sbatch")]), ids=lambda path: path.name
)
def test_shell_takes_the_files_for_clusters(file):
    done = subprocess.run(["bash", "-n", str(file)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@needs_bash
@pytest.mark.parametrize(
    ("ends", "codes"),
    # A command that SIGTERM reaches before it can catch the signal ends with 128 + 15.
    [("finished", {0}), ("failed", {2}), ("stopped", {1}), ("stopped before it started", {1, 143})],
)
def test_a_pod_ends_well_only_with_a_result(tmp_path, ends, codes):
    """SIGTERM reaches the command through the shell, whenever it comes; a run that was only stopped is no success."""
    job = yaml.safe_load((CLUSTERS / "kubernetes_job.yaml").read_text())["spec"]
    (container,) = job["template"]["spec"]["containers"]
    # Without these, an index is not started again after a node was lost.
    assert (job["completionMode"], job["template"]["spec"]["restartPolicy"]) == ("Indexed", "Never")
    stub = tmp_path / "jaxboost"
    stub.write_text(STUB)
    stub.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    script = container["args"][0].replace("/shared", str(tmp_path))
    if ends == "stopped before it started":
        assert "\njaxboost train" in script
        script = script.replace("\njaxboost train", "\nkill -TERM $$\njaxboost train")
    words = [*container["command"], script]
    environment = {**os.environ, "PATH": path, "ENDS": ends, "JOB_COMPLETION_INDEX": "3"}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        if ends != "stopped before it started":
            assert process.stdout.readline() == "started\n"
            assert (tmp_path / "runs" / "seed3").is_dir()
        if ends == "stopped":
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) in codes
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
