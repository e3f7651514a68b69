"""Maps and pictures of volumes, with two runs of which one lacks a method."""

import io

import numpy as np
from PIL import Image

from jaxboost.explain import picture_set, sanity
from jaxboost.explain.samples import Samples
from tests.explain import untrained


def test_volumes_with_a_boosted_run_and_a_resnet(monkeypatch):
    # Tests of the sanity check draw weights. The same weights make the same map.
    monkeypatch.setattr(sanity, "redrawn", lambda run: run.weights)
    boosted, plain = untrained.rllm("small_vit3d", "rllm"), untrained.rllm("small_resnet3d", "none")
    given = Samples(names=["a.nii", "b.nii"], images=untrained.images(boosted, 2), labels=np.array([[2], [0]]))
    found = [
        picture_set.explain(run, given, methods, class_name="b")
        for run, methods in ((boosted, picture_set.METHODS), (plain, ("gradcam", "activation")))
    ]
    assert {name: checked.maps[name].grid.shape for name, checked in found[1].checked.items()} == {
        "gradcam": (2, 6, 6, 6)
    }
    assert set(found[1].missing) == {"activation"}
    assert set(found[0].checked) == set(picture_set.METHODS)
    for each in found:
        assert (each.targets == 1).all()
        assert [image.shape for image in each.images] == [(12, 12, 12, 1)] * 2
    widths = {
        method: Image.open(io.BytesIO(picture_set.picture(found, given, method, 0))).size
        for method in picture_set.METHODS
    }
    # Three slices wide; the image and one row per map: 2, 1 and 4 maps.
    assert len({width for width, _ in widths.values()}) == 1
    assert widths["attention"][1] < widths["gradcam"][1] < widths["activation"][1]
    text = picture_set.caption(found[0], given, "gradcam", 0)
    first, second = text.splitlines()
    assert first == "a.nii, label c"
    assert "small_vit3d + rllm, random block: predicted" in second
    assert "rank correlation with random weights" in second
    assert picture_set.correlation_of(found[0], "attention", 0) == "1.00"
    probability = f"{found[0].probabilities[0, 1]:.2f}"
    assert f"probability {probability}" in second
