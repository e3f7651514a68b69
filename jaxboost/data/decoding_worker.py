"""The program of a process that `decoding` starts: it calls a function for items that come through a pipe.

It ends when the pipe ends, so also if its parent is killed. Signals that stop a command are for the parent, which ends
it.
"""

import os
import pickle
import signal
import sys
import traceback
from typing import Any


def serve() -> None:
    """Reads a function and then lists of items, and answers each item with (result, exception), all of them pickled."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    received = sys.stdin.buffer
    # What libraries print must not come among the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # Imported after the signals are ignored.
    from jaxboost.data.decoding import read_frame, write_frame
    from jaxboost.data.problems import ProblemError

    content = read_frame(received)
    if content is None:
        return
    read = pickle.loads(content)
    try:
        write_frame(answers, b"ready")
        while (content := read_frame(received)) is not None:
            for item in pickle.loads(content):
                try:
                    answer: tuple[Any, Any] = read(item), None
                except ProblemError as error:
                    answer = error, None
                except Exception as error:
                    answer = None, _portable(error)
                write_frame(answers, pickle.dumps(answer, pickle.HIGHEST_PROTOCOL))
    except BrokenPipeError:
        # The parent has ended.
        os._exit(0)


def _portable(error: Exception) -> Exception:
    """The exception with its traceback as a note; another one if it cannot be pickled."""
    text = "".join(traceback.format_exception(error))
    try:
        error.add_note(f"in a process that reads files:\n{text}")
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(text)
    return error
