"""t-SNE (van der Maaten and Hinton 2008) of the features before the head, as in PneumoLLM's Figure 5."""

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
import threadpoolctl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from jaxboost.errors import UserError

FEWEST = 5
PERPLEXITY = 30.0
SIDE = 4.0  # inches
MARKERS = "os^Dv<>Pp*"


def embed(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """The place of each sample in the plane, float32 (n, 2), from features (n, width).

    The start is the two principal components. The perplexity is PERPLEXITY, or less for few samples.

    Raises:
      UserError: there are fewer than FEWEST samples, or they do not differ.
    """
    check_count(len(features))
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    # Features that all images share would make the components of the start undefined.
    if np.ptp(features, axis=0).max() == 0:
        raise UserError("--tsne: all images have the same features: the model tells none of them apart")
    # One thread: several add up in an order that changes, and wait for each other on a busy machine.
    with threadpoolctl.threadpool_limits(1):
        return TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(features)


def check_count(count: int) -> None:
    """Raises UserError if there are too few samples for t-SNE."""
    if count < FEWEST:
        raise UserError(f"--tsne: {count} images are too few to place: give {FEWEST} or more")


def scatter(places: Sequence[np.ndarray], titles: Sequence[str], groups: np.ndarray, classes: Sequence[str]) -> Figure:
    """A figure with one panel per model.

    Args:
      places: (n, 2) of each model.
      titles: of the panels.
      groups: int (n,): the class of each sample, for its colour and marker.
      classes: the class names, for the legend; those that no sample has are left out.
    """
    figure = Figure(figsize=(SIDE * len(places), SIDE + 0.4), dpi=120, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    names = [number for number in range(len(classes)) if (groups == number).any()]
    palette = matplotlib.colormaps["tab10" if len(classes) <= 10 else "tab20"]
    size = max(4.0, 30 / math.sqrt(1 + len(groups) / 100))
    for column, (place, title) in enumerate(zip(places, titles, strict=True)):
        axes = figure.add_subplot(1, len(places), column + 1)
        for number in names:
            axes.scatter(
                *place[groups == number].T,
                s=size,
                color=palette(number % palette.N),
                marker=MARKERS[number % len(MARKERS)],
                linewidths=0,
                alpha=0.8,
                label=classes[number],
            )
        axes.set_title(title, fontsize=9)
        axes.set(xticks=[], yticks=[])
        axes.set_box_aspect(1)
        if not column:
            axes.legend(fontsize=7, framealpha=0.8)
    return figure
