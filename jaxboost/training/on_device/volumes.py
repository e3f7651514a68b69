"""Rotations, flips and shifts of volumes as one table of voxels, and noise; see `pipeline.augment.augment_volume`."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxboost.data.pipeline.augment import ROTATIONS, Augment


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moves:
    """How a volume is moved.

    Attributes:
      rotation: index in `augment.ROTATIONS`, int32 (); 0: none.
      flips: whether each axis is flipped, bool (3,).
      shift: voxels along each axis, int32 (3,).
    """

    rotation: jax.Array
    flips: jax.Array
    shift: jax.Array


def draw(key: jax.Array, augment: Augment) -> Moves:
    """Draws the moves that the augmentation asks for."""
    rotation_key, flip_key, shift_key = jax.random.split(key, 3)
    rotation, flips = jnp.int32(0), jnp.zeros(3, bool)
    if augment.volume_rotations:
        rotation = jax.random.randint(rotation_key, (), 0, len(ROTATIONS))
    if augment.volume_flips:
        flips = jax.random.bernoulli(flip_key, 0.5, (3,))
    return Moves(rotation, flips, jax.random.randint(shift_key, (3,), -augment.shift, augment.shift + 1))


def move(volume: jax.Array, moves: Moves) -> jax.Array:
    """Rotates, flips and shifts a volume (S, S, S, C), in this order; new voxels are 0."""
    S = volume.shape[0]
    places = jnp.arange(S) - moves.shift[:, None]  # of the voxels before the shift, (3, S)
    inside = (places >= 0) & (places < S)
    places = jnp.where(moves.flips[:, None], S - 1 - places, places)
    axes = jnp.array([axes for axes, _ in ROTATIONS])[moves.rotation]
    signs = jnp.array([signs for _, signs in ROTATIONS])[moves.rotation]
    places = jnp.where(signs[:, None] < 0, S - 1 - places, places)
    # Axis i of the result is axis axes[i] of the volume.
    strides = jnp.array([S * S, S, 1])[axes]
    x, y, z = jnp.clip(places, 0, S - 1) * strides[:, None]
    table = x[:, None, None] + y[:, None] + z
    kept = inside[0][:, None, None] & inside[1][:, None] & inside[2]
    moved = volume.reshape(S**3, -1)[table.reshape(-1)].reshape(volume.shape)
    return jnp.where(kept[..., None], moved, 0)


def add_noise(volume: jax.Array, noise: jax.Array) -> jax.Array:
    """Adds noise, float32 of the volume's shape in grey values, and rounds to uint8."""
    return jnp.clip(jnp.rint(volume.astype(jnp.float32) + noise), 0, 255).astype(jnp.uint8)
