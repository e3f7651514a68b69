"""The command `jaxboost`: its subcommands, help, and mistakes."""

import pytest

import jaxboost
from jaxboost.cli import main
from tests.scripts import assert_mistake, run_each, run_inside, run_script


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


def test_help_of_the_subcommands():
    commands = [("-m", "jaxboost", name, "--help") for name in main.COMMANDS]
    for name, process in zip(main.COMMANDS, run_each(commands), strict=True):
        assert (process.returncode, process.stderr) == (0, "")
        assert f"jaxboost {name} --" in process.stdout
        flags = {"train": "workdir", "convert": "source", "describe": "json", "report": "runs", "study": "study"}
        flag = flags.get(name, "run")
        assert f"\n  --{flag}: " in process.stdout


MISTAKES = [
    (["train"], ["--config is missing"]),
    (["train", "--config", "quickstart", "--wrkdir=x"], ["Unknown command line flag 'wrkdir'"]),
    (["train", "--config", "quickstart", "--config.optim.lrr=1"], ["--config.optim.lrr", "did you mean 'lr'"]),
    (["predict"], ["--run is missing: give the folder of a finished run, or of an export"]),
    (["predict", "--run=x"], ["nothing to do: give --input (images to predict)"]),
    (["export"], ["--run is missing: give the folder of a finished run"]),
    (["explain"], ["--run is missing"]),
    (["explain", "--run=x", "--method=cam"], ["--method", "gradcam"]),
    (["export", "--run=x"], ["--out is missing"]),
    (["train", "--config=quickstart", f"--workdir={'x' * 300}"], ["xxx cannot be written", "shorter name"]),
    (["study", "--out=x"], ["--study is missing"]),
    (["study", "--study=ladder"], ["--out is missing"]),
    (["convert", "--source=x", "--out=y"], ["--layers is missing"]),
    (["report", "--out=x"], ["--runs is missing"]),
    (["report", "--runs=x"], ["--out is missing"]),
    (["report", "--runs=nothing", "--out=x"], ["--runs nothing is not a folder"]),
]
# Seen once jax is loaded, which takes a second in each process: these are told in this one.
LATE_MISTAKES = [
    (["describe", "--config=quickstart", "--config.seed=-1"], ["seed: -1 should be 0 or more"]),
    (["predict", "--run=~nobody_of_this_name/x", "--input=x.png"], ["~nobody_of_this_name/x: there is no such folder"]),
    (["study", "--study=lader", "--out=x"], ["there is no packaged study 'lader'"]),
    (["study", "--study=ladder", "--out=~nobody_of_this_name/x", "--config.train.epoch=1"], ["did you mean 'train.ep"]),
    (["study", "--study=layer_sweep", "--out=x", "--config.train.epoch=1"], ["did you mean 'train.epochs'"]),
]


def test_mistakes():
    processes = run_each([("-m", "jaxboost", *arguments) for arguments, _ in MISTAKES])
    for (_, words), process in zip(MISTAKES, processes, strict=True):
        assert_mistake(process, *words)


@pytest.mark.parametrize(("arguments", "words"), LATE_MISTAKES)
def test_late_mistakes(arguments, words):
    assert_mistake(run_inside("-m", "jaxboost", *arguments), *words)


def test_a_mistake_in_a_process_of_its_own():
    arguments, words = MISTAKES[1]
    assert_mistake(run_script("-m", "jaxboost", *arguments), *words)


def test_a_path_that_the_system_refuses_is_one_line():
    process = run_script("-c", "import os; from jaxboost.cli import app; app.run(lambda: os.listdir('x' * 300))")
    assert_mistake(process, "xxx cannot be used (File name too long): check this path")


def test_describe_by_name():
    process = run_inside("-m", "jaxboost", "describe", "--config", "quickstart", "--nomemory")
    assert process.stdout.startswith("lidcshapes3d, vivit_tiny, boost rllm, 2 classes\n"), process.stderr
