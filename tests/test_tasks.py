"""The table of tasks: its names are MedMNIST's, and the four kinds of labels."""

import numpy as np
import pytest
from medmnist import INFO

from jaxboost.tasks import BINARY, MULTI_CLASS, MULTI_LABEL, ORDINAL, TASKS, name_for


def test_the_names_are_medmnists():
    assert {info["task"] for info in INFO.values()} == set(TASKS)
    assert all(task.name == name for name, task in TASKS.items())


@pytest.mark.parametrize(
    ("name", "columns", "highest", "counts", "text"),
    [
        (BINARY, 1, 2, [2, 1, 1], "b"),
        (MULTI_CLASS, 1, 2, [2, 1, 1], "b"),
        (ORDINAL, 1, 2, [2, 1, 1], "b"),
        (MULTI_LABEL, 3, 1, [1, 2, 0], "a|b"),
    ],
)
def test_labels(name, columns, highest, counts, text):
    task = TASKS[name]
    labels = np.array([[1, 1, 0], [0, 1, 0]]) if task.multi_label else np.array([[1], [0], [2], [0]])
    assert (task.labels_per_example(3), task.highest_label(3)) == (columns, highest)
    assert task.class_counts(labels, 3).tolist() == counts
    assert task.text(labels[0], ("a", "b", "c")) == text
    assert task.has_every_class(labels, 3) == (not task.multi_label)
    assert task.decide(np.eye(3)).shape == (3, columns)


def test_decisions_have_the_shape_of_labels():
    scores = np.array([[0.4, 0.6], [0.6, 0.4], [0.5, 0.5]])
    assert TASKS[BINARY].decide(scores).tolist() == [[1], [0], [0]]
    assert TASKS[BINARY].decide(scores, threshold=0.4).tolist() == [[1], [1], [1]]
    assert TASKS[BINARY].decide(scores, threshold=np.inf).tolist() == [[0], [0], [0]]
    assert TASKS[ORDINAL].decide(scores).tolist() == [[1], [0], [0]]
    assert TASKS[MULTI_LABEL].decide(scores).tolist() == [[0, 1], [1, 0], [0, 0]]


def test_the_task_of_a_users_own_data():
    assert name_for(2, multi_label=False) == BINARY
    assert name_for(3, multi_label=False) == MULTI_CLASS
    assert name_for(2, multi_label=True) == MULTI_LABEL
