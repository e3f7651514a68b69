"""`jaxboost report`: from a folder of runs to a report."""

import dataclasses
import sys
import types

import numpy as np

from jaxboost.errors import UserError
from jaxboost.io import to_json, write_text
from jaxboost.reporting import worst_errors as worst_errors_of_report
from jaxboost.studies.record import RunRecord
from tests.reporting import analyses
from tests.reporting.pages import parse
from tests.scripts import assert_mistake, run_script

# R-LLM has no run with the first seed.
RUNS = (("rllm", 1), ("plain", 0), ("plain", 1))
# The collection and the analysis have tests of their own.
PROGRAM = """
import dataclasses, pathlib, sys, types
from jaxboost import studies
from jaxboost.cli import main
from jaxboost.errors import UserError
from jaxboost.studies.record import RunRecord
from tests.reporting import analyses

def collect(folder):
    if not (folder / "runs").is_dir():
        raise UserError(f"{folder} holds no runs")
    return record

analysis, record = analyses.small()
results = {"rllm": {"seed": 0, "seconds": 1.5}, "plain": {"seed": 0, "seconds": 2.5}}
runs = tuple(RunRecord(arm=arm, seed=0, result=result) for arm, result in results.items())
record = dataclasses.replace(record, runs=runs)
for name, function in {"collect": collect, "analyse": lambda given: analysis if given is record else 1 / 0}.items():
    module = types.ModuleType("jaxboost.studies." + {"analyse": "compare"}.get(name, name))
    setattr(module, name, function)
    sys.modules[module.__name__] = module
    setattr(studies, module.__name__.rpartition(".")[2], module)
explain, pictured = types.ModuleType("jaxboost.explain"), types.ModuleType("jaxboost.explain.for_report")

def worst_errors(run, most, against):
    if "plain" in run.name:
        said = (f"{run.name}, at most {most}", f"and {against.name}")
        return [types.SimpleNamespace(name="test/3", target=1, label="ill", findings=said, kind="image", png=b"")]
    raise UserError(f"{run} has no checkpoint")

pictured.worst_errors = worst_errors
explain.for_report = pictured
sys.modules |= {"jaxboost.explain": explain, "jaxboost.explain.for_report": pictured}
main.main(["report", *sys.argv[1:]])
"""


def test_a_report(tmp_path):
    # The results of two runs, with a checksum as the files have it, and one that is damaged.
    for name, seconds in {"rllm": 1.5, "plain": 2.5}.items():
        write_text(
            tmp_path / "study" / "runs" / name / "result.json", to_json({"sha256": name, "seed": 0, "seconds": seconds})
        )
    write_text(tmp_path / "study" / "runs" / "a" / "result.json", "{")
    process = run_script("-c", PROGRAM, "--runs", tmp_path / "study", "--out", tmp_path / "out" / "report")
    assert process.returncode == 0, process.stderr
    sentence, page = process.stdout.splitlines()
    assert sentence.startswith("R-LLM minus plain ViT: AUC +0.004 ")
    assert page == str(tmp_path / "out" / "report" / "report.html")
    # R-LLM's run cannot be opened here, so the other arm of the comparison is shown.
    shown = parse((tmp_path / "out" / "report" / "report.html").read_text("utf-8"))
    assert [attributes["alt"] for tag, attributes in shown.tags if tag == "img"] == [
        "test/3, label ill\n"
        "Plain ViT, seed 0: plain, at most 12\n"
        "R-LLM, last layer of SmolLM2, seed 0: and rllm\n"
        "R-LLM, last layer of SmolLM2, seed 0, on this image: malignant 0.71, benign 0.29"
    ]
    assert (tmp_path / "out" / "report" / "report.html").is_file()


def test_mistakes_are_told_before_anything_is_written(tmp_path):
    process = run_script("-c", PROGRAM, "--runs", tmp_path, "--out", tmp_path / "out")
    assert_mistake(process, f"{tmp_path} holds no runs")
    # Before the runs are read, and all figures computed.
    (tmp_path / "out").write_text("mine")
    assert_mistake(run_script("-c", PROGRAM, "--runs", tmp_path, "--out", tmp_path / "out"), "out is not a folder")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_report_without_pictures_says_why(tmp_path, monkeypatch):
    analysis, record = analyses.small()
    run = RunRecord(arm="rllm", seed=0, result={"seed": 0})
    record = dataclasses.replace(record, runs=(run,))
    write_text(tmp_path / "x" / "result.json", '{"sha256": "1", "seed": 0}')
    module = types.ModuleType("jaxboost.explain.for_report")

    def refuse(run, most, against):
        raise UserError(f"{run.name} has no data")

    module.worst_errors = refuse
    explain = types.ModuleType("jaxboost.explain")
    explain.for_report = module
    monkeypatch.setitem(sys.modules, "jaxboost.explain", explain)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    left_out = [{"what": "pictures of the errors of rllm", "why": "x has no data"}]
    assert worst_errors_of_report.find(tmp_path, analysis, record, 12) == ([], left_out)
    assert worst_errors_of_report.find(tmp_path, analysis, record, 0) == ([], [])
    # The runs are somewhere else: the record is enough for a report.
    assert worst_errors_of_report.find(tmp_path / "x" / "y", analysis, record, 12) == ([], [])


def test_the_other_arms_score_is_beside_a_worst_error(tmp_path, monkeypatch):
    """Its map too, where its run can be opened; the score is of the same seed and the same image."""
    analysis, record = analyses.small()
    runs = tuple(RunRecord(arm=arm, seed=seed, result={"arm": arm, "seed": seed}) for arm, seed in RUNS)
    scores = {(arm, seed, "test"): np.full((40, 2), (0.25, 0.75), np.float32) for arm, seed in RUNS}
    scores["plain", 1, "test"][3] = 0.875, 0.125
    record = dataclasses.replace(record, runs=runs, scores=scores)
    for run in runs:
        write_text(tmp_path / run.arm / str(run.seed) / "result.json", to_json(run.result))
    module, asked = types.ModuleType("jaxboost.explain.for_report"), []

    def worst_errors(run, most, against):
        asked.append(against and against.relative_to(tmp_path).as_posix())
        if against:
            raise UserError("its checkpoint is missing")
        return [types.SimpleNamespace(name="test/3", target=1, label="", findings=("wrong",), kind="gradcam", png=b"")]

    module.worst_errors = worst_errors
    explain = types.ModuleType("jaxboost.explain")
    explain.for_report = module
    monkeypatch.setitem(sys.modules, "jaxboost.explain", explain)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    (picture,), left_out = worst_errors_of_report.find(tmp_path, analysis, record, 12)
    assert asked == ["plain/1", None]
    assert left_out == []
    label = int(record.items["test"].labels[3, 0])
    both = "malignant 0.12, benign 0.88" if label == 0 else "malignant 0.12"
    first, second, third = picture.caption.splitlines()
    assert (first, second) == ("test/3", "R-LLM, last layer of SmolLM2, seed 1: wrong")
    assert third == f"Plain ViT, seed 1, on this image: {both}"
    # Of pooled patients the record has no score of an image.
    pooled = dataclasses.replace(record, data={**record.data, "unit": "patient"})
    (picture,), _ = worst_errors_of_report.find(tmp_path, analysis, pooled, 12)
    assert picture.caption.splitlines() == [first, second]
