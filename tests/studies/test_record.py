"""The record of a study on disk."""

import dataclasses

import numpy as np
import pytest

from jaxboost.errors import UserError
from jaxboost.studies import record
from tests.studies.records import made_up


def test_what_is_read_is_what_was_written(tmp_path):
    ours = made_up()
    record.write(ours, tmp_path / "study")
    theirs = record.read(tmp_path / "study")
    for field in dataclasses.fields(record.Record):
        if field.name not in ("items", "scores"):
            assert getattr(theirs, field.name) == getattr(ours, field.name), field.name
    assert theirs.scores.keys() == ours.scores.keys()
    for key, scores in ours.scores.items():
        np.testing.assert_array_equal(theirs.scores[key], scores)
    for split, items in ours.items.items():
        for name in ("names", "patients", "labels"):
            np.testing.assert_array_equal(getattr(theirs.items[split], name), getattr(items, name))
        np.testing.assert_array_equal(theirs.items[split].columns["site"], items.columns["site"])


def test_the_same_record_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        record.write(made_up(), tmp_path / name)
    for file in (record.RECORD, record.SCORES):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_files_of_two_studies_are_not_mixed(tmp_path):
    record.write(made_up(), tmp_path / "a")
    record.write(made_up(seeds=3), tmp_path / "b")
    (tmp_path / "b" / record.SCORES).rename(tmp_path / "a" / record.SCORES)
    with pytest.raises(UserError, match="do not belong together"):
        record.read(tmp_path / "a")


def test_a_folder_without_a_record(tmp_path):
    with pytest.raises(UserError, match="holds no record of a study"):
        record.read(tmp_path)
