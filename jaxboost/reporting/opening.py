"""What stands at the top of the page beside the sentence of the verdict."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxboost.reporting import choice, numbers
from jaxboost.studies import verdict
from jaxboost.studies.pairs import NOT_SHOWN, SHOWN
from jaxboost.studies.record import Record

# Names of arms and of comparisons in a sentence; the limits, at the end of the page, have all.
_ARMS, _COMPARISONS = 6, 3


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
    simplest = next((arm for arm in choice.arms(analysis) if arm["name"] == _simplest(analysis)), None)
    if simplest is not None:
        title = simplest["title"]
        found.append(
            f"Of the arms that have run, {title} is the simplest that no other is shown to beat."
            if choice.missing(analysis).arms
            else f"{title} is the simplest arm of the ladder that no other is shown to beat: nothing here speaks for a"
            " larger one."
        )
        if record.task == "binary-class":
            found += _at_threshold(simplest, record)
    if found and record.task == "binary-class":
        found.append(
            f"AUC is the probability that a random case of {record.classes[-1]!r} gets a higher score than a random"
            f" case of {record.classes[0]!r}: 0.5 is a guess, 1 is perfect."
        )
    return found


def reasons(analysis: choice.Analysis) -> list[str]:
    """The verdict's reasons, without what `incomplete` says."""
    said = verdict.missing_in_words(choice.entries(analysis, "arms"))
    given = (analysis.get("verdict") or {}).get("reasons") or ()
    return [str(reason) for reason in given if reason not in said]


def _simplest(analysis: choice.Analysis) -> Any:
    return (analysis.get("verdict") or {}).get("simplest")


def _at_threshold(arm: choice.Arm, record: Record) -> list[str]:
    """What an arm's decisions would be: a good AUC does not say that the usual threshold finds anyone."""
    metrics = arm.get("metrics") or {}
    found, spared = ((metrics.get(name) or {}).get("mean") for name in ("sensitivity", "specificity"))
    if not (numbers.is_number(found) and numbers.is_number(spared)):
        return []
    return [
        f"Where it calls a case {record.classes[-1]!r} from a probability of 0.5 on, it finds"
        f" {numbers.percent(found)} of them, and is right in {numbers.percent(spared)} of the cases of"
        f" {record.classes[0]!r}. Another threshold trades the one for the other."
    ]


def _difference(main: Mapping[str, Any], titles: Mapping[str, str], analysis: choice.Analysis) -> list[str]:
    low, high = main.get("low"), main.get("high")
    if not all(map(numbers.is_number, (main.get("difference"), low, high))):
        return []
    first, second = titles[main["arm"]], titles[main["reference"]]
    data = analysis.get("data") or {}
    unit, count = ("patients", "patients") if data.get("unit") == "patient" else ("images", "splits")
    many = (data.get(count) or {}).get("test")
    who = f"these {numbers.plain(many)} test {unit}" if numbers.is_number(many) else f"these test {unit}"
    ends = [numbers.difference(end) for end in (low, high)]
    if main.get("shown", NOT_SHOWN) == NOT_SHOWN:
        return [
            f"{who.capitalize()} do not tell whether {first} is better than {second}: the true difference in AUC may"
            f" well be anything from {ends[0]} to {ends[1]}. That is not the same as no difference."
        ]
    word = "better" if main["shown"] == SHOWN else "worse"
    return [
        f"On {unit} like {who}, {first} is {word} than {second}: the true difference in AUC is likely to be between"
        f" {ends[0]} and {ends[1]}."
    ]


def incomplete(analysis: choice.Analysis) -> str:
    """What the study planned and the report lacks, in one sentence; "" if nothing is missing."""
    missing, parts = choice.missing(analysis), []
    if missing.arms:
        parts.append(f"no finished run of {_named(missing.arms, 'arm', _ARMS)}")
    if missing.comparisons:
        parts.append(f"so no result for {_named(missing.comparisons, 'comparison', _COMPARISONS)}")
    if missing.runs:
        parts.append(f"{missing.runs} run{'s' * (missing.runs > 1)}{' of other arms' * bool(parts)} missing")
    return f"{'; '.join(parts)}. All of them are under Limits, and why under Left out." if parts else ""


def _named(names: Sequence[str], what: str, most: int) -> str:
    more = len(names) - most
    shown = ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
    return f"{len(names)} {what}{'s' * (len(names) > 1)} ({shown})"
