"""The page: sections of blocks become one HTML file that needs nothing else."""

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources

import jinja2

from jaxboost.reporting import choice, numbers, opening
from jaxboost.reporting.blocks import Section
from jaxboost.reporting.plots.canvas import DASHES
from jaxboost.studies.record import Record

# By this a page is known as ours, see `report`.
GENERATOR = "jaxboost report"
_TEMPLATES = "templates"


def render(analysis: choice.Analysis, record: Record, sections: Sequence[Section]) -> str:
    """The HTML of a report. Names are escaped; the browser may load nothing and run no script but ours."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["data_uri"] = _data_uri
    script = _read("sort.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    study = analysis.get("study") or {}
    text = environment.get_template("report.html.jinja").render(
        generator=GENERATOR,
        title=f"Study {study['name']}" if study.get("name") else "Runs",
        dataset=(analysis.get("data") or {}).get("name"),
        study=study,
        verdict=analysis.get("verdict") or {},
        headline=opening.headline(choice.main_comparison(analysis)),
        in_words=opening.in_words(analysis, record),
        reasons=opening.reasons(analysis),
        incomplete=opening.incomplete(analysis),
        protocol=record.protocol,
        quick=record.quick,
        sections=[section for section in sections if section.blocks],
        style=style(),
        script=script,
        script_sha256=digest,
        dashes=[" ".join(f"{length * 1.4:g}" for length in dashes) for dashes in DASHES],
        undefined_text=numbers.UNDEFINED,
        undefined_texts=(numbers.UNDEFINED, numbers.NOT_KNOWN, "not measured", "not given"),
    )
    # A file's name may hold bytes that are no text.
    return text.encode("utf-8", "backslashreplace").decode()


def style() -> str:
    """The page's style sheet."""
    return _read("report.css")


def _read(name: str) -> str:
    return resources.files("jaxboost.reporting").joinpath(_TEMPLATES, name).read_text("utf-8")


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
