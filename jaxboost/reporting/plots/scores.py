"""The AUC of all arms with their intervals, one row for each arm."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxboost.reporting import numbers
from jaxboost.reporting.blocks import Plot
from jaxboost.reporting.plots import canvas

_WIDTH, _ROW, _BELOW = 7.4, 0.24, 0.75  # inches
_CHARACTERS = 48  # of a title


def plot(arms: Sequence[Mapping[str, Any]], simplest: str | None = None) -> Plot | None:
    """The plot; None if no arm has an AUC with an interval.

    Args:
      arms: entries of the analysis, the simplest first.
      simplest: name of the arm that nothing beats: its row and its AUC are set off.
    """
    drawn = [(arm, auc) for arm in arms if (auc := _auc(arm)) is not None]
    if not drawn:
        return None
    with canvas.drawing():
        figure, axes = canvas.figure(_WIDTH, _BELOW + _ROW * len(drawn))
        across = axes.get_yaxis_transform()
        for y, (arm, auc) in enumerate(drawn):
            marked = arm["name"] == simplest
            colour = canvas.SERIES[0] if marked else canvas.INK
            if marked:
                axes.axvline(auc["mean"], color=canvas.SERIES[0], linewidth=0.8, dashes=(2, 2), zorder=0)
            axes.plot([auc["low"], auc["high"]], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
            seeds = [value for value in auc.get("per_seed") or () if numbers.is_number(value)]
            if len(seeds) > 1:
                axes.plot(seeds, [y] * len(seeds), "|", color=canvas.MUTED, markersize=7, zorder=1)
            axes.plot([auc["mean"]], [y], marker="D" if marked else "o", markersize=4.5, color=colour)
            weight = "bold" if marked else "normal"
            title = canvas.wrapped(str(arm["title"]), _CHARACTERS)
            axes.text(-0.03, y, title, transform=across, va="center", ha="right", fontweight=weight)
            axes.text(1.03, y, _numbers(auc), transform=across, va="center", ha="left", fontsize=7.5)
        axes.set_ylim(len(drawn) - 0.4, -0.6)
        axes.yaxis.set_visible(False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("AUC on the test split")
        texts = "; ".join(f"{arm['title']} {_numbers(auc)}" for arm, auc in drawn)
        svg = canvas.to_svg(figure, "scores", f"AUC of {len(drawn)} arms with 95 % intervals: {texts}")
    caption = (
        "The dot is the mean AUC of an arm's runs, the line its 95 % interval over patients, each small stroke one"
        " seed. Whether two arms differ is not in these intervals: the comparisons decide."
    )
    if any(arm["name"] == simplest for arm, _ in drawn):
        caption += " The dashed line is the AUC of the simplest arm that nothing beats."
    return Plot(svg=svg, caption=caption, size="wide")


def _auc(arm: Mapping[str, Any]) -> Mapping[str, Any] | None:
    auc = (arm.get("metrics") or {}).get("auc") or {}
    return auc if all(numbers.is_number(auc.get(name)) for name in ("mean", "low", "high")) else None


def _numbers(auc: Mapping[str, Any]) -> str:
    return f"{numbers.score(auc['mean'])} {numbers.interval(auc['low'], auc['high'])}"
