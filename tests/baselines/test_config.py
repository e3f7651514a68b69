"""The config of a baseline: its sections, the packaged config, and what does not go together."""

import pytest

from jaxboost.analysis import describe
from jaxboost.config import get_baseline_config, load_config, validate, validation
from jaxboost.config.table import BASELINE_FIELDS
from jaxboost.errors import UserError, nearest
from jaxboost.runs import saved_config

RUNGS = ("prevalence", "trivial", "knn", "logistic", "boosting")


def test_sections():
    config = get_baseline_config()
    assert config.is_locked
    assert set(config) == {"seed", "data", "model", "baseline", "eval"}
    with pytest.raises(UserError, match=r"unknown config field train\.epochs"):
        load_config("baseline:logistic", **{"train.epochs": 3})
    fields = {field for field in saved_config.Baseline.__dataclass_fields__}
    assert fields == set(config.baseline)


@pytest.mark.parametrize("rung", [*RUNGS, *(f"{rung}+2d" for rung in RUNGS)])
def test_packaged_rungs(rung):
    config = load_config(f"baseline:{rung}")
    validate(config)
    ndim = 2 if "2d" in rung else 3
    assert (config.baseline.ndim, config.model.image_size) == (ndim, {2: 224, 3: 112}[ndim])
    found = describe.describe(config, memory=True)
    assert found["boost"] == "baseline"
    channels = 3 if ndim == 2 else 1
    width = {"prevalence": 0, "trivial": 20 * channels + 2 + ndim}.get(rung.partition("+")[0], 2 * 384)
    assert found["features"] == width
    fitted = {"prevalence": 2, "trivial": width + 1, "knn": 0, "logistic": 769, "boosting": None}
    assert found["trainable"] == fitted[rung.partition("+")[0]]
    text = describe.as_text(found)
    assert f"{width:,} numbers per image" in text
    assert ("with the data" in text) == ("boosting" in rung)


def test_flops_of_three_views():
    one = describe.describe(load_config("baseline:logistic+2d", **{"model.image_size": 112}))
    assert describe.describe(load_config("baseline:logistic"))["flops_per_image"] == 3 * one["flops_per_image"]


@pytest.mark.parametrize("argument", ["", "logistik", "knn+boosting", "knn+knn", "knn+3d"])
def test_unknown_arguments(argument):
    with pytest.raises(UserError, match=r"give one of prevalence, trivial, columns, knn, logistic"):
        load_config(f"baseline:{argument}")


@pytest.mark.parametrize(
    ("rung", "changes", "words"),
    [
        ("knn", {"baseline.features": "none"}, "baseline.features: knn needs features, set it to"),
        ("prevalence", {"baseline.features": "trivial"}, 'baseline.features: prevalence reads none, set it to "none"'),
        ("knn", {"baseline.classifier": "svm"}, "baseline.classifier: 'svm' is unknown"),
        ("knn", {"baseline.ndim": 2}, "baseline.ndim: data set lidcshapes3d is 3-D, set it to 3, not 2"),
        ("knn", {"baseline.ndim": 4}, "baseline.ndim: 4 should be 2 or 3"),
        ("knn", {"model.backbone": ""}, "model.backbone: '' gives no features of a pretrained encoder"),
        ("knn", {"model.backbone": "vit3d_tiny"}, "model.backbone: 'vit3d_tiny' gives no features"),
        ("knn", {"model.backbone": "resnet18_3d"}, "model.backbone: 'resnet18_3d' gives no features"),
        ("knn", {"model.weights": ""}, "model.weights is empty"),
        ("knn", {"model.image_size": 100}, "100 is not a multiple of the patch size 14 of backbone dinov2_s14"),
        ("knn", {"model.std": (0.0,)}, "model.std: (0.0,) should not be 0"),
        ("knn", {"eval.protocol": "reference"}, "eval.protocol: 'reference' is unknown"),
        ("knn", {"eval.unit": "patients"}, "eval.unit: 'patients' is unknown, did you mean 'patient'"),
        ("knn", {"data.folds": 1}, "data.folds: 1 should be 2 or more"),
        (
            "knn+2d",
            {"data.name": "dermamnist", "eval.specificity": 0.9},
            "eval.specificity: 0.9 is for binary tasks, and dermamnist is multi-class",
        ),
        (
            "knn",
            {"data.source": "folder", "data.name": "x", "data.groups": "p.csv", "data.classes": ("a", "b")},
            "data.groups: it is for published sets",
        ),
    ],
)
def test_fields_that_do_not_go_together(rung, changes, words):
    (problem,) = validation.problems(load_config(f"baseline:{rung}", **changes))
    assert words in problem


def test_all_problems_are_in_one_message():
    changes = {"seed": -1, "baseline.features": "none", "data.folds": 1, "eval.metric": "f1"}
    with pytest.raises(UserError) as error:
        validate(load_config("baseline:knn", **changes))
    for words in ("seed: -1", "knn needs features", "data.folds: 1", "eval.metric: 'f1'"):
        assert words in str(error.value)


@pytest.mark.parametrize("changes", [{"model.backbone": "", "model.weights": ""}, {"model.image_size": 100}])
def test_fields_of_an_encoder_that_is_not_used(changes):
    assert validation.problems(load_config("baseline:trivial", **changes)) == []


def test_a_section_of_another_system_is_unknown():
    config = load_config("baseline:knn").unlock()
    config.optim = {"lr": 1.0}
    assert validation.problems(config) == [f"config field optim.lr is unknown: {nearest('optim.lr', BASELINE_FIELDS)}"]
