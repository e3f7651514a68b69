"""lidcsilhouettes against the volumes of lidcshapes3d."""

import numpy as np

from jaxboost.data import describe_dataset, load
from jaxboost.data.sources.lidc import silhouettes


def test_silhouettes_of_a_known_shape():
    volume = np.zeros((1, 28, 28, 28, 1), np.uint8)
    volume[0, 3:5, 10:20, 7, 0] = 255
    flat = silhouettes(volume)
    assert (flat.shape, flat.dtype) == ((1, 28, 28, 3), np.uint8)
    for channel, (first, second) in enumerate(
        [(slice(10, 20), slice(7, 8)), (slice(3, 5), slice(7, 8)), (slice(3, 5), slice(10, 20))]
    ):
        expected = np.zeros((28, 28), np.uint8)
        expected[first, second] = 255
        np.testing.assert_array_equal(flat[0, ..., channel], expected)


def test_the_data_set(lidc_root):
    flat = load("lidcsilhouettes", size=28, root=str(lidc_root))
    shapes = load("lidcshapes3d", size=28, root=str(lidc_root))
    info = describe_dataset("lidcsilhouettes", 28)
    assert (info.name, info.ndim, info.channels, info.size) == ("lidcsilhouettes", 2, 3, 28)
    assert (info.classes, info.task, info.license) == (shapes.info.classes, shapes.info.task, shapes.info.license)
    assert flat.info.n_samples == shapes.info.n_samples
    assert flat.baselines.keys() == shapes.baselines.keys()
    for name, split in flat.splits.items():
        volumes = shapes.splits[name]
        assert split.images.shape == (len(volumes), 28, 28, 3)
        np.testing.assert_array_equal(split.labels, volumes.labels)
        np.testing.assert_array_equal(split.groups, volumes.groups)
        for row in (0, len(split) - 1):
            cube = volumes.images[row, ..., 0]
            for axis in range(3):
                np.testing.assert_array_equal(split.images[row, ..., axis] > 0, (cube > 0).any(axis))
