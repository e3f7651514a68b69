"""The forest plot: the differences of all comparisons with their intervals."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from jaxboost.reporting import numbers
from jaxboost.reporting.blocks import Plot
from jaxboost.reporting.plots import canvas

# An interval that reaches so many times further than the median one is cut.
_OUTLIER = 4
_WIDTH, _BELOW = 4.0, 0.75  # inches; below the axis are its labels
_CHARACTERS = 38  # of a label that leaves room for the numbers
# In units of the axis of rows: a line of a label, and the space for the interval below it.
_TEXT, _BAR = 0.66, 0.85


def plot(comparisons: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> Plot | None:
    """The forest plot; None if no difference is defined.

    Args:
      comparisons: entries of the analysis.
      titles: name of an arm -> its title.
    """
    rows = [row for row in comparisons if all(numbers.is_number(row.get(end)) for end in ("difference", "low", "high"))]
    if not rows:
        return None
    labels = [canvas.wrapped(f"{titles[row['arm']]} minus {titles[row['reference']]}", _CHARACTERS, 3) for row in rows]
    metrics = " and ".join(sorted({str(row.get("metric", "auc")).upper() for row in rows}))
    heights = [_TEXT * (label.count("\n") + 1) + _BAR for label in labels]
    with canvas.drawing():
        figure, axes = canvas.figure(_WIDTH, _BELOW + 0.2 * sum(heights))
        limits = _limits(rows)
        axes.set_xlim(*limits)
        top = 0.0
        for row, label, height in zip(rows, labels, heights, strict=True):
            _row(axes, row, label, top, height)
            _arrows(axes, row, limits, top + height - _BAR * 0.55)
            top += height
        axes.set_ylim(top, 0)
        axes.yaxis.set_visible(False)
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False)
        axes.set_xlabel(f"difference in {metrics}\nleft of 0: the second arm is better; right: the first")
        shown = sum(row.get("shown") == "shown" for row in rows)
        svg = canvas.to_svg(
            figure,
            "forest",
            f"Forest plot of {len(rows)} differences in {metrics}; {shown} of them shown. The table below has all"
            " numbers: "
            + "; ".join(
                f"{titles[row['arm']]} minus {titles[row['reference']]} {numbers.difference(row['difference'])}"
                f" {numbers.interval(row['low'], row['high'], numbers.difference)}"
                for row in rows
            ),
        )
    caption = (
        "Each row is the first arm minus the second on the same test items. The dot is the difference, the line its"
        " 95 % interval over patients and seeds. A line that crosses zero means: not shown. A filled dot means:"
        " shown, also after Holm's correction. Differences inside the grey band are too small for this test set"
        " (80 % power). An arrow says that an interval goes on beyond the plot."
    )
    return Plot(svg=svg, caption=caption, size="wide")


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


def _row(axes: Any, row: Mapping[str, Any], label: str, top: float, height: float) -> None:
    """One comparison: its label and numbers, and below them the band of what cannot be seen, and the interval."""
    y = top + height - _BAR * 0.55
    colour = canvas.SERIES[0] if row.get("main") else canvas.INK
    across = axes.get_yaxis_transform()
    axes.text(0, top + 0.1, label, transform=across, va="top", fontweight="bold" if row.get("main") else "normal")
    value = f"{numbers.difference(row['difference'])} {numbers.interval(row['low'], row['high'], numbers.difference)}"
    axes.text(1, top + 0.1, value, transform=across, va="top", ha="right", fontsize=7.5)
    if detectable := _detectable(row):
        axes.barh(y, 2 * detectable, left=-detectable, height=0.42, color=canvas.BAND, zorder=0)
    # Only beside the intervals: a line through the labels would make them hard to read.
    axes.plot([0, 0], [y - 0.3, y + 0.3], color=canvas.INK, linewidth=0.8)
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
