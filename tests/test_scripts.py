"""Commands that the tests run in their own process leave it as it was."""

import logging
import signal
import sys

from absl import flags

from tests.scripts import assert_mistake, run_inside, run_script


def test_a_command_inside_says_what_it_says_in_a_process_of_its_own():
    arguments = ("-m", "jaxboost", "describe", "--config=quickstart", "--nomemory")
    logger = logging.getLogger("jaxboost")

    def settings():
        kept = [(one.level, one.propagate, one.handlers, one.filters) for one in (logger, logging.getLogger())]
        return kept, sys.argv, sys.unraisablehook, signal.getsignal(signal.SIGTERM), sorted(flags.FLAGS)

    before = settings()
    inside = [run_inside(*arguments) for _ in range(2)]
    assert_mistake(run_inside("train.py", "--config=quickstart", "--workdirr=x"), "workdir")
    assert settings() == before
    process = run_script(*arguments)
    for found in inside:
        assert (found.returncode, found.stdout, found.stderr) == (process.returncode, process.stdout, process.stderr)
