"""What is in the wheel, and that it works from an empty folder."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.scripts import REPOSITORY


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The wheel's content. Built without a network: what installed the checkout has built it before."""
    if shutil.which("uv") is None:
        pytest.skip("uv, which builds the wheel, is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    build = ["uv", "build", "--wheel", "--offline", "--out-dir", str(folder), str(REPOSITORY)]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_content(unpacked):
    names = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    code = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "jaxboost").rglob("*.py")}
    facts = {"jaxboost/studies/published.json"}
    templates = {
        path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "jaxboost/reporting/templates").iterdir()
    }
    configs = {f"jaxboost/{path.relative_to(REPOSITORY).as_posix()}" for path in (REPOSITORY / "configs").rglob("*.py")}
    (meta,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
    of_wheel = {f"{meta}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")}
    assert names == code | facts | configs | of_wheel | templates | {"jaxboost/py.typed"}
    assert {path.rpartition(".")[2] for path in templates} == {"jinja", "css", "js"}
    assert "jaxboost = jaxboost.cli.main:main" in (unpacked / meta / "entry_points.txt").read_text()


def _run(unpacked, folder, *arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(unpacked), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_packaged_config_in_an_empty_folder(unpacked, tmp_path):
    program = (
        "import jaxboost; print(jaxboost.__file__); print(jaxboost.load_config('quickstart').data.name);"
        " print(jaxboost.load_config('pneumollm_quickstart:lidc').data.folds)"
    )
    process = _run(unpacked, tmp_path, "-c", program)
    assert process.stdout.splitlines() == [str(unpacked / "jaxboost/__init__.py"), "lidcshapes3d", "5"], process.stderr


def test_the_command_in_an_empty_folder(unpacked, tmp_path):
    process = _run(unpacked, tmp_path, "-m", "jaxboost", "train", "--config", "quickstart", "--config.train.epochs=0")
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == "error: config field train.epochs: 0 should be above 0\n"
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named_as_an_installed_package_has_it(unpacked, tmp_path):
    process = _run(unpacked, tmp_path, "-c", "from jaxboost.errors import missing_extra; print(missing_extra('dicom'))")
    assert process.stdout == "`pip install 'jaxboost[dicom]'`\n", process.stderr
