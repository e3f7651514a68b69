"""Logits, losses and gradients that the papers' own released code gives, for weights that a formula makes.

The figures in golden/released_code.json were computed with the authors' PyTorch code in float32. They are independent
of the restatements in tests/reference, which share an author with jaxboost.
"""

import functools
import json
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxboost.models import classifier, frozen, pneumollm
from jaxboost.models.backbones import BACKBONES
from jaxboost.models.classifier import BoostSpec
from jaxboost.models.llama import LlamaConfig
from jaxboost.models.pneumollm import PneumoSpec
from jaxboost.models.rngs import make_rngs
from jaxboost.tasks import TASKS
from jaxboost.training.step import Objective

GOLDEN = json.loads((pathlib.Path(__file__).parent / "golden" / "released_code.json").read_text())
BLOCK = LlamaConfig(width=64, heads=4, kv_heads=4, head_dim=16, mlp_width=192, eps=1e-6, rope_base=1e4)
CLASSES = 3
# The figures are rounded to six decimals; float32 noise of two frameworks adds some.
TOLERANCE = dict(rtol=1e-5, atol=1e-5)


def weight(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weight at a path: normal numbers drawn from the path's checksum, at the scale of its kind."""
    z = np.random.RandomState(zlib.crc32(path.encode())).standard_normal(shape)
    name = path.rpartition("/")[2]
    if path == "boost/block/final_norm":
        z = np.ones(shape)
    elif name.endswith(("scale", "norm")):
        z = 1 + 0.1 * z
    elif name.endswith("bias"):
        z = 0.1 * z
    elif name in ("cls", "spatial_cls", "temporal_cls", "positions"):
        z = 0.5 * z
    else:
        z = z / np.sqrt(shape[-2])
    return z.astype(np.float32)


def weights(shapes):
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(weight("/".join(key.key for key in path), leaf.shape)), shapes
    )


def norm(tree) -> float:
    return float(np.sqrt(sum(np.square(np.asarray(leaf, np.float64)).sum() for leaf in jax.tree.leaves(tree))))


def value_and_gradients(build, call, labels, objective):
    """(logits, loss, gradients) of the mean loss."""
    graphdef, params, held, _ = frozen.split(nnx.eval_shape(build))
    held = weights(held)
    targets = jax.nn.one_hot(jnp.asarray(labels), objective.classes)

    @jax.jit
    def run(params):
        def loss(params):
            logits = call(frozen.merge(graphdef, params, held))
            return TASKS[objective.task].losses(logits, targets, loss=objective.loss).mean(), logits

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, logits), gradients = run(weights(params))
    return logits, loss, gradients


def at(tree, path: str):
    return functools.reduce(lambda node, key: node[key], path.split("/"), tree)


@pytest.mark.parametrize("case", GOLDEN["r_llm"])
def test_rllm(case):
    backbone, kind = case.split("/")
    expected = GOLDEN["r_llm"][case]
    dimensions = BACKBONES[backbone].ndim
    images = np.random.RandomState(0).randint(0, 256, (2, *[28] * dimensions, 1 if dimensions == 3 else 3))
    spec = BoostSpec(kind=kind) if kind == "none" else BoostSpec(kind=kind, config=BLOCK)

    def build():
        return classifier.build(
            backbone,
            boost=spec,
            classes=CLASSES,
            image_size=28,
            mean=(0.0,),
            std=(1.0,),
            dtype=jnp.float32,
            rngs=make_rngs(0),
        )

    logits, loss, gradients = value_and_gradients(
        build,
        lambda model: model(jnp.asarray(images, jnp.uint8)),
        [0, 2],
        Objective(task="multi-class", classes=CLASSES),
    )
    np.testing.assert_allclose(logits, expected["logits"], **TOLERANCE)
    np.testing.assert_allclose(loss, expected["loss"], **TOLERANCE)
    found = {name: norm(at(gradients, name)) for name in expected["grad_norms"] if name != "head"}
    # The norm before the head belongs to the head, as in the released code.
    found["head"] = norm([gradients["head"], gradients.get("head_norm")])
    assert found == pytest.approx(expected["grad_norms"], rel=1e-5)


@pytest.mark.parametrize("case", ["m4", "m2"])
def test_pneumollm(case):
    expected = GOLDEN["pneumollm"][case]
    spec = PneumoSpec(
        llama=BLOCK,
        depth=2,
        every=4,
        vision_adapters=False,
        llama_adapters=True,
        tokens="engine",
        count=int(case[1:]),
        emitter=True,
        causal=False,
        remat=False,
    )
    tokens = np.random.RandomState(1).standard_normal((2, 6, 1024)).astype(np.float32)

    def build():
        return pneumollm.build(
            "conv14",
            spec=spec,
            classes=2,
            image_size=28,
            mean=(0.0,),
            std=(1.0,),
            dtype=jnp.float32,
            remat=False,
            rngs=make_rngs(0),
        )

    logits, loss, gradients = value_and_gradients(
        build,
        lambda model: model(jnp.asarray(tokens)),
        [0, 1],
        Objective(task="binary-class", classes=2, loss="columns"),
    )
    np.testing.assert_allclose(logits, expected["logits"], **TOLERANCE)
    np.testing.assert_allclose(loss, expected["loss"], **TOLERANCE)
    for name, value in expected.get("grad_norms", {}).items():
        assert norm(gradients[name]) == pytest.approx(value, rel=1e-5), name
