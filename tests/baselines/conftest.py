"""One thread for scikit-learn: on the few samples of these tests several wait for each other most of the time."""

import pytest
import threadpoolctl


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    with threadpoolctl.threadpool_limits(1):
        yield
