"""Each classifier against direct calls of scikit-learn, and the choice by validation."""

import dataclasses

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jaxboost.baselines import saved
from jaxboost.baselines.boosting import Boosting
from jaxboost.baselines.classifiers import CLASSIFIERS, choose
from jaxboost.baselines.linear import Logistic, Prevalence
from jaxboost.baselines.neighbours import Neighbours
from jaxboost.baselines.problem import Data
from jaxboost.errors import UserError
from jaxboost.evaluation import metrics
from jaxboost.tasks import BINARY, MULTI_CLASS, MULTI_LABEL

# Those that are fitted; zero-shot classification has its own tests.
FITS = {
    "prevalence": {},
    "logistic": {"C": 0.1},
    "knn": {"k": 5},
    "boosting": {"leaves": 4, "rate": 0.1},
}


def test_every_fitted_classifier_is_here():
    assert set(CLASSIFIERS) == {*FITS, "zero_shot"}


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    monkeypatch.setattr(Boosting, "ROUNDS", 8)


def make_data(task: str, *, rows: int = 90, seed: int = 0) -> Data:
    """Features with different scales and one constant column; the first two tell the labels, not quite."""
    rng = np.random.default_rng(seed)
    classes = {BINARY: 2, MULTI_CLASS: 3, MULTI_LABEL: 3}[task]

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        features = rng.normal(size=(count, 5)) * (1, 10, 0.1, 1, 1) + 3
        features[:, 4] = 7
        hidden = features[:, 0] + features[:, 1] / 10 + rng.normal(size=count)
        if task == MULTI_LABEL:
            return features, np.stack([hidden > level for level in (2.5, 3.3, 4.5)], axis=1).astype(np.int64)
        return features, np.digitize(hidden, [3.3, 4.5][: classes - 1])[:, np.newaxis].astype(np.int64)

    (features, labels), (val_features, val_labels) = split(rows), split(40)
    return Data(
        features=features,
        labels=labels,
        val_features=val_features,
        val_labels=val_labels,
        task=task,
        classes=classes,
        seed=0,
    )


def sklearns(kind: str, data: Data) -> np.ndarray:
    """Probabilities (n, C) for validation from scikit-learn's own estimators."""
    scaled = StandardScaler().fit(data.features)
    target = data.labels if data.task == MULTI_LABEL else data.labels[:, 0]
    if kind == "prevalence":
        dummy = DummyClassifier(strategy="prior").fit(data.features, target).predict_proba(data.val_features)
        return np.stack([part[:, 1] for part in dummy], axis=1) if data.task == MULTI_LABEL else dummy
    if kind == "logistic":
        model = LogisticRegression(C=0.1, max_iter=10_000)
        model = OneVsRestClassifier(model) if data.task == MULTI_LABEL else model
        return make_pipeline(StandardScaler(), model).fit(data.features, target).predict_proba(data.val_features)
    if kind == "knn":
        model = KNeighborsClassifier(5, metric="cosine", algorithm="brute").fit(scaled.transform(data.features), target)
        found = model.predict_proba(scaled.transform(data.val_features))
        return np.stack([part[:, 1] for part in found], axis=1) if data.task == MULTI_LABEL else found

    def trees(own: np.ndarray, val: np.ndarray) -> np.ndarray:
        model = HistGradientBoostingClassifier(
            learning_rate=0.1, max_leaf_nodes=4, min_samples_leaf=4, max_iter=8, early_stopping=True, random_state=0
        )
        return model.fit(data.features, own, X_val=data.val_features, y_val=val).predict_proba(data.val_features)

    if data.task == MULTI_LABEL:
        pairs = zip(data.labels.T, data.val_labels.T, strict=True)
        return np.stack([trees(own, val)[:, 1] for own, val in pairs], axis=1)
    return trees(target, data.val_labels[:, 0])


@pytest.mark.parametrize("task", [BINARY, MULTI_CLASS, MULTI_LABEL])
@pytest.mark.parametrize("kind", FITS)
def test_probabilities_are_scikit_learns(kind, task):
    data = make_data(task)
    found = CLASSIFIERS[kind].fit(data, **FITS[kind]).probabilities(data.val_features)
    assert (found.dtype, found.shape) == (np.float32, (40, data.classes))
    # A cosine of standardised features has no ties here.
    np.testing.assert_allclose(found, sklearns(kind, data), rtol=0, atol=1e-6)
    if kind != "prevalence":
        assert found.std(0).min() > 0.01


@pytest.mark.parametrize("task", [BINARY, MULTI_CLASS, MULTI_LABEL])
@pytest.mark.parametrize("kind", FITS)
def test_the_saved_classifier_is_the_same(kind, task, tmp_path):
    data = make_data(task)
    fitted = CLASSIFIERS[kind].fit(data, **FITS[kind])
    sha256 = saved.save(tmp_path, fitted, channels=3)
    about = dict(kind=kind, task=task, classes=data.classes, hyper=FITS[kind])
    again, channels = saved.load(tmp_path, sha256=sha256, **about)
    assert channels == 3
    assert again.numbers == fitted.numbers
    np.testing.assert_array_equal(again.probabilities(data.features), fitted.probabilities(data.features))
    with pytest.raises(UserError, match="was altered"):
        saved.load(tmp_path, sha256="0" * 64, **about)
    assert [path.name for path in tmp_path.iterdir()] == [saved.FILE]


