"""Fixtures of the model tests."""

import pytest
import torch

from tests.models import small


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread() -> None:
    """The arrays are small, and the machine may be shared."""
    torch.set_num_threads(1)


@pytest.fixture
def small_backbones(monkeypatch: pytest.MonkeyPatch) -> None:
    """See `small.install`."""
    small.install(monkeypatch)
