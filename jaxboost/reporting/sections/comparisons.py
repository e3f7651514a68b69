"""Tables of comparisons, and the words for why one is not shown."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxboost.reporting import choice, numbers, tables
from jaxboost.reporting.tables import Cell, Column, Row, Table
from jaxboost.studies.pairs import ALPHA

Comparison = Mapping[str, Any]
# Tones of a comparison's result.
_TONES = {"shown": "good", "opposite": "bad"}
# The p values that decide, and how a reason names one.
_P = {"p_holm": "p", "delong_p_holm": "DeLong p"}
# The other conditions.
_FAILED = {"interval": "interval holds 0", "delong_difference": "averaged runs differ the other way"}
# Columns of the page's tables: one metric each, since all together fit no page. The files have all in one table.
_OF_AUC = ("comparison", "shown", "difference", "p_holm", "delong_p_holm", "better", "detectable")
_OF_ACC = ("comparison", "acc_difference", "only_arm", "only_reference", "mcnemar_p_holm", "false_order")
_OF_ACC += ("acc_detectable",)
_OF_RUNGS = ("comparison", "shown", "difference", "p_holm", "delong_p_holm", "better")


def comparisons(analysis: choice.Analysis) -> Table:
    """All that is known of the comparisons, one family for Holm's correction."""
    rows = choice.comparisons(analysis)
    titles = choice.titles(analysis)
    return Table(
        name="comparisons",
        caption="Pairs of arms on the same test items: first arm (A) minus second (B)",
        columns=_columns(str(next((row.get("metric", "auc") for row in rows), "auc")).upper()),
        rows=tuple(Row(cells=tuple(_comparison(row, titles)), marked=bool(row.get("main"))) for row in rows),
    )


def auc_table(analysis: choice.Analysis) -> Table:
    """What decides whether a difference is shown."""
    caption = "Differences in AUC on the same test items, first arm (A) minus second (B), and what decides the result"
    return _part(comparisons(analysis), "comparisons", _OF_AUC, caption)


def acc_table(analysis: choice.Analysis) -> Table:
    """The same pairs by accuracy, without those of which nothing is known."""
    rows = [row for row in choice.comparisons(analysis) if numbers.is_number(row.get("acc_difference"))]
    caption = "The same pairs by accuracy, first arm (A) minus second (B): these figures do not decide the result"
    return _part(comparisons({**analysis, "comparisons": rows}), "accuracies", _OF_ACC, caption)


def rungs(analysis: choice.Analysis, arm: str | None = None) -> Table:
    """Each rung of the ladder against all lower ones; with `arm` the pairs that it is in."""
    titles = choice.titles(analysis)
    rows = [row for row in choice.entries(analysis, "ladder") if arm in (None, row["arm"], row["reference"])]
    whole = comparisons({**analysis, "comparisons": rows})
    caption = f"{titles.get(arm, arm)} against each other rung" if arm else "Each rung against all lower ones"
    # The file has the p values before Holm's correction too.
    columns = _OF_RUNGS if arm else (*_OF_RUNGS, "p", "delong_p")
    return _part(whole, "rungs", columns, caption, explained=False)


def why_not_shown(row: Comparison) -> str:
    """Which conditions of "shown" a comparison does not meet, in a few words; "" if it meets all.

    The conditions are those of `pairs.failed`.
    """
    failed = row.get("failed")
    if failed is None:
        return "no AUC to compare"
    words = [_FAILED.get(name, name) for name in failed if name not in _P]
    if tests := [_P[name] for name in failed if name in _P]:
        words.append(f"{tests[0] if len(tests) < len(_P) else 'both p'} not below {ALPHA:g}")
    return "; ".join(words)


def _part(whole: Table, name: str, columns: Sequence[str], caption: str, *, explained: bool = True) -> Table:
    """Some columns of a table, in the given order."""
    keys = [column.key for column in whole.columns]
    places = [keys.index(key) for key in columns]
    return Table(
        name=name,
        caption=caption,
        columns=tuple(whole.columns[place] for place in places),
        rows=tuple(Row(cells=tuple(row.cells[at] for at in places), marked=row.marked) for row in whole.rows),
        explained=explained,
    )


