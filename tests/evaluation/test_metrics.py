"""Scores against MedMNIST's evaluator, closed forms, and scikit-learn."""

import shutil

import numpy as np
import pytest
from medmnist.evaluator import Evaluator
from sklearn.metrics import accuracy_score, roc_auc_score

from jaxboost.data import describe_dataset
from jaxboost.data.sources.medmnist import names as medmnist_names
from jaxboost.evaluation import metrics, prediction_table
from jaxboost.tasks import BINARY, MULTI_LABEL, TASKS
from tests.scripts import run_script


def _example(task: str, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    if task == MULTI_LABEL:
        return rng.integers(0, 2, (n, 4)), rng.random((n, 4))
    classes = 2 if task == BINARY else 3
    labels = rng.integers(0, classes, (n, 1))
    scores = rng.random((n, classes)) + 0.5 * np.eye(classes)[labels[:, 0]]
    return labels, scores / scores.sum(1, keepdims=True)


def test_binary_scores_are_those_of_class_one():
    labels, scores = _example(BINARY)
    result = metrics.score(labels, scores, BINARY)
    truth, predicted = labels[:, 0], scores[:, 1] > 0.5
    assert result["acc"] == accuracy_score(truth, predicted)
    assert result["auc"] == roc_auc_score(truth, scores[:, 1])
    assert result["sensitivity"] == predicted[truth == 1].mean()
    assert result["specificity"] == (~predicted)[truth == 0].mean()
    assert result["balanced_acc"] == pytest.approx((result["sensitivity"] + result["specificity"]) / 2)
    assert result["majority_acc"] == max(truth.mean(), 1 - truth.mean())


@pytest.mark.parametrize("task", ["multi-class", "ordinal-regression", MULTI_LABEL])
def test_other_tasks_average_over_classes(task):
    labels, scores = _example(task)
    result = metrics.score(labels, scores, task)
    truth = labels if task == MULTI_LABEL else np.eye(3, dtype=int)[labels[:, 0]]
    assert result["auc"] == pytest.approx(roc_auc_score(truth, scores, average="macro"))
    expected = ((scores > 0.5) == labels).mean() if task == MULTI_LABEL else (scores.argmax(1) == labels[:, 0]).mean()
    assert result["acc"] == pytest.approx(expected)
    assert "sensitivity" not in result


def test_absent_class_has_no_auc_but_an_accuracy():
    scores = np.array([[0.8, 0.2], [0.3, 0.7]])
    result = metrics.score(np.zeros((2, 1), int), scores, BINARY)
    assert np.isnan(result["auc"])
    assert result["acc"] == result["specificity"] == 0.5
    # As in a study: half of a mean is no mean.
    assert np.isnan([result["sensitivity"], result["balanced_acc"], result["avg"]]).all()


def test_the_flags_have_these_tasks():
    assert {describe_dataset(flag, 28).task for flag in medmnist_names()} == set(TASKS)


@pytest.mark.parametrize("flag", medmnist_names())
def test_figures_and_files_are_those_of_medmnists_evaluator(flag, tmp_path):
    """For labels and probabilities of the data set's own kind: as stored, and float32 as the model gives them."""
    for size in (28, 64):
        info = describe_dataset(flag, size)
        rng = np.random.default_rng(size)
        n, classes = 80, len(info.classes)
        if info.task == MULTI_LABEL:
            labels = rng.integers(0, 2, (n, classes))
            scores = (0.3 * labels + 0.7 * rng.random((n, classes))).astype(np.float32)
        else:
            labels = rng.permutation(np.arange(n) % classes)[:, None]
            logits = rng.normal(size=(n, classes)) + np.eye(classes)[labels[:, 0]]
            scores = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)
        suffix = "" if size == 28 else f"_{size}"
        np.savez_compressed(tmp_path / f"{flag}{suffix}.npz", test_labels=labels.astype(np.uint8))

        class Official(Evaluator):
            def __init__(self, flag, split, size=None):
                super().__init__(flag, split, size, root=str(tmp_path))

        result = metrics.score(labels, scores, info.task)
        ours = (result["auc"], result["acc"])
        assert 0.5 < result["auc"] < 1
        assert tuple(Official(flag, "test", size).evaluate(scores)) == ours
        file = prediction_table.write_medmnist(
            tmp_path / "run", scores, name=flag, size=size, split="test", auc=ours[0], acc=ours[1], run="seed0"
        )
        # The evaluator writes into the folder of the file that it reads.
        copy = shutil.copytree(tmp_path / "run", tmp_path / f"copy{size}")
        assert tuple(Official.parse_and_evaluate(str(copy / file.name))) == ours
        assert sorted(path.name for path in copy.iterdir()) == sorted(path.name for path in file.parent.iterdir())


WITHOUT_TORCH = """
import sys
import numpy as np
from jaxboost.evaluation import metrics
print(metrics.auc(np.array([[0], [1], [1]]), np.array([[0.8, 0.2], [0.3, 0.7], [0.6, 0.4]]), "binary-class"))
print(sorted({"medmnist", "torch"} & set(sys.modules)))
import medmnist
print(len(medmnist.INFO), medmnist.BreastMNIST.flag, medmnist.evaluator.getAUC.__module__)
"""


def test_the_evaluator_is_imported_without_torch():
    """Whoever imports medmnist later gets all of it."""
    process = run_script("-c", WITHOUT_TORCH)
    assert process.stdout.splitlines() == ["1.0", "[]", "18 breastmnist medmnist.evaluator"], process.stderr
