"""A 2D encoder on the slices of volumes, in a whole run: trained, predicted, exported, described; baselines too."""

import dataclasses

import numpy as np
import pytest

from jaxboost.analysis.describe import describe
from jaxboost.config import load_config, validate
from jaxboost.errors import UserError
from jaxboost.explain import command, features
from jaxboost.explain.command import Request
from jaxboost.inference import export, exported, open_run
from jaxboost.models.backbones import BACKBONES
from jaxboost.runs import finished, workdir
from tests import finished_runs
from tests.training.small_runs import small_config
from tests.training.tiny_resnet import TINY

# What is replaced here are functions of the host, and rows of BACKBONES: another structure is another program.
pytestmark = pytest.mark.same_programs

FIELDS = {
    "model.backbone": "resnet_tiny",
    "model.weights": "random",
    "model.frozen": True,
    "model.slices": 2,
    "model.slice_size": 16,
    "model.slice_pooling": "attention",
    "boost.kind": "none",
    "optim.lr": 1e-2,
}


@pytest.fixture(scope="module", autouse=True)
def _tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "resnet_tiny", TINY)
        yield


@pytest.fixture(scope="module")
def run(few_lidc_root, tmp_path_factory):
    return finished_runs.volumes(few_lidc_root, tmp_path_factory.mktemp("slices") / "run", **FIELDS)


def test_prediction_and_export_repeat_the_run(run, few_lidc_root, tmp_path):
    """From volumes, while the run itself trained on the tokens of their slices, which it computed once."""
    (file,) = run.glob("source-tokens-*/*.npy")
    assert np.load(file, mmap_mode="r").shape[1:] == (6, 8)
    model = open_run.open_run(run)
    with np.load(few_lidc_root / "lidcshapes3d.npz") as arrays:
        volumes = arrays["test_images"][..., np.newaxis]
    found = model.predict(volumes)
    np.testing.assert_allclose(found, finished_runs.own_predictions(run), rtol=0, atol=1e-6)
    assert np.ptp(found[:, 0]) > 1e-4
    export.export(model, tmp_path / "export")
    np.testing.assert_allclose(exported.load(tmp_path / "export").predict(volumes), found, rtol=0, atol=1e-6)


def test_a_map_is_refused_and_tsne_is_drawn(run, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(features, "embed", lambda found: found[:, :2])
    request = Request(run=run, out=tmp_path / "out", split="test", worst=1, tsne=True)
    command.explain(request)
    assert caplog.text.count("no picture of gradcam, attention, activation: ") == 1
    assert {path.name for path in request.out.iterdir()} == {"index.csv", "maps.npz", "tsne.png", "tsne.svg"}
    # Before anything is predicted.
    monkeypatch.setattr(open_run.FinishedRun, "predict", None)
    with pytest.raises(UserError, match=r"^[^;]* has no map: its encoder sees slices[^;]*$"):
        command.explain(dataclasses.replace(request, out=tmp_path / "maps", tsne=False))


def test_describe_counts_the_slices(few_lidc_root):
    one, two = (describe(small_config(few_lidc_root, FIELDS | {"model.slices": count})) for count in (1, 2))
    assert (one["tokens"], two["tokens"]) == (3, 6)
    pool = 2 * 8 * 128 + 128
    assert one["trainable"] == two["trainable"] == pool + 8 * 2 + 2
    assert 1.9 < two["flops_per_image"]["with_boost"] / one["flops_per_image"]["with_boost"] < 2.1


def test_config_of_an_earlier_version_has_no_slices(run):
    content = workdir.read_config(run)
    content["model"] |= {"backbone": "vit3d_tiny"}
    for name in ("slices", "slice_axes", "slice_size", "slice_pooling"):
        del content["model"][name]
    assert finished._parsed(content, run).model.slices == 0


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        ("quickstart", {"model.slices": 2}, "model.slices: backbone vivit_tiny takes whole volumes, set it to 0"),
        (
            "quickstart",
            {"model.slice_size": 14},
            "model.slice_size: it has no effect without model.slices, set it to 0",
        ),
        ("quickstart", {"model.backbone": "vit_tiny"}, "or model.slices to a number such as 4"),
        ("quickstart", {"model.backbone": "vit_tiny", "model.slices": 29}, "model.slices: 29 is more than"),
        (
            "quickstart",
            {"model.backbone": "vit_tiny", "model.slices": 2, "model.slice_axes": (0, 0)},
            r"model.slice_axes: \(0, 0\) should name axes once each",
        ),
        *(
            (
                "quickstart",
                {"model.backbone": "vit_tiny", "model.slices": 2, "model.slice_axes": (axis,)},
                r"model.slice_axes: \(.*,\) should name axes once each",
            )
            for axis in (2.0, True, "a")
        ),
        (
            "quickstart",
            {"model.backbone": "vit_tiny", "model.slices": 2, "model.slice_size": 30},
            "model.slice_size: 30 is not a multiple of the patch size 7",
        ),
        (
            "quickstart",
            {"model.backbone": "vit_tiny", "model.slices": 2, "model.slice_pooling": "attention"},
            "model.slice_pooling: a booster gives the mean",
        ),
        ("breastmnist_vits", {"model.slices": 2}, "model.slices: data set breastmnist is 2-D, set it to 0"),
        ("baseline:trivial", {"baseline.slices": 4}, 'baseline.slices: only features="encoder" have slices'),
        ("baseline:logistic+2d", {"baseline.slices": 4}, "baseline.slices: images have no slices, set it to 0"),
        (
            "baseline:logistic",
            {"model.backbone": "resnet152_ct"},
            r"model.image_size: volumes are not resampled, set it to data.size \(28\)",
        ),
        ("baseline:logistic+2d", {"model.backbone": "resnet152_ct"}, "'resnet152_ct' gives no features"),
        (
            "baseline:logistic+ct+slices",
            {},
            "baseline.slices: backbone resnet152_ct takes whole volumes, set it to 0",
        ),
        (
            "baseline:logistic+ct",
            {"data.source": "folder", "data.name": "own", "data.root": "own"},
            r"data.window is empty, so that .*: set it to \(-1000.0, 200.0\)",
        ),
    ],
)
def test_fields_that_do_not_go_together(base, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        validate(load_config(base, **changes))
    assert "; " not in str(caught.value)


def test_a_wrong_side_is_that_of_the_images():
    with pytest.raises(UserError, match=r"model.image_size: 30 is not a multiple of the patch size"):
        validate(load_config("breastmnist_vits", **{"model.slice_size": 14, "model.image_size": 30}))
