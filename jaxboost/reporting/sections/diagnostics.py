"""Sections about how good the scores are: ROC, calibration, learning and training curves, errors, subgroups."""

from collections.abc import Sequence

from jaxboost.reporting import choice, numbers, tables
from jaxboost.reporting.blocks import Block, Matrices, Matrix, Picture, Pictures, Plot, Plots, Section, Tabled, Text
from jaxboost.reporting.plots import curves
from jaxboost.reporting.tables import Column, Row, Table
from jaxboost.studies.record import Record

# A matrix of more classes fits no page.
_MAX_CLASSES = 30


def sections(analysis: choice.Analysis, record: Record, pictures: Sequence[Picture]) -> list[Section]:
    """The sections, in their order."""
    return [
        _curves(analysis),
        _calibration(analysis),
        _confusion(analysis, record),
        _training(analysis, record),
        _subgroups(analysis),
        _pictures(pictures),
    ]


def _curves(analysis: choice.Analysis) -> Section:
    plots = [curves.roc(choice.main_arms(analysis)), curves.learning(choice.learning_series(analysis))]
    found = tuple(plot for plot in plots if plot)
    names = [name for name, plot in zip(("ROC", "learning curves"), plots, strict=True) if plot]
    title = " and ".join(names)
    return Section(id="roc", title=title[:1].upper() + title[1:], blocks=(Plots(members=found),) if found else ())


def _calibration(analysis: choice.Analysis) -> Section:
    rows = []
    for arm in choice.arms(analysis):
        if entry := arm.get("calibration"):
            cells = [tables.number_cell(entry.get(key)) for key in ("brier", "ece", "temperature", "ece_scaled")]
            rows.append(Row(cells=(tables.name_cell(arm["title"]), *cells)))
    if not rows:
        return Section(id="calibration", title="Calibration", blocks=())
    columns = (
        Column(key="arm", title="Arm", numeric=False),
        Column(key="brier", title="Brier", help="mean squared error of the probabilities: smaller is better"),
        Column(key="ece", title="ECE", help="expected calibration error: mean gap of probability and frequency"),
        Column(key="temperature", title="Temperature", help="above 1: the arm is too sure; fitted on validation"),
        Column(key="ece_scaled", title="ECE, scaled", help="after the temperature"),
    )
    caption = "Calibration on the test split; the temperature was fitted on validation"
    table = Table(name="calibration", caption=caption, columns=columns, rows=tuple(rows))
    lead = Text(
        text="Of all items that get a probability near 0.8, about 80 % should be positive: then the dots lie on the"
        " dashed diagonal. Dots below it on the right: the arm is too sure. The size of a dot is the number of items,"
        " the line through it an interval of the frequency. The diagrams are of the probabilities averaged over the"
        " seeds; the figures are means over the seeds."
    )
    drawn: list[Plot] = []
    for number, arm in enumerate(choice.main_arms(analysis)):
        if plot := curves.reliability(arm, f"reliability{number}", number):
            drawn.append(plot)
    blocks: list[Block] = [lead] + ([Plots(members=tuple(drawn))] if drawn else []) + [Tabled(table=table)]
    return Section(id="calibration", title="Calibration", blocks=tuple(blocks))


def _confusion(analysis: choice.Analysis, record: Record) -> Section:
    matrices: list[Matrix] = []
    for arm in choice.main_arms(analysis):
        counts = tuple(tuple(row) for row in arm.get("confusion") or ())
        if not counts:
            continue
        if len(counts) > _MAX_CLASSES:
            text = f"There are {len(counts)} classes, too many for a page: the counts are in the JSON file beside it."
            return Section(id="confusion", title="Confusion matrices", blocks=(Text(text=text),))
        known = len(record.classes) == len(counts)
        classes = record.classes if known else tuple(str(number) for number in range(len(counts)))
        matrices.append(Matrix(title=arm["title"], classes=classes, counts=counts))
    if not matrices:
        return Section(id="confusion", title="Confusion matrices", blocks=())
    text = "Rows are the true classes, columns the predicted ones; counts are summed over the seeds, below them is the"
    lead = Text(text=f"{text} part of the true class.")
    return Section(id="confusion", title="Confusion matrices", blocks=(lead, Matrices(members=tuple(matrices))))


def _training(analysis: choice.Analysis, record: Record) -> Section:
    found = []
    # Baselines have no curve: they give their places to other arms.
    for arm in choice.main_arms(analysis) + choice.others(analysis):
        runs = [run for run in (_validation(record, arm["name"], seed) for seed in arm.get("seeds") or ()) if run]
        if runs and len(found) < choice.CURVES:
            found.append((arm, runs))
    # The colours of the other plots; arms that are not in those get what is left.
    taken = {arm["name"]: number for number, arm in enumerate(choice.main_arms(analysis))}
    free = [number for number in range(choice.CURVES) if number not in [taken.get(arm["name"]) for arm, _ in found]]
    curves_of = [
        (arm["title"], taken[arm["name"]] if arm["name"] in taken else free.pop(0), runs) for arm, runs in found
    ]
    blocks: list[Block] = []
    if plots := curves.training(curves_of):
        blocks.append(
            Text(
                text="AUC on validation during training, a line for each seed. Curves that still rise at their end, or"
                " that stay at 0.5, belong to runs that show nothing yet."
            )
        )
        blocks.append(Plots(members=plots))
    if table := _rates(analysis):
        blocks.append(Tabled(table=table))
    return Section(id="training", title="Training", blocks=tuple(blocks))


