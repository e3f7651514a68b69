"""Pictures of a run for a report: its worst errors, with the maps of where it looked."""

import dataclasses
import io
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from jaxboost.explain import picture_set, samples
from jaxboost.explain.picture_set import Explained
from jaxboost.explain.samples import Samples

MAX_BYTES = 40_000
WORST = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture and its text.

    Attributes:
      name: of the image: its file, or `test/0`.
      target: the class that the run predicts for it, and that its map explains.
      label: its true class in words; "" if it is unknown.
      findings: what each run predicts for it, and what its map shows.
      png: the image and the maps, without text, less than MAX_BYTES.
      kind: "gradcam"; "image" if no run has such a map.
    """

    name: str
    target: int
    label: str
    findings: tuple[str, ...]
    png: bytes
    kind: str

    @property
    def caption(self) -> str:
        """File and label, and below them the findings, a line each."""
        head = f"{self.name}, label {self.label}" if self.label else self.name
        return "\n".join([head, *self.findings])


def worst_errors(
    run_folder: str | os.PathLike[str],
    *,
    most: int = WORST,
    split: str = "test",
    root: str = "",
    against: str | os.PathLike[str] | None = None,
) -> list[Picture]:
    """The wrongly predicted images of a split with Grad-CAM, the most wrong first; [] if there are none.

    Args:
      run_folder: folder of a finished run, or of one fold.
      most: the most pictures.
      split: a split of the run's data set.
      root: folder of the data, if it has moved.
      against: folder of a second run, whose maps of the same images stand beside those of the first.

    Raises:
      UserError: see `samples.open_trained`, `samples.from_split` and `samples.check_alike`.
    """
    runs = [samples.open_trained(folder) for folder in (run_folder, against) if folder is not None]
    for other in runs[1:]:
        samples.check_alike(runs[0], other)
    given = samples.from_split(runs[0], split, root)
    shown = given.take(samples.worst(runs[0], given, runs[0].predict(given.images, columns=given.columns), most))
    if not shown.names:
        return []
    explained = [picture_set.explain(run, shown, ["gradcam"]) for run in runs]
    kind = "gradcam" if any("gradcam" in each.checked for each in explained) else "image"
    return [
        Picture(
            name=name,
            target=int(explained[0].targets[number]),
            label=picture_set.label_of(explained[0], shown, number),
            findings=_findings(explained, shown, number),
            png=_small(picture_set.picture(explained, shown, "gradcam", number, captioned=False)),
            kind=kind,
        )
        for number, name in enumerate(shown.names)
    ]


def _findings(explained: Sequence[Explained], shown: Samples, number: int) -> tuple[str, ...]:
    captions = (picture_set.caption(each, shown, "gradcam", number) for each in explained)
    return tuple(caption.rpartition("\n")[2] for caption in captions)


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
