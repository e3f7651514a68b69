"""A figure of matplotlib becomes an `<svg>` element of a page."""

import contextlib
import io
import re
import textwrap
import warnings
from collections.abc import Iterator
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Colour in matplotlib -> variable of the page's style sheet. No plot uses these colours for something else.
INK, MUTED, LINE, BAND = "#010203", "#020304", "#030405", "#040506"
SERIES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04")
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    BAND: "var(--band)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(SERIES)},
}
# Curves differ in their lines too, for readers who do not see colours, and for print. In points; the legend has them.
DASHES = ((), (5, 2), (1.5, 1.5), (5, 1.5, 1.5, 1.5))

_LINK = "{http://www.w3.org/1999/xlink}href"
_SETTINGS = {
    # Ids in the file are hashes with this salt; else they are random.
    "svg.hashsalt": "jaxboost",
    # Text stays text: it can be searched and read aloud, and the browser has the letters of all languages.
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 8.0,
    # Names come from users: a "$" in them is no formula.
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.4,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
}


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Figures are made and written inside this context: a user's own settings of matplotlib have no effect there."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        # matplotlib only measures the text, and its font lacks letters that a browser has.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one plot, without any state of pyplot; `width` and `height` in inches."""
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(made)
    return made, made.add_subplot()


def to_svg(made: Figure, name: str, alternative: str) -> str:
    """An `<svg>` element that can stand in a page.

    Args:
      made: the figure.
      name: unique in the page; the ids in the element begin with it.
      alternative: the text for readers who do not see the plot.
    """
    file = io.StringIO()
    made.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(file.getvalue())
    box = root.get("viewBox", "")
    root.attrib.clear()
    # Without its size the element takes the width that the page gives it.
    root.attrib.update({"viewBox": box, "role": "img", "aria-label": alternative})
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
        attributes = {key: _attribute(key, value, name) for key, value in parent.attrib.items() if parent is not root}
        if attributes:
            parent.attrib.clear()
            parent.attrib.update({"href" if key == _LINK else key: value for key, value in attributes.items()})
    ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
    return ElementTree.tostring(root, encoding="unicode")


def to_file(svg: str, style: str) -> str:
    """An SVG file on white from an element that `to_svg` made.

    Args:
      svg: the element.
      style: the page's style sheet; its first value of a variable is that of the light theme.
    """
    values = dict(reversed(re.findall(r"--([\w-]+):\s*([^;]+);", style)))
    values["font"] = "sans-serif"
    svg = re.sub(r"var\(--([\w-]+)\)", lambda found: values[found[1]], svg)
    return svg.replace(">", '><rect width="100%" height="100%" fill="#ffffff"/>', 1) + "\n"


def _attribute(key: str, value: str, name: str) -> str:
    """An attribute as the page needs it: its colours, its font, and ids that no other plot has."""
    if key == "id":
        return f"{name}-{value}"
    if key == _LINK:
        return value.replace("#", f"#{name}-")
    value = value.replace("url(#", f"url(#{name}-")
    for colour, variable in _VARIABLES.items():
        value = value.replace(colour, variable)
    return re.sub(r"(font: [^;]*?px )[^;]*", r"\1var(--font)", value)


def wrapped(text: str, width: int, lines: int = 1) -> str:
    """A text in at most so many lines of at most `width` characters; what is longer ends with "…"."""
    # A file's name may hold bytes that are no text, and characters that XML does not allow.
    text = " ".join(text.split())
    text = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder=" …")) or " "
