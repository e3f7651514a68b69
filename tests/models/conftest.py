"""Torch keeps to one thread: the arrays are small, and the machine may be shared."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread() -> None:
    torch.set_num_threads(1)
