"""The forest plot: the differences of all comparisons with their intervals."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from jaxboost.reporting import numbers
from jaxboost.reporting.blocks import Plot
from jaxboost.reporting.plots import canvas

# An interval that reaches so many times further than the median one is cut.
_OUTLIER = 4
_BELOW = 0.75  # inches; below the axis are its labels
_UNIT = 0.2  # inches of a unit of the axis of rows
# A line of a label, and the space for an interval, in these units.
_TEXT, _BAR = 0.66, 0.85
# Wide: a label stands left of its interval, the numbers right of it. Narrow: both are above it, for phones.
_WIDE, _NARROW = 7.4, 4.0  # inches
_WIDE_CHARACTERS, _NARROW_CHARACTERS = 44, 38  # of a line of a label


def plot(comparisons: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> Plot | None:
    """The forest plot; None if no difference is defined.

    Args:
      comparisons: entries of the analysis.
      titles: name of an arm -> its title.
    """
    rows = [row for row in comparisons if all(numbers.is_number(row.get(end)) for end in ("difference", "low", "high"))]
    if not rows:
        return None
    metrics = " and ".join(sorted({str(row.get("metric", "auc")).upper() for row in rows}))
    names = [f"{titles[row['arm']]} minus {titles[row['reference']]}" for row in rows]
    shown = sum(row.get("shown") == "shown" for row in rows)
    alternative = (
        f"Forest plot of {len(rows)} differences in {metrics}; {shown} of them shown. The table below has all numbers: "
        + "; ".join(f"{name} {_numbers(row)}" for name, row in zip(names, rows, strict=True))
    )
    with canvas.drawing():
        svg = canvas.to_svg(_drawn(rows, names, metrics, wide=True), "forest", alternative)
        narrow = canvas.to_svg(_drawn(rows, names, metrics, wide=False), "forestnarrow", alternative)
    undefined = len(comparisons) - len(rows)
    caption = (
        "Each row is the first arm minus the second on the same test items. The dot is the difference, the line its"
        " 95 % interval over patients and seeds. A hollow dot means: not shown; the table says why. A filled one means:"
        " shown, also after Holm's correction. Differences inside the grey band are too small for this test set"
        " (80 % power). An arrow says that an interval goes on beyond the plot."
    )
    if undefined:
        caption += f" {undefined} comparison{'s' * (undefined > 1)} without a defined difference cannot be drawn."
    return Plot(svg=svg, narrow=narrow, caption=caption, size="wide")


def _numbers(row: Mapping[str, Any]) -> str:
    return f"{numbers.difference(row['difference'])} {numbers.interval(row['low'], row['high'], numbers.difference)}"


def _drawn(rows: Sequence[Mapping[str, Any]], names: Sequence[str], metrics: str, *, wide: bool) -> Figure:
    """The plot with one of its two layouts."""
    characters, lines = (_WIDE_CHARACTERS, 2) if wide else (_NARROW_CHARACTERS, 3)
    labels = [canvas.wrapped(name, characters, lines) for name in names]
    texts = [_TEXT * (label.count("\n") + 1) for label in labels]
    heights = [max(text + 0.3, _BAR) if wide else text + _BAR for text in texts]
    figure, axes = canvas.figure(_WIDE if wide else _NARROW, _BELOW + _UNIT * sum(heights))
    limits = _limits(rows)
    axes.set_xlim(*limits)
    top = 0.0
    for row, label, height in zip(rows, labels, heights, strict=True):
        y = top + (height / 2 if wide else height - _BAR * 0.55)
        _label(axes, row, label, y if wide else top + 0.1, wide=wide)
        # Between the intervals only, where labels are: a line through them would make them hard to read.
        half = height / 2 if wide else 0.3
        axes.plot([0, 0], [y - half, y + half], color=canvas.INK, linewidth=0.8)
        _interval(axes, row, y)
        _arrows(axes, row, limits, y)
        top += height
    axes.set_ylim(top, 0)
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False)
    axes.set_xlabel(f"difference in {metrics}\nleft of 0: the second arm is better; right: the first")
    return figure


def _limits(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """The ends of the axis: all intervals, unless one lies so far out that the others would become dots."""
    reach = [max(abs(row["low"]), abs(row["high"]), _detectable(row) or 0.01) for row in rows]
    cap = _OUTLIER * statistics.median(reach)
    ends = [row[end] for row in rows for end in ("low", "high")]
    ends += [sign * (_detectable(row) or 0.01) for row in rows for sign in (-1, 1)]
    low, high = max(min(ends), -cap), min(max(ends), cap)
    margin = 0.04 * (high - low)
    return low - margin, high + margin


def _arrows(axes: Any, row: Mapping[str, Any], limits: tuple[float, float], y: float) -> None:
    """Marks an interval that goes on beyond the axis."""
    for end, beyond, marker in ((limits[0], row["low"] < limits[0], "<"), (limits[1], row["high"] > limits[1], ">")):
        if beyond:
            colour = canvas.SERIES[0] if row.get("main") else canvas.INK
            axes.plot([end], [y], marker=marker, markersize=5, color=colour, clip_on=False)


def _detectable(row: Mapping[str, Any]) -> float | None:
    """The smallest difference that the test set can show; None if it is unknown."""
    value = (row.get("detectable") or {}).get(row.get("metric", "auc"))
    return value if numbers.is_number(value) else None


def _label(axes: Any, row: Mapping[str, Any], label: str, y: float, *, wide: bool) -> None:
    """The label and the numbers of a comparison: beside its interval, or above it."""
    across = axes.get_yaxis_transform()
    weight = "bold" if row.get("main") else "normal"
    left, right, vertical = (-0.04, 1.04, "center") if wide else (0, 1, "top")
    axes.text(left, y, label, transform=across, va=vertical, ha="right" if wide else "left", fontweight=weight)
    axes.text(right, y, _numbers(row), transform=across, va=vertical, ha="left" if wide else "right", fontsize=7.5)


def _interval(axes: Any, row: Mapping[str, Any], y: float) -> None:
    """The band of what cannot be seen, and the interval."""
    colour = canvas.SERIES[0] if row.get("main") else canvas.INK
    if detectable := _detectable(row):
        axes.barh(y, 2 * detectable, left=-detectable, height=0.42, color=canvas.BAND, zorder=0)
    axes.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
    axes.plot(
        [row["difference"]],
        [y],
        marker="D" if row.get("main") else "o",
        markersize=5,
        markeredgewidth=1.2,
        color=colour,
        markerfacecolor="none" if row.get("shown") == "not shown" else colour,
    )
