"""Tables of arms and of comparisons: these are also written as CSV and LaTeX."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxboost.reporting import choice, numbers, tables
from jaxboost.reporting.tables import Cell, Column, Row, Table

SCORES = {
    "auc": ("AUC", "area under the ROC curve: how well the arm ranks ill above healthy; 0.5 is a guess"),
    "acc": ("ACC", "accuracy: the part of the test items that is classified correctly"),
    "sensitivity": ("Sensitivity", "the part of the positive class that is found"),
    "specificity": ("Specificity", "the part of the negative class that is left alone"),
    "balanced_acc": ("Balanced ACC", "mean of sensitivity and specificity"),
}
# Tones of a comparison's result.
_TONES = {"shown": "good", "opposite": "bad"}


def ladder(analysis: choice.Analysis) -> Table:
    """The ladder, from the simplest arm up."""
    caption = "Scores on the test split with 95 % intervals over patients, from the simplest arm to the largest"
    return _arms(analysis, "ladder", "ladder", caption)


def controls(analysis: choice.Analysis) -> Table:
    """The controls."""
    caption = "Controls: each differs from the boosted model in one thing. Scores on the test split, 95 % intervals"
    return _arms(analysis, "control", "controls", caption)


def sweeps(analysis: choice.Analysis) -> Table:
    """The arms of sweeps, such as over layers."""
    return _arms(analysis, "sweep", "sweeps", "Sweeps: scores on the test split, 95 % intervals over patients")


def _arms(analysis: choice.Analysis, group: str, name: str, caption: str) -> Table:
    arms = choice.by_group(analysis, group)
    everywhere = choice.entries(analysis, "arms")
    scores = [key for key in SCORES if any((arm.get("metrics") or {}).get(key) for arm in everywhere)]
    columns = [Column(key="arm", title="Arm", numeric=False)]
    several = any(len(arm.get("seeds") or ()) > 1 for arm in everywhere)
    for key in scores:
        columns.append(Column(key=key, title=SCORES[key][0], help=SCORES[key][1], ends=True))
        if key in ("auc", "acc"):
            # Its explanation below the table stands for the second as well.
            explanation = "standard deviation over the seeds" if key == "auc" else ""
            columns.append(Column(key=f"{key}_sd", title="SD", help=explanation, shown=several))
    columns += [
        Column(key="seeds", title="Seeds", help="number of runs that differ in their random numbers alone"),
        Column(key="trained", title="Trained", help="parameters that training changes; below, those that stay frozen"),
        Column(key="frozen", title="Frozen", shown=False),
        Column(key="seconds", title="Time", help="mean duration of a run; below, memory"),
        Column(key="memory_gb", title="GB", shown=False),
    ]
    simplest = (analysis.get("verdict") or {}).get("simplest")
    rows = [Row(cells=tuple(_arm(arm, scores, simplest)), marked=arm["name"] == simplest) for arm in arms]
    return Table(name=name, caption=caption, columns=tuple(columns), rows=tuple(rows), explained=group == "ladder")


def _arm(arm: choice.Arm, scores: Sequence[str], simplest: str | None) -> list[Cell]:
    badge = "simplest that nothing beats" if arm["name"] == simplest else ""
    cells = [tables.name_cell(arm["title"], arm.get("note") or "", badge=badge, tone="good")]
    metrics = arm.get("metrics") or {}
    for key in scores:
        cells.append(tables.interval_cell(metrics.get(key)))
        if key in ("auc", "acc"):
            cells.append(tables.number_cell((metrics.get(key) or {}).get("sd")))
    parameters = arm.get("parameters") or {}
    frozen, memory = parameters.get("frozen"), arm.get("memory_gb")
    below = f"+ {numbers.count(frozen)} frozen" if numbers.is_number(frozen) and frozen else ""
    return [
        *cells,
        tables.number_cell(len(arm.get("seeds") or ()), numbers.count),
        tables.number_cell(parameters.get("trainable"), numbers.count, below),
        tables.number_cell(frozen, numbers.count),
        tables.number_cell(arm.get("seconds"), numbers.duration, numbers.gigabytes(memory) if memory else ""),
        tables.number_cell(memory, numbers.gigabytes),
    ]


def comparisons(analysis: choice.Analysis) -> Table:
    """The comparisons, one family for Holm's correction."""
    rows = choice.entries(analysis, "comparisons")
    titles = choice.titles(analysis)
    metric = str(next((row.get("metric", "auc") for row in rows), "auc")).upper()
    columns = (
        Column(key="comparison", title="Comparison", numeric=False),
        Column(
            key="shown",
            title="Result",
            numeric=False,
            help="shown: the interval excludes zero, and after Holm's correction DeLong's p and that over patients and"
            " seeds are below 0.05",
        ),
        Column(key="difference", title=f"Δ {metric}", help="first arm minus second, with its 95 % interval", ends=True),
        Column(
            key="better",
            title="P(A\N{NO-BREAK SPACE}>\N{NO-BREAK SPACE}B)",
            help="how often a run of the first beats one of the second, patients and seeds drawn again",
        ),
        Column(key="delong_p", title="p", shown=False),
        Column(
            key="delong_p_holm",
            title="p, Holm",
            help="p of DeLong's test after Holm's correction for the number of comparisons; below, before it",
        ),
        Column(key="false_order", title="P(order false)", help="probability that the claimed order in ACC is false"),
        Column(key="detectable", title="Detectable", help="smallest difference that this test set shows at 80 % power"),
        Column(key="acc_difference", title="Δ ACC", help="difference in accuracy"),
        Column(
            key="only_arm",
            title="Only A",
            help="test items (patients, where they have several) that only the first gets right",
        ),
        Column(key="only_reference", title="Only B", help="those that only the second gets right"),
        Column(key="mcnemar_p_holm", title="McNemar p, Holm", help="p of the exact McNemar test of the accuracies"),
    )
    return Table(
        name="comparisons",
        caption="Pairs of arms on the same test items: first arm (A) minus second (B)",
        columns=columns,
        rows=tuple(Row(cells=tuple(_comparison(row, titles)), marked=bool(row.get("main"))) for row in rows),
    )


