"""What stands at the top of the page beside the sentence of the verdict."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxboost.reporting import choice, numbers
from jaxboost.studies.pairs import NOT_SHOWN, SHOWN
from jaxboost.studies.record import Record

# Names in a sentence; there is a table of all at the end of the page.
_NAMED = 8


def headline(main: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The main comparison in a few numbers, to stand below the sentence of the verdict."""
    if main is None or not numbers.is_number(main.get("difference")):
        return []
    metric = str(main.get("metric", "auc"))
    low, high = main.get("low"), main.get("high")
    return [
        (f"difference in {metric.upper()}", numbers.difference(main.get("difference"))),
        ("95 % interval", numbers.interval(low, high, numbers.difference)),
        ("P(first is better)", numbers.probability(main.get("better"))),
        ("p, Holm", numbers.p_value(main.get("p_holm"))),
        ("DeLong p, Holm", numbers.p_value(main.get("delong_p_holm"))),
        ("smallest detectable", numbers.score((main.get("detectable") or {}).get(metric))),
    ]


def in_words(analysis: choice.Analysis, record: Record) -> list[str]:
    """The verdict for readers who know no statistics; nothing where it would say more than a trial can."""
    if record.quick or record.protocol == "reference":
        return []
    main, titles = choice.main_comparison(analysis), choice.titles(analysis)
    found = _difference(main, titles, analysis) if main is not None else []
    simplest = (analysis.get("verdict") or {}).get("simplest")
    if simplest:
        found.append(
            f"{titles.get(simplest, simplest)} is the simplest arm of the ladder that no larger one is shown to beat:"
            " on this evidence, nothing larger is needed."
        )
    if found and record.task == "binary-class":
        positive = record.classes[-1]
        found.append(
            f"AUC is the probability that a random case of {positive!r} gets a higher score than a random case of"
            f" {record.classes[0]!r}: 0.5 is a guess, 1 is perfect."
        )
    return found


def _difference(main: Mapping[str, Any], titles: Mapping[str, str], analysis: choice.Analysis) -> list[str]:
    low, high = main.get("low"), main.get("high")
    if not all(map(numbers.is_number, (main.get("difference"), low, high))):
        return []
    first, second = titles[main["arm"]], titles[main["reference"]]
    images = ((analysis.get("data") or {}).get("splits") or {}).get("test")
    who = f"these {numbers.plain(images)} test images" if numbers.is_number(images) else "these test images"
    ends = [numbers.difference(end) for end in (low, high)]
    if main.get("shown", NOT_SHOWN) == NOT_SHOWN:
        return [
            f"{who.capitalize()} do not tell whether {first} is better than {second}: the true difference in AUC may"
            f" well be anything from {ends[0]} to {ends[1]}. That is not the same as no difference."
        ]
    word = "better" if main["shown"] == SHOWN else "worse"
    return [
        f"On images like {who}, {first} is {word} than {second}: the true difference in AUC is likely to be between"
        f" {ends[0]} and {ends[1]}."
    ]


def incomplete(analysis: choice.Analysis) -> str:
    """What the study planned and the report lacks, in one sentence; "" if nothing is missing."""
    missing, parts = choice.missing(analysis), []
    if missing.arms:
        parts.append(f"no finished run of {_named(missing.arms, 'arm')}")
    if missing.comparisons:
        parts.append(f"so no result for {_named(missing.comparisons, 'comparison')}")
    if missing.runs:
        parts.append(f"{missing.runs} run{'s' * (missing.runs > 1)}{' of other arms' * bool(parts)} missing")
    return f"{'; '.join(parts)}. The reasons are under Left out." if parts else ""


def _named(names: Sequence[str], what: str) -> str:
    more = len(names) - _NAMED
    shown = ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"{len(names)} {what}{'s' * (len(names) > 1)} ({shown})"
