"""Masks and small copies that lie among the images that they belong to, by the names that people give them."""

import bisect
import collections
import functools
import re
from collections.abc import Collection, Iterable, Sequence

from jaxboost.data.sources.folder.extensions import ALL

_WORD = (
    r"(?:masks?|segm?|segmentations?|labels?|rois?|gt|ground[ _-]?truth|annotations?|contours?|overlay|superpixels?)"
)
# x_mask, x.seg, x_mask_1, x-label (2); mask_x
_AFTER = re.compile(rf"^(?P<stem>.+?)[ _.-]+{_WORD}(?:[ _.-]*\(?\d+\)?)?$")
_BEFORE = re.compile(rf"^{_WORD}[ _.-]+(?P<stem>.+)$")
# These words are used for nothing else, so that x_t1 is enough of a partner of x_seg.
_SURE = re.compile(r"[ _.-]+(?:masks?|seg|segmentations?)(?:[ _.-]*\(?\d+\)?)?$")
# x_image beside x_mask
_NEUTRAL = re.compile(r"^(?:image|img|volume|vol)s?[ _.-]+|[ _.-]+(?:image|img|volume|vol)s?$")
_FOLDER = re.compile(rf"^(?:{_WORD}|thumbs?|previews?)$")
# Also in parts, as images_001 of ChestX-ray14.
_NO_CLASS = re.compile(r"^(?P<word>images?|imgs?|masks?|labels?|annotations|segmentations)(?:[ _-]*\d+)?$")
_SPLIT_WORDS = frozenset(("train", "training", "val", "valid", "validation", "test", "testing"))
# What else the names of folders of whole splits have, as stage_2_train_images.
_SET_WORDS = frozenset(
    ("set", "data", "dataset", "stage", "phase", "image", "images", "img", "imgs", "dicom", "dicoms", "png", "jpeg")
)
# Why files are left out, for the log.
REASON = "masks or small copies beside their images"
_IMAGE_FOLDERS = ("images", "image", "imgs", "img", "volumes", "scans", None)


def no_classes(names: Collection[str]) -> list[str]:
    """Of the names of folders, those that people give to all images or all masks of a data set, and to no class.

    `mask` is a class where there is `no_mask` or `without mask` too.
    """
    found = {name: match["word"].rstrip("s") for name in names if (match := _NO_CLASS.match(name.lower()))}
    opposite = r"(?:no|non|not|un|without)[ _-]*"
    others = [name.lower() for name in names if name not in found]
    return sorted(name for name, word in found.items() if not any(re.match(opposite + word, other) for other in others))


def is_split(name: str) -> bool:
    """Whether a folder's name is one that people give to all images of a split: `Train`, `stage_2_test_images`."""
    words = re.findall(r"[^\W\d_]+", name.lower())
    return bool(_SPLIT_WORDS.intersection(words)) and _SPLIT_WORDS.union(_SET_WORDS).issuperset(words)


def masks_among(names: Sequence[str], depth: int = 0) -> dict[str, str]:
    """The names that are masks or small copies of others -> the others.

    A mask has the name of its image, in the same folder, and a word such as `mask` after or before it; or the image's
    name in a folder such as `masks` or `thumbs`, beside the image or beside its folder `images`.

    Args:
      names: of image files, with "/" between their folders.
      depth: how many of their first folders say nothing about masks.
    """
    stems: dict[str, dict[str, str]] = collections.defaultdict(dict)
    for name in names:
        folder, stem = _split(name)
        stems[folder].setdefault(stem, name)
        stems[folder].setdefault(_NEUTRAL.sub("", stem), name)
    found = {}
    ordered = functools.cache(lambda folder: sorted(stems[folder]))
    sibling = functools.cache(lambda folder, start: _sibling(ordered(folder), stems[folder], start))
    for name in names:
        folder, stem = _split(name)
        candidates = [match["stem"] for match in (_AFTER.match(stem), _BEFORE.match(stem)) if match]
        partner = _first(stems[folder].get(candidate) for candidate in candidates)
        if partner is None and candidates and _SURE.search(stem):
            partner = sibling(folder, candidates[0])
        partner = partner or _in_folder_of_images(folder, [*candidates, stem], stems, depth)
        if partner is not None and partner != name:
            found[name] = partner
    return found


def _split(name: str) -> tuple[str, str]:
    folder, _, file = name.lower().rpartition("/")
    suffix = next((suffix for suffix in ALL if file.endswith(suffix)), "")
    return folder, file[: len(file) - len(suffix)]


def _sibling(ordered: Sequence[str], names: dict[str, str], start: str) -> str | None:
    """The first file whose stem begins with `start` and a separator, and is that of no mask."""
    for place in range(bisect.bisect_left(ordered, start), len(ordered)):
        stem = ordered[place]
        if not stem.startswith(start):
            return None
        if stem[len(start) : len(start) + 1] in (" ", "_", ".", "-") and not _AFTER.match(stem):
            return names[stem]
    return None


def _in_folder_of_images(
    folder: str, candidates: Sequence[str], stems: dict[str, dict[str, str]], depth: int
) -> str | None:
    parts = folder.split("/")
    for place in range(depth, len(parts)):
        if _FOLDER.match(parts[place]):
            for other in _IMAGE_FOLDERS:
                beside = "/".join([*parts[:place], *([other] if other else []), *parts[place + 1 :]])
                if beside in stems and (partner := _first(stems[beside].get(stem) for stem in candidates)):
                    return partner
    return None


def _first(found: Iterable[str | None]) -> str | None:
    return next((name for name in found if name is not None), None)
