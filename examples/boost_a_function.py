"""A model that is a plain function of its parameters, boosted through `nnx.split` and `nnx.merge`.

    python examples/boost_a_function.py [BLOCK]

BLOCK is a folder that `jaxboost convert` wrote. Without it the example uses a small random block.
"""

import sys
from typing import Any

import jax
import optax
from flax import nnx

import jaxboost

if __name__ == "__main__":
    from boost_your_model import random_block, two_kinds
else:
    from examples.boost_your_model import random_block, two_kinds


def train(folder: str | None, images: jax.Array, labels: jax.Array, steps: int) -> tuple[dict[str, Any], list[float]]:
    """Trains for some steps. Returns the parameters and the loss of each step."""
    block = jaxboost.load_block(folder) if folder else random_block()
    boost = jaxboost.Boost("rllm", width=32, block=block, rngs=nnx.Rngs(0))
    graphdef, adapters, frozen = nnx.split(boost, nnx.Param, ...)  # the adapters are trained, the rest is not
    draw = jax.nn.initializers.lecun_normal()
    params = {"patch": draw(jax.random.key(0), (49, 32)), "boost": adapters, "head": draw(jax.random.key(1), (32, 2))}

    def loss_of(params: dict[str, Any], frozen: nnx.State) -> jax.Array:
        patches = images.reshape(-1, 4, 7, 4, 7).swapaxes(2, 3).reshape(-1, 16, 49)
        tokens = jax.nn.relu(patches @ params["patch"])
        tokens = nnx.merge(graphdef, params["boost"], frozen)(tokens)
        logits = tokens.mean(1) @ params["head"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    optimizer = optax.adam(1e-3)
    state, losses = optimizer.init(params), []
    step = jax.jit(jax.value_and_grad(loss_of))
    for _ in range(steps):
        loss, gradients = step(params, frozen)
        changes, state = optimizer.update(gradients, state)
        params = optax.apply_updates(params, changes)
        losses.append(float(loss))
    return params, losses


if __name__ == "__main__":
    _, found = train(sys.argv[1] if len(sys.argv) > 1 else None, *two_kinds(), steps=30)
    print(f"loss {found[0]:.3f} -> {found[-1]:.3f}")
