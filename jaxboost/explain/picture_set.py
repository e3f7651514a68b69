"""Makes the maps of some images with one run or two, checks them, and draws one picture per image and map."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxboost.errors import UserError
from jaxboost.explain import activation, attention, gradcam, pictures, samples, sanity
from jaxboost.explain.samples import Samples
from jaxboost.explain.tapped import Maps, Tapped, no_map, targets_of
from jaxboost.inference.open_run import FinishedRun
from jaxboost.models.slices import SliceEncoder
from jaxboost.tasks import TASKS

METHODS = ("gradcam", "attention", "activation")
_OF_CLASS: Mapping[str, Callable[..., Maps]] = {"gradcam": gradcam.maps, "attention": attention.maps}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
    """The maps of one run, and how far they depend on its trained weights.

    Attributes:
      maps: name -> maps. There is one name, the method's; token activation has four.
      correlations: for each image the rank correlation with the map of a model with random weights (`sanity`), None
        where it is undefined; () if it was not computed.
    """

    maps: dict[str, Maps]
    correlations: tuple[float | None, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explained:
    """What one run says about the images.

    Attributes:
      run: the run.
      tapped: the same, for its taps.
      images: as the model reads them.
      probabilities: float32 (n, C).
      predictions: the predicted class of each image, in words.
      targets: int (n,): the class that is explained.
      checked: method -> its maps.
      missing: method -> why the run has no such map.
    """

    run: FinishedRun
    tapped: Tapped
    images: list[np.ndarray]
    probabilities: np.ndarray
    predictions: list[str]
    targets: np.ndarray
    checked: dict[str, Checked]
    missing: dict[str, str]


def obstacle(tapped: Tapped) -> str:
    """Why a run has no map of any method; "" if it may have some."""
    if not isinstance(tapped.model.encoder, SliceEncoder):
        return ""
    return str(no_map("map", tapped, "its encoder sees slices, and a map of a volume is not made of theirs"))


def explain(
    run: FinishedRun, given: Samples, methods: Sequence[str], *, class_name: str = "", batch_size: int = 0
) -> Explained:
    """Computes the maps of a run.

    Args:
      run: the run.
      given: the images.
      methods: some of METHODS.
      class_name: the class that is explained; "": the predicted one.
      batch_size: images per batch, see `Tapped`.

    Raises:
      UserError: the run has no class of this name.
    """
    tapped = Tapped(run, batch_size)
    probabilities = run.predict(given.images, columns=given.columns, batch_size=batch_size)
    targets = targets_of(tapped, probabilities, class_name)
    weights, checked, missing = None, {}, {}
    if text := obstacle(tapped):
        missing, methods = dict.fromkeys(methods, text), ()
    for method in methods:
        try:
            if method == "activation":
                checked[method] = Checked(maps=activation.maps(tapped, given.images))
                continue
            make = _OF_CLASS[method]
            found = make(tapped, given.images, targets)
            weights = weights or sanity.redrawn(run)
            other = make(tapped, given.images, targets, place=found.place, weights=weights)
        except UserError as error:
            missing[method] = str(error)
            continue
        correlations = tuple(map(sanity.rank_correlation, found.grid, other.grid))
        checked[method] = Checked(maps={method: found}, correlations=correlations)
    return Explained(
        run=run,
        tapped=tapped,
        images=samples.inputs_of(run, given.images),
        probabilities=probabilities,
        predictions=run.labels.predictions(probabilities),
        targets=targets,
        checked=checked,
        missing=missing,
    )


def label_of(explained: Explained, given: Samples, number: int) -> str:
    """The true classes of an image in words; "" if they are unknown."""
    if given.labels is None:
        return ""
    labels = explained.run.labels
    return TASKS[labels.task].text(given.labels[number], labels.classes) or "none"


def correlation_of(explained: Explained, method: str, number: int) -> str:
    """The rank correlation of an image's map with that of random weights, such as "0.12"; "" if it is undefined."""
    found = explained.checked[method].correlations
    value = found[number] if found else None
    return "" if value is None else f"{value:.2f}"


def caption(explained: Explained, given: Samples, method: str, number: int) -> str:
    """The text for the map of one image: file, label, prediction, and what the map shows, each on a line."""
    labels = explained.run.labels
    head = given.names[number]
    if label := label_of(explained, given, number):
        head += f", label {label}"
    return f"{head}\n{_finding(explained, method, number, labels.classes)}"


def shown_by(explained: Explained, method: str) -> str:
    """What the maps of a method show, in words."""
    if method == "activation":
        return f"{activation.METHOD} before and after the block"
    return explained.checked[method].maps[method].text


def _finding(explained: Explained, method: str, number: int, classes: Sequence[str]) -> str:
    """The prediction of a run for an image, and what its map shows, in words."""
    target, predicted = classes[explained.targets[number]], explained.predictions[number]
    probability = f"probability {explained.probabilities[number, explained.targets[number]]:.2f}"
    text = f"{explained.tapped.title}: predicted {predicted or 'none'}"
    is_other = predicted != target
    text += f"; {target}: {probability}" if is_other else f" ({probability})"
    if method not in explained.checked:
        return f"{text}; no such map"
    text += f"; {shown_by(explained, method)}"
    if method == "activation":
        return text
    note = correlation_of(explained, method, number) or "undefined"
    if not explained.checked[method].maps[method].grid[number].any():
        note += " (the map is zero)"
    return f"{text}{f', for {target}' if is_other else ''}; rank correlation with random weights {note}"


def picture(
    explained: Sequence[Explained], given: Samples, method: str, number: int, *, captioned: bool = True
) -> bytes:
    """The PNG of one image: the image, and its maps of all runs side by side.

    Args:
      explained: one run, or two that are compared.
      given: the images.
      method: one of METHODS that at least one of the runs has.
      number: of the image.
      captioned: write the caption below.
    """
    several = sum(method in each.checked for each in explained) > 1
    panels = [pictures.Panel(title="image", image=explained[0].images[number])]
    for each in explained:
        for name, maps in each.checked[method].maps.items() if method in each.checked else ():
            title = each.tapped.title
            if method == "activation":
                title = f"{title}, {name.replace('_', ': ')}" if several else name.replace("_", ": ")
            panels.append(pictures.Panel(title=title, image=each.images[number], grid=maps.grid[number]))
    text = ""
    if captioned:
        text = caption(explained[0], given, method, number)
        classes = explained[0].run.labels.classes
        text += "".join(f"\n{_finding(other, method, number, classes)}" for other in explained[1:])
    return pictures.draw(panels, text)
