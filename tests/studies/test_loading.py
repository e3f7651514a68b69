"""Study files: found as configs are, and checked as a whole."""

import dataclasses
import re

import pytest

from jaxboost.config import get_config
from jaxboost.config import loading as config_loading
from jaxboost.errors import UserError
from jaxboost.studies import loading, plan
from jaxboost.studies.study import Comparison
from tests.scripts import REPOSITORY
from tests.studies.small_studies import BARE, CLAIM, PLAIN, RLLM, small_study


def test_packaged_studies_are_those_of_the_checkout():
    names = config_loading.packaged_names(config_loading.STUDY)
    assert names == sorted(path.stem for path in (REPOSITORY / "configs" / "studies").glob("*.py"))
    assert {"ladder", "controls", "learning_curve", "layer_sweep", "pneumollm_tables"} <= {*names}
    assert {f"rllm_table{number}" for number in (1, 3, 5, 6)} <= {*names}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lader", "study lader: there is no packaged study 'lader', did you mean 'ladder'"),
        ("./lader.py", "no such file; for a packaged study give its name, such as ladder"),
        ("ladder:4d", "study ladder:4d: ValueError: unknown argument '4d': give 2d, 3d, resnet"),
        ("rllm_table1:chestmnist", "unknown argument 'chestmnist': give one of breastmnist"),
    ],
)
def test_studies_that_are_not_there(name, words):
    with pytest.raises(UserError, match=words):
        loading.load_study(name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def get_study():\n    return 1", "get_study returns int, not a Study"),
        ("x = 1", "has no attribute 'get_study'"),
        ("def get_study(:", "SyntaxError"),
    ],
)
def test_files_that_are_no_studies(tmp_path, text, words):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=words):
        loading.load_study(str(tmp_path / "mine.py"))


def test_a_file_of_the_user(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from tests.studies.small_studies import small_study\n"
        "def get_study(argument='x'):\n    return small_study(question=argument)\n"
    )
    assert loading.load_study(str(file)).question == "x"
    assert loading.load_study(f"{file}:Why?").question == "Why?"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arms": ()}, "it has no arms"),
        ({"arms": (PLAIN, PLAIN), "comparisons": ()}, "arm 'plain' is there 2 times"),
        ({"arms": (dataclasses.replace(PLAIN, name="a/b"),), "comparisons": ()}, "arm 'a/b': a name has letters"),
        (
            {"comparisons": (Comparison(arm="rlm", reference="plain", claim=""),)},
            "arm 'rlm', which is not there: did you mean 'rllm'",
        ),
        ({"comparisons": (Comparison(arm="rllm", reference="rllm", claim=""),)}, "compared with itself"),
        (
            {"comparisons": (CLAIM, dataclasses.replace(CLAIM, reference="bare"))},
            "more than one comparison is",
        ),
        ({"arms": (BARE, RLLM, PLAIN)}, "arm 'bare' evaluates arm 'rllm' again, which has to come before it"),
        ({"arms": (PLAIN, RLLM, dataclasses.replace(BARE, tuned=True))}, "there is no learning rate to tune"),
        ({"arms": (PLAIN, RLLM, BARE, dataclasses.replace(BARE, name="b", after="bare"))}, "no trained run itself"),
        ({"arms": (PLAIN, dataclasses.replace(RLLM, group="rungs"))}, "its group 'rungs' is none of"),
        ({"seeds": 0}, "seeds=0: give 1 or more"),
        ({"lr_grid": (0.1, 0.0)}, "learning rates are above 0"),
    ],
)
def test_what_does_not_fit_together(changes, words):
    with pytest.raises(UserError, match=words):
        loading.check(small_study(**changes), "small")


def test_a_packaged_study_has_question_cost_and_expectation():
    for name in config_loading.packaged_names(config_loading.STUDY):
        study = loading.load_study(name)
        text = config_loading.packaged_folder(config_loading.STUDY).joinpath(f"{name}.py").read_text()
        assert f"jaxboost study --study {name}" in text, name
        assert "Cost" in text, name
        assert "Expected: " in text, name
        assert study.question.endswith("?"), name
        assert study.expected, name
        assert sum(each.main for each in study.comparisons) == 1, name


def test_the_study_of_the_docs(tmp_path):
    text = (REPOSITORY / "docs" / "studies.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    (tmp_path / "encoders.py").write_text(code)
    study = loading.load_study(str(tmp_path / "encoders.py"))
    assert len(plan.make(study, tmp_path / "out").runs) == 2 * (3 + 4)


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        ("layer_sweep", 8 * 7),
        ("layer_sweep:0+29", 3 * 7),
        ("pneumollm_tables", 15 * 3),
        ("pneumollm_tables:quickstart", 12 * 3),
        *((f"rllm_table1:{name}mnist", 4 * 5) for name in ("breast", "retina", "pneumonia", "derma", "oct", "organa")),
        *((f"rllm_table3:{name}mnist3d", 6 * 5) for name in ("fracture", "adrenal", "nodule", "vessel")),
        *((f"rllm_table5:{name}mnist3d", 4 * 5) for name in ("fracture", "adrenal")),
        *((f"rllm_table6:{name}mnist3d", 5 * 5) for name in ("fracture", "adrenal")),
    ],
)
def test_the_configs_of_packaged_studies_are_right(tmp_path, name, runs):
    study = loading.load_study(name)
    assert len(plan.make(study, tmp_path).runs) == runs
    assert len(plan.make(study.as_trial(), tmp_path).runs) == len(study.arms)


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        # Five baselines with a seed each; three tuned arms with 3 + 4 runs.
        ("ladder", 5 + 3 * 7),
        ("ladder:resnet", 5 + 3 * 7 + 5),
        ("ladder:2d", 5 + 3 * 7 + 5 + 5),
        ("controls", 18 * 7 + 5),
        ("learning_curve", 3 * (5 + 2 * 7)),
    ],
)
def test_the_configs_of_studies_with_baselines_and_controls_are_right(tmp_path, name, runs):
    if "baseline" not in config_loading.packaged_names() or "control" not in get_config().boost:
        pytest.skip("there are no baselines or no controls yet")
    study = loading.load_study(name)
    assert len(plan.make(study, tmp_path).runs) == runs
    assert len(plan.make(study.as_trial(), tmp_path).runs) == len(study.arms)


def test_the_ladder_has_its_rungs_in_order():
    arms = [arm for arm in loading.load_study("ladder:2d").arms if arm.group == "ladder"]
    assert [arm.name for arm in arms] == [
        *("prevalence", "trivial", "knn", "logistic", "boosting", "resnet18", "plain", "rllm", "pneumollm")
    ]
    assert [arm.rung for arm in arms] == list(range(9))
    assert "resnet18" in {arm.name for arm in loading.load_study("ladder:resnet").arms}
