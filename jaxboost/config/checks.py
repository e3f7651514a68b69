"""What a check of fields that have to fit together is."""

from collections.abc import Callable, Iterator

from jaxboost.config.types import Config
from jaxboost.errors import UserError

Check = Callable[[Config], Iterator[str]]


# (fields or sections that a check reads, the check)
Table = tuple[tuple[tuple[str, ...], Check], ...]


def caught(check: Callable[[], object]) -> Iterator[str]:
    """Turns the UserError of a check in another package into a problem."""
    try:
        check()
    except UserError as error:
        yield str(error)
