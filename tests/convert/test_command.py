"""convert_weights.py as users run it."""

import subprocess
import sys
from pathlib import Path

import pytest

from jaxboost.convert.store import read_manifest
from tests.reference import llama_checkpoints as reference
from tests.scripts import run_inside

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return reference.write_safetensors(reference.tiny_llama(seed=11), tmp_path_factory.mktemp("command") / "tiny")


def run(folder, *flags):
    command = [sys.executable, str(ROOT / "convert_weights.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


def test_success(source, tmp_path):
    flags = ["--source", source, "--layers", "-1", "--out", "blocks/tiny", "--dtype", "bfloat16", "--nofinal_norm"]
    result = run(tmp_path, *flags)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout.splitlines()[:3] == ["source  tiny (safetensors)", "layers  3 of 0 to 3", "dtype   bfloat16"]
    assert "--config.boost.block=blocks/tiny" in result.stdout
    manifest = read_manifest(tmp_path / "blocks" / "tiny")
    assert (manifest.layers, manifest.dtype, manifest.final_norm) == ((3,), "bfloat16", False)
    assert [path.name for path in (tmp_path / "blocks").iterdir()] == ["tiny"]

    options = ("--layers=-2,0", "--out=blocks/tiny", "--overwrite")
    again = run_inside("convert_weights.py", *flags[:2], *options, folder=tmp_path)
    assert again.returncode == 0, again.stderr
    manifest = read_manifest(tmp_path / "blocks" / "tiny")
    assert (manifest.layers, manifest.dtype, manifest.final_norm) == ((2, 0), "float32", True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--layers", "9"],
            "error: --layers '9': there is no layer 9: valid are 0 to 3, -4 to -1 from the end, or all",
        ),
        (["--layers", "0", "--source", "./no/such"], "error: there is no file or folder ./no/such: check the path"),
        (["--layers", "0", "--source", "word"], "error: 'word' is neither an existing file or folder"),
        (["--layers", "0", "--dtype", "float16"], "error: flag --dtype=float16: value should be one of"),
        (["--layers", "0", "--sauce", "x"], "error: Unknown command line flag 'sauce'"),
        ([], "error: --layers is missing, or --prompts for CLIP's text encoder, or --question for an LLM: see --help"),
    ],
)
def test_mistakes(flags, message, source, tmp_path):
    arguments = ("--source", source, "--out", tmp_path / "block", *flags)
    result = run_inside("convert_weights.py", *arguments, folder=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith(message)
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
