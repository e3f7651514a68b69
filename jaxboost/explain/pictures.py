"""Draws maps over images as PNG: one panel in 2D, three orthogonal slices through the centre of mass in 3D.

Figures are made without pyplot's global state, and the same input gives the same bytes.
"""

import dataclasses
import io
import textwrap
from collections.abc import Sequence
from typing import Any

import jax.image
import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = "inferno"
OPACITY = 0.75  # of the map where it is highest
PANEL = 1.9  # inches
GAP = 0.02  # of a panel's width, so that dark volumes do not touch
DPI = 100
LINE = 0.13  # inches, height of a line of a caption
FONT_SIZE = 7


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """A map over its image.

    Attributes:
      title: above the map.
      image: uint8 (S, S, C) or (S, S, S, 1), as the model reads it.
      grid: the map on its grid, (h, w) or (d, h, w), not negative; None: the image alone.
    """

    title: str
    image: np.ndarray
    grid: np.ndarray | None = None


def upsampled(grid: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A map at the size of its image, float32: linear between the centres of the patches, at most 1, not negative.

    The highest value becomes 1; a map of zeros stays.
    """
    scaled = np.asarray(jax.image.resize(np.asarray(grid, np.float32), tuple(shape), "linear"))
    highest = scaled.max()
    return scaled / highest if highest > 0 else np.zeros(tuple(shape), np.float32)


def slices(panel: Panel) -> list[tuple[str, np.ndarray, np.ndarray | None]]:
    """The pictures of a panel: (note, image (S, S) or (S, S, 3), map (S, S) or None).

    For a volume these are the three orthogonal slices through its `centre`.
    """
    image, spatial = panel.image, panel.image.shape[:-1]
    full = None if panel.grid is None else upsampled(panel.grid, spatial)
    if len(spatial) == 2:
        return [("", image[..., 0] if image.shape[-1] == 1 else image, full)]
    return [
        (
            f"axis {axis}, slice {place}",
            image[..., 0].take(place, axis),
            None if full is None else full.take(place, axis),
        )
        for axis, place in enumerate(centre(image[..., 0]))
    ]


def draw(panels: Sequence[Panel], caption: str = "") -> bytes:
    """A PNG with one column per panel in 2D, and one row per panel in 3D; the caption is below."""
    rows = [slices(panel) for panel in panels]
    titles = [
        [": ".join(filter(None, (panel.title, note))) for note, *_ in row]
        for panel, row in zip(panels, rows, strict=True)
    ]
    if len(rows[0]) == 1:
        rows, titles = [[row[0] for row in rows]], [[title[0] for title in titles]]
    height, width = len(rows), len(rows[0])
    lines = [line for part in caption.splitlines() for line in textwrap.wrap(part, 36 * width)]
    title_lines = max(len(textwrap.wrap(title, 30)) for row in titles for title in row)
    cell = PANEL + LINE * title_lines if any(map(any, titles)) else PANEL
    total = height * cell + LINE * len(lines) + (0.1 if lines else 0)
    figure = Figure(figsize=(width * PANEL, total), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    for number, (row, names) in enumerate(zip(rows, titles, strict=True)):
        for column, ((_, image, full), title) in enumerate(zip(row, names, strict=True)):
            bottom = 1 - (number * cell + cell) / total
            axes = figure.add_axes((column / width, bottom, (1 - GAP) / width, PANEL / total))
            axes.axis("off")
            axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            if full is not None:
                axes.imshow(full, cmap=COLOURS, vmin=0, vmax=1, alpha=OPACITY * full, interpolation="nearest")
            if title:
                axes.set_title("\n".join(textwrap.wrap(title, 30)), fontsize=FONT_SIZE, pad=2)
    if lines:
        figure.text(0.02, 0.05 / total, "\n".join(lines), fontsize=FONT_SIZE, va="bottom", linespacing=1.3)
    return png(figure)


def centre(volume: np.ndarray) -> tuple[int, ...]:
    """The voxel at the centre of mass of the grey values (S, S, S); the middle, S // 2, if all are zero.

    A map is highest where it may be, often outside of a small object: slices through that place would be empty.
    """
    found = []
    for axis, side in enumerate(volume.shape):
        mass = volume.sum(tuple(other for other in range(volume.ndim) if other != axis), dtype=np.float64)
        found.append(int(mass @ np.arange(side) / mass.sum() + 0.5) if mass.any() else side // 2)
    return tuple(found)


def png(figure: Figure) -> bytes:
    """A figure as PNG, without the version of matplotlib."""
    return _saved(figure, "png", {"Software": None})


def svg(figure: Figure) -> bytes:
    """A figure as SVG, without date and version, and with letters as paths."""
    return _saved(figure, "svg", {"Date": None, "Creator": None})


def _saved(figure: Figure, kind: str, metadata: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "jaxboost", "svg.fonttype": "path"}):
        figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()
