"""Stand-ins for devices that are not here, and a context in which the package believes to be on one."""

import pytest

from jaxboost import device
from jaxboost.device import Device

CPU = Device(platform="cpu", kind="cpu")
T4 = Device(platform="gpu", kind="Tesla T4", capability=(7, 5))
A100 = Device(platform="gpu", kind="NVIDIA A100-SXM4-40GB", capability=(8, 0))
H100 = Device(platform="gpu", kind="NVIDIA H100 80GB HBM3", capability=(9, 0))
MI250 = Device(platform="gpu", kind="AMD Instinct MI250X")
TPU = Device(platform="tpu", kind="TPU v5 lite")


def stand_in(monkeypatch: pytest.MonkeyPatch, given: Device) -> None:
    """Makes `device.current` answer `given`; what is computed still runs where the test runs."""
    monkeypatch.setattr(device, "current", lambda: given)
