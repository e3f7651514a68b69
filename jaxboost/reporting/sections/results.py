"""The first sections: who is in, the ladder, the comparisons and the controls."""

from collections.abc import Mapping
from typing import Any

from jaxboost.reporting import choice, numbers, tables
from jaxboost.reporting.blocks import Block, Facts, Plots, Section, Tabled, Text
from jaxboost.reporting.plots import forest
from jaxboost.reporting.sections import arms
from jaxboost.reporting.tables import Column, Row, Table
from jaxboost.studies.record import Record

# Method of an interval, as the analysis names it -> in words.
_METHODS = {
    "wilson": "Wilson's score interval",
    "delong-logit": "DeLong's on the logit scale",
    "newcombe": "Newcombe's score interval",
    "bca": "BCa bootstrap",
}
_KNOWN = ("splits", "patients", "prevalence", "name", "ndim", "size", "license", "source", "sha256")


def sections(analysis: choice.Analysis, record: Record) -> list[Section]:
    """The sections, in their order."""
    return [_who(analysis, record), _ladder(analysis), _differences(analysis), _controls(analysis)]


def _who(analysis: choice.Analysis, record: Record) -> Section:
    data = analysis.get("data") or {}
    size = data.get("size")
    axes = {2: "images", 3: "volumes"}.get(data.get("ndim"), "images")
    facts = [
        ("Data set", numbers.known(data.get("name"))),
        ("Kind", f"{axes}{f', {numbers.plain(size)}' if size is not None else ''}, task: {record.task}"),
        ("Classes", ", ".join(record.classes)),
        ("Source", numbers.plain(data["source"]) if data.get("source") else ""),
        ("Licence", numbers.plain(data["license"]) if data.get("license") else ""),
    ]
    # Such as excluded and duplicates; a data set may have more.
    for name, value in data.items():
        if name not in _KNOWN:
            facts.append((name.replace("_", " ").capitalize(), numbers.known(value)))
    blocks: list[Block] = [Facts(members=tuple(fact for fact in facts if fact[1]))]
    if table := _splits(data, record.classes):
        blocks.append(Tabled(table=table))
    if not choice.patients_known(analysis, record):
        blocks.append(
            Text(
                text="Each image counts as a patient: patients are not known here, or each has one image. If a patient"
                " has several, the intervals below are too narrow.",
                kind="note",
            )
        )
    return Section(id="data", title="Who is in", blocks=tuple(blocks))


def _splits(data: Mapping[str, Any], classes: tuple[str, ...]) -> Table | None:
    """A row for each split: patients, images and the part of each class."""
    images, patients, prevalence = (data.get(name) or {} for name in ("splits", "patients", "prevalence"))
    if not all(isinstance(entry, Mapping) for entry in (images, patients, prevalence)):
        return None
    splits = list(dict.fromkeys([*images, *patients, *prevalence]))
    if not splits:
        return None
    shown = [name for name in classes if any(name in (prevalence.get(split) or {}) for split in splits)]
    columns = [Column(key="split", title="Split", numeric=False)]
    columns += [Column(key="patients", title="Patients")] if patients else []
    columns += [Column(key="images", title="Images")]
    columns += [Column(key=name, title=name) for name in shown]
    rows = []
    for split in splits:
        cells = [tables.name_cell(split)]
        cells += [tables.number_cell(patients.get(split), numbers.known)] if patients else []
        cells += [tables.number_cell(images.get(split), numbers.known)]
        cells += [tables.number_cell((prevalence.get(split) or {}).get(name), numbers.percent) for name in shown]
        rows.append(Row(cells=tuple(cells)))
    return Table(
        name="splits",
        caption="Each split: patients, images, and the part of the images with each label",
        columns=tuple(columns),
        rows=tuple(rows),
    )


def _ladder(analysis: choice.Analysis) -> Section:
    table = arms.ladder(analysis)
    if not table.rows:
        return Section(id="ladder", title="The ladder", blocks=())
    methods: dict[str, list[str]] = {}
    for arm in choice.by_group(analysis, "ladder"):
        for name, entry in (arm.get("metrics") or {}).items():
            if entry and entry.get("method") and numbers.is_number(entry.get("mean")):
                methods.setdefault(entry["method"], []).append(arms.SCORES[name][0] if name in arms.SCORES else name)
    formed = "; ".join(f"{_method(name)} ({', '.join(dict.fromkeys(used))})" for name, used in methods.items())
    lead = Text(
        text="From the simplest arm to the largest. The number is the mean over the seeds; below it is its 95 %"
        " interval over patients. Two arms whose intervals overlap may still differ, and the reverse: the comparisons"
        " below decide, because they use the same test items for both. Click on a heading to sort."
    )
    notes = (Text(text=f"How the intervals were formed: {formed}.", kind="note"),) if formed else ()
    return Section(id="ladder", title="The ladder", blocks=(lead, Tabled(table=table), *notes))


def _method(name: str) -> str:
    """A method in words; one that is not known here as it is."""
    words = _METHODS.get(name.removesuffix("-patients"), name)
    return f"{words}, over patients" if name in {f"{known}-patients" for known in _METHODS} else words


def _differences(analysis: choice.Analysis) -> Section:
    blocks: list[Block] = []
    if plot := forest.plot(choice.entries(analysis, "comparisons"), choice.titles(analysis)):
        blocks.append(Plots(members=(plot,)))
    table = arms.comparisons(analysis)
    if table.rows:
        blocks.append(Tabled(table=table))
    simplest = (analysis.get("verdict") or {}).get("simplest")
    rungs = arms.rungs(analysis, simplest)
    if simplest and rungs.rows:
        blocks.append(
            Text(
                text="Which arm is the simplest that nothing beats is decided by comparing each rung of the ladder with"
                " all lower ones. These comparisons are a family of their own for Holm's correction; all of them are in"
                " a file beside this page."
            )
        )
        blocks.append(Tabled(table=rungs))
    return Section(id="differences", title="What beats what", blocks=tuple(blocks))


def _controls(analysis: choice.Analysis) -> Section:
    blocks: list[Block] = []
    table, sweeps = arms.controls(analysis), arms.sweeps(analysis)
    if table.rows:
        blocks.append(
            Text(
                text="If a control does as well as the boosted model, the pretrained weights are not the reason for a"
                " gain: the added size, the added layers or the longer search are."
            )
        )
        blocks.append(Tabled(table=table))
    if sweeps.rows:
        blocks.append(Tabled(table=sweeps))
    return Section(id="controls", title="Controls", blocks=tuple(blocks))
