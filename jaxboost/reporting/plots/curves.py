"""ROC, reliability, learning and training curves."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxboost.reporting import numbers
from jaxboost.reporting.blocks import Plot
from jaxboost.reporting.plots import canvas
from jaxboost.reporting.plots.canvas import DASHES, SERIES

Arm = Mapping[str, Any]


def _style(number: int) -> dict[str, Any]:
    style: dict[str, Any] = {"color": SERIES[number]}
    return {**style, "dashes": DASHES[number]} if DASHES[number] else style


def roc(arms: Sequence[Arm]) -> Plot | None:
    """The ROC of the arms that have one (binary tasks); None if none has."""
    drawn = [arm for arm in arms if arm.get("roc")]
    if not drawn:
        return None
    with canvas.drawing():
        figure, axes = canvas.figure(3.5, 3.4)
        axes.plot([0, 1], [0, 1], color=canvas.MUTED, linewidth=0.8, dashes=(2, 2))
        for number, arm in enumerate(drawn):
            axes.plot(*zip(*arm["roc"], strict=True), **_style(number))
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axes.set_xlabel("false positive rate (1 \N{MINUS SIGN} specificity)")
        axes.set_ylabel("true positive rate (sensitivity)")
        legend = tuple((f"{arm['title']}, AUC {numbers.score(_auc(arm))}", at) for at, arm in enumerate(drawn))
        svg = canvas.to_svg(figure, "roc", "ROC curves: " + "; ".join(title for title, _ in legend))
    caption = (
        "ROC on the test split, of the probabilities averaged over the seeds; the AUC beside a name is the mean of its"
        " runs. The dashed diagonal is a guess. A curve nearer to the upper left is better; where curves cross, each is"
        " better at some operating points."
    )
    return Plot(svg=svg, caption=caption, legend=legend)


def _auc(arm: Arm) -> Any:
    return ((arm.get("metrics") or {}).get("auc") or {}).get("mean")


def reliability(arm: Arm, name: str, number: int) -> Plot | None:
    """The reliability diagram of one arm; None without bins."""
    calibration = arm.get("calibration") or {}
    bins = [
        each
        for each in calibration.get("bins") or ()
        if numbers.is_number(each.get("probability")) and numbers.is_number(each.get("frequency")) and each.get("count")
    ]
    if not bins:
        return None
    total = sum(each["count"] for each in bins)
    with canvas.drawing():
        figure, axes = canvas.figure(2.2, 2.2)
        axes.plot([0, 1], [0, 1], color=canvas.MUTED, linewidth=0.8, dashes=(2, 2))
        colour = SERIES[number]
        for each in bins:
            x, y = each["probability"], each["frequency"]
            if numbers.is_number(each.get("low")) and numbers.is_number(each.get("high")):
                axes.plot([x, x], [each["low"], each["high"]], color=colour, linewidth=1, alpha=0.7)
            axes.scatter([x], [y], s=10 + 80 * each["count"] / total, color=colour, edgecolors="none", zorder=3)
        axes.plot([each["probability"] for each in bins], [each["frequency"] for each in bins], **_style(number))
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.set(xticks=(0, 0.25, 0.5, 0.75, 1), yticks=(0, 0.25, 0.5, 0.75, 1))
        axes.set_xlabel("predicted probability")
        axes.set_ylabel("observed frequency")
        ece = numbers.score(calibration.get("ece"))
        svg = canvas.to_svg(figure, name, f"Reliability diagram of {arm['title']}, ECE {ece}, {len(bins)} bins")
    return Plot(svg=svg, caption="", legend=((f"{arm['title']}, ECE {ece}", number),), size="small")


def learning(series: Sequence[tuple[str, Sequence[Mapping[str, Any]]]]) -> Plot | None:
    """Test AUC over the part of the training patients; None without arms that had parts of them.

    Args:
      series: (title, points) of at most as many curves as there are colours; points have "fraction", "auc", "low" and
        "high".
    """
    curves = [(title, [point for point in points if numbers.is_number(point.get("auc"))]) for title, points in series]
    curves = [(title, points) for title, points in curves if len(points) > 1]
    if not curves:
        return None
    with canvas.drawing():
        figure, axes = canvas.figure(3.5, 2.9)
        for number, (_, points) in enumerate(curves):
            # Side by side, so that the intervals do not cover each other.
            x = [100 * point["fraction"] * (1 + 0.02 * number) for point in points]
            axes.plot(x, [point["auc"] for point in points], marker="o", markersize=4, **_style(number))
            for at, point in zip(x, points, strict=True):
                if numbers.is_number(point.get("low")) and numbers.is_number(point.get("high")):
                    axes.plot([at, at], [point["low"], point["high"]], color=SERIES[number], linewidth=1, alpha=0.7)
        axes.set_xscale("log")
        ticks = sorted({100 * point["fraction"] for _, points in curves for point in points})
        axes.set_xticks(ticks, [f"{tick:g} %" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("part of the training patients")
        axes.set_ylabel("test AUC")
        legend = tuple((title, number) for number, (title, _) in enumerate(curves))
        means = [", ".join(numbers.score(point["auc"]) for point in points) for _, points in curves]
        ends = (f"{title}: AUC {values}" for (title, _), values in zip(curves, means, strict=True))
        svg = canvas.to_svg(figure, "learning", "Learning curves. " + "; ".join(ends))
    caption = (
        "Test AUC with 95 % intervals over patients, when the arm was trained on a part of the training patients. A"
        " curve that still rises at its right end says that more data would help."
    )
    return Plot(svg=svg, caption=caption, legend=legend)


def training(curves: Sequence[tuple[str, int, Sequence[Sequence[tuple[float, float]]]]]) -> tuple[Plot, ...]:
    """A plot for each arm: validation AUC over the steps, a thin line for each seed; all have the same axes.

    Args:
      curves: (title, number of its colour, runs) of each arm; a run is a list of (step, AUC), and none is empty.
    """
    points = [point for _, _, runs in curves for run in runs for point in run]
    if not points:
        return ()
    last = max(step for step, _ in points)
    lowest, highest = min(auc for _, auc in points), max(auc for _, auc in points)
    margin = 0.05 * (highest - lowest) or 0.05
    plots = []
    for title, number, runs in curves:
        with canvas.drawing():
            figure, axes = canvas.figure(2.2, 2.0)
            for run in runs:
                marker = "o" if len(run) == 1 else None
                axes.plot(*zip(*run, strict=True), linewidth=0.8, marker=marker, markersize=3, color=SERIES[number])
            axes.set(xlim=(0, 1.02 * last), ylim=(lowest - margin, highest + margin))
            axes.set_xlabel("training step")
            axes.set_ylabel("validation AUC")
            axes.locator_params(axis="x", nbins=4)
            ends = ", ".join(numbers.score(run[-1][1]) for run in runs)
            svg = canvas.to_svg(
                figure, f"training{number}", f"Validation AUC of {title} during training; at the end {ends}"
            )
        plots.append(Plot(svg=svg, caption=f"{title}: {len(runs)} run{'s' * (len(runs) > 1)}", size="small"))
    return tuple(plots)
