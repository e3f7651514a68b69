"""Where the pooled token looks: its attention, weighted by the gradient (Chefer et al. 2021).

With the attention A of the CLS token to all tokens, for each head, and the logit y of a class, the map is the mean over
the heads of relu(A dy/dA), on the patches. Which layer:

- the last LLM layer of the block, where the block attends to all tokens. Its attention is computed with the block's own
  weights by `boost.path="pooled"`, which has the CLS token's row of the attention matrix, also where the run itself
  used a path without one. A ViViT's block sees one token per frame: the map has one value per frame.
- the trained layer of the control `boost.kind=layer`.
- otherwise (no block, a kind without layers, a causal mask, PneumoLLM) the last layer of the encoder; for a ViViT that
  of its temporal encoder. Where an attention pools the encoder's tokens (SigLIP), it is that attention.
"""

import numpy as np

from jaxboost.explain.tapped import Maps, Seen, Tapped, Weights, no_map

METHOD = "gradient-weighted attention"
TEXTS = {
    "llm_attention": "of the pooled token in the last layer of the block",
    "encoder_attention": "of the pooled token in the last layer of the encoder",
}
_TRAINED = "of the pooled token in the trained layer"
_POOL = "of the probe in the attention pool of the encoder"
_FRAMES = " (over the frames)"


def maps(
    tapped: Tapped, images: np.ndarray, targets: np.ndarray, *, place: str = "", weights: Weights | None = None
) -> Maps:
    """The maps of some images; arguments: see `gradcam.maps`.

    Raises:
      UserError: the model has no pooled token that attends to patches.
    """
    seen = _read(tapped, images, targets, weights)
    place = place or _place(tapped, seen)
    relevance = np.maximum(seen.values[place] * seen.gradients[place], 0)  # (n, H, Q, N)
    pooled = relevance.mean(1)[:, 0]
    text = _TRAINED if tapped.has_trained_layer else TEXTS[place.partition("/")[0]]
    if not tapped.model.encoder.traits.gives_tokens:
        text = _POOL
    frames = _FRAMES if pooled.shape[1] < tapped.side**tapped.ndim else ""
    return Maps(grid=tapped.grid_of(pooled[..., np.newaxis])[..., 0], place=place, text=f"{METHOD} {text}{frames}")


def rows(tapped: Tapped, images: np.ndarray) -> np.ndarray:
    """The attention of the pooled token to all tokens, of each head: (n, H, N). Each row adds up to 1."""
    seen = _read(tapped, images, np.zeros(len(images), int), None)
    return seen.values[_place(tapped, seen)][:, :, 0]


def _read(tapped: Tapped, images: np.ndarray, targets: np.ndarray, weights: Weights | None) -> Seen:
    traits = tapped.model.encoder.traits
    if tapped.has_qformer:
        raise no_map(METHOD, tapped, "its Q-Former reads all tokens, not a pooled token (Grad-CAM is possible)")
    if traits.gives_tokens and not traits.cls_first:
        raise no_map(METHOD, tapped, "its head reads the mean of all tokens, not a pooled token (Grad-CAM is possible)")
    return tapped.read(images, targets, tuple(TEXTS), path="pooled", weights=weights)


def _place(tapped: Tapped, seen: Seen) -> str:
    # Under a causal mask the first token attends to itself only.
    if "llm_attention" in seen.values and seen.values["llm_attention"][..., 0, 1:].any():
        return "llm_attention"
    # A ViViT has two encoders, the temporal one last. A trained layer comes after the encoder.
    if found := [name for name in seen.values if name.startswith("encoder_attention")]:
        return found[-1]
    raise no_map(METHOD, tapped, "it has no pooled token that attends to patches")
