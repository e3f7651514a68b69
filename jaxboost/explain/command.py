"""The work of `jaxboost explain`: a folder of pictures, their table, and the raw maps."""

import contextlib
import csv
import dataclasses
import io as text_io
import logging
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxboost import io, outputs
from jaxboost.errors import UserError
from jaxboost.explain import features, picture_set, pictures, samples
from jaxboost.explain.picture_set import METHODS, Explained
from jaxboost.explain.samples import Samples
from jaxboost.explain.tapped import Tapped
from jaxboost.inference import open_run
from jaxboost.tasks import TASKS

INDEX, MAPS = "index.csv", "maps.npz"
COLUMNS = (
    *("picture", "file", "label", "method", "run", "model", "prediction", "class", "probability"),
    *("rank_correlation", "map"),
)
WORST = 12

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for.

    Attributes:
      run, against: folder of a finished run; of a second one to compare with, or None.
      out: the new folder.
      files: images; empty: a split.
      split: split of the run's own data set; "": files.
      worst: of a split, the most errors that are shown.
      class_name: the class that is explained; "": the predicted one of each image.
      method: one of METHODS, or "all".
      tsne: also draw t-SNE of the features, of all files or of the whole split.
      masks, skip_faulty: see `inputs.read`.
      table: CSV file with the clinical columns of the files, see `input_columns.find`.
      batch_size: see `Tapped`.
      root: folder of the run's data, if it has moved.
      moved: see `open_run.open_run`; for both runs.
    """

    run: pathlib.Path
    out: pathlib.Path
    against: pathlib.Path | None = None
    files: Sequence[str] = ()
    split: str = ""
    worst: int = WORST
    class_name: str = ""
    method: str = "all"
    tsne: bool = False
    masks: str = ""
    table: str = ""
    skip_faulty: bool = False
    batch_size: int = 0
    root: str = ""
    moved: Sequence[str] = ()


def explain(request: Request) -> None:
    """Writes the folder `request.out`, complete or not at all.

    It holds a PNG for each image and method, index.csv, which has a row for each picture and run, and maps.npz with the
    maps on their grids: RUN/METHOD is float32 (n, h, w) or (n, d, h, w), RUN being "run" or "against", and `names` the
    images. With t-SNE also tsne.png, tsne.svg and, in maps.npz, RUN/tsne (m, 2) and `tsne_names`.

    Raises:
      UserError: a mistake in the request, or in what it names; no run has any of the maps, and t-SNE is not asked for.
    """
    if bool(request.files) == bool(request.split):
        raise UserError("give either --input (images) or --split (of the run's own data set), not both or neither")
    if request.table and request.split:
        raise UserError(f"--table {request.table}: the columns of a split are those of the run's data: leave it out")
    if os.path.lexists(request.out):
        raise UserError(f"--out {request.out} already exists: give another name, or remove it")
    outputs.check_folder(request.out, "--out")
    folders = [request.run, *([request.against] if request.against else [])]
    if any(outputs.is_inside(request.out, folder) for folder in folders):
        raise UserError(f"--out {request.out} would lie in a run: give a folder elsewhere")
    runs = [samples.open_trained(folder, request.moved) for folder in folders]
    for other in runs[1:]:
        samples.check_alike(runs[0], other)
    obstacles = [picture_set.obstacle(Tapped(run)) for run in runs]
    if all(obstacles) and not request.tsne:
        raise UserError("; ".join(dict.fromkeys(obstacles)))
    everything, shown = _samples(request, runs)
    if request.tsne:
        features.check_count(len(everything.names))
    methods = METHODS if request.method == "all" else (request.method,)
    found = []
    if shown.names:
        options: dict[str, Any] = dict(class_name=request.class_name, batch_size=request.batch_size)
        found = [picture_set.explain(run, shown, methods, **options) for run in runs]
        reasons: dict[str, dict[str, None]] = {}
        for method, text in (item for each in found for item in each.missing.items()):
            reasons.setdefault(text, {})[method] = None
        for text, lacking in reasons.items():
            logger.warning("no picture of %s: %s", ", ".join(lacking), text)
        if not request.tsne and not any(each.checked for each in found):
            raise UserError("; ".join(reasons))
    with io.writing(f"--out {request.out}"), _new_folder(request.out) as folder:
        count = _write_pictures(folder, found, shown)
        arrays = _arrays(found, shown)
        if request.tsne:
            arrays |= _write_tsne(folder, runs, everything, request.batch_size)
        with (folder / MAPS).open("wb") as file:
            np.savez_compressed(file, **arrays)
    logger.info("%d pictures of %d images in %s", count, len(shown.names), request.out)


def _samples(request: Request, runs: Sequence[open_run.FinishedRun]) -> tuple[Samples, Samples]:
    """All images, and those that are shown."""
    if not request.split:
        options: dict[str, Any] = dict(masks=request.masks, table=request.table, skip_faulty=request.skip_faulty)
        given = samples.from_files(runs[0], request.files, **options)
        return given, given
    given = samples.from_split(runs[0], request.split, request.root)
    probabilities = runs[0].predict(given.images, columns=given.columns, batch_size=request.batch_size)
    rows = samples.worst(runs[0], given, probabilities, request.worst)
    if not len(rows):
        logger.info("the run predicts all %d images of %s correctly", len(given.names), request.split)
        if not request.tsne:
            raise UserError(f"--split {request.split}: there is no error to show: give images with --input, or --tsne")
    return given, given.take(rows)


@contextlib.contextmanager
def _new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder that gets the name `path` at the end of the block, and is removed after an exception."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        temporary.mkdir()
        yield temporary
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_pictures(folder: pathlib.Path, found: Sequence[Explained], shown: Samples) -> int:
    """Writes the pictures and their table; returns how many pictures there are."""
    text, count = text_io.StringIO(), 0
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for number, name in enumerate(shown.names):
        for method in METHODS:
            if not any(method in each.checked for each in found):
                continue
            file = f"{number:04d}_{samples.stem(name)}_{method}.png"
            (folder / file).write_bytes(picture_set.picture(found, shown, method, number))
            writer.writerows(_rows(found, shown, method, number, file))
            count += 1
    (folder / INDEX).write_text(text.getvalue(), encoding="utf-8", newline="")
    return count


def _rows(
    found: Sequence[Explained], shown: Samples, method: str, number: int, file: str
) -> Iterator[dict[str, object]]:
    """The rows of index.csv for one picture: one for each run that has the map."""
    for role, each in zip(("run", "against"), found, strict=False):
        if method in each.checked:
            target = each.targets[number]
            yield {
                "picture": file,
                "file": shown.names[number],
                "label": picture_set.label_of(each, shown, number),
                "method": method,
                "run": role,
                "model": each.tapped.title,
                "prediction": each.predictions[number],
                "class": each.run.labels.classes[target],
                "probability": f"{each.probabilities[number, target]:.9g}",
                "rank_correlation": picture_set.correlation_of(each, method, number),
                "map": picture_set.shown_by(each, method),
            }


def _arrays(found: Sequence[Explained], shown: Samples) -> dict[str, np.ndarray]:
    arrays = {"names": np.array(shown.names, str)}
    for role, each in zip(("run", "against"), found, strict=False):
        for method, checked in each.checked.items():
            for name, maps in checked.maps.items():
                key = method if name == method else f"{method}_{name}"
                arrays[f"{role}/{key}"] = maps.grid.astype(np.float32)
    return arrays


def _write_tsne(
    folder: pathlib.Path, runs: Sequence[open_run.FinishedRun], given: Samples, batch_size: int
) -> dict[str, np.ndarray]:
    """Writes the scatter plots; returns the entries of maps.npz."""
    places = [features.embed(run.features(given.images, columns=given.columns, batch_size=batch_size)) for run in runs]
    labels = runs[0].labels
    if given.labels is None:
        texts = labels.predictions(runs[0].predict(given.images, columns=given.columns, batch_size=batch_size))
        kind = "predicted"
    else:
        texts = [TASKS[labels.task].text(row, labels.classes) for row in given.labels]
        kind = "true"
    # In a multi-label task each combination of classes is a group.
    known = [name for name in labels.classes if name in texts]
    names = [*known, *sorted(set(texts) - set(known))]
    groups = np.array([names.index(text) for text in texts])
    titles = [f"{Tapped(run).title}: t-SNE, {kind} class" for run in runs]
    figure = features.scatter(places, titles, groups, [name or "none" for name in names])
    (folder / "tsne.png").write_bytes(pictures.png(figure))
    (folder / "tsne.svg").write_bytes(pictures.svg(figure))
    found = {f"{role}/tsne": place for role, place in zip(("run", "against"), places, strict=False)}
    return {**found, "tsne_names": np.array(given.names, str)}
