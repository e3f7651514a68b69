"""The command `jaxboost`, also started as `python -m jaxboost`. Its first argument names the subcommand."""

import importlib
import sys
from collections.abc import Sequence

import jaxboost
from jaxboost import launched
from jaxboost.cli import app
from jaxboost.errors import nearest

# Subcommand -> what it does. Each is a module of this package with a function `run`.
COMMANDS = {
    "train": "train a classifier, or continue a run that was stopped",
    "convert": "convert pretrained weights: LLM layers, or a vision encoder",
    "describe": "print the number of parameters, the memory and the FLOPs of a config's model",
    "study": "run several arms with several seeds on the same data, and compare them in a report",
    "predict": "predict images with a finished run or an export",
    "explain": "draw where a finished run looks: maps over images, t-SNE of the features",
    "export": "export a finished run to one folder that needs no training code",
    "report": "make a report from finished runs or a study: one page, tables and a model card",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a subcommand and ends the process as `app.run` does.

    Args:
      argv: the arguments after the program's name; None: those of the process.
    """
    command, *rest = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if command in ("--help", "-h", "help"):
        print(usage())
    elif command in ("--version", "version"):
        print(f"jaxboost {jaxboost.__version__}")
    elif command in COMMANDS:
        launched.pass_on()
        # absl and ml_collections read the arguments from here.
        sys.argv = [f"jaxboost {command}", *rest]
        # Only now: flags are global in a process, and each subcommand has its own.
        importlib.import_module(f"jaxboost.cli.{command}").run()
    else:
        hint = ";" if command.startswith("-") else f", {nearest(command, COMMANDS)}"
        app.fail(f"unknown subcommand {command!r}{hint} subcommands are {', '.join(COMMANDS)}; see jaxboost --help")


def usage() -> str:
    """The help text of `jaxboost --help`."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return f"""usage: jaxboost SUBCOMMAND [--flag=value ...]

{(jaxboost.__doc__ or "").splitlines()[0]}

subcommands:
{lines}

jaxboost SUBCOMMAND --help lists its flags; jaxboost --version prints the version.
example: jaxboost train --config quickstart --config.train.epochs=2"""
