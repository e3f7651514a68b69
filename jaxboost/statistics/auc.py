"""The AUC of a binary problem: its variance, its value for drawn items, and its value without each group of items.

A binary problem is `positive`, bool (n,), and `score`, (n,). m items are positive, k = n - m are negative. The AUC is
the fraction of the m k pairs in which the positive item has the higher score; ties count half (Mann and Whitney 1947).
"""

from collections.abc import Callable, Sequence

import numpy as np

from jaxboost.statistics.bootstrap import group_numbers


def drawn_auc(positive: np.ndarray, score: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the AUC as a function of how often each item is drawn, int64 (b, n) -> (b,); NaN without both classes.

    Pairs are counted in integers, so the result is exact up to the last division. The scores are sorted once, here.
    """
    positives, negatives = np.flatnonzero(positive), np.flatnonzero(~positive)
    negatives = negatives[np.argsort(score[negatives])]
    # How many negatives each positive exceeds: between these two numbers lie those with the same score.
    lower = np.searchsorted(score[negatives], score[positives], side="left")
    upper = np.searchsorted(score[negatives], score[positives], side="right")

    def auc_of(drawn: np.ndarray) -> np.ndarray:
        # Items come first, so that whole rows are gathered and added.
        drawn = drawn.T
        exceeded = np.zeros((len(negatives) + 1, drawn.shape[1]), np.int64)
        np.cumsum(drawn[negatives], axis=0, out=exceeded[1:])
        of_positives = drawn[positives]
        wins = exceeded[lower]
        wins += exceeded[upper]
        wins *= of_positives
        pairs = of_positives.sum(0) * exceeded[-1]
        return np.divide(wins.sum(0), 2 * pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)

    return auc_of


def auc_without_each(positive: np.ndarray, score: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The AUC without each group, float64 (g,), for the jackknife; NaN if a class is then absent.

    The pairs that go with a group are those of its positives, and those of its negatives, less those that are inside
    the group and so counted twice.

    Args:
      positive: bool (n,).
      score: (n,).
      numbers: the group of each item, int (n,), see `bootstrap.group_numbers`.
    """
    groups = int(numbers.max()) + 1
    of_positives, of_negatives = _wins(positive, score)
    wins = (
        of_positives.sum()
        - np.bincount(numbers[positive], of_positives, groups)
        - np.bincount(numbers[~positive], of_negatives, groups)
        + _wins_inside(positive, score, numbers)
    )
    left = [part.sum() - np.bincount(numbers, part, groups) for part in (positive, ~positive)]
    pairs = left[0] * left[1]
    return np.divide(wins, pairs, out=np.full(groups, np.nan), where=pairs > 0)


def delong(
    positive: np.ndarray, scores: Sequence[np.ndarray] | np.ndarray, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """AUCs of several scores of the same items, and the covariance matrix of the AUCs.

    The covariance is that of DeLong et al. 1988, from midranks (Sun and Xu 2014). With groups it is that of Obuchowski
    1997, which sums what an item contributes over its group; if every item is its own group, the two are equal.

    Args:
      positive: bool (n,).
      scores: (s, n), one row for each score.
      groups: the patient of each item, (n,); None: each item is independent of the others.

    Returns:
      AUCs (s,), NaN if a class is absent, and covariances (s, s), NaN if fewer than two groups have one of the classes.

    Raises:
      ValueError: a score is not finite.
    """
    scores = np.asarray(scores)
    if not np.isfinite(scores).all():
        raise ValueError("the scores contain NaN or an infinite number: these have no rank")
    m, k = int(positive.sum()), int((~positive).sum())
    if not m or not k:
        return np.full(len(scores), np.nan), np.full((len(scores), len(scores)), np.nan)
    wins = [_wins(positive, score) for score in scores]
    aucs = np.array([of_positives.sum() / (m * k) for of_positives, _ in wins])
    numbers = group_numbers(groups, len(positive))
    total = int(numbers.max()) + 1
    at_positives, at_negatives = numbers[positive], numbers[~positive]
    # What each group contributes, (s, g): the sums over its positives and over its negatives.
    shares = [(above / k - auc, below / m - auc) for (above, below), auc in zip(wins, aucs, strict=True)]
    first = np.stack([np.bincount(at_positives, share, total) for share, _ in shares])
    second = np.stack([np.bincount(at_negatives, share, total) for _, share in shares])
    together = first @ second.T
    covariance = (
        _unbiased(len(np.unique(at_positives))) * (first @ first.T) / m**2
        + _unbiased(len(np.unique(at_negatives))) * (second @ second.T) / k**2
        + _unbiased(total) * (together + together.T) / (m * k)
    )
    return aucs, covariance


def _unbiased(groups: int) -> float:
    return groups / (groups - 1) if groups > 1 else np.nan


def _wins(positive: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many negatives each positive exceeds, (m,), and how many positives exceed each negative, (k,); ties half.

    A rank among all items less the rank among those of the own class counts the items of the other class below.
    """
    from scipy.stats import rankdata

    positives, negatives = score[positive], score[~positive]
    ranks = rankdata(np.concatenate([positives, negatives]))
    below_positives = ranks[: len(positives)] - rankdata(positives)
    below_negatives = ranks[len(positives) :] - rankdata(negatives)
    return below_positives, len(positives) - below_negatives


def _wins_inside(positive: np.ndarray, score: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """How many pairs inside each group the positive item wins, (g,); ties count half."""
    order = np.lexsort((score, numbers))
    numbers, score, positive = numbers[order], score[order], positive[order]
    # One entry for each distinct score of a group.
    changes = (numbers[1:] != numbers[:-1]) | (score[1:] != score[:-1])
    starts = np.flatnonzero(np.concatenate([[True], changes]))
    positives = np.add.reduceat(positive.astype(np.int64), starts)
    negatives = np.add.reduceat((~positive).astype(np.int64), starts)
    group = numbers[starts]
    below = negatives.cumsum() - negatives
    # Less those of the groups before.
    below -= below[np.searchsorted(group, group)]
    return np.bincount(group, positives * (below + negatives / 2), int(numbers[-1]) + 1)
