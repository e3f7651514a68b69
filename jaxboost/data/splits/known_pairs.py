"""What an earlier search for near duplicates knows about images of which some are other ones now.

A search visits pairs of images in their order, and skips those whose patients earlier pairs connect already. So its
pairs are a forest over the patients: the first one that this order gives.

- If images are added, no pair that was skipped becomes one: what connects its patients is still there, and comes
  earlier.
- If an image is gone, a pair that was skipped may be needed. Then a pair of that image connected its patients, and all
  images of the connected patients are compared again.
- The same is true where images of connected patients have another order now.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Link(NamedTuple):
    """A pair as it was found: a view of the image `first` is like `second`; their difference in words."""

    first: int
    second: int
    how: str


@dataclasses.dataclass(frozen=True)
class Trace:
    """What a search leaves for the next one.

    Attributes:
      images: digest of the content, patient and split of each image. Images with equal digests are interchangeable.
      patients: number of each image's patient.
      links: all pairs.
      compared: no more candidates than this were compared closely, or would have been by a search of all pairs.
    """

    images: Sequence[str]
    patients: Sequence[int]
    links: Sequence[Link]
    compared: int


class Known(NamedTuple):
    """What needs no new comparison.

    Attributes:
      fresh: which images have to be compared with all, bool (n,).
      links: the pairs of the others.
      compared: see `Trace`.
    """

    fresh: np.ndarray
    links: Sequence[Link]
    compared: int


def nothing_known(count: int) -> Known:
    """The start of a search of all pairs of `count` images."""
    return Known(np.ones(count, bool), (), 0)


def known(trace: Trace, images: Sequence[str]) -> Known:
    """What an earlier search knows about images.

    Args:
      trace: of the earlier search.
      images: digest of each image now, see `Trace`.
    """
    places: dict[str, collections.deque[int]] = collections.defaultdict(collections.deque)
    for place, digest in enumerate(images):
        places[digest].append(place)
    now = [places[digest].popleft() if places[digest] else None for digest in trace.images]
    broken = _broken(trace, now)
    fresh = np.ones(len(images), bool)
    kept = [place for number, place in enumerate(now) if place is not None and number not in broken]
    fresh[np.array(kept, int)] = False
    links = [Link(now[link.first], now[link.second], link.how) for link in trace.links if not broken & set(link[:2])]
    return Known(fresh, links, trace.compared)


def _broken(trace: Trace, now: Sequence[int | None]) -> set[int]:
    """The earlier images whose patients are connected by pairs that are not all there in the same order.

    Args:
      trace: of the earlier search.
      now: index of each of its images now; None: it is gone.
    """
    # Imported here because it takes half a second.
    from scipy.cluster.hierarchy import DisjointSet

    sets = DisjointSet({trace.patients[number] for link in trace.links for number in link[:2]})
    for link in trace.links:
        sets.merge(trace.patients[link.first], trace.patients[link.second])
    members: dict[int, list[int]] = collections.defaultdict(list)
    for number, patient in enumerate(trace.patients):
        if patient in sets:
            members[sets[patient]].append(number)
    lost = {sets[trace.patients[link.first]] for link in trace.links if None in (now[link.first], now[link.second])}
    for connected, numbers in members.items():
        order = [place for number in numbers if (place := now[number]) is not None]
        if order != sorted(order):
            lost.add(connected)
    return {number for connected in lost for number in members[connected]}