def _rates(analysis: choice.Analysis) -> Table | None:
    """The learning rates that were tried, and what validation said.

    The chosen one is that of the runs: of equally good rates, or after a tuning run came late, it is not simply the
    rate with the largest value.
    """
    configs = (analysis.get("provenance") or {}).get("configs") or {}
    tuned = [arm for arm in choice.arms(analysis) if arm.get("learning_rates")]
    if not tuned:
        return None
    rates = sorted({rate for arm in tuned for rate in arm["learning_rates"]}, key=_as_number)
    rows = []
    for arm in tuned:
        chosen = ((configs.get(arm["name"]) or {}).get("optim") or {}).get("lr")
        badge = f"chosen: {chosen:g}{_end(chosen, rates)}" if numbers.is_number(chosen) else ""
        cells = [tables.number_cell(arm["learning_rates"].get(rate)) for rate in rates]
        rows.append(Row(cells=(tables.name_cell(arm["title"], badge=badge), *cells)))
    return Table(
        name="learning_rates",
        caption="Learning rates that were tried with the first seed, and the metric on validation that chose one",
        columns=(Column(key="arm", title="Arm", numeric=False), *(Column(key=str(rate), title=rate) for rate in rates)),
        rows=tuple(rows),
    )


def _end(chosen: float, rates: Sequence[str]) -> str:
    """What to say of a chosen rate beyond which none was tried, where a better one may lie; "" of others.

    Args:
      chosen: the rate.
      rates: those that were tried, from the smallest, as the text of `f"{rate:g}"`.
    """
    ends = {rates[0]: ", the smallest tried", rates[-1]: ", the largest tried"}
    return ends.get(f"{chosen:g}", "") if len(rates) > 1 else ""


def _as_number(rate: str) -> tuple[float, str]:
    try:
        return float(rate), rate
    except ValueError:
        return float("inf"), rate


def _subgroups(analysis: choice.Analysis) -> Section:
    titles = choice.titles(analysis)
    blocks: list[Block] = []
    rows = [
        Row(
            cells=(
                tables.name_cell(f"{row.get('column')}: {row.get('value')}"),
                tables.name_cell(titles.get(row.get("arm"), str(row.get("arm")))),
                tables.number_cell(row.get("n"), numbers.plain),
                tables.interval_cell(row, "auc"),
            )
        )
        for row in choice.entries(analysis, "subgroups")
    ]
    if rows:
        columns = (
            Column(key="subgroup", title="Subgroup", numeric=False),
            Column(key="arm", title="Arm", numeric=False),
            Column(key="n", title="Items"),
            Column(key="auc", title="AUC", ends=True),
        )
        caption = "Test AUC in subgroups, with 95 % intervals: differences between small groups are mostly chance"
        blocks.append(Tabled(table=Table(name="subgroups", caption=caption, columns=columns, rows=tuple(rows))))
    if table := _classes(analysis):
        blocks.append(Tabled(table=table))
    return Section(id="subgroups", title="Subgroups and classes", blocks=tuple(blocks))


def _classes(analysis: choice.Analysis) -> Table | None:
    """AUC (one class against the rest) and sensitivity of each class, of the main arms."""
    rows = [
        Row(
            cells=(
                tables.name_cell(str(entry.get("class"))),
                tables.name_cell(arm["title"]),
                tables.number_cell(entry.get("n"), numbers.plain),
                tables.number_cell(entry.get("auc")),
                tables.number_cell(entry.get("sensitivity")),
            )
        )
        for arm in choice.main_arms(analysis)
        for entry in arm.get("per_class") or ()
    ]
    if not rows:
        return None
    return Table(
        name="classes",
        caption="Each class on the test split: AUC against all other classes, and the part of it that is found",
        columns=(
            Column(key="class", title="Class", numeric=False),
            Column(key="arm", title="Arm", numeric=False),
            Column(key="n", title="Items"),
            Column(key="auc", title="AUC"),
            Column(key="sensitivity", title="Sensitivity"),
        ),
        rows=tuple(rows),
    )


def _pictures(pictures: Sequence[Picture]) -> Section:
    title = "Worst errors, and where the model looks"
    if not pictures:
        return Section(id="pictures", title=title, blocks=())
    text = (
        "The test images that one run classified wrongly with the highest probability. Where the other arm of the main"
        " comparison has runs, its score for the same image is given too: the two need not fail on the same images."
    )
    if any(picture.kind != "image" for picture in pictures):
        text += (
            " The map shows where the model looked: bright places change the score most. That is no evidence that it"
            " looks at the disease, and a map that stays when the weights are random says nothing."
        )
    return Section(id="pictures", title=title, blocks=(Text(text=text), Pictures(members=tuple(pictures))))


def _validation(record: Record, arm: str, seed: int) -> list[tuple[float, float]]:
    """The validation AUC of a run: (step, AUC)."""
    runs = [run for run in record.runs if run.arm == arm and run.seed == seed]
    points = [(each.get("step"), each.get("val_auc")) for run in runs for each in run.curve]
    return [(step, auc) for step, auc in points if numbers.is_number(step) and numbers.is_number(auc)]
