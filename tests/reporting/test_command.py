"""`jaxboost report`: from a folder of runs to a report."""

from tests.scripts import assert_mistake, run_script

# The collection and the analysis have tests of their own.
PROGRAM = """
import pathlib, sys, types
from jaxboost import studies
from jaxboost.cli import main
from jaxboost.errors import UserError
from tests.reporting import analyses

def collect(folder):
    if not (folder / "runs").is_dir():
        raise UserError(f"{folder} holds no runs")
    return record

analysis, record = analyses.small()
for name, function in {"collect": collect, "analyse": lambda given: analysis if given is record else 1 / 0}.items():
    module = types.ModuleType("jaxboost.studies." + {"analyse": "compare"}.get(name, name))
    setattr(module, name, function)
    sys.modules[module.__name__] = module
    setattr(studies, module.__name__.rpartition(".")[2], module)
main.main(["report", *sys.argv[1:]])
"""


def test_a_report(tmp_path):
    (tmp_path / "study" / "runs").mkdir(parents=True)
    process = run_script("-c", PROGRAM, "--runs", tmp_path / "study", "--out", tmp_path / "out" / "report")
    assert process.returncode == 0, process.stderr
    sentence, page = process.stdout.splitlines()
    assert sentence.startswith("R-LLM minus plain ViT: AUC +0.004 ")
    assert page == str(tmp_path / "out" / "report" / "report.html")
    assert (tmp_path / "out" / "report" / "report.html").is_file()


def test_mistakes_are_told_before_anything_is_written(tmp_path):
    process = run_script("-c", PROGRAM, "--runs", tmp_path, "--out", tmp_path / "out")
    assert_mistake(process, f"{tmp_path} holds no runs")
    # Before the runs are read, and all figures computed.
    (tmp_path / "out").write_text("mine")
    assert_mistake(run_script("-c", PROGRAM, "--runs", tmp_path, "--out", tmp_path / "out"), "out is not a folder")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
