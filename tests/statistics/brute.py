"""AUC and DeLong's covariance by their definitions, pair by pair, and examples."""

import numpy as np

from jaxboost.tasks import BINARY, MULTI_LABEL


def wins(positive, score):
    """Of each pair (positive, negative): 1 if the positive is higher, 1/2 if equal, else 0; (m, k)."""
    above, below = score[positive][:, None], score[~positive][None]
    return (above > below) + 0.5 * (above == below)


def auc(positive, score):
    return wins(positive, score).mean() if positive.any() and not positive.all() else np.nan


def delong(positive, scores):
    """AUCs and their covariance: the covariances of the rows' and of the columns' means, over m and k."""
    tables = [wins(positive, score) for score in scores]
    rows, columns = np.stack([t.mean(1) for t in tables]), np.stack([t.mean(0) for t in tables])
    covariance = np.cov(rows) / rows.shape[1] + np.cov(columns) / columns.shape[1]
    return np.array([t.mean() for t in tables]), np.atleast_2d(covariance)


def example(task, n=60, seed=0):
    """Labels (n, L) and probabilities (n, classes) that are often right."""
    rng = np.random.default_rng(seed)
    if task == MULTI_LABEL:
        labels = rng.integers(0, 2, (n, 4))
        return labels, 0.3 * labels + 0.7 * rng.random((n, 4))
    classes = 2 if task == BINARY else 3
    labels = rng.integers(0, classes, (n, 1))
    scores = rng.random((n, classes)) + 0.5 * np.eye(classes)[labels[:, 0]]
    return labels, scores / scores.sum(1, keepdims=True)


def of_patients(patients, size, rng, signal=1.0, spread=1.5):
    """Items of a patient have one label and similar scores: labels, probabilities (of 2 classes) and groups."""
    truth = np.arange(patients) % 2
    logits = signal * (2 * truth - 1) + spread * rng.normal(size=patients)
    groups = np.repeat(np.arange(patients), size)
    probability = 1 / (1 + np.exp(-(logits[groups] + 0.3 * rng.normal(size=len(groups)))))
    return truth[groups][:, None], np.stack([1 - probability, probability], 1), groups
