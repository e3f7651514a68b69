"""The device is asked in one place, and its answers decide the defaults."""

import types

import jax
import pytest

from jaxboost import device
from jaxboost.device import Device
from tests import devices


def test_the_device_here():
    first = jax.local_devices()[0]
    assert device.current() == Device(
        platform=first.platform, kind=first.device_kind, capability=device.current().capability
    )
    assert (device.current().capability is None) == ("cuda" not in first.client.platform_version)


@pytest.mark.parametrize(
    ("version", "capability", "wanted"),
    [("cuda 12080", "8.0", (8, 0)), ("cuda 13000", "10.3", (10, 3)), ("rocm 60300", "gfx90a", None)],
)
def test_compute_capability(version, capability, wanted, monkeypatch):
    """Compared as numbers: 10.3 is more than 9.0. A ROCm device has a text of another form."""
    client = types.SimpleNamespace(platform_version=version)
    found = types.SimpleNamespace(platform="gpu", device_kind="some", compute_capability=capability, client=client)
    monkeypatch.setattr(jax, "local_devices", lambda: [found])
    assert device.current() == Device(platform="gpu", kind="some", capability=wanted)


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (devices.CPU, "float32"),
        (devices.T4, "float32"),
        (devices.MI250, "float32"),
        (devices.A100, "bfloat16"),
        (devices.H100, "bfloat16"),
        (devices.TPU, "bfloat16"),
    ],
)
def test_default_dtype(given, dtype):
    assert device.default_dtype(given) == dtype
