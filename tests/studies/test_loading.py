"""Study files: found as configs are, and checked as a whole."""

import dataclasses
import re

import numpy as np
import pytest

from jaxboost.config import get_config
from jaxboost.config import loading as config_loading
from jaxboost.data.sources.folder import contents
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
        ("pneumollm_tables:quickstart+lavin", 3 * 3),
        # Ten tuned arms with 4 + 2 runs.
        ("pneumollm_rivals", 2 + 10 * 6),
        ("pneumollm_rivals:quickstart", 1 + 4 * 6),
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
        ("ladder:3d+slices", 6 + 5 * 7),
        ("ladder:2d", 5 + 3 * 7 + 5 + 5),
        ("ladder:2d+pretrained", 5 + 3 * 7 + 5 + 5),
        ("ladder:2d+clip", 5 + 2 + 3 * 7 + 5 + 5),
        ("controls", 18 * 7 + 5),
        ("controls:2d", 18 * 7 + 5),
        # Of the 20 arms, R-LLM and its plain ViT are in the ladder, whose random block is a control.
        ("complete", 5 + 2 * 7 + 17 * 7 + 5 - 7),
        ("complete:2d+pretrained", 5 + 2 * 7 + 5 + 5 + 17 * 7 + 5 - 7),
        ("learning_curve", 3 * (5 + 2 * 7)),
        ("finetuning", 3 * (5 + 4 * 9)),
    ],
)
def test_the_configs_of_studies_with_baselines_and_controls_are_right(tmp_path, name, runs):
    if "baseline" not in config_loading.packaged_names() or "control" not in get_config().boost:
        pytest.skip("there are no baselines or no controls yet")
    study = loading.load_study(name)
    assert len(plan.make(study, tmp_path).runs) == runs
    assert len(plan.make(study.as_trial(), tmp_path).runs) == len(study.arms)


@pytest.mark.parametrize("argument", ["", ":2d", ":2d+pretrained", ":resnet"])
def test_the_complete_study_has_the_arms_of_both(argument):
    ladder, controls, complete = (
        loading.load_study(f"{name}{argument}") for name in ("ladder", "controls", "complete")
    )
    names = [arm.name for arm in complete.arms]
    assert names == [
        *(arm.name for arm in ladder.arms if arm.name != "random_block"),
        *(arm.name for arm in controls.arms if arm.name not in ("none", "rllm")),
    ]

    def in_complete(name):
        return {"none": "plain", "random_block": "random"}.get(name, name)

    def ran(study, arm):
        """What an arm runs; what tables show is left out."""
        fields = {**study.shared, **arm.overrides, "eval.bootstrap": 0}
        return arm.config, fields, arm.tuned, arm.seeds, arm.after

    for study in (ladder, controls):
        for arm in study.arms:
            assert ran(complete, complete.arm(in_complete(arm.name))) == ran(study, arm), arm.name
    pairs = [(each.arm, each.reference) for each in complete.comparisons]
    assert len({*pairs}) == len(pairs)
    assert {*pairs} == {
        (in_complete(each.arm), in_complete(each.reference))
        for study in (ladder, controls)
        for each in study.comparisons
    }
    assert [(each.arm, each.reference) for each in complete.comparisons if each.main] == [("rllm", "plain")]
    assert complete.name not in (ladder.name, controls.name)


FILES = {
    "pictures": (("a/p1/1.png", "a/p1/2.jpg", "b/p2/1.dcm", "b/p2/notes.txt"), ":2d"),
    "volumes": (("a/1.nii.gz", "b/2.nii", "b/3.nii.gz", "b/3.png"), ""),
    "images of a table": (("images/1.png", "images/2.png", "old/1.nii", "old/2.nii", "old/3.nii"), ":2d"),
    "arrays of pictures": (("a/1.npy", "b/2.npy"), ":2d"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("study", ["ladder", "controls", "complete"])
def test_a_folder_chooses_the_study(tmp_path, study, name):
    files, suffix = FILES[name]
    for file in files:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        # No image is opened, but the header of an .npy file is read.
        np.save(path, np.zeros((4, 5, 3), np.uint8)) if path.suffix == ".npy" else path.touch()
    if "table" in name:
        (tmp_path / "labels.csv").write_text("file,label\n1,sick\n2.png,well\n")
    given = {"data.source": "folder", "data.root": str(tmp_path)}
    assert loading.suited(study, given) == f"{study}{suffix}"
    # Who gives an argument has chosen.
    assert loading.suited(f"{study}:3d", given) == f"{study}:3d"
    assert loading.suited(study, {"data.name": "breastmnist"}) == study
    assert loading.suited("learning_curve", given) == "learning_curve"


def test_volumes_in_arrays(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "1.npy", np.zeros((4, 5, 6), np.uint8))
    assert contents.read(str(tmp_path)) == contents.Contents(ndim=3, count=2, train=None)
    (tmp_path / "a" / "1.npy").write_bytes(b"no array")
    assert contents.read(str(tmp_path)).ndim is None


def test_a_folder_with_splits_is_counted(tmp_path):
    for file in ("train/a/1.png", "train/b/2.png", "train/b/3.png", "test/a/4.png", "test/b/5.png"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert contents.read(str(tmp_path)) == contents.Contents(ndim=2, count=5, train=3)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"^data\.root: there is no folder"):
        loading.suited("ladder", {"data.source": "folder", "data.root": str(tmp_path / "gone")})
    with pytest.raises(UserError, match=r"^data\.root is empty"):
        loading.suited("ladder", {"data.source": "folder"})


def test_the_ladder_has_its_rungs_in_order():
    arms = [arm for arm in loading.load_study("ladder:2d").arms if arm.group == "ladder"]
    assert [arm.name for arm in arms] == [
        *("prevalence", "trivial", "knn", "logistic", "boosting", "resnet18", "plain", "rllm", "pneumollm")
    ]
    assert [arm.rung for arm in arms] == list(range(9))
    assert "resnet18" in {arm.name for arm in loading.load_study("ladder:resnet").arms}


@pytest.mark.parametrize("study", ["ladder", "complete"])
def test_clinical_columns_are_a_rung(study):
    assert loading.suited(study, {"data.columns": "age,sex"}) == f"{study}:columns"
    assert loading.suited(study, {"data.columns": "()"}) == study
    names = {
        argument: [arm.name for arm in loading.load_study(f"{study}:{argument}").arms]
        for argument in ("2d", "2d+columns")
    }
    assert names["2d+columns"] == ["prevalence", "columns", *names["2d"][1:]]
