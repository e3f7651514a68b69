"""The table of predictions, and the log, hold any file name."""

import csv
import io
import logging
import os
import pathlib
import sys

import numpy as np
import pytest

from jaxboost.cli import app
from jaxboost.errors import UserError
from jaxboost.evaluation.prediction_table import Labels
from jaxboost.io import write_text

# What is replaced here are functions of the host.
pytestmark = pytest.mark.same_programs


def test_names_that_are_not_utf8(tmp_path):
    names = [os.fsdecode(name) for name in (b"caf\xe9.png", "한.png".encode(), b"a, b.png", b"two\nlines.png")]
    labels = Labels(classes=("a", "b"), task="binary-class")
    probabilities = np.array([[0.25, 0.75], [0.75, 0.25], [1, 0], [0, 1]])
    write_text(tmp_path / "p.csv", labels.table([pathlib.Path("x") / name for name in names], probabilities))
    with (tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["file", "a", "b", "prediction"],
        ["x/caf\\xe9.png", "0.25", "0.75", "b"],
        ["x/한.png", "0.75", "0.25", "a"],
        ["x/a, b.png", "1", "0", "a"],
        ["x/two\\x0alines.png", "0", "1", "b"],
    ]


@pytest.fixture
def logger(monkeypatch):
    """The package's logger, as it is before a command sets it up."""
    logger = logging.getLogger("jaxboost")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "level", logger.level)
    return logger


def test_warnings_go_to_stderr_once_all_went_well(logger, capsys):
    app.log_to_stdout()
    with app.warnings_on_stderr():
        logger.info("one")
        logger.warning("two")
        logger.info("three")
        logger.debug("four")
        assert capsys.readouterr() == ("one\nthree\n", "")
    assert capsys.readouterr() == ("", "two\n")
    logger.warning("five")
    assert capsys.readouterr() == ("five\n", "")


def test_a_mistake_is_alone_on_stderr(logger, capsys):
    @app.warnings_on_stderr()
    def mistake():
        logger.warning("one")
        logger.info("two")
        logger.error("three")
        raise UserError("four")

    app.log_to_stdout()
    with pytest.raises(UserError):
        mistake()
    assert capsys.readouterr() == ("two\none\nthree\n", "")
    logger.warning("five")
    assert capsys.readouterr() == ("five\n", "")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_log_takes_any_name(encoding, logger, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    monkeypatch.setattr(logging, "raiseExceptions", True)
    app.log_to_stdout()
    logger.info("read %s", os.fsdecode("한 ".encode() + b"caf\xe9"))
    sys.stdout.flush()
    expected = {"utf-8": "read 한 caf\\udce9\n", "ascii": "read \\ud55c caf\\udce9\n"}[encoding]
    assert written.getvalue().decode(encoding) == expected
