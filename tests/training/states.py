"""Small train states that a seed and a step number determine, and what a checkpoint keeps next to them."""

import json
import shutil

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxboost import io
from jaxboost.data.dataset import Split
from jaxboost.data.pipeline import batches
from jaxboost.training import step
from jaxboost.training.checkpoints.checkpointer import Progress

FINGERPRINTS = {"block": "0123456789abcdef" * 4, "data": "11" * 32}
OPTIMIZER = optax.adamw(1e-3)


def make_params(seed: int) -> dict:
    a, b = jax.random.split(jax.random.key(seed))
    return {"encoder": {"kernel": jax.random.normal(a, (3, 4))}, "head": {"bias": jax.random.normal(b, (2,))}}


def make_stats(seed: int) -> dict:
    return {"norm": {"mean": jax.random.normal(jax.random.key(seed + 1000), (3,))}}


def best_weights(seed: int) -> tuple[dict, dict]:
    """Trained weights and statistics, as `save_best` takes them."""
    return make_params(seed), make_stats(seed)


def train_state(seed: int, number: int) -> step.TrainState:
    """The state after step `number`, with weights of `seed` and an optimiser that made one update."""
    replicated, _ = step.make_mesh()
    params, stats = jax.device_put(best_weights(seed), replicated)
    state = step.init_state(params, OPTIMIZER, replicated, stats=stats)
    _, opt_state = OPTIMIZER.update(params, state.opt_state, params)
    return state.replace(step=jnp.int32(number), opt_state=opt_state)


def train_iterator():
    images = np.arange(20 * 4, dtype=np.uint8).reshape(20, 2, 2, 1)
    split = Split(images=images, labels=np.arange(20)[:, None] % 2)
    return batches.train_iterator(split, batch_size=4, seed=0, image_size=2)


def progress_note(best=None, seconds=1.5):
    return Progress(fingerprints=FINGERPRINTS, best=best, seconds=seconds)


def restore_state(checkpointer):
    """The state and the progress, restored into shapes that hold other values."""
    return checkpointer.restore_latest(train_state(99, 0), train_iterator(), FINGERPRINTS)


def saved_steps(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def with_grains_position(folder):
    """Gives a saved step the item in which grain kept the position of a single process, instead of ours."""
    state = json.loads((folder / "position/metadata").read_text())
    iterator = train_iterator()
    iterator.set_state(state)
    (folder / "data").mkdir()
    grain.checkpoint.CheckpointHandler().save(folder / "data", iterator)
    shutil.rmtree(folder / "position")
    if (folder / "checksums").exists():
        sums = json.loads((folder / "checksums/metadata").read_text())
        sums["notes"]["data"] = sums["notes"].pop("position")
        sums["sha256"] = io.json_sha256({name: sums[name] for name in ("step", "arrays", "notes")})
        (folder / "checksums/metadata").write_text(json.dumps(sums))
