"""The small backbones are in the table for all tests of this package."""

import pytest

from tests.explain import untrained


@pytest.fixture(autouse=True)
def small_backbones(monkeypatch):
    untrained.install(monkeypatch)
