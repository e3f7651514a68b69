"""Problems of a user's files: collected while a folder is read, and reported together."""

import logging
import pathlib

from jaxboost.errors import LISTED, UserError

_MAX_REASON = 160

logger = logging.getLogger(__name__)


class ProblemError(Exception):
    """A problem with one file; the message does not name the file. `Problems` collects it and adds the name.

    Attributes:
      found: the message without `fix`.
      setting: what the settings of the data set are, such as "data.nan=''"; "" if no setting is a fix.
    """

    def __init__(self, found: str, *, fix: str = "", setting: str = ""):
        """Makes the message from what was found and, if the settings can be changed, how to do that."""
        super().__init__(f"{found}: {fix}" if fix else found)
        self.found, self.setting = found, setting

    def for_trained(self) -> str:
        """The message where a trained model is used, whose settings cannot be changed."""
        if not self.setting:
            return str(self)
        return f"{self.found}: change the file; the model was trained with {self.setting}"


class Problems:
    """The problems found so far in `folder`; rows are those of its file `table`.

    Attributes:
      excluded: reason -> number of images that are left out without being a problem.
    """

    def __init__(self, folder: pathlib.Path, table: str = "labels.csv"):
        self._folder, self._table = folder, table
        self._found: list[tuple[int, str]] = []
        self.excluded: dict[str, int] = {}

    def add(self, text: str, *, row: int = 0, file: str = "") -> None:
        """Adds a problem.

        Args:
          text: what is wrong and how to fix it.
          row: the row of the table that has the problem; 0 if it concerns no single row.
          file: the file that has the problem; "" if it concerns no single file.
        """
        where = ", ".join(part for part in (f"row {row}" if row else "", file) if part)
        self._found.append((row, f"{where}: {text}" if where else text))

    def raise_any(self) -> None:
        """Raises one UserError with all problems, in the order of the rows; does nothing if there is none.

        With more than a dozen problems, the message has the first dozen, and the log has all, one per line.
        """
        if not self._found:
            return
        texts = [text for _, text in sorted(self._found, key=lambda found: found[0])]
        more = ""
        if len(texts) > LISTED:
            for text in texts:
                logger.error("%s", text)
            more = f"; and {len(texts) - LISTED} more, all listed in the lines above"
        count = "1 problem" if len(texts) == 1 else f"{len(texts)} problems"
        rows = f" (rows of {self._table})" if any(row for row, _ in self._found) else ""
        raise UserError(f"{self._folder}: {count} to fix{rows}: {'; '.join(texts[:LISTED])}{more}")


def reason(error: Exception) -> str:
    """Returns the message of another package's exception on one line, shortened if it is long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]}..."
