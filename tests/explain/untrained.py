"""Runs that were never trained, opened as if they were finished: small models of every kind with random weights."""

import dataclasses
import functools
import pathlib
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import pneumollm, quickstart
from jaxboost import systems
from jaxboost.data.dataset import DatasetInfo
from jaxboost.data.sources.folder.inputs import Preprocessing
from jaxboost.evaluation.prediction_table import Labels
from jaxboost.inference.open_run import FinishedRun
from jaxboost.models.backbones import BACKBONES, Backbone
from jaxboost.models.convnext import ConvNeXt
from jaxboost.models.pooled_vit import PooledViT
from jaxboost.models.resnet import ResNet
from jaxboost.systems import start
from jaxboost.tasks import MULTI_CLASS
from jaxboost.training import step
from tests.models import parity, small

CLASSES = ("a", "b", "c")
_RESNET = dict(block="basic", depths=(1, 1), base_width=4, stem="small")
_CONVNEXT = dict(depths=(1,), widths=(12,), layer_scale=False)
ROWS = {
    **small.SMALL,
    "small_siglip": Backbone(
        encoder=PooledViT, ndim=2, arguments=small.SMALL["small_vit"].arguments | {"pooling": "map"}, head_eps=None
    ),
    "small_resnet": Backbone(encoder=ResNet, ndim=2, arguments=_RESNET | {"convolution": "2d"}, head_eps=None),
    "small_convnext": Backbone(encoder=ConvNeXt, ndim=2, arguments=_CONVNEXT, head_eps=1e-6),
    "small_resnet3d": Backbone(encoder=ResNet, ndim=3, arguments=_RESNET | {"convolution": "3d"}, head_eps=None),
}

# Changes of a `pneumo` that make it LaVIN.
LAVIN = {
    "pneumollm__question": "random",
    "pneumollm__adapters": "mixture",
    "pneumollm__tokens": "none",
    "pneumollm__emitter": False,
    "llama__causal": True,
}


def install(monkeypatch: Any) -> None:
    """Adds the small backbones to the table."""
    for name, row in ROWS.items():
        monkeypatch.setitem(BACKBONES, name, row)


@functools.cache
def rllm(backbone: str, kind: str, **changes: Any) -> FinishedRun:
    """R-LLM with a random block of one layer."""
    config = quickstart.get_config()
    config.update_from_flattened_dict(
        {
            "model.backbone": backbone,
            "model.image_size": small.IMAGE_SIZE,
            "data.size": small.IMAGE_SIZE,
            "boost.kind": kind,
            "boost.block": "random",
            "boost.family": "llama-tiny",
            "boost.layers": (0,),
            "boost.source": "",
            "boost.convert": False,
            "eval.batch_size": 8,
            **{name.replace("__", "."): value for name, value in changes.items()},
        }
    )
    if kind == "none":
        config.boost.block = ""
    return _opened(config, BACKBONES[backbone].ndim, config.data.size)


@functools.cache
def pneumo(backbone: str, **changes: Any) -> FinishedRun:
    """PneumoLLM with two random layers of LLaMA and adapters."""
    config = pneumollm.get_config()
    fields = {
        "data.size": 28,
        "data.classes": CLASSES,
        "model.backbone": backbone,
        "model.image_size": 28,
        "model.dtype": "float32",
        "pneumollm.vision": "random" if backbone != "conv14" else "",
        "pneumollm.every": 1,
        "llama.family": "llama-tiny",
        "llama.block": "random",
        "llama.layers": (0, 1),
        "llama.final_norm": "ones",
        "eval.batch_size": 8,
    }
    fields |= {name.replace("__", "."): value for name, value in changes.items()}
    config.update_from_flattened_dict(fields)
    return _opened(config, 2, 28)


def _opened(config: Any, ndim: int, size: int) -> FinishedRun:
    info = DatasetInfo(
        name="drawn", task=MULTI_CLASS, classes=CLASSES, channels=1, ndim=ndim, size=size, n_samples={}, license=""
    )
    system = systems.prepare(config, info)
    replicated, by_batch = step.make_mesh()
    if system.stats:
        params, frozen, stats, _ = start.initialise(system, seed=0, replicated=replicated)
    else:
        # None at its initial value, so that attention is not uniform; and there is nothing to compile.
        weights = parity.randomise(system.params, 0), parity.randomise(system.frozen, 1), {}
        params, frozen, stats = jax.device_put(jax.tree.map(jnp.asarray, weights), replicated)
    return FinishedRun(
        folder=pathlib.Path("drawn"),
        config=config,
        # All that is read of it.
        result=types.SimpleNamespace(columns=None),
        labels=Labels(classes=CLASSES, task=MULTI_CLASS),
        preprocessing=Preprocessing(
            ndim=ndim, size=size, window=(), spacing=0.0, masked=False, image_size=size, resize=0
        ),
        system=system,
        weights=(params, frozen, stats),
        replicated=replicated,
        by_batch=by_batch,
    )


def with_weights(run: FinishedRun, *weights: Any) -> FinishedRun:
    """The run with these weights (trained, frozen, statistics)."""
    placed = jax.device_put(jax.tree.map(jnp.asarray, weights), run.replicated)
    return dataclasses.replace(run, weights=placed)


def images(run: FinishedRun, count: int = 3, seed: int = 0) -> np.ndarray:
    """Random images that the run takes, uint8 (count, S, S[, S], 1)."""
    shape = (count, *[run.preprocessing.size] * run.preprocessing.ndim, 1)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
