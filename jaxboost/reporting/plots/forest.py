"""The forest plot: the differences of all comparisons with their intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxboost.reporting import numbers
from jaxboost.reporting.blocks import Plot
from jaxboost.reporting.plots import canvas

_WIDTH = 4.6  # inches
_CHARACTERS = 46  # of a label that leaves room for the numbers
# In units of the axis of rows: a line of a label, and the space for the interval below it.
_TEXT, _BAR = 0.62, 0.75


def plot(comparisons: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> Plot | None:
    """The forest plot; None if no difference is defined.

    Args:
      comparisons: entries of the analysis.
      titles: name of an arm -> its title.
    """
    rows = [row for row in comparisons if all(numbers.is_number(row.get(end)) for end in ("difference", "low", "high"))]
    if not rows:
        return None
    labels = [canvas.wrapped(f"{titles[row['arm']]} minus {titles[row['reference']]}", _CHARACTERS, 2) for row in rows]
    metrics = " and ".join(sorted({str(row.get("metric", "auc")).upper() for row in rows}))
    heights = [_TEXT * (label.count("\n") + 1) + _BAR for label in labels]
    with canvas.drawing():
        figure, axes = canvas.figure(_WIDTH, 0.5 + 0.2 * sum(heights))
        top = 0.0
        for row, label, height in zip(rows, labels, heights, strict=True):
            _row(axes, row, label, top, height)
            top += height
        reach = 1.08 * max(abs(row[end]) for row in rows for end in ("difference", "low", "high")) or 0.1
        axes.set_xlim(-reach, reach)
        axes.set_ylim(top, 0)
        axes.axvline(0, color=canvas.INK, linewidth=0.9, zorder=1)
        axes.yaxis.set_visible(False)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"← second arm better      difference in {metrics}      first arm better →")
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
        " 95 % interval over patients and seeds. A line that crosses zero means: not shown. A filled dot is a difference"
        " that is shown after Holm's correction. Differences inside the grey band are too small for this test set"
        " (80 % power)."
    )
    return Plot(svg=svg, caption=caption, wide=True)


def _row(axes: Any, row: Mapping[str, Any], label: str, top: float, height: float) -> None:
    """One comparison: its label and numbers, and below them the band of what cannot be seen, and the interval."""
    y = top + height - _BAR * 0.62
    colour = canvas.SERIES[0] if row.get("main") else canvas.INK
    across = axes.get_yaxis_transform()
    axes.text(0, top + 0.1, label, transform=across, va="top", fontweight="bold" if row.get("main") else "normal")
    value = f"{numbers.difference(row['difference'])} {numbers.interval(row['low'], row['high'], numbers.difference)}"
    axes.text(1, top + 0.1, value, transform=across, va="top", ha="right", fontsize=7.5)
    detectable = (row.get("detectable") or {}).get(row.get("metric", "auc"))
    if numbers.is_number(detectable):
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
