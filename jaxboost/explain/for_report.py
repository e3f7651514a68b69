"""Pictures of a run for a report: its worst errors, with the maps of where it looked."""

import dataclasses
import io
import os

import numpy as np
from PIL import Image

from jaxboost.explain import picture_set, samples

MAX_BYTES = 40_000
WORST = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture and its text.

    Attributes:
      caption: file, label, prediction, and what the map shows; two lines.
      png: the image and its map, without text, less than MAX_BYTES.
      kind: "gradcam"; "image" if the run has no such map.
    """

    caption: str
    png: bytes
    kind: str


def worst_errors(
    run_folder: str | os.PathLike[str], *, most: int = WORST, split: str = "test", root: str = ""
) -> list[Picture]:
    """The wrongly predicted images of a split with Grad-CAM, the most wrong first; [] if there are none.

    Args:
      run_folder: folder of a finished run, or of one fold.
      most: the most pictures.
      split: a split of the run's data set.
      root: folder of the data, if it has moved.

    Raises:
      UserError: see `samples.open_trained` and `samples.from_split`.
    """
    run = samples.open_trained(run_folder)
    given = samples.from_split(run, split, root)
    shown = given.take(samples.worst(run, given, run.predict(given.images), most))
    if not shown.names:
        return []
    explained = picture_set.explain(run, shown, ["gradcam"])
    kind = "gradcam" if "gradcam" in explained.checked else "image"
    return [
        Picture(
            caption=picture_set.caption(explained, shown, "gradcam", number),
            png=_small(picture_set.picture([explained], shown, "gradcam", number, captioned=False)),
            kind=kind,
        )
        for number in range(len(shown.names))
    ]


def _small(png: bytes) -> bytes:
    """The same picture in less than MAX_BYTES: with fewer colours, then with fewer pixels."""
    colours = 256
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    while len(png) >= MAX_BYTES:
        buffer = io.BytesIO()
        picture.quantize(colours, dither=Image.Dither.NONE).save(buffer, format="png", optimize=True)
        png = buffer.getvalue()
        if colours > 64:
            colours //= 2
        else:
            picture = picture.resize(tuple(np.maximum(1, np.array(picture.size) * 3 // 4).tolist()))
    return png
