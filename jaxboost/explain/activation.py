"""Token activation before and after the frozen layers, for the information-filtering hypothesis.

LM4VisualEncoding (Pang et al. 2024, section 5) holds that frozen LLM layers help because they amplify informative
tokens, and shows the activation of the tokens around the layer. Here, on the grid of the patches:

- "magnitude": the norm of each token after the mean of the image's tokens was subtracted;
- "detail": the same after a high-pass: of each channel, all frequencies over the grid below CUTOFF are removed.

The paper takes the angles of a Fourier transform for its second view; ours keeps a length, so that both have one scale.
In a model that pools CLS the layers' output at the patches does not reach the head. It is computed here all the same,
by the full path: it shows what the layers do with patches, not what the prediction used.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxboost.explain.tapped import Maps, Tapped, Weights, no_map
from jaxboost.models import taps
from jaxboost.models.frozen import merge

METHOD = "token activation"
CUTOFF = 0.25  # cycles per token; the highest frequency of an axis is .5
VIEWS = ("magnitude", "detail")


def maps(tapped: Tapped, images: np.ndarray) -> dict[str, Maps]:
    """Maps named "before_magnitude", "before_detail", "after_magnitude", "after_detail".

    Args:
      tapped: the run.
      images: uint8, as `FinishedRun.predict` takes them.

    Raises:
      UserError: the model has no frozen layers, or the tokens that they see are not patches.
    """
    if tapped.boost is not None:
        has_layers = not tapped.has_trained_layer and tapped.boost.block is not None
    else:
        has_layers = getattr(tapped.model, "llama", None) is not None and tapped.has_grid and not tapped.has_qformer
    if not has_layers:
        raise no_map(METHOD, tapped, "it has no LLM layers that see tokens of patches")
    graphdef, weights = tapped.run.system.graphdef, tapped.run.weights
    before, after = tapped.run.apply(
        lambda batch: _around(graphdef, weights, batch["image"], tapped.columns(len(batch["image"]))),
        images,
        tapped.batch_size,
    )
    found = {}
    for name, tokens in (("before", before), ("after", after)):
        # In PneumoLLM diagnosis tokens follow the source tokens.
        grid = tapped.grid_of(tokens[:, : tapped.model.encoder.tokens])
        for view in VIEWS:
            text = f"{METHOD} {name} the block ({view})"
            found[f"{name}_{view}"] = Maps(grid=activation(grid, view), place=name, text=text)
    return found


def activation(tokens: np.ndarray, view: str) -> np.ndarray:
    """One of VIEWS of tokens on a grid (n, h, w, D) or (n, d, h, w, D): float32 without the last axis."""
    axes = tuple(range(1, tokens.ndim - 1))
    if view == "magnitude":
        centred = tokens - tokens.mean(axes, keepdims=True)
    else:
        squares = [np.square(np.fft.fftfreq(tokens.shape[axis])) for axis in axes]
        radius = np.sqrt(functools.reduce(np.add.outer, squares))
        spectrum = np.fft.fftn(tokens.astype(np.float64), axes=axes)
        centred = np.fft.ifftn(spectrum * (radius >= CUTOFF)[..., np.newaxis], axes=axes).real
    return np.linalg.norm(centred, axis=-1).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _around(
    graphdef: Any, weights: Weights, images: jax.Array, columns: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """The tokens before and after the LLM layers, both (B, N, D) in float32."""
    model = merge(graphdef, *weights)
    with taps.opened() as values:
        model(images, **columns)
    boost = getattr(model, "boost", None)
    if boost is None:
        before, after = values["llm_in"], values["llm_out"]
    else:
        before = boost.encode(values["tokens"])
        after = boost.block(before, rope=boost.rope, causal=boost.causal)
    return before.astype(jnp.float32), after.astype(jnp.float32)
