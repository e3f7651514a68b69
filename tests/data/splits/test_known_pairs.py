"""A search that knows an earlier one compares what has changed alone, and finds what a search of all pairs finds."""

import hashlib

import numpy as np
import pytest

from jaxboost.data.splits import candidates, known_pairs, near_duplicates
from tests.data.natural_images import natural_images

# Different pictures, and copies of each: a copy that is cut is like the others, but may be like fewer of them.
KINDS = (lambda image: image, lambda image: image // 2, lambda image: image[::-1], lambda image: cut(image, 3))
PICTURES = natural_images(12, (24, 24), seed=4)


def cut(image, edge):
    """Without its edge, enlarged to the size it had."""
    places = np.linspace(edge, len(image) - 1 - edge, len(image)).round().astype(int)
    return image[np.ix_(places, places)]


class Folder:
    """Images, each a row (picture, kind, patient, split); of split 0 each image may get into any split."""

    def __init__(self, rows):
        self.rows, self.trace, self.setting = list(rows), None, None
        # How many images were compared with all, of how many, in each search.
        self.compared = []

    def search(self):
        """Searches with what is known; the result must be that of a search of all pairs."""
        images = np.stack([KINDS[kind](PICTURES[picture]) for picture, kind, _, _ in self.rows])[..., None]
        patients = np.unique([row[2] for row in self.rows], return_inverse=True)[1].reshape(-1)
        splits = np.array([-row[3] or number for number, row in enumerate(self.rows)])
        digests = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
        members = [str((digest, *row[2:])) for digest, row in zip(digests, self.rows, strict=True)]
        setting = near_duplicates.setting(images.shape, digests)
        known = known_pairs.known(self.trace, members) if self.trace and setting == self.setting else None
        self.compared.append((len(members) if known is None else int(known.fresh.sum()), len(members)))
        found = near_duplicates.find(images, patients, splits, digests=digests, known=known)
        whole = near_duplicates.find(images, patients, splits)
        assert (found, found.links) == (whole, whole.links)
        assert found.compared >= whole.compared
        self.trace = known_pairs.Trace(members, patients.tolist(), found.links, found.compared)
        self.setting = setting
        return [pair[:2] for pair in found.pairs]


@pytest.fixture(autouse=True)
def _small_sample(monkeypatch):
    # With more, each change of these few images would change what is common to all.
    monkeypatch.setattr(candidates, "SAMPLE", 2)


def different(count=8):
    return [(number, 0, f"P{number}", 0) for number in range(count)]


def test_only_what_has_changed_is_compared():
    folder = Folder([*different(), (3, 1, "Q", 0)])
    assert folder.search() == [(3, 8)]
    assert folder.search() == [(3, 8)]
    folder.rows.insert(0, (5, 2, "R", 0))
    assert folder.search() == [(0, 6), (4, 9)]
    # An image without copies.
    folder.rows[2] = (9, 0, "P1", 0)
    assert folder.search() == [(0, 6), (4, 9)]
    folder.rows.reverse()
    assert folder.search() == [(0, 5), (3, 9)]
    del folder.rows[4]
    assert [fresh for fresh, _ in folder.compared] == [9, 0, 1, 1, 4]


def test_what_a_removed_image_connected_is_compared_again():
    folder = Folder([*different(), (3, 1, "Q", 0), (3, 2, "R", 0)])
    assert folder.search() == [(3, 8), (3, 9)]
    # The copies were connected by it, and not compared.
    folder.rows[3] = (9, 0, "P3", 0)
    assert folder.search() == [(8, 9)]
    # Of one patient, then in one split.
    folder.rows[8:] = [(3, 1, "Q", 0), (3, 2, "Q", 0)]
    assert folder.search() == []
    folder.rows[8:] = [(3, 1, "Q", 1), (3, 2, "R", 1)]
    assert folder.search() == []
    folder.rows[8:] = [(3, 1, "Q", 1), (3, 2, "R", 2)]
    assert folder.search() == [(8, 9)]
    assert [fresh for fresh, _ in folder.compared] == [10, 3, 2, 2, 1]


def test_connected_images_in_another_order_are_compared_again():
    folder = Folder([*different(), (3, 1, "Q", 0), (3, 2, "R", 0)])
    folder.search()
    folder.rows[9], folder.rows[3] = folder.rows[3], folder.rows[9]
    assert folder.search() == [(3, 8), (3, 9)]
    folder.rows[0], folder.rows[1] = folder.rows[1], folder.rows[0]
    folder.search()
    assert [fresh for fresh, _ in folder.compared] == [10, 3, 0]
    # Those of two sets of copies, each of which keeps its order.
    folder.rows.append((4, 1, "S", 0))
    assert folder.search() == [(3, 8), (3, 9), (4, 10)]
    folder.rows[3], folder.rows[4] = folder.rows[4], folder.rows[3]
    assert folder.search() == [(3, 10), (4, 8), (4, 9)]
    assert folder.compared[-1] == (0, 11)


def test_other_images_that_say_what_is_common_need_a_whole_search():
    folder = Folder(different())
    folder.search()
    shape = (8, 24, 24, 1)
    digests = [f"{number:064x}" for number in range(8)]
    setting = near_duplicates.setting(shape, digests)
    assert near_duplicates.setting(shape, [*digests[:2], "f" * 64, *digests[2:]]) == setting
    assert near_duplicates.setting(shape, digests[1:]) != setting
    assert near_duplicates.setting((8, 16, 16, 1), digests) != setting


@pytest.mark.parametrize("seed", range(2))
def test_any_changes(seed):
    rng = np.random.default_rng(seed)

    def row():
        patient, split = f"P{rng.integers(16)}", int(rng.integers(3))
        return int(rng.integers(len(PICTURES))), int(rng.integers(len(KINDS))), patient, split

    folder = Folder([row() for _ in range(24)])
    folder.search()
    for _ in range(12):
        for _ in range(rng.integers(1, 4)):
            place, other = rng.integers(len(folder.rows), size=2)
            match rng.integers(5):
                case 0:
                    folder.rows.insert(place, row())
                case 1:
                    del folder.rows[place]
                case 2:
                    folder.rows[place], folder.rows[other] = folder.rows[other], folder.rows[place]
                case 3:
                    folder.rows[place] = (*folder.rows[other][:2], *folder.rows[place][2:])
                case _:
                    folder.rows[place] = (*folder.rows[place][:2], *row()[2:])
        folder.search()
    assert sum(fresh < count for fresh, count in folder.compared) >= 4


def test_a_search_that_was_not_complete_is_not_continued(monkeypatch):
    monkeypatch.setattr(near_duplicates, "_MAX_CANDIDATES", {2: 3})
    folder = Folder([*different(), (3, 1, "Q3", 0)])
    # Each pair is a candidate in two orders, but what is connected already is not compared.
    monkeypatch.setattr(near_duplicates, "_BATCH", 1)
    assert folder.search() == [(3, 8)]
    for picture in range(4, 8):
        folder.rows.append((picture, 1, f"Q{picture}", 0))
        folder.search()
    assert len(folder.search()) == 3
    folder.rows[4:8] = []
    assert folder.search() == [(3, 4)]
