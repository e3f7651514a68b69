"""One task of the array: starts a worker of the study, and asks Slurm to start the task again where that is needed.

Slurm asks a task to save by SIGTERM, before its time is over or when another job needs the node. The worker may then be
inside the compiler, where it ends without running any more code, so a parent, this module, sees to the rest. It needs
neither jax nor the study.

A task that has nothing to start, while runs remain that need runs of other tasks first (the learning rate of an arm is
chosen when all its tuning runs are finished), must not hold a GPU for hours. It waits for `PATIENCE` seconds and then
lets Slurm requeue it: the GPU is free, and Slurm starts the task again after some minutes.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import FrameType

# Longer than 120 seconds, after which the lock of a process on another machine is stale: the runs of a task that was
# killed are taken over. A task that was started again has waited before.
PATIENCE, PATIENCE_AGAIN = 150, 20  # seconds
# Exit code of a worker that leaves runs which need runs of others first.
WAITING_EXIT_CODE = 75
# Time of a worker to end by the signal that Slurm has sent to it too.
FORWARD_SECONDS = 3.0
_RUNS_FAILED = 1  # their reasons are in the study's folder


def drain(words: Sequence[str]) -> int:
    """Does runs of a study until none can be started.

    Args:
      words: arguments of `jaxboost study`.

    Returns:
      The exit code of the worker, if the task is not requeued.

    Raises:
      RuntimeError: the worker was killed, or could not start; Slurm then calls the task failed.
    """
    patience = PATIENCE_AGAIN if int(os.environ.get("SLURM_RESTART_COUNT", "0")) else PATIENCE
    command = [sys.executable, "-m", "jaxboost", "study", *words, "--worker", f"--patience={patience}"]
    worker: subprocess.Popen[bytes] | None = None
    signals: list[int] = []

    def forward(number: int) -> None:
        # A worker that has not ended by now may still save; it takes this for the signal that it knows.
        if worker is not None and worker.poll() is None:
            worker.send_signal(number)

    def note(number: int, frame: FrameType | None) -> None:
        if not signals:
            # Slurm sends it to the worker too, except by `scancel --batch`.
            timer = threading.Timer(FORWARD_SECONDS, forward, (number,))
            timer.daemon = True
            timer.start()
        signals.append(number)

    signal.signal(signal.SIGTERM, note)
    worker = subprocess.Popen(command)
    code = worker.wait()
    if signals:
        if code in (0, WAITING_EXIT_CODE, _RUNS_FAILED):
            _say(f"SIGTERM: the worker has stopped (exit code {code}), and what it did is saved")
        else:
            _say(f"SIGTERM: the worker was ended (exit code {code}): its runs go on from their last checkpoints")
        # After `scancel` the task is COMPLETING, and after a preemption Slurm requeues it itself.
        if _state(os.environ) == "RUNNING":
            _requeue(os.environ)
    elif code == WAITING_EXIT_CODE:
        _say("the runs that remain need runs of other tasks first: this task leaves its node, and comes back")
        _requeue(os.environ)
    elif code not in (0, _RUNS_FAILED):
        raise RuntimeError(f"the worker ended with exit code {code}: its messages are above, or in the other log")
    return code


def job_id(environment: Mapping[str, str]) -> str:
    """The id of this task alone: the plain job id of an array's last task means the whole array."""
    array = environment.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{environment['SLURM_ARRAY_TASK_ID']}" if array else environment["SLURM_JOB_ID"]


def _state(environment: Mapping[str, str]) -> str:
    """The state of this task, as squeue says it; "" if squeue does not answer."""
    words = ["squeue", "--noheader", f"--jobs={job_id(environment)}", "--format=%T"]
    return _run(words).stdout.strip()


def _requeue(environment: Mapping[str, str]) -> None:
    # From here on there is nothing to save, and Slurm ends this process.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    done = _run(["scontrol", "requeue", job_id(environment)])
    if done.returncode:
        _say(f"the task cannot be requeued: {done.stderr.strip()}; the command that submitted it submits it again")
        return
    _say("requeued: Slurm starts this task again after some minutes")
    # submitit would write down a result, and Slurm may end it in the middle of that.
    time.sleep(60)


def _run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(words, 1, "", str(error))


def _say(text: str) -> None:
    print(text, flush=True)
