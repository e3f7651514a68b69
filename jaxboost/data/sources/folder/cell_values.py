"""Values of a table's cells: cleaned, compared, and recognised as missing."""

import collections
import decimal
import functools
import re
import unicodedata
from collections.abc import Iterable

# How programs write a missing value, in lower case.
_MISSING = frozenset(("nan", "<na>", "nat", "na", "n/a", "#n/a", "none", "null", "nil", "#null!", "#value!", "#ref!"))
# Invisible: zero width space, word joiner, byte order mark, soft hyphen, marks of direction, control characters.
_INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad\u200e\u200f\u202a-\u202e\u2066-\u2069\x00-\x08\x0e-\x1f\x7f]")
_ENDS = rf"\s|{_INVISIBLE.pattern}"
_JOINERS = "\u200c\u200d"
_WHOLE = re.compile(r"([+-]?[0-9]+)\.0*")
_NUMBER = re.compile(r"[+-]?[0-9]+([.,][0-9]*)?")
# 1.23457E+11, as Excel and pandas write long numbers.
_SHORTENED = re.compile(r"[0-9](\.[0-9]+)?[Ee]\+[0-9]{1,3}")
_TRUTH = (("true", "1", "yes"), ("false", "0", "no"), ("yes", "y"), ("no", "n"), ("true", "t"), ("false", "f"))


def clean(text: str) -> str:
    """Returns the text in normal form C, without invisible characters and outer blanks, with single inner blanks."""
    if not text.isascii():
        text = _INVISIBLE.sub("", unicodedata.normalize("NFC", text)).strip().strip(_JOINERS)
    elif not text.isprintable():
        text = _INVISIBLE.sub("", text)
    return " ".join(text.split())


def trim(text: str) -> str:
    """Returns the text without blanks and invisible characters at its ends; the rest of a file's name stays."""
    text = text.strip()
    return text if text.isascii() else re.sub(f"^(?:{_ENDS})+|(?:{_ENDS})+$", "", text)


@functools.lru_cache(maxsize=4096)
def label(text: str) -> str:
    """Returns a clean label; a whole number loses its fraction of zeros: 1 for 1.0, which pandas writes."""
    text = clean(text)
    return whole(text) or text


def whole(text: str) -> str:
    """Returns 7 for 7.0; "" for any text that is not a whole number with a fraction of zeros."""
    match = _WHOLE.fullmatch(text)
    return match[1] if match else ""


def column(name: str) -> str:
    """Returns the name of a column in lower case, without blanks and underscores, to compare it with others."""
    return name.lower().replace(" ", "").replace("_", "")


def is_shortened(text: str) -> bool:
    """Returns whether a cell is a long number that lost its last digits to a power of ten."""
    return _SHORTENED.fullmatch(text) is not None


def is_missing(text: str) -> bool:
    """Returns whether a cell means a missing value."""
    return not text or text.lower() in _MISSING


def alike(texts: Iterable[str], *, fractions: bool = True) -> list[tuple[str, str]]:
    """Returns pairs of different texts that are probably one value: `001` and `1`, `tb` and `TB`, `a-b` and `a_b`.

    Args:
      texts: the texts.
      fractions: whether `1.1` and `1.10` are such a pair. Not for patients: there they may be the first and the tenth
        of hospital 1.
    """
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for text in dict.fromkeys(texts):
        groups[form(text, fractions=fractions)].append(text)
    return [(first, other) for first, *others in groups.values() for other in others]


def two_words_for_truth(texts: Iterable[str]) -> tuple[str, str] | None:
    """Returns two of the texts with the same meaning, such as `True` and `1`; None if there are none."""
    folded = {text.lower(): text for text in texts}
    for words in _TRUTH:
        found = [folded[word] for word in words if word in folded]
        if len(found) > 1:
            return found[0], found[1]
    return None


def form(text: str, *, fractions: bool = True) -> str:
    """Returns the common form of all texts that are `alike`."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = " ".join("".join(char for char in text if unicodedata.category(char) != "Cf").split())
    if _NUMBER.fullmatch(text):
        number = decimal.Decimal(text.replace(",", ".")).normalize()
        if fractions or number == number.to_integral_value():
            return "0" if not number else f"{number:f}"
    # Only between letters: before a digit it may be a minus.
    return re.sub(r"(?<=[^\W\d])[-_ ]+(?=[^\W\d])", " ", text)
