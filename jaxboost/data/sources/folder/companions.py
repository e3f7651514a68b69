"""Recognises masks and small copies that are stored with their images, by their usual names."""

import bisect
import collections
import functools
import re
from collections.abc import Collection, Iterable, Sequence

from jaxboost.data.sources.folder.extensions import without_suffix

_WORD = (
    r"(?:masks?|segm?|segmentations?|labels?|rois?|gt|ground[ _-]?truth|annotations?|contours?|overlay|superpixels?)"
)
# x_mask, x.seg, x_mask_1, x-label (2); mask_x
_AFTER = re.compile(rf"^(?P<stem>.+?)[ _.-]+{_WORD}(?:[ _.-]*\(?\d+\)?)?$")
_BEFORE = re.compile(rf"^{_WORD}[ _.-]+(?P<stem>.+)$")
# These words always mean a mask, so x_t1 counts as the image of x_seg.
_SURE = re.compile(r"[ _.-]+(?:masks?|seg|segmentations?)(?:[ _.-]*\(?\d+\)?)?$")
# x_image with x_mask
_NEUTRAL = re.compile(r"^(?:image|img|volume|vol)s?[ _.-]+|[ _.-]+(?:image|img|volume|vol)s?$")
_FOLDER = re.compile(rf"^(?:{_WORD}|thumbs?|previews?)$")
# Also with a number, as images_001 of ChestX-ray14.
_NO_CLASS = re.compile(r"^(?P<word>images?|imgs?|masks?|labels?|annotations|segmentations)(?:[ _-]*\d+)?$")
_SPLIT_WORDS = frozenset(("train", "training", "val", "valid", "validation", "test", "testing"))
# Other words in names of folders that hold a whole split, as stage_2_train_images.
_SET_WORDS = frozenset(
    ("set", "data", "dataset", "stage", "phase", "image", "images", "img", "imgs", "dicom", "dicoms", "png", "jpeg")
)
# The reason for leaving files out, for the log.
REASON = "masks or small copies of other images"
_IMAGE_FOLDERS = ("images", "image", "imgs", "img", "volumes", "scans", None)


def no_classes(names: Collection[str]) -> list[str]:
    """Returns the names of folders that usually hold all images or all masks of a data set, not one class.

    `mask` is a class if there is also `no_mask` or `without mask`.
    """
    found = {name: match["word"].rstrip("s") for name in names if (match := _NO_CLASS.match(name.lower()))}
    opposite = r"(?:no|non|not|un|without)[ _-]*"
    others = [name.lower() for name in names if name not in found]
    return sorted(name for name, word in found.items() if not any(re.match(opposite + word, other) for other in others))


def is_split(name: str) -> bool:
    """Returns whether a folder's name is usual for the images of a split: `Train`, `stage_2_test_images`."""
    words = re.findall(r"[^\W\d_]+", name.lower())
    return bool(_SPLIT_WORDS.intersection(words)) and _SPLIT_WORDS.union(_SET_WORDS).issuperset(words)


def masks_among(names: Sequence[str], depth: int = 0) -> dict[str, str]:
    """Finds masks and small copies of other images.

    A mask is in the folder of its image and has the image's name with a word such as `mask` after or before it. Or it
    has the same name and is in a folder such as `masks` or `thumbs`, next to the image or to its folder `images`.

    Args:
      names: names of image files, with "/" between their folders.
      depth: how many of their first folders are ignored: the split and the class.

    Returns:
      Name of a mask or copy -> name of its image.
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
    return folder, without_suffix(file)


def _sibling(ordered: Sequence[str], names: dict[str, str], start: str) -> str | None:
    """Returns the first file that is not a mask and whose stem begins with `start` and a separator."""
    for index in range(bisect.bisect_left(ordered, start), len(ordered)):
        stem = ordered[index]
        if not stem.startswith(start):
            return None
        if stem[len(start) : len(start) + 1] in (" ", "_", ".", "-") and not _AFTER.match(stem):
            return names[stem]
    return None


def _in_folder_of_images(
    folder: str, candidates: Sequence[str], stems: dict[str, dict[str, str]], depth: int
) -> str | None:
    parts = folder.split("/")
    for index in range(depth, len(parts)):
        if _FOLDER.match(parts[index]):
            for other in _IMAGE_FOLDERS:
                beside = "/".join([*parts[:index], *([other] if other else []), *parts[index + 1 :]])
                if beside in stems and (partner := _first(stems[beside].get(stem) for stem in candidates)):
                    return partner
    return None


def _first(found: Iterable[str | None]) -> str | None:
    return next((name for name in found if name is not None), None)
