"""Random images with the statistics of natural ones."""

import numpy as np


def natural_images(count, shape, seed, common=1.0):
    """Random images uint8 (count, *shape) with the 1 / f spectrum of natural ones.

    Args:
      common: weight of a pattern that all of them contain, relative to each image's own.
    """
    rng = np.random.default_rng(seed)
    frequency = np.sqrt(sum(np.square(axis) for axis in np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij")))
    frequency.flat[0] = np.inf
    axes = range(1, len(shape) + 1)
    noise = rng.normal(size=(count + 1, *shape))
    noise = np.fft.ifftn(np.fft.fftn(noise, axes=axes) / frequency ** (len(shape) / 2), axes=axes).real
    noise /= noise.std(tuple(axes), keepdims=True)
    mixed = noise[1:] + common * noise[:1]
    return np.clip(120 + 35 * mixed / np.hypot(1, common), 0, 255).astype(np.uint8)
