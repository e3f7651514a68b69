"""`model.attention` reaches the model, and a kernel that the device does not have is refused before training."""

import pytest

from jaxboost import systems
from jaxboost.config import continuing, load_config
from jaxboost.errors import UserError
from jaxboost.models import attention
from jaxboost.runs import datasets, finished
from tests import devices

SMALL = {"model.backbone": "vivit_tiny", "boost.block": "random", "boost.layers": (0,)}


def prepared(mode, name="quickstart", **changes):
    config = load_config(name, **{**(SMALL if name == "quickstart" else {}), "model.attention": mode, **changes})
    return systems.prepare(config, datasets.describe(config))


def test_fused_without_the_kernel_is_refused():
    with pytest.raises(UserError, match=r"^config field model\.attention: .* cpu is no NVIDIA GPU: set "):
        prepared("fused")


def test_fused_needs_16_bits_and_fitting_heads(monkeypatch):
    devices.stand_in(monkeypatch, devices.A100)
    with pytest.raises(UserError, match=r"a computation in float32: it takes 16-bit floats \(model\.dtype=bfloat16\)"):
        prepared("fused", **{"model.dtype": "float32"})
    # Any shape that the table allows: here is no cuDNN to ask.
    monkeypatch.setattr(attention, "_refusal", lambda *_: "")
    calls = []
    monkeypatch.setattr(attention, "fused", lambda q, k, v, **_: calls.append(q.shape) or q)
    fused = prepared("fused")
    # A ViViT's spatial layers, the temporal ones but the last, and no call for the CLS token alone.
    assert calls
    assert fused.graphdef != prepared("plain").graphdef
    monkeypatch.setattr(attention, "_refusal", lambda *_: "these shapes")
    with pytest.raises(UserError, match="there is no fused attention for these shapes"):
        prepared("fused")


def test_a_run_may_go_on_with_another_mode():
    fields = continuing.fixed_fields(continuing.to_dict(load_config("quickstart")))
    assert "model.attention" not in fields


def test_a_prediction_takes_what_its_device_has(tmp_path):
    """The config of a run that was trained with the kernel."""
    config = load_config("quickstart", **{"model.attention": "fused", "model.dtype": "bfloat16"})
    found = finished._parsed(continuing.to_dict(config), tmp_path)
    assert (found.model.attention, found.model.dtype) == ("auto", "bfloat16")
