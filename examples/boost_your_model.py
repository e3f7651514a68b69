"""Your own Flax NNX classifier, boosted with a frozen LLM layer: only the six lines marked `boost` are new or changed.

    python examples/boost_your_model.py [BLOCK]

BLOCK is a folder that `jaxboost convert` wrote. Without it the example uses a small random block.
"""

import sys

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxboost  # boost


class YourClassifier(nnx.Module):
    def __init__(self, block: jaxboost.LlamaBlock, rngs: nnx.Rngs):  # boost
        self.patches = nnx.Conv(1, 32, (7, 7), strides=7, rngs=rngs)
        self.boost = jaxboost.Boost("rllm", width=32, block=block, rngs=rngs)  # boost
        self.head = nnx.Linear(32, 2, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        tokens = nnx.relu(self.patches(images)).reshape(len(images), -1, 32)  # (B, 16, 32)
        tokens = self.boost(tokens)  # boost
        return self.head(tokens.mean(1))


@nnx.jit
def train_step(model: nnx.Module, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array) -> jax.Array:
    def loss_of(model: YourClassifier) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    loss, gradients = nnx.value_and_grad(loss_of)(model)  # only for nnx.Param: the block's weights are `Frozen`
    optimizer.update(model, gradients)
    return loss


def train(folder: str | None, images: jax.Array, labels: jax.Array, steps: int) -> tuple[YourClassifier, list[float]]:
    """Trains for some steps. Returns the model and the loss of each step."""
    block = jaxboost.load_block(folder) if folder else random_block()  # boost
    model = YourClassifier(block, nnx.Rngs(0))  # boost
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    return model, [float(train_step(model, optimizer, images, labels)) for _ in range(steps)]


def random_block() -> jaxboost.LlamaBlock:
    """Returns a small frozen block with random weights."""
    from jaxboost.models.frozen import freeze
    from jaxboost.models.llama import FAMILIES

    return freeze(jaxboost.LlamaBlock(FAMILIES["llama-tiny"], depth=1, dtype=jnp.float32, rngs=nnx.Rngs(1)))


def two_kinds(count: int = 16) -> tuple[jax.Array, jax.Array]:
    """Returns dark and bright random images (count, 28, 28, 1), and their labels 0 (dark) or 1 (bright)."""
    labels = jnp.arange(count) % 2
    return jax.random.normal(jax.random.key(0), (count, 28, 28, 1)) + labels[:, None, None, None], labels


if __name__ == "__main__":
    _, losses = train(sys.argv[1] if len(sys.argv) > 1 else None, *two_kinds(), steps=30)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
