"""Patients in more than one split: such a leak makes validation and test scores too good."""

from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np

from jaxboost.errors import UserError


def in_two(patients: Iterable[Hashable], values: Iterable[Hashable]) -> list[tuple[int, int]]:
    """Finds the patients whose samples do not all have the same value, such as the same split.

    Args:
      patients: patient of each sample.
      values: split, fold or label of each sample.

    Returns:
      For each such patient the index of the first sample, and that of the first sample with another value; ordered by
      first sample.
    """
    first: dict[Hashable, tuple[int, Hashable]] = {}
    found: dict[Hashable, tuple[int, int]] = {}
    for index, (patient, value) in enumerate(zip(patients, values, strict=True)):
        start, expected = first.setdefault(patient, (index, value))
        if value != expected:
            found.setdefault(patient, (start, index))
    return sorted(found.values())


def check(
    groups: Mapping[str, np.ndarray],
    where: str,
    *,
    names: Mapping[str, Sequence[str]] | None = None,
    fix: str = "give every patient to one split",
) -> None:
    """Checks that no patient is in two splits.

    Args:
      groups: patients of the samples of each split, str (n,).
      where: data set or fold, for the message.
      names: files of the samples of each split, for the message.
      fix: what the user can do, for the message.

    Raises:
      UserError: a patient is in two splits.
    """
    samples = [(split, row) for split, patients in groups.items() for row in range(len(patients))]
    patients = [patient for of_split in groups.values() for patient in of_split.tolist()]
    for pair in in_two(patients, (split for split, _ in samples)):
        found = [(split, f" ({names[split][row]})" if names else "") for split, row in (samples[i] for i in pair)]
        both = " and ".join(f"in {split}{name}" for split, name in found)
        raise UserError(f"{where}: patient {patients[pair[0]]!r} is {both}: {fix}")