def rungs(analysis: choice.Analysis, arm: str | None = None) -> Table:
    """Each rung of the ladder against all lower ones; with `arm` the pairs that it is in."""
    titles = choice.titles(analysis)
    rows = [row for row in choice.entries(analysis, "ladder") if arm in (None, row["arm"], row["reference"])]
    columns = ("comparison", "shown", "difference", "better", "delong_p", "delong_p_holm")
    whole = comparisons({**analysis, "comparisons": rows})
    places = [place for place, column in enumerate(whole.columns) if column.key in columns]
    return Table(
        name="rungs",
        caption=f"{titles.get(arm, arm)} against each other rung" if arm else "Each rung against all lower ones",
        columns=tuple(whole.columns[place] for place in places),
        rows=tuple(Row(cells=tuple(row.cells[place] for place in places)) for row in whole.rows),
        explained=False,
    )


def _comparison(row: Mapping[str, Any], titles: Mapping[str, str]) -> list[Cell]:
    mcnemar, detectable = row.get("mcnemar") or {}, row.get("detectable") or {}
    p = row.get("delong_p")
    shown = row.get("shown") or numbers.UNDEFINED
    return [
        tables.name_cell(f"{titles[row['arm']]} minus {titles[row['reference']]}", row.get("claim") or ""),
        Cell(text="", value=shown, badge=shown, tone=_TONES.get(shown, "")),
        tables.interval_cell(row, "difference", numbers.difference),
        tables.number_cell(row.get("better"), numbers.probability),
        tables.number_cell(p, numbers.p_value),
        tables.number_cell(
            row.get("delong_p_holm"), numbers.p_value, numbers.p_value(p) if numbers.is_number(p) else ""
        ),
        tables.number_cell(row.get("false_order"), numbers.probability),
        tables.number_cell(detectable.get(row.get("metric", "auc"))),
        tables.number_cell(row.get("acc_difference"), numbers.difference),
        tables.number_cell(mcnemar.get("only_arm"), numbers.plain),
        tables.number_cell(mcnemar.get("only_reference"), numbers.plain),
        tables.number_cell(mcnemar.get("p_holm"), numbers.p_value),
    ]
