"""Grad-CAM (Selvaraju et al. 2017), for images and volumes.

With tokens x_t on the grid of the patches and the logit y of a class, the map is relu(sum_c w_c x_tc), where
w_c = mean_t dy/dx_tc. CLS is not on the grid. Which tokens:

- "tokens", those that enter the block (the encoder's output), where patch tokens matter behind them: with a block or a
  trained layer that attends to all tokens, and for PneumoLLM's conv14, whose source tokens are patches.
- "encoder_last", those that enter the last layer of the encoder, everywhere else. Without a block, with a kind without
  layers, or with a causal mask, the head reads CLS alone, and the gradient at all other output tokens is zero. A ViViT
  gives its block one token per frame, so the map is made inside each frame, in its spatial encoder. PneumoLLM's LLaMA
  reads CLS tokens of the encoder's blocks: the map shows what the last of them reads.
- "feature_map", the last feature map, for a ResNet.
"""

import numpy as np

from jaxboost.explain.tapped import Maps, Seen, Tapped, Weights, no_map

METHOD = "Grad-CAM"
TEXTS = {
    "feature_map": "at the last feature map",
    "tokens": "at the tokens that enter the block",
    "encoder_last": "at the tokens that enter the last layer of the encoder",
}
_SPATIAL = "at the tokens that enter the last layer of the spatial encoder"
_TRAINED = "at the tokens that enter the trained layer"


def maps(
    tapped: Tapped, images: np.ndarray, targets: np.ndarray, *, place: str = "", weights: Weights | None = None
) -> Maps:
    """The maps of some images.

    Args:
      tapped: the run.
      images: uint8, as `FinishedRun.predict` takes them.
      targets: int (n,): the class of each image.
      place: a key of TEXTS; "": the one that the module's text says.
      weights: other weights than the run's, for a comparison; then give the place of the run's own maps.

    Raises:
      UserError: no patch token has an influence on the logit.
    """
    seen = tapped.read(images, targets, tuple(TEXTS), weights=weights)
    place = place or _place(tapped, seen)
    values, gradients = _on_grid(tapped, seen.values, place), _on_grid(tapped, seen.gradients, place)
    channels = gradients.mean(tuple(range(1, gradients.ndim - 1)), keepdims=True)
    text = TEXTS[place]
    if place == "tokens" and tapped.has_trained_layer:
        text = _TRAINED
    elif place == "encoder_last" and seen.values[place].ndim == 4:
        text = _SPATIAL
    return Maps(grid=np.maximum((channels * values).sum(-1), 0), place=place, text=f"{METHOD} {text}")


def _place(tapped: Tapped, seen: Seen) -> str:
    if "feature_map" in seen.values:
        return "feature_map"
    # A kind without layers reads the first token alone.
    reads_all = "tokens" in seen.values and seen.values["tokens"].shape[1] == tapped.model.encoder.tokens
    candidates = ["tokens", "encoder_last"] if tapped.has_grid and reads_all else ["encoder_last"]
    for place in candidates:
        if place in seen.values and _on_grid(tapped, seen.gradients, place).any():
            return place
    raise no_map(METHOD, tapped, "no patch token of the encoder's last layer has an influence on the logits")


def _on_grid(tapped: Tapped, arrays: dict[str, np.ndarray], place: str) -> np.ndarray:
    return arrays[place] if place == "feature_map" else tapped.grid_of(arrays[place])