@pytest.mark.parametrize("kind", FITS)
def test_a_class_that_train_lacks_has_the_probability_0(kind):
    data = make_data(MULTI_CLASS)
    rows = data.labels[:, 0] != 1
    data = dataclasses.replace(data, features=data.features[rows], labels=data.labels[rows])
    found = CLASSIFIERS[kind].fit(data, **FITS[kind]).probabilities(data.val_features)
    assert (data.val_labels == 1).any()
    np.testing.assert_array_equal(found[:, 1], 0)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    assert (found[:, [0, 2]] > 0).any(0).all()


@pytest.mark.parametrize("kind", FITS)
@pytest.mark.parametrize("value", [0, 1])
def test_a_label_that_all_or_none_have(kind, value):
    data = make_data(MULTI_LABEL)
    labels = data.labels.copy()
    labels[:, 1] = value
    found = CLASSIFIERS[kind].fit(dataclasses.replace(data, labels=labels), **FITS[kind])
    np.testing.assert_array_equal(found.probabilities(data.val_features)[:, 1], value)


@pytest.mark.parametrize("kind", FITS)
def test_one_class_alone(kind):
    data = make_data(BINARY)
    data = dataclasses.replace(data, labels=np.ones_like(data.labels))
    found = CLASSIFIERS[kind].fit(data, **FITS[kind]).probabilities(data.val_features)
    np.testing.assert_array_equal(found, [[0, 1]] * 40)


def test_validation_chooses_where_train_or_test_would_not():
    """Noise in 40 columns: train prefers a weak penalty; validation a strong one; and this test split one between."""
    rng = np.random.default_rng(3)

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        features = rng.normal(size=(count, 40))
        return features, (features[:, 0] + rng.normal(size=count) > 0).astype(np.int64)[:, np.newaxis]

    (features, labels), (val_features, val_labels), (test_features, test_labels) = split(60), split(60), split(60)
    data = Data(
        features=features,
        labels=labels,
        val_features=val_features,
        val_labels=val_labels,
        task=BINARY,
        classes=2,
        seed=0,
    )

    def auc(labels: np.ndarray, probabilities: np.ndarray) -> float:
        return metrics.auc(labels, probabilities, BINARY)

    choice = choose("logistic", data, lambda found: auc(val_labels, found))
    fits = [Logistic.fit(data, C=value) for value in Logistic.C]
    best = {
        name: Logistic.C[int(np.argmax([auc(truth, fit.probabilities(seen)) for fit in fits]))]
        for name, seen, truth in (
            ("train", features, labels),
            ("val", val_features, val_labels),
            ("test", test_features, test_labels),
        )
    }
    assert choice.hyper == {"C": best["val"]}
    assert len(set(best.values())) == 3
    assert choice.value == max(value for _, value in choice.tried)
    assert [hyper["C"] for hyper, _ in choice.tried] == list(Logistic.C)


def test_of_equal_ones_the_first_is_chosen():
    data = make_data(BINARY)
    assert choose("knn", data, lambda _: 0.5).hyper == {"k": 65}
    assert choose("logistic", data, lambda _: float("nan")).hyper == {"C": Logistic.C[0]}


def test_no_more_neighbours_than_samples():
    data = make_data(BINARY, rows=7)
    assert [hyper["k"] for hyper in Neighbours.grid(7)] == [5, 3, 1]
    assert choose("knn", data, lambda found: 0.0).hyper == {"k": 5}


def test_equally_near_samples_do_not_depend_on_the_batch():
    """Four equal training samples with labels 0, 1, 1, 1: k = 1 takes the first, for one image and for many."""
    data = make_data(BINARY, rows=30)
    features, labels = data.features.copy(), data.labels.copy()
    features[10:14], labels[10:14, 0] = features[10], (0, 1, 1, 1)
    fitted = Neighbours.fit(dataclasses.replace(data, features=features, labels=labels), k=1)
    one = fitted.probabilities(features[12:13])
    np.testing.assert_array_equal(one, [[1, 0]])
    np.testing.assert_array_equal(fitted.probabilities(features)[12:13], one)


def test_boosting_stops_by_the_given_validation_split(monkeypatch):
    """With labels of validation that the features do not tell, it stops early; with real ones it goes on."""
    monkeypatch.setattr(Boosting, "ROUNDS", 100)
    data = make_data(BINARY)
    rng = np.random.default_rng(0)
    noise = dataclasses.replace(data, val_labels=rng.permutation(data.val_labels))
    rounds = [Boosting.fit(each, **FITS["boosting"]).numbers // 4 for each in (data, noise)]
    assert rounds[1] < rounds[0] < 100
    assert rounds[1] >= Boosting.PATIENCE


def test_boosting_without_a_row_that_could_stop_it():
    """Validation has only a class that the train split lacks: no loss can be computed there, so all rounds are run."""
    data = make_data(MULTI_CLASS)
    rows = data.labels[:, 0] < 2
    without = dataclasses.replace(
        data,
        features=data.features[rows],
        labels=data.labels[rows],
        val_labels=np.full_like(data.val_labels, 2),
    )
    fitted = Boosting.fit(without, **FITS["boosting"])
    assert fitted.numbers == 100 * 4
    found = fitted.probabilities(data.val_features)
    assert (found[:, 2] == 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_numbers():
    data = make_data(MULTI_LABEL)
    assert Prevalence.fit(data).numbers == 3
    assert Logistic.fit(data, C=1.0).numbers == 3 * 6
    assert Logistic.fit(make_data(BINARY), C=1.0).numbers == 6
    assert Neighbours.fit(data, k=1).numbers == 0
    assert Boosting.fit(data, **FITS["boosting"]).numbers == 3 * 8 * 4
