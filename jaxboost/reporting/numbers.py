"""Numbers as reports print them. None and what is not finite print as "undefined", never as 0 or NaN."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

# A figure that cannot be computed, and an entry that nobody gave.
UNDEFINED, NOT_KNOWN = "undefined", "not known"
# Of the width of a digit, unlike the hyphen.
MINUS = "\N{MINUS SIGN}"
# Longer lists of a data set's entries are cut.
MAX_ENTRIES = 12


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def score(value: Any) -> str:
    """A metric or a probability, with three decimals: "0.912"."""
    return f"{value:.3f}".replace("-", MINUS) if is_number(value) else UNDEFINED


def difference(value: Any) -> str:
    """A difference with its sign: "+0.004"; "0.000" has none. The minus is U+2212."""
    if not is_number(value):
        return UNDEFINED
    text = f"{value:+.3f}".replace("-", MINUS)
    return "0.000" if text.strip("+" + MINUS) == "0.000" else text


def interval(low: Any, high: Any, number: Any = score) -> str:
    """An interval: "[0.871, 0.941]"; "undefined" if one of its ends is."""
    return f"[{number(low)}, {number(high)}]" if is_number(low) and is_number(high) else UNDEFINED


def p_value(value: Any) -> str:
    """A p-value; what rounds to 0 or 1 is written as a bound, but 1 itself, as Holm's correction gives, is "1.000"."""
    if not is_number(value):
        return UNDEFINED
    return "<0.001" if value < 0.0005 else ">0.999" if 0.9995 <= value < 1 else f"{value:.3f}"


def probability(value: Any) -> str:
    """A probability that was estimated: unlike a p-value it is never exactly 1."""
    return ">0.999" if is_number(value) and value >= 0.9995 else p_value(value)


def count(value: Any) -> str:
    """A number of things: "1,234", from a million on "21.7 M"."""
    if not is_number(value):
        return UNDEFINED
    if abs(value) >= 999_500_000:
        return f"{value / 1e9:.2f} G"
    return f"{value / 1e6:.1f} M" if abs(value) >= 1e6 else f"{value:,.0f}"


def duration(value: Any) -> str:
    """Seconds as a person reads them: "0.4 s", "95 s", "12 min", "3.4 h"; "not measured" without a value."""
    if not is_number(value):
        return "not measured"
    if value < 120:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def gigabytes(value: Any) -> str:
    """A size of memory : "2.4 GB"; "not measured" without a value."""
    return f"{value:.1f} GB" if is_number(value) else "not measured"


def percent(value: Any) -> str:
    """A fraction in percent: "24 %"; with a decimal below 10 %; "not known" without a value."""
    if not is_number(value):
        return NOT_KNOWN
    return f"{100 * value:.1f} %" if 0 < value < 0.1 else f"{100 * value:.0f} %"


def known(value: Any) -> str:
    """A count of the data, "not known" without a value."""
    return NOT_KNOWN if value is None else plain(value)


def plain(value: Any) -> str:
    """Any JSON value in words, for entries whose form depends on the data set."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return UNDEFINED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return _joined([f"{name}: {plain(entry)}" for name, entry in value.items()])
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _joined([plain(entry) for entry in value])
    return str(value)


def _joined(texts: list[str]) -> str:
    shown = ", ".join(texts[:MAX_ENTRIES]) or "none"
    return shown + (f" and {len(texts) - MAX_ENTRIES} more" if len(texts) > MAX_ENTRIES else "")
