"""Fixtures that several packages' tests share."""

import atexit
import collections
import os
import pathlib
import shutil
import tempfile

import pytest

# One cache of compiled programs for the workers and the processes they start; the first of them makes and removes it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jax-cache-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# Most of the tests' time goes into compiling programs that run for milliseconds. What is left out here is LLVM's
# optimisation of single loops; XLA's own of whole programs stays. `XLA_FLAGS= pytest` tests what users run, as .ci/run
# does for the models.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with slow tests come first: a worker that is given one at the end would leave the other one idle."""
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def official_root() -> pathlib.Path:
    """Folder with official MedMNIST files; tests that need it are skipped where it is not given."""
    root = os.environ.get("MEDMNIST_ROOT")
    if not root:
        pytest.skip("official MedMNIST files not found: set MEDMNIST_ROOT to their folder")
    return pathlib.Path(root)


@pytest.fixture(scope="session")
def lidc_root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A data root in which the LIDC shapes are built once for all tests."""
    from jaxboost import data

    root = tmp_path_factory.mktemp("data")
    data.load("lidcshapes3d", size=28, root=str(root))
    return root
