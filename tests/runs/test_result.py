"""result.json as a dataclass: what is written comes back, and the documentation explains all of it."""

import dataclasses
import json
import math
import pathlib
import re

import pytest

from jaxboost.errors import UserError
from jaxboost.runs import result as results
from jaxboost.runs.result import RunResult

DOCS = (pathlib.Path(__file__).parents[2] / "docs" / "runs.md").read_text(encoding="utf-8")


@pytest.fixture
def content():
    """The result that the documentation shows: the quick start's."""
    return json.loads(re.search(r"```json\n(.*?)```", DOCS, re.DOTALL)[1])


def test_the_documented_result_is_a_real_one(content):
    assert results.from_json(content).to_json() == content
    assert content["test"]["auc"] == 0.9024166666666666


def test_the_documented_python_lines(content, tmp_path, monkeypatch, capsys):
    (code,) = [text for text in re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL) if "RunResult" in text]
    file = tmp_path / "runs/quickstart/seed0/result.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert capsys.readouterr().out.startswith("0.9024166666666666")


def test_the_result_of_all_folds_is_no_run():
    with pytest.raises(ValueError, match="of a whole cross-validation: read that of a fold"):
        RunResult.from_json(results.sealed({"folds": [], "config": {}}))


def test_every_field_is_explained():
    table = "".join(line for line in DOCS.splitlines() if line.startswith("|"))
    kinds = (RunResult, results.Part, results.Parameters, results.Selection, results.Figures, results.Threshold)
    names = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    assert [name for name in sorted(names) if f"`{name}`" not in table] == []


def unsealed(content):
    return {name: value for name, value in content.items() if name not in ("sha256", "costs_sha256")}


@pytest.mark.parametrize("figure", [0.5, None])
def test_undefined_figures_are_null(figure, content):
    """So is an infinite threshold."""
    at = {"sensitivity": 1.0, "specificity": figure, "acc": 0.5}
    changed = unsealed(content)
    changed["threshold"] = {"split": "val", "specificity": 0.9, "value": figure, "val": at, "test": at}
    changed["test"] |= {"auc": figure, "sensitivity": figure}
    changed["selection"]["value"] = figure
    del changed["val"]
    found = results.from_json(changed)
    assert found.to_json() == changed
    assert found.threshold.value == (math.inf if figure is None else figure)
    assert math.isnan(found.test.auc) == (figure is None)
    assert found.val is None


def test_results_without_a_format_are_read(content):
    expected, older = results.from_json(content).test, unsealed(content)
    for place, name in ((older, "format"), (older, "splits_sha256"), (older["selection"], "sha256")):
        del place[name]
    assert results.from_json(older).test == expected


def test_results_without_methods_of_their_intervals_are_read(content):
    older = unsealed(content)
    for split in ("val", "test"):
        del older[split]["ci_method"], older[split]["ci95"]["sensitivity"], older[split]["ci95"]["specificity"]
    found = results.from_json(older)
    assert found.test.ci_method is None
    assert found.to_json() == older


def test_a_later_format_is_no_damage(content):
    later = unsealed(content) | {"format": 2, "test": []}
    with pytest.raises(UserError, match="has the format 2, this jaxboost reads up to 1"):
        results.from_json(results.sealed(later))


@pytest.mark.parametrize("change", [{"seed": 1}, {"sha256": "0"}, {"seconds": 1.5}, {"costs_sha256": "0"}])
def test_altered_results_are_refused(change, content):
    with pytest.raises(ValueError, match="its checksum does not match"):
        results.from_json(content | change)


def test_the_checksum_does_not_depend_on_the_time(content):
    later = results.sealed(content | {"seconds": 1.5})
    assert results.from_json(later).seconds == 1.5
    assert later["sha256"] == content["sha256"] == results.from_json(content).sha256
    assert later["costs_sha256"] != content["costs_sha256"]
