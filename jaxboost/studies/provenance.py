"""Where the figures of a study come from: versions, devices, data, frozen weights and configs."""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxboost import io
from jaxboost.studies.record import Record
from jaxboost.studies.scored import Scored

Json = dict[str, Any]
# The roles of pretrained parts in a result, see `systems.weights`.
_ROLES = ("encoder", "block", "vision", "llama", "text", "question", "qformer")


def provenance(record: Record, arms: Mapping[str, Scored]) -> Json:
    """The entry "provenance", from the results of the runs that were analysed.

    What differs between runs is listed, separated by commas. A part that an arm shares with no earlier one has the name
    of the arm behind its role.
    """
    results = [run.result for arm in arms.values() for run in arm.runs]
    versions = [_mapping(result.get("versions")) for result in results]
    names = dict.fromkeys(name for each in versions for name in each if name != "device")
    return {
        "versions": {name: _joined(each.get(name) for each in versions) for name in names},
        "device": _joined(each.get("device") for each in versions) or None,
        "data_sha256": record.data.get("sha256") or _joined(result.get("data_sha256") for result in results) or None,
        "splits_sha256": _joined(result.get("splits_sha256") for result in results) or None,
        "blocks": _parts(arms),
        "configs": {name: _mapping(arm.runs[0].result.get("config")) for name, arm in arms.items() if arm.runs},
    }


def _parts(arms: Mapping[str, Scored]) -> dict[str, Json]:
    """Role, or role and arm -> the pretrained part; equal parts once."""
    found: dict[str, Json] = {}
    for name, arm in arms.items():
        for run in arm.runs:
            for role in _ROLES:
                part = _mapping(run.result.get(role))
                about = {key: part.get(key) for key in ("source", "sha256", "layers")}
                if not part or about in found.values():
                    continue
                key = role if role not in found else f"{role} of {name}"
                found[key if key not in found else f"{key}, seed {run.seed}"] = about
    return found


def _joined(values: Iterable[Any]) -> str:
    """The different values, in the order of their first appearance."""
    texts = [value if isinstance(value, str) else io.to_json(value) for value in values if value is not None]
    return ", ".join(dict.fromkeys(texts))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
