"""Tables of arms, which are also written as CSV and LaTeX."""

import dataclasses
from collections.abc import Sequence

from jaxboost.reporting import choice, numbers, tables
from jaxboost.reporting.tables import Cell, Column, Row, Table

SCORES = {
    "auc": (
        "AUC",
        "area under the ROC curve: how well the arm ranks the cases of a class above the others; 0.5 is a guess",
    ),
    "acc": ("ACC", "accuracy: the part of the test items that is classified correctly"),
    "sensitivity": ("Sensitivity", "the part of the positive class that is found"),
    "specificity": ("Specificity", "the part of the negative class that is left alone"),
    "balanced_acc": ("Balanced ACC", "mean of sensitivity and specificity"),
}
# In place of a standard deviation over one run.
_ONE_RUN = "\N{EN DASH}"


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
    everywhere = choice.arms(analysis)
    scores = [key for key in SCORES if any((arm.get("metrics") or {}).get(key) for arm in everywhere)]
    columns = [Column(key="arm", title="Arm", numeric=False)]
    several = any(len(arm.get("seeds") or ()) > 1 for arm in everywhere)
    for key in scores:
        columns.append(Column(key=key, title=SCORES[key][0], help=SCORES[key][1], ends=True))
        if key in ("auc", "acc"):
            # Its explanation below the table stands for the second as well.
            explanation = f"standard deviation over the seeds; {_ONE_RUN} for a single run" if key == "auc" else ""
            columns.append(Column(key=f"{key}_sd", title="SD", help=explanation, shown=several))
    measured = any(numbers.is_number(arm.get("memory_gb")) for arm in everywhere)
    memory = "below, the most memory that a run held" if measured else "memory was not recorded"
    columns += [
        Column(key="seeds", title="Seeds", help="number of runs that differ in their random numbers alone"),
        Column(
            key="trained",
            title="Trained",
            help="parameters that training changes; below (+), those that stay as they were loaded",
        ),
        Column(key="frozen", title="Frozen", shown=False),
        Column(key="seconds", title="Time", help=f"mean duration of a run; {memory}"),
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
            cells.append(_deviation(metrics.get(key) or {}, arm))
    parameters = arm.get("parameters") or {}
    frozen, memory = parameters.get("frozen"), arm.get("memory_gb")
    below = f"+ {numbers.count(frozen)}" if numbers.is_number(frozen) and frozen else ""
    return [
        *cells,
        tables.number_cell(len(arm.get("seeds") or ()), numbers.count),
        tables.number_cell(parameters.get("trainable"), numbers.count, below),
        tables.number_cell(frozen, numbers.count),
        tables.number_cell(arm.get("seconds"), numbers.duration, numbers.gigabytes(memory) if memory else ""),
        tables.number_cell(memory, numbers.gigabytes),
    ]


def _deviation(metric: choice.Arm, arm: choice.Arm) -> Cell:
    """A standard deviation over the seeds; one run has none, which is no fault of the figures."""
    cell = tables.number_cell(metric.get("sd"))
    single = cell.value is None and len(arm.get("seeds") or ()) == 1
    return dataclasses.replace(cell, text=_ONE_RUN) if single else cell
