"""Zero-shot classification with CLIP: the cosines of images with the classes' prompts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxboost.baselines.problem import Arrays, Data, Hyper


class ZeroShot:
    """The softmax over the classes of CLIP's scale times the cosine of the image and the class's prompts.

    Nothing is fitted (Radford et al. 2021, section 3.1). Of an embedding the first half is read, the CLS token after
    the encoder's final norm; its projection is CLIP's embedding of the image.
    """

    numbers = 0

    def __init__(self, embeddings: np.ndarray, projection: np.ndarray, scale: float):
        """Takes what `convert.text_encoders.ClassTexts` has: (C, D), (W, D), and the scale of the cosines."""
        self.embeddings, self.projection, self.scale = embeddings, projection, scale

    @staticmethod
    def grid(samples: int) -> Sequence[dict[str, Any]]:
        """There is nothing to choose."""
        return [{}]

    @classmethod
    def fit(cls, data: Data) -> "ZeroShot":
        """Reads the prompts' embeddings alone."""
        if data.texts is None:
            raise ValueError("zero-shot classification needs the texts of the classes")
        return cls(data.texts.embeddings, data.texts.projection, data.texts.scale)

    @classmethod
    def restore(cls, arrays: Arrays, *, task: str, classes: int, hyper: Hyper) -> "ZeroShot":
        """See `Classifier.restore`."""
        if arrays["embeddings"].shape != (classes, arrays["projection"].shape[1]):
            raise ValueError("its embeddings are not those of the classes")
        return cls(arrays["embeddings"], arrays["projection"], float(arrays["scale"]))

    def arrays(self) -> Arrays:
        """The prompts' embeddings, the projection of images, and the scale."""
        return {"embeddings": self.embeddings, "projection": self.projection, "scale": np.array(self.scale)}

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """See `Classifier.probabilities`; features (n, 2W)."""
        from scipy import special

        images = np.asarray(features[:, : len(self.projection)], np.float64) @ self.projection
        length = np.linalg.norm(images, axis=1, keepdims=True)
        cosines = images / np.where(length == 0, 1, length) @ self.embeddings.T
        return special.softmax(self.scale * cosines, axis=1).astype(np.float32)
