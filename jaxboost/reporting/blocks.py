"""What a section of a report is made of. The template knows how each kind of block is shown."""

import dataclasses
from typing import ClassVar, Generic, Literal, TypeVar

from jaxboost.reporting.tables import Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of a test image, as other rooms make them.

    Attributes:
      kind: "image" for an image that was classified wrongly, "gradcam" for one with the map of where the model looked.
      caption: two lines below it; it is also its text alternative.
      png: the bytes of a PNG file.
    """

    kind: str
    caption: str
    png: bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot:
    """A drawing.

    Attributes:
      svg: an `<svg>` element.
      narrow: the same for phones, where it needs another layout; "" where it does not.
      caption: what it shows.
      legend: (title, number of its colour) of the curves.
      size: "wide" takes the width of the page, of "small" ones four stand side by side.
    """

    svg: str
    caption: str
    narrow: str = ""
    legend: tuple[tuple[str, int], ...] = ()
    size: Literal["small", "", "wide"] = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matrix:
    """The confusion matrix of an arm: counts (true class, predicted class)."""

    title: str
    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    def share(self, row: int, column: int) -> float | None:
        """The part of a true class that was predicted as `column`; None for a class without samples."""
        total = sum(self.counts[row])
        return self.counts[row][column] / total if total else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph; `kind` "note" is set smaller, "warning" as a banner."""

    name: ClassVar[str] = "text"
    text: str
    kind: Literal["", "note", "warning"] = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tabled:
    """A table."""

    name: ClassVar[str] = "table"
    table: Table


_Member = TypeVar("_Member")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Several(Generic[_Member]):
    """Several of a kind, side by side or below each other; `name` is the kind."""

    name: ClassVar[str]
    members: tuple[_Member, ...]


class Facts(_Several[tuple[str, str]]):
    """Terms and values."""

    name = "facts"


class Plots(_Several[Plot]):
    """Plots side by side."""

    name = "plots"


class Matrices(_Several[Matrix]):
    """Confusion matrices side by side."""

    name = "matrices"


class Pictures(_Several[Picture]):
    """Pictures side by side."""

    name = "pictures"


class Items(_Several[str]):
    """A list of sentences."""

    name = "items"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Details:
    """Texts (title, text) that are shown on a click, such as configs."""

    name: ClassVar[str] = "details"
    title: str
    texts: tuple[tuple[str, str], ...]


Block = Text | Facts | Tabled | Plots | Matrices | Pictures | Items | Details


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the page.

    Attributes:
      id: its anchor.
      title: its heading.
      blocks: its content; a section without any is left out.
    """

    id: str
    title: str
    blocks: tuple[Block, ...]
