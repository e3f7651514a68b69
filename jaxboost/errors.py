"""The one exception that a user is meant to see."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can correct: the scripts print its message as one line and exit with code 2.

    The message says what is wrong, where, and how to fix it. Everything else that goes wrong is ours and keeps its
    traceback.
    """


def check_choice(value: str, choices: Iterable[str], what: str) -> str:
    """Returns `value` where it is one of `choices`; otherwise raises UserError with the nearest one and all of them.

    Args:
      what: what is chosen, as the user knows it, such as "config field model.backbone".
    """
    choices = list(choices)
    if value in choices:
        return value
    raise UserError(f"{what}: {value!r} is unknown, {nearest(value, choices)}; valid: {', '.join(choices)}")


def nearest(name: str, choices: Iterable[str]) -> str:
    """'did you mean ...?' with the choice that is spelt most like `name`."""
    folded = {choice.lower(): choice for choice in choices}
    return f"did you mean {folded[difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0)[0]]!r}?"
