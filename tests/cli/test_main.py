"""The command `jaxboost`: its subcommands, help, and mistakes."""

import pytest

import jaxboost
from jaxboost.cli import main
from tests.scripts import assert_mistake, run_script


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help(arguments, capsys):
    main.main(arguments)
    text = capsys.readouterr().out
    assert text.startswith("usage: jaxboost SUBCOMMAND")
    assert all(f"\n  {name}" in text for name in main.COMMANDS)


def test_version(capsys):
    main.main(["--version"])
    assert capsys.readouterr().out == f"jaxboost {jaxboost.__version__}\n"


@pytest.mark.parametrize(
    ("command", "words"), [("trian", "did you mean 'train'?"), ("--config=quickstart", "subcommands are train,")]
)
def test_unknown_subcommand(command, words, capsys):
    with pytest.raises(SystemExit) as stop:
        main.main([command])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: unknown subcommand {command!r}")
    assert words in line


@pytest.mark.parametrize("name", main.COMMANDS)
def test_help_of_a_subcommand(name):
    process = run_script("-m", "jaxboost", name, "--help")
    assert (process.returncode, process.stderr) == (0, "")
    assert f"jaxboost {name} --" in process.stdout
    flag = {"train": "workdir", "convert": "source", "describe": "json"}.get(name, "run")
    assert f"\n  --{flag}: " in process.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], ["--config is missing"]),
        (["train", "--config", "quickstart", "--wrkdir=x"], ["Unknown command line flag 'wrkdir'"]),
        (["train", "--config", "quickstart", "--config.optim.lrr=1"], ["--config.optim.lrr", "did you mean 'lr'"]),
        (["describe", "--config=quickstart", "--config.seed=-1"], ["seed: -1 should be 0 or more"]),
        (["predict"], ["--run is missing"]),
        (["export", "--run=x"], ["--out is missing"]),
        (["convert", "--source=x", "--out=y"], ["--layers is missing"]),
    ],
)
def test_mistakes(arguments, words, tmp_path):
    assert_mistake(run_script("-m", "jaxboost", *arguments), *words)


def test_describe_by_name():
    process = run_script("-m", "jaxboost", "describe", "--config", "quickstart", "--nomemory")
    assert process.stdout.startswith("lidcshapes3d, vivit_tiny, boost rllm, 2 classes\n"), process.stderr
