"""Which arms a report shows where there is no room for all, and how it finds entries of the analysis."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxboost import io
from jaxboost.reporting import numbers

Analysis = Mapping[str, Any]
Arm = Mapping[str, Any]
# Curves in one plot: as many as can be told apart.
CURVES = 4
# The fields of `data` that may say which part of the training patients an arm was trained on.
_FRACTIONS = ("train_fraction", "fraction")


def entries(analysis: Analysis, name: str) -> Sequence[Mapping[str, Any]]:
    """A list of the analysis; empty where it is missing or null."""
    return analysis.get(name) or ()


def by_group(analysis: Analysis, group: str) -> list[Arm]:
    """The arms of a group: the ladder from its lowest rung, other groups in their order."""
    found = [arm for arm in entries(analysis, "arms") if arm.get("group", "ladder") == group]
    if group != "ladder":
        return found
    return sorted(found, key=lambda arm: (arm.get("rung") is None, arm.get("rung") or 0))


def titles(analysis: Analysis) -> dict[str, str]:
    """Name of an arm -> its title. Arms that are only named in a comparison keep their names."""
    named = {row[end] for row in entries(analysis, "comparisons") for end in ("arm", "reference")}
    return {
        **{name: name for name in sorted(named)},
        **{arm["name"]: arm["title"] for arm in entries(analysis, "arms")},
    }


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
    arms = entries(analysis, "arms")
    main = main_comparison(analysis) or {}
    wanted = [main.get("arm"), main.get("reference"), (analysis.get("verdict") or {}).get("simplest")]
    wanted += [arm["name"] for arm in reversed(by_group(analysis, "ladder"))] + [arm["name"] for arm in arms]
    names = {arm["name"] for arm in arms}
    chosen = [name for name in dict.fromkeys(wanted) if name in names][:limit]
    return [arm for arm in arms if arm["name"] in chosen]


def others(analysis: Analysis) -> list[Arm]:
    """The arms that are not among `main_arms`: those of the ladder first."""
    main = main_arms(analysis)
    found = [arm for arm in entries(analysis, "arms") if arm not in main]
    return sorted(found, key=lambda arm: arm.get("group", "ladder") != "ladder")


def card_arm(analysis: Analysis) -> Arm | None:
    """The arm that the model card is about: the simplest that nothing beats, else the best on validation.

    None where no figure is sound: with the protocol "reference", or without arms.
    """
    if (analysis.get("study") or {}).get("protocol") == "reference":
        return None
    arms = entries(analysis, "arms")
    simplest = (analysis.get("verdict") or {}).get("simplest")
    for arm in arms:
        if arm["name"] == simplest:
            return arm
    known = [arm for arm in arms if numbers.is_number((arm.get("val") or {}).get("auc"))]
    return max(known, key=lambda arm: arm["val"]["auc"], default=None)


def learning_series(analysis: Analysis) -> list[tuple[str, list[tuple[float, Arm]]]]:
    """The arms that differ in nothing but the part of the training patients: (title, [(fraction, arm), ...])."""
    configs = (analysis.get("provenance") or {}).get("configs") or {}
    groups: dict[str, list[tuple[float, Arm]]] = {}
    for arm in entries(analysis, "arms"):
        config = configs.get(arm["name"]) or {}
        data = config.get("data") if isinstance(config.get("data"), Mapping) else {}
        name = next((name for name in _FRACTIONS if numbers.is_number(data.get(name))), None)
        if name is None:
            continue
        # A seed is no part of what an arm is, and neither is the rate that was tuned for it.
        rest = {section: entry for section, entry in config.items() if section not in ("data", "seed", "optim")}
        rest["data"] = {field: entry for field, entry in data.items() if field != name}
        groups.setdefault(io.json_sha256(rest), []).append((float(data[name]), arm))
    found = []
    for points in groups.values():
        points.sort(key=lambda point: point[0])
        if len({fraction for fraction, _ in points}) == len(points) > 1:
            found.append((str(points[-1][1]["title"]), points))
    return found[:CURVES]
