"""`jaxboost report`: from a folder of runs to a report."""

import dataclasses
import sys
import types

from jaxboost.errors import UserError
from jaxboost.io import to_json, write_text
from jaxboost.reporting import worst_errors
from jaxboost.studies.record import RunRecord
from tests.reporting import analyses
from tests.reporting.pages import parse
from tests.scripts import assert_mistake, run_script

# The collection and the analysis have tests of their own.
PROGRAM = """
import dataclasses, pathlib, sys, types
from jaxboost import studies
from jaxboost.cli import main
from jaxboost.errors import UserError
from jaxboost.reporting.blocks import Picture
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

def worst_errors(run, most):
    if "plain" in run.name:
        return [Picture(kind="image", caption=f"{run.name}, at most {most}", png=b"")]
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
    assert [attributes["alt"] for tag, attributes in shown.tags if tag == "img"] == ["plain, at most 12"]
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

    def refuse(run, most):
        raise UserError(f"{run.name} has no data")

    module.worst_errors = refuse
    explain = types.ModuleType("jaxboost.explain")
    explain.for_report = module
    monkeypatch.setitem(sys.modules, "jaxboost.explain", explain)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    left_out = [{"what": "pictures of the errors of rllm", "why": "x has no data"}]
    assert worst_errors.find(tmp_path, analysis, record, 12) == ([], left_out)
    assert worst_errors.find(tmp_path, analysis, record, 0) == ([], [])
    # The runs are somewhere else: the record is enough for a report.
    assert worst_errors.find(tmp_path / "x" / "y", analysis, record, 12) == ([], [])
