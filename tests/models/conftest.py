"""Fixtures of the model tests."""

import jax
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


@pytest.fixture
def on_cpu() -> None:
    """For tests of what is computed on a CPU alone."""
    if jax.default_backend() != "cpu":
        pytest.skip("of a CPU")
