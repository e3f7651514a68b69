"""Which arms a report shows where there is no room for all, and how it finds entries of the analysis."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxboost import io
from jaxboost.reporting import numbers
from jaxboost.studies.record import Record

Analysis = Mapping[str, Any]
Arm = Mapping[str, Any]
# Curves in one plot: as many as can be told apart.
CURVES = 4
# A run of a study among what is left out.
RUN = re.compile(r"(?P<arm>[^,/]+), seed (?P<seed>\d+)")
# Sections in which arms of one learning curve may differ: fewer images take more epochs, and other learning rates.
_TRAINING = ("train", "optim", "seed")


def entries(analysis: Analysis, name: str) -> Sequence[Mapping[str, Any]]:
    """A list of the analysis; empty where it is missing or null."""
    return analysis.get(name) or ()


def arms(analysis: Analysis) -> list[Arm]:
    """The arms that have runs: of the others there are no figures, see `missing`."""
    return [arm for arm in entries(analysis, "arms") if arm.get("seeds")]


def comparisons(analysis: Analysis) -> list[Mapping[str, Any]]:
    """The comparisons of arms that have runs."""
    return [row for row in entries(analysis, "comparisons") if not row.get("missing")]


def by_group(analysis: Analysis, group: str) -> list[Arm]:
    """The arms of a group: the ladder from its lowest rung, other groups in their order."""
    found = [arm for arm in arms(analysis) if arm.get("group", "ladder") == group]
    if group != "ladder":
        return found
    return sorted(found, key=lambda arm: (arm.get("rung") is None, arm.get("rung") or 0))


def titles(analysis: Analysis) -> dict[str, str]:
    """Name of an arm -> its title. Arms that are only named in a comparison keep their names."""
    pairs = [*entries(analysis, "comparisons"), *entries(analysis, "ladder")]
    named = {row[end] for row in pairs for end in ("arm", "reference")}
    return {
        **{name: name for name in sorted(named)},
        **{arm["name"]: arm["title"] for arm in entries(analysis, "arms")},
    }


def patients_known(analysis: Analysis, record: Record) -> bool:
    """Whether some patient has several images, or the data set tells their number."""
    if (analysis.get("data") or {}).get("patients"):
        return True
    return any((items.patients != items.names).any() for items in record.items.values())


def main_comparison(analysis: Analysis) -> Mapping[str, Any] | None:
    """The comparison that the verdict is about; None if there is none."""
    comparisons, at = entries(analysis, "comparisons"), (analysis.get("verdict") or {}).get("main")
    if isinstance(at, int) and 0 <= at < len(comparisons):
        return comparisons[at]
    return next((row for row in comparisons if row.get("main")), None)


def main_arms(analysis: Analysis, limit: int = CURVES) -> list[Arm]:
    """The arms that plots show: both of the main comparison, the simplest that nothing beats, and upper rungs.

    Returns:
      At most `limit` arms, in the order of the analysis.
    """
    known = arms(analysis)
    main = main_comparison(analysis) or {}
    wanted = [main.get("arm"), main.get("reference"), (analysis.get("verdict") or {}).get("simplest")]
    wanted += [arm["name"] for arm in reversed(by_group(analysis, "ladder"))] + [arm["name"] for arm in known]
    names = {arm["name"] for arm in known}
    chosen = [name for name in dict.fromkeys(wanted) if name in names][:limit]
    return [arm for arm in known if arm["name"] in chosen]


def others(analysis: Analysis) -> list[Arm]:
    """The arms that are not among `main_arms`: those of the ladder first."""
    main = main_arms(analysis)
    found = [arm for arm in arms(analysis) if arm not in main]
    return sorted(found, key=lambda arm: arm.get("group", "ladder") != "ladder")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Missing:
    """What a study planned and a report lacks.

    Attributes:
      arms: titles of arms without any finished run.
      comparisons: "A minus B" of those that lack an arm.
      runs: the number of runs that are missing from arms that have others.
    """

    arms: tuple[str, ...]
    comparisons: tuple[str, ...]
    runs: int


def missing(analysis: Analysis) -> Missing:
    """What is missing."""
    known, named = {arm["name"] for arm in arms(analysis)}, titles(analysis)
    found = [RUN.fullmatch(str(row.get("what"))) for row in entries(analysis, "left_out")]
    return Missing(
        arms=tuple(arm["title"] for arm in entries(analysis, "arms") if not arm.get("seeds")),
        comparisons=tuple(
            f"{named[row['arm']]} minus {named[row['reference']]}"
            for row in entries(analysis, "comparisons")
            if row.get("missing")
        ),
        runs=sum(run is not None and run["arm"] in known for run in found),
    )


def card_arm(analysis: Analysis) -> Arm | None:
    """The arm that the model card is about: the simplest that nothing beats, else the best on validation.

    None where no figure is sound: with the protocol "reference", or without arms.
    """
    if (analysis.get("study") or {}).get("protocol") == "reference":
        return None
    simplest = (analysis.get("verdict") or {}).get("simplest")
    for arm in arms(analysis):
        if arm["name"] == simplest:
            return arm
    known = [arm for arm in arms(analysis) if numbers.is_number((arm.get("val") or {}).get("auc"))]
    return max(known, key=lambda arm: arm["val"]["auc"], default=None)


def learning_series(analysis: Analysis) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The arms that differ in the part of the training patients, and in how they are trained on it, alone.

    Returns:
      (title, points) of each series; points are entries of the analysis' "learning_curve", by their "fraction".
    """
    configs = (analysis.get("provenance") or {}).get("configs") or {}
    known = titles(analysis)
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for point in entries(analysis, "learning_curve"):
        config = configs.get(point["arm"])
        if not isinstance(config, Mapping) or not numbers.is_number(point.get("fraction")):
            continue
        rest = {section: entry for section, entry in config.items() if section not in _TRAINING}
        if isinstance(rest.get("data"), Mapping):
            rest["data"] = {name: entry for name, entry in rest["data"].items() if name != "train_fraction"}
        groups.setdefault(io.json_sha256(rest), []).append(point)
    found = []
    for points in groups.values():
        points.sort(key=lambda point: point["fraction"])
        if len({point["fraction"] for point in points}) == len(points) > 1:
            found.append((known[points[-1]["arm"]], points))
    return found[:CURVES]
