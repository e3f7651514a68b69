"""The first sections: who is in, the ladder, the comparisons and the controls."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jaxboost.reporting import choice, numbers, tables
from jaxboost.reporting.blocks import Block, Facts, Plot, Plots, Section, Tabled, Text
from jaxboost.reporting.plots import forest, scores
from jaxboost.reporting.sections import arms, comparisons
from jaxboost.reporting.tables import Column, Row, Table
from jaxboost.studies.record import Record

# Method of an interval, as the analysis names it -> in words.
_METHODS = {
    "wilson": "Wilson's score interval",
    "delong-logit": "DeLong's on the logit scale",
    "newcombe": "Newcombe's score interval",
    "bca": "BCa bootstrap",
}
_KNOWN = ("splits", "patients", "prevalence", "name", "ndim", "size", "license", "source", "excluded", "unit", "sha256")
_SOURCES = {"published": "a published data set"}
_TASKS = {"multi-class": "one class for each", "ordinal-regression": "one grade for each"}


def sections(analysis: choice.Analysis, record: Record, drawn: Mapping[str, Plot]) -> list[Section]:
    """The sections, in their order; `drawn` is what `plots` returns."""
    return [_who(analysis, record), _ladder(analysis), _differences(analysis, drawn), _controls(analysis)]


def _who(analysis: choice.Analysis, record: Record) -> Section:
    data = analysis.get("data") or {}
    facts = [
        ("Data set", numbers.known(data.get("name"))),
        ("Kind", _kind(data, record)),
        ("Classes", "; ".join(record.classes)),
        ("Source", _SOURCES.get(str(source), numbers.plain(source)) if (source := data.get("source")) else ""),
        ("Licence", numbers.plain(data["license"]) if data.get("license") else ""),
        # None at all, {}, is not the same as nothing written down.
        ("Excluded", "not recorded" if data.get("excluded") is None else numbers.plain(data["excluded"])),
    ]
    if data.get("unit") == "patient":
        facts.append(("Scores are of", "patients: the probabilities of a patient's images were averaged"))
    if not any(name.endswith("duplicates") for name in data):
        facts.append(("Duplicates", "not looked for"))
    # Such as duplicates; a data set may have more.
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


def _kind(data: Mapping[str, Any], record: Record) -> str:
    """What is classified, in words: "volumes, 28 voxels a side; two classes"."""
    what, unit = ("volumes", "voxels") if data.get("ndim") == 3 else ("images", "pixels")
    size = data.get("size")
    side = f", {numbers.plain(size)} {unit} a side" if numbers.is_number(size) else ""
    other = f"{len(record.classes)} classes, {_TASKS.get(record.task, 'any number of them for each')}"
    return f"{what}{side}; {'two classes' if record.task == 'binary-class' else other}"


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


def plots(analysis: choice.Analysis) -> dict[str, Plot]:
    """The plots that stand for the whole study: name -> plot."""
    simplest = (analysis.get("verdict") or {}).get("simplest")
    of_arms = [arm for group in ("ladder", "control", "sweep") for arm in choice.by_group(analysis, group)]
    found = {
        "scores": scores.plot(of_arms, simplest),
        "forest": forest.plot(choice.comparisons(analysis), choice.titles(analysis)),
    }
    return {name: plot for name, plot in found.items() if plot}


def _ladder(analysis: choice.Analysis) -> Section:
    table = arms.ladder(analysis)
    if not table.rows:
        return Section(id="ladder", title="The ladder", blocks=())
    formed = _formed(choice.by_group(analysis, "ladder"))
    lead = Text(
        text="From the simplest arm to the largest. The number is the mean over the seeds; below it is its 95 %"
        " interval over patients. Two arms whose intervals overlap may still differ, and the reverse: the comparisons"
        " below decide, because they use the same test items for both. Click on a heading to sort."
    )
    notes = (Text(text=f"How the intervals were formed: {formed}.", kind="note"),) if formed else ()
    return Section(id="ladder", title="The ladder", blocks=(lead, Tabled(table=table), *notes))


def _formed(of: Sequence[choice.Arm]) -> str:
    """How the intervals of each metric were formed, and of how many arms each way."""
    methods: dict[str, Counter[str]] = {}
    for arm in of:
        for name, entry in (arm.get("metrics") or {}).items():
            if entry and entry.get("method") and numbers.is_number(entry.get("mean")):
                methods.setdefault(name, Counter())[_method(entry["method"])] += 1
    # Metrics that were treated alike are named together.
    alike: dict[str, list[str]] = {}
    for name, counts in methods.items():
        several = len(counts) > 1
        words = ", ".join(f"{method} ({_counted(n, 'arm')})" if several else method for method, n in counts.items())
        alike.setdefault(words, []).append(arms.SCORES[name][0] if name in arms.SCORES else name)
    return "; ".join(f"{', '.join(names)}: {words}" for words, names in alike.items())


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _method(name: str) -> str:
    """A method in words; one that is not known here as it is."""
    words = _METHODS.get(name.removesuffix("-patients"), name)
    return f"{words}, over patients" if name in {f"{known}-patients" for known in _METHODS} else words


def _differences(analysis: choice.Analysis, drawn: Mapping[str, Plot]) -> Section:
    blocks: list[Block] = []
    if plot := drawn.get("forest"):
        blocks.append(Plots(members=(plot,)))
    blocks += _tabled(comparisons.auc_table(analysis))
    simplest = (analysis.get("verdict") or {}).get("simplest")
    rungs = comparisons.rungs(analysis, simplest)
    if simplest and rungs.rows:
        blocks.append(
            Text(
                text="Which arm is the simplest that nothing beats is decided by comparing each rung of the ladder with"
                " all lower ones. These comparisons are a family of their own for Holm's correction; all of them are in"
                " a file beside this page."
            )
        )
        blocks.append(Tabled(table=rungs))
    blocks += _tabled(comparisons.acc_table(analysis))
    return Section(id="differences", title="What beats what", blocks=tuple(blocks))


def _controls(analysis: choice.Analysis) -> Section:
    blocks: list[Block] = []
    table, sweeps = arms.controls(analysis), arms.sweeps(analysis)
    if table.rows:
        blocks.append(
            Text(
                text="If a control does as well as the boosted model, the pretrained weights are not the reason for a"
                " gain: the added size, the added layers or the longer search are. Whether two arms differ is in the"
                " section before, not in these intervals."
            )
        )
    return Section(id="controls", title="Controls", blocks=(*blocks, *_tabled(table, sweeps)))


def _tabled(*shown: Table) -> list[Tabled]:
    """Blocks of those tables that have rows."""
    return [Tabled(table=table) for table in shown if table.rows]
