"""Random images that have the spectrum of natural ones."""

import numpy as np


def fields(count, shape, seed, share=1.0):
    """Random images (count, *shape) with the spectrum of natural ones; `share` of them is common to all."""
    rng = np.random.default_rng(seed)
    frequency = np.sqrt(sum(np.square(axis) for axis in np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij")))
    frequency.flat[0] = np.inf
    axes = range(1, len(shape) + 1)
    noise = rng.normal(size=(count + 1, *shape))
    noise = np.fft.ifftn(np.fft.fftn(noise, axes=axes) / frequency ** (len(shape) / 2), axes=axes).real
    noise /= noise.std(tuple(axes), keepdims=True)
    mixed = noise[1:] + share * noise[:1]
    return np.clip(120 + 35 * mixed / np.hypot(1, share), 0, 255).astype(np.uint8)
