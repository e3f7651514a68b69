"""Small runs inside the test's process: a tiny ViT3D with a tiny LLaMA layer on the LIDC shapes."""

import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import quickstart
from jaxboost.training import step
from jaxboost.training.active_run import ActiveRun
from jaxboost.training.engine import Alone


def small_config(root: pathlib.Path, changes: dict[str, Any] | None = None) -> ConfigDict:
    """The quick start's config made small, with a random block and no warm-up; `changes` maps field to value.

    `root` has the LIDC shapes: of the fixture `few_lidc_root` where the figures do not count, else of `lidc_root`.
    """
    config = quickstart.get_config()
    config.update_from_flattened_dict(
        {
            "data.root": str(root),
            "model.backbone": "vit3d_tiny",
            # Some tests compare to the bit or to 1e-5, on a GPU too.
            "model.dtype": "float32",
            # As on a CPU: the tests look at the batches of the host.
            "data.on_device": "false",
            "boost.block": "random",
            "boost.family": "llama-tiny",
            "boost.layers": (0,),
            "boost.source": "",
            "boost.convert": False,
            # A warm-up starts from a rate of 0: the first step would change nothing.
            "optim.warmup_epochs": 0.0,
            "train.batch_size": 16,
            # The few samples of a split are one batch. The default pads them to 128.
            "eval.batch_size": 24,
            "train.max_steps": 2,
            "eval.bootstrap": 20,
            **(changes or {}),
        }
    )
    return config


def take_step(run: ActiveRun, batch: step.Batch) -> tuple[step.TrainState, dict[str, jax.Array]]:
    """The state after a step on a batch, and what the step returns. The old state's buffers are gone."""
    return run.program.train_step(run.state, run.frozen, batch, jax.random.key(run.config.seed))


def take_steps(run: ActiveRun, count: int) -> list[float]:
    """Trains `run` for `count` steps and returns their losses; nothing is written."""
    losses = []
    for _ in range(count):
        run.state, outputs = take_step(run, step.put(next(run.feed.iterator), run.program.by_batch))
        losses.append(float(outputs["loss"]))
    return losses


def scores_of(run: ActiveRun, params: Any, stats: Any, split: str) -> tuple[float, np.ndarray]:
    """Mean loss and probabilities of a split."""
    return Alone(run).scores([(params, stats)], split)[0]


def on_host(tree: Any) -> dict[str, np.ndarray]:
    """Path -> copy of each leaf; donation cannot take it away."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in leaves}


def shapes_of(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Path -> shape and dtype of each leaf."""
    leaves, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path): (leaf.shape, leaf.dtype.name) for path, leaf in leaves}


def assert_same(ours: Any, theirs: Any) -> None:
    """Both trees hold the same leaves, bit by bit."""
    ours, theirs = on_host(ours), on_host(theirs)
    assert ours.keys() == theirs.keys()
    for path, array in ours.items():
        assert array.dtype == theirs[path].dtype, path
        np.testing.assert_array_equal(array, theirs[path], err_msg=path)
