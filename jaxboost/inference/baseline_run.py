"""A finished run of a baseline, opened for predictions."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxboost.baselines import embeddings, features
from jaxboost.baselines.problem import Classifier
from jaxboost.data import columns as clinical
from jaxboost.data.columns import Column
from jaxboost.data.sources.folder.inputs import Preprocessing
from jaxboost.evaluation.prediction_table import Labels
from jaxboost.inference import images as given_images
from jaxboost.runs.result import RunResult


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselineRun:
    """The encoder and the fitted classifier of a baseline's run, created by `open_run`.

    Attributes:
      folder, config, result, labels, preprocessing: see `open_run.FinishedRun`.
      classifier: the fitted classifier.
      channels: of the images that it was fitted to.
      encode: see `embeddings.make_encode`; it is only used for embeddings.
      by_batch: see `step.make_mesh`.
    """

    folder: pathlib.Path
    config: ConfigDict
    result: RunResult
    labels: Labels
    preprocessing: Preprocessing
    classifier: Classifier
    channels: int
    encode: embeddings.Encode
    by_batch: jax.NamedSharding

    @property
    def batch_size(self) -> int:
        """The batch size of the encoder in the run."""
        return self.config.eval.batch_size

    @property
    def unit(self) -> str:
        """What the run counted, "image" or "patient", see `eval.unit`."""
        return self.config.eval.unit

    @property
    def columns(self) -> tuple[Column, ...]:
        """The clinical columns that the classifier reads; () if it reads none."""
        return self.result.columns or ()

    def predict(
        self, images: np.ndarray, *, columns: Mapping[str, Any] | None = None, batch_size: int = 0
    ) -> np.ndarray:
        """Probabilities float32 (n, classes); arguments and errors as in `open_run.FinishedRun.predict`."""
        return self.classifier.probabilities(self.features(images, columns=columns, batch_size=batch_size))

    def features(
        self, images: np.ndarray, *, columns: Mapping[str, Any] | None = None, batch_size: int = 0
    ) -> np.ndarray:
        """What the classifier sees of the images, not standardised: (n, F); arguments as in `predict`.

        That is the embedding, float32, or the trivial features, float64, and behind them the features of clinical
        columns; F is 0 for the prevalence.
        """
        images = given_images.checked(images, self.preprocessing, batch_size)
        values = clinical.of_values(self.columns, columns, len(images))
        return features.with_columns(self._of_images(images, batch_size), values)

    def _of_images(self, images: Any, batch_size: int) -> np.ndarray:
        kind = self.config.baseline.features
        if kind in features.OF_NO_IMAGE:
            return np.zeros((len(images), 0))
        if kind == "trivial":
            return features.trivial(images, self.channels)
        devices = self.by_batch.mesh.size
        return embeddings.of_images(
            images,
            self.encode,
            batch_size=-(-(batch_size or self.batch_size) // devices) * devices,
            image_size=self.preprocessing.image_size,
            by_batch=self.by_batch,
            slices=embeddings.slices_along_axis(self.config),
        )
