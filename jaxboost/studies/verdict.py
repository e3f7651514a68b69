"""The verdict of a study in one sentence, with the reasons for it."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxboost.studies import pairs
from jaxboost.studies.record import Record
from jaxboost.studies.scored import HeldOut

Json = dict[str, Any]


def verdict(
    record: Record, arms: pairs.Arms, entries: Sequence[Json], comparisons: Sequence[Json], ladder: Sequence[Json]
) -> Json:
    """The entry "verdict".

    Args:
      record: the record.
      arms: all arms.
      entries: the entry of each arm, see `arms.entry`.
      comparisons, ladder: see `pairs`.
    """
    by_name = {entry["name"]: entry for entry in entries}
    main = next((place for place, row in enumerate(comparisons) if row["main"]), None)
    row = None if main is None else comparisons[main]
    simplest, reasons_of_ladder = _simplest(arms, by_name, ladder)
    parts, reasons = [], []
    if row is not None:
        text, reasons = _main(row, arms, by_name, trial=record.quick or bool(few_seeds(arms, row)))
        parts.append(text)
    if simplest is not None and len(pairs.rungs(arms)) > 1:
        # A simpler one without a run might not be beaten.
        partial = any(entry["missing"] and entry["rung"] is not None for entry in entries)
        which = "of the arms that have runs, the simplest" if partial else "the simplest arm"
        parts.append(f"{which} that nothing beats is {with_auc(by_name[simplest])}")
        reasons += reasons_of_ladder
    elif row is None:
        text, more = _best(record, arms, by_name)
        parts.append(text)
        reasons += more
    prefix, why = _caution(record, arms, row)
    sentence = prefix + "; ".join(parts)
    # A title that comes first stays as it is.
    if prefix or row is None:
        sentence = sentence[:1].upper() + sentence[1:]
    return {
        "sentence": sentence,
        "main": main,
        "simplest": simplest,
        "reasons": [*why, *reasons, *missing_in_words(entries)],
    }


def best_arm(record: Record, arms: pairs.Arms, by_name: Mapping[str, Json]) -> str | None:
    """The arm with the highest AUC on validation, among those that have a figure on the test split.

    With the protocol `reference`, which has no validation split, or without its scores: on the test split.
    """
    known = [name for name in by_name if arms.has(name) and by_name[name]["metrics"]["auc"]["mean"] is not None]
    if on_validation(record, arms, by_name):
        return max(known, key=lambda name: by_name[name]["val"]["auc"], default=None)
    return max(known, key=lambda name: by_name[name]["metrics"]["auc"]["mean"], default=None)


def on_validation(record: Record, arms: pairs.Arms, by_name: Mapping[str, Json]) -> bool:
    """Whether the best arm is chosen on validation."""
    values = [entry["val"]["auc"] for name, entry in by_name.items() if arms.has(name)]
    return record.protocol == "validation" and None not in values


def missing_arms(entries: Sequence[Json]) -> dict[str, list[str]]:
    """Why arms have no run -> their titles."""
    found: dict[str, list[str]] = {}
    for entry in entries:
        if entry.get("missing"):
            found.setdefault(entry["missing"], []).append(entry["title"])
    return found


def with_auc(entry: Json) -> str:
    """An arm with its AUC and interval, such as "Linear probe, AUC .91 [.87, .94]"."""
    values = [entry["metrics"]["auc"][name] for name in ("mean", "low", "high")]
    # More digits where two would make 1 of less than 1.
    below = [value for value in values if value < 1]
    digits = next((digits for digits in range(2, 6) if all(round(value, digits) < 1 for value in below)), 6)
    mean, low, high = (short(value, digits) for value in values)
    return f"{entry['title']}, AUC {mean} [{low}, {high}]"


def short(value: float, digits: int, *, sign: bool = False) -> str:
    """A number without its leading zero: ".91", "+.004", "-.011", "1.00"; what rounds to 0 has no sign."""
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if not text.strip("+-0."):
        text = text.lstrip("+-")
    return text.replace("0.", ".", 1) if text.lstrip("+-").startswith("0.") else text


def why_undefined(test: HeldOut) -> str:
    """Why no AUC is defined: classes that the test split lacks; "" if one is."""
    if not len(test.labels):
        return "there are no test samples"
    if not test.absent:
        return ""
    counts = test.kind.class_counts(test.labels, len(test.classes))
    if not test.kind.multi_label and (counts > 0).sum() == 1:
        return f"the test split has a single class, {test.classes[int(counts.argmax())]!r}"
    some = "no sample, or only samples," if test.kind.multi_label else "no sample"
    return f"the test split has {some} of {', '.join(map(repr, test.absent))}"


def missing_in_words(entries: Sequence[Json]) -> list[str]:
    """Which arms have no finished run, and why; one text for each reason. `entries`: those of the arms."""
    # A title may have commas.
    return [
        f"no finished run of {'; '.join(titles)}: {why}" if len(titles) > 1 else f"{_without_runs(titles)}: {why}"
        for why, titles in missing_arms(entries).items()
    ]


def _without_runs(titles: Sequence[str]) -> str:
    """That one or two arms have no finished run, in words."""
    return f"{' and '.join(titles)} {'have' if len(titles) > 1 else 'has'} no finished run"


def _main(row: Json, arms: pairs.Arms, by_name: Mapping[str, Json], *, trial: bool) -> tuple[str, list[str]]:
    """What is said about the main comparison, and why."""
    names = (row["arm"], row["reference"])
    titles = [by_name[name]["title"] if name in by_name else name for name in names]
    what = " minus ".join(titles)
    missing = [title for name, title in zip(names, titles, strict=True) if not arms.has(name)]
    if missing:
        return f"{what}: not known, because {_without_runs(missing)}", []
    if row["difference"] is None:
        why = why_undefined(arms.test)
        return f"{what}: AUC undefined, because {why}: not shown", [f"{what}: {why}, and an AUC needs all classes"]
    difference, low, high = (short(row[name], 3, sign=name == "difference") for name in ("difference", "low", "high"))
    result = "the opposite is shown" if row["shown"] == pairs.OPPOSITE else row["shown"]
    result += " in this trial alone" if trial and row["shown"] != pairs.NOT_SHOWN else ""
    return f"{what}: AUC {difference} [{low}, {high}]: {result}", _why(row, what)


def _why(row: Json, what: str) -> list[str]:
    """Why a comparison is shown or not, and what the test split could show."""
    reasons = [_failure(name, row) for name in row["failed"]]
    if not reasons:
        side = "above" if row["shown"] == pairs.SHOWN else "below"
        p = max(row["p_holm"], row["delong_p_holm"])
        smallest = "below .001" if p < 0.001 else f"at most {short(p, 3)}"
        reasons.append(f"its interval is {side} 0, and both of Holm's p over the study's comparisons are {smallest}")
    found = [f"{what}: {row['shown']}, because {' and '.join(reasons)}"]
    if (detectable := row["detectable"]["auc"]) is not None:
        found.append(
            f"a difference in AUC of {short(detectable, 3)} is the smallest that a single test of the averaged"
            " probabilities finds on this test split with 80 % power"
        )
    return found


def _failure(name: str, row: Json) -> str:
    """What a condition of `pairs.failed` says in words."""
    if name == "interval":
        return "its interval holds 0" if row["low"] <= 0 <= row["high"] else "its interval is on the other side of 0"
    if name == "delong_difference":
        return "the averaged probabilities of the runs do not differ in the same direction"
    which = "over patients and seeds" if name == "p_holm" else "of DeLong's test"
    p = row[name]
    if p != p:
        return f"the p value {which} is undefined"
    return f"Holm's p {which} is {short(p, 2)}, not below {short(pairs.ALPHA, 2)}"


def _simplest(arms: pairs.Arms, by_name: Mapping[str, Json], ladder: Sequence[Json]) -> tuple[str | None, list[str]]:
    """The lowest rung that no other one is shown to beat; None without rungs."""
    reasons = []
    on_rungs = pairs.rungs(arms)
    for name in on_rungs:
        better = [row["arm"] for row in ladder if row["reference"] == name and row["shown"] == pairs.SHOWN]
        # A lower rung, which a third one beats, may do so too.
        better += [row["reference"] for row in ladder if row["arm"] == name and row["shown"] == pairs.OPPOSITE]
        title = by_name[name]["title"]
        if not better:
            reasons.append(
                f"no higher rung is shown to beat {title}" if name != on_rungs[-1] else f"{title} is the top rung"
            )
            return name, reasons
        reasons.append(f"{title} is beaten by {', '.join(by_name[other]['title'] for other in better)}")
    return None, reasons


def _best(record: Record, arms: pairs.Arms, by_name: Mapping[str, Json]) -> tuple[str, list[str]]:
    """What is said where there is neither a main comparison nor a ladder of several rungs."""
    known = [name for name in by_name if arms.has(name)]
    if not known:
        return "there is no finished run, so nothing is known", []
    best = best_arm(record, arms, by_name)
    if best is None:
        why = why_undefined(arms.test)
        return f"the AUC of every arm is undefined, because {why}", [f"{why}, and an AUC needs all classes"]
    if len(known) == 1:
        return f"the only arm is {with_auc(by_name[best])}: there is nothing to compare it with", []
    split = "validation" if on_validation(record, arms, by_name) else "the test split, which flatters it,"
    text = f"the best arm on {split} is {with_auc(by_name[best])}"
    return text, ["no comparison of these runs is the main one, so none is tested here"]


def _caution(record: Record, arms: pairs.Arms, main: Json | None) -> tuple[str, list[str]]:
    """What stands before the sentence of a trial or of the protocol `reference`, and why."""
    prefix, reasons = [], []
    if record.protocol == "reference":
        prefix.append("reference protocol, epochs picked on the test split, so all figures are too high")
        reasons.append("the epochs were picked on the test split: compare these figures only with the papers'")
    few = few_seeds(arms, main)
    if record.quick or few:
        prefix.append("a trial" + (" with one seed" if few else " with few epochs") + ", which shows nothing yet")
        if record.quick:
            reasons.append("it is a trial: few epochs, to see that all works")
        if few:
            reasons.append(f"one seed says nothing about other seeds: {', '.join(few)}")
    return f"{'; '.join(prefix)}: " if prefix else "", reasons


def few_seeds(arms: pairs.Arms, main: Json | None) -> list[str]:
    """The titles of the arms that the sentence is about that were trained with one seed only."""
    concerned = [arms.scored[name] for name in arms.scored if arms.has(name)]
    if main is not None:
        names = (main["arm"], main["reference"])
        concerned = [scored for scored in concerned if scored.arm.name in names]
    trained = [scored for scored in concerned if scored.random]
    few = [scored.arm.title for scored in trained if len(scored.runs) == 1]
    # Without a main comparison, one arm with fewer seeds than the others makes no trial.
    return few if main is not None or len(few) == len(trained) else []
