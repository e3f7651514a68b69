"""A question in front of an LLM: image tokens among the question's token embeddings, answered by next-token scores.

Shapes: d image tokens (B, d, D), T tokens of the question, C answers, one for each class; D, the width of the LLM.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jaxboost.errors import ArgumentError


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionSpec:
    """The shape of a question.

    Attributes:
      tokens: T.
      place: number of tokens before the image.
      answers: C.
      cap: c: scores s become c tanh(s / c), as in Gemma 2; None: they stay as they are.
      positions: P, the number of learned positions of the LLM (GPT-2, OPT); 0: it has none.
    """

    tokens: int
    place: int
    answers: int
    cap: float | None = None
    positions: int = 0


class Question(nnx.Module):
    """The rows of an LLM that belong to a question and its answers; all of them come from the LLM, and stay frozen.

    The initial weights are those of the control with a random LLM: N(0, .02), the default of Hugging Face's configs.

    Args:
      spec: the shape.
      width: D.
      rngs: of the weights.
    """

    def __init__(self, spec: QuestionSpec, width: int, *, rngs: nnx.Rngs):
        self.spec = spec
        self.tokens = nnx.Param(0.02 * jax.random.normal(rngs.params(), (spec.tokens, width)))
        self.answers = nnx.Param(0.02 * jax.random.normal(rngs.params(), (spec.answers, width)))
        self.bias = nnx.Param(jnp.zeros(spec.answers))
        if spec.positions:
            self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (spec.positions, width)))

    def around(self, image: jax.Array) -> jax.Array:
        """Image tokens (B, d, D) -> the LLM's input (B, T + d, D) in their dtype: the question with the image in it.

        Raises:
          ArgumentError: the LLM has learned positions, and fewer than these tokens.
        """
        tokens = jnp.broadcast_to(self.tokens[...].astype(image.dtype), (image.shape[0], *self.tokens.shape))
        place = self.spec.place
        x = jnp.concatenate([tokens[:, :place], image, tokens[:, place:]], axis=1)
        if not self.spec.positions:
            return x
        if x.shape[1] > self.spec.positions:
            raise ArgumentError(
                f"the LLM has {self.spec.positions} positions, too few for {image.shape[1]} tokens of the image and"
                f" {self.spec.tokens} of the question: convert a shorter question"
            )
        return x + self.positions[: x.shape[1]].astype(x.dtype)

    def scores(self, last: jax.Array) -> jax.Array:
        """The scores (B, C) of the answers' first tokens in float32.

        Args:
          last: the LLM's output at the last token, after the final norm, (B, D).
        """
        scores = last.astype(jnp.float32) @ self.answers[...].astype(jnp.float32).T + self.bias[...]
        cap = self.spec.cap
        return scores if cap is None else cap * jnp.tanh(scores / cap)