def _columns(metric: str) -> tuple[Column, ...]:
    return (
        Column(key="comparison", title="Comparison", numeric=False),
        Column(
            key="shown",
            title="Result",
            numeric=False,
            help=f"shown: the interval excludes 0, both p values after Holm's correction are below {ALPHA:g}, and all"
            " are on one side; opposite: the same, but B is the better one; not shown: a condition fails, which is"
            " named",
        ),
        Column(key="difference", title=f"Δ {metric}", help="A minus B, with its 95 % interval", ends=True),
        Column(
            key="p_holm",
            title="p, Holm",
            help="how often chance alone makes a difference as large as this one, with other patients and other seeds,"
            " after Holm's correction for the number of comparisons; below, before it",
        ),
        Column(
            key="delong_p_holm",
            title="DeLong p, Holm",
            help="the same by DeLong's test of the probabilities averaged over the seeds, which knows of other patients"
            " alone",
        ),
        Column(key="p", title="p", shown=False),
        Column(key="delong_p", title="DeLong p", shown=False),
        Column(
            key="better",
            title="P(A\N{NO-BREAK SPACE}>\N{NO-BREAK SPACE}B)",
            help="how often one run of A beats one run of B, patients and seeds drawn again; 0.5 is a toss-up",
        ),
        Column(
            key="detectable",
            title=f"Detectable Δ {metric}",
            help=f"smallest difference in {metric} that a test set like this one shows in four of five studies (80 %"
            " power)",
        ),
        Column(key="acc_difference", title="Δ ACC", help="difference in accuracy, mean over the seeds"),
        Column(
            key="only_arm",
            title="Only A",
            help="test items (patients, where they have several) that only A gets right, by the probabilities averaged"
            " over the seeds",
        ),
        Column(key="only_reference", title="Only B", help="those that only B gets right"),
        Column(key="mcnemar_p", title="McNemar p", shown=False),
        Column(
            key="mcnemar_p_holm",
            title="McNemar p, Holm",
            help="p of the exact McNemar test of these two counts after Holm's correction; below, before it",
        ),
        Column(
            key="false_order",
            title="P(order false)",
            help="probability that B is at least as accurate as A, given these two counts",
        ),
        Column(
            key="acc_detectable",
            title="Detectable Δ ACC",
            help="smallest difference in accuracy that a test set like this one shows at 80 % power; undefined where A"
            " and B disagree on too few items",
        ),
    )


def _comparison(row: Comparison, titles: Mapping[str, str]) -> list[Cell]:
    mcnemar, detectable = row.get("mcnemar") or {}, row.get("detectable") or {}
    shown = row.get("shown") or numbers.UNDEFINED
    first, second = titles[row["arm"]], titles[row["reference"]]
    claim = row.get("claim") or ""
    # A claim that a study makes from the two titles adds nothing to them.
    claim = "" if claim.startswith(f"{first} is better than") else claim and f"claim: {claim}"
    return [
        tables.name_cell(f"{first} minus {second}", claim),
        Cell(text="", value=shown, badge=shown, tone=_TONES.get(shown, ""), detail=why_not_shown(row)),
        tables.interval_cell(row, "difference", numbers.difference),
        _corrected(row.get("p_holm"), row.get("p")),
        _corrected(row.get("delong_p_holm"), row.get("delong_p")),
        tables.number_cell(row.get("p"), numbers.p_value),
        tables.number_cell(row.get("delong_p"), numbers.p_value),
        tables.number_cell(row.get("better"), numbers.probability),
        tables.number_cell(detectable.get(row.get("metric", "auc"))),
        tables.number_cell(row.get("acc_difference"), numbers.difference),
        tables.number_cell(mcnemar.get("only_arm"), numbers.plain),
        tables.number_cell(mcnemar.get("only_reference"), numbers.plain),
        tables.number_cell(mcnemar.get("p"), numbers.p_value),
        _corrected(mcnemar.get("p_holm"), mcnemar.get("p")),
        tables.number_cell(row.get("false_order"), numbers.probability),
        tables.number_cell(detectable.get("acc")),
    ]


def _corrected(p_holm: Any, p: Any) -> Cell:
    """A p value after Holm's correction, with the one before it below."""
    return tables.number_cell(p_holm, numbers.p_value, numbers.p_value(p) if numbers.is_number(p) else "")
