"""The exception for users' mistakes, and phrases that several of its messages use."""

import difflib
import pathlib
from collections.abc import Iterable

LISTED = 12  # names or problems in one message


class UserError(Exception):
    """A mistake that the user can correct: the scripts print its message as one line and exit with code 2.

    The message says what is wrong, where, and how to fix it. Every other exception is a
    bug of ours and keeps its traceback.
    """


class ArgumentError(UserError, ValueError):
    """A wrong argument in a user's Python code. It is a ValueError too, as Python code expects."""


def check_choice(value: str, choices: Iterable[str], what: str) -> str:
    """Returns `value` if it is one of `choices`; otherwise raises UserError that names the nearest one and all of them.

    Args:
      value: the user's value.
      choices: the valid values.
      what: the name of the value, for the message, such as "config field model.backbone".
    """
    choices = list(choices)
    if value in choices:
        return value
    raise UserError(f"{what}: {value!r} is unknown, {nearest(value, choices)}; valid: {', '.join(choices)}")


def nearest(name: str, choices: Iterable[str]) -> str:
    """'did you mean ...?' with the choice that is spelt most like `name`."""
    folded = {choice.lower(): choice for choice in choices}
    return f"did you mean {folded[difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0)[0]]!r}?"


def missing_extra(extra: str) -> str:
    """Returns how to install an extra of this package, such as "dicom", for the end of a message."""
    install = f"`pip install 'jaxboost[{extra}]'`"
    # In a checkout, the project file is in the folder above this package.
    is_checkout = (pathlib.Path(__file__).parents[1] / "pyproject.toml").is_file()
    return (
        f"run this with `uv run --extra {extra.replace(',', ' --extra ')} ...`, or {install}"
        if is_checkout
        else install
    )
