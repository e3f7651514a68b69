"""Random splits, and readers of their rows."""

import hashlib

import numpy as np

from jaxboost.data.dataset import Split
from jaxboost.data.pipeline.augment import Augment
from jaxboost.training import step
from jaxboost.training.on_device.reading import Reading

RANDOM = Augment(crop_scale=(0.4, 1.0), flip=0.5, rand_augment_ops=1, color_jitter=0.3, interpolation="random")


def split_of(shape, count=70, dtype=np.uint8):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (count, *shape)).astype(dtype)
    return Split(images=images, labels=rng.integers(0, 5, (count, 2)))


def reading_of(augment, image_size=8):
    return Reading(augment=augment, image_size=image_size, one_by_one=True, by_batch=step.make_mesh()[1])


def digest(batch):
    return hashlib.sha256(b"".join(np.asarray(batch[name]).tobytes() for name in sorted(batch))).hexdigest()
