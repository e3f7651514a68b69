"""The last sections: published figures, the papers' protocol, provenance, checklist, limits, and what is left out."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxboost.reporting import choice, numbers, tables
from jaxboost.reporting.blocks import Block, Details, Facts, Items, Section, Tabled, Text
from jaxboost.reporting.tables import Cell, Column, Row, Table

_SOURCE = (
    "The items of CLAIM's 2024 update in our own words, with its numbers: Tejani et al., Checklist for Artificial"
    " Intelligence in Medical Imaging (CLAIM): 2024 Update, Radiology: Artificial Intelligence 6(4), e240300, doi"
    " 10.1148/ryai.240300. Numbers and contents were compared with two public transcriptions of the list, not with the"
    " article itself: check them against it before a submission."
)


def sections(analysis: choice.Analysis) -> list[Section]:
    """The sections, in their order."""
    return [
        _published(analysis),
        _best_on_test(analysis),
        _provenance(analysis),
        _claim(analysis),
        _limits(analysis),
        _left_out(analysis),
    ]


def _published(analysis: choice.Analysis) -> Section:
    published = choice.entries(analysis, "published")
    if not published:
        return Section(id="published", title="Published figures", blocks=())
    quick = (analysis.get("study") or {}).get("quick")
    on_test = (analysis.get("study") or {}).get("protocol") == "reference"
    picked = "best epoch picked on the test split" if on_test else "all choices made on validation"
    rows = []
    for arm in choice.main_arms(analysis):
        metrics = arm.get("metrics") or {}
        seeds = len(arm.get("seeds") or ())
        protocol = f"this study{', a trial' if quick else ''}; {picked}; {seeds} run{'s' * (seeds != 1)}"
        values = [tables.interval_cell(metrics.get(key)) for key in ("auc", "acc")]
        rows.append(Row(cells=(tables.name_cell(arm["title"]), tables.name_cell(protocol), *values), marked=True))
    for row in published:
        name = tables.name_cell(numbers.plain(row.get("method")), numbers.plain(row.get("source")))
        values = [_published_cell(row.get(key)) for key in ("auc", "acc")]
        why = f"not run here: {numbers.plain(row['not_run'])}" if row.get("not_run") else ""
        rows.append(Row(cells=(name, tables.name_cell(numbers.plain(row.get("protocol")), why), *values)))
    columns = (
        Column(key="method", title="Method", numeric=False),
        Column(key="protocol", title="How it was found", numeric=False),
        Column(key="auc", title="AUC", ends=True),
        Column(key="acc", title="ACC", ends=True),
    )
    table = Table(
        name="published",
        caption="Ours (marked) and published figures",
        columns=columns,
        rows=tuple(rows),
    )
    lead = Text(
        text="Compare only figures that were found in the same way, on the same patients. A figure whose epoch was"
        " picked on the test split is too high, and images of another size are another task."
    )
    return Section(id="published", title="Published figures", blocks=(lead, Tabled(table=table)))


def _published_cell(value: Any) -> Cell:
    """A published figure: a number or [mean, sd]; above 1 it is in percent."""
    mean, sd = value if isinstance(value, list | tuple) and len(value) == 2 else (value, None)
    scale = 100 if numbers.is_number(mean) and mean > 1 else 1
    detail = f"± {numbers.score(sd / scale)} over seeds" if numbers.is_number(sd) else ""
    if not numbers.is_number(mean):
        return Cell(text="not given")
    return tables.number_cell(mean / scale, detail=detail)


def _best_on_test(analysis: choice.Analysis) -> Section:
    rows = []
    for arm in choice.arms(analysis):
        if entry := arm.get("best_on_test_minus_reported"):
            cells = [tables.number_cell(entry.get(key), numbers.difference) for key in ("auc", "acc")]
            rows.append(Row(cells=(tables.name_cell(arm["title"]), *cells)))
    if not rows:
        return Section(id="best_on_test", title="What picking the epoch on test would add", blocks=())
    columns = (
        Column(key="arm", title="Arm", numeric=False),
        Column(key="auc", title="Δ AUC"),
        Column(key="acc", title="Δ ACC"),
    )
    caption = "Best epoch on the test split minus the epoch that validation picked"
    table = Table(name="best_on_test", caption=caption, columns=columns, rows=tuple(rows))
    lead = Text(
        text="The papers report the epoch that is best on the test split. This is what that would add here, without any"
        " better model: gains in the papers that are not larger may be nothing else."
    )
    title = "What picking the epoch on test would add"
    return Section(id="best_on_test", title=title, blocks=(lead, Tabled(table=table)))


def _provenance(analysis: choice.Analysis) -> Section:
    provenance = analysis.get("provenance") or {}
    blocks: list[Block] = []
    facts = []
    for name, value in provenance.items():
        if name == "blocks" and isinstance(value, Mapping):
            facts += [(f"Pretrained: {role}", numbers.plain(_known(entry))) for role, entry in value.items()]
        elif name != "configs":
            facts.append((_term(name), numbers.known(value)))
    if facts:
        blocks.append(Facts(members=tuple(facts)))
    titles = choice.titles(analysis)
    configs = provenance.get("configs") or {}
    if configs:
        texts = (
            (titles.get(arm, arm), json.dumps(entry, indent=2, ensure_ascii=False)) for arm, entry in configs.items()
        )
        blocks.append(Details(title=f"Configs of the {len(configs)} arms", texts=tuple(texts)))
    return Section(id="provenance", title="Provenance", blocks=tuple(blocks))


def _known(entry: Any) -> Any:
    """An entry without what it leaves open, such as the layers of an encoder, which is used whole."""
    return {name: value for name, value in entry.items() if value is not None} if isinstance(entry, Mapping) else entry


def _term(name: str) -> str:
    words = name.replace("_", " ").replace("sha256", "SHA-256")
    return words[:1].upper() + words[1:]


def _claim(analysis: choice.Analysis) -> Section:
    items = choice.entries(analysis, "claim")
    if not items:
        return Section(id="claim", title="Checklist", blocks=())
    rows = []
    for item in items:
        filled = bool(item.get("filled"))
        text = numbers.plain(item.get("text")) if item.get("text") else "for the authors"
        badge = Cell(
            text="", value="filled" if filled else "open", badge="filled" if filled else "open", tone="good" * filled
        )
        rows.append(Row(cells=(tables.name_cell(str(item.get("item"))), badge, tables.name_cell(text))))
    filled = sum(bool(item.get("filled")) for item in items)
    columns = (
        Column(key="item", title="Item", numeric=False),
        Column(key="filled", title="State", numeric=False),
        Column(key="text", title="Here", numeric=False),
    )
    caption = f"{filled} of {len(items)} items are filled by this program; the others are for the authors"
    table = Table(name="claim", caption=caption, columns=columns, rows=tuple(rows))
    return Section(id="claim", title="Checklist for articles (CLAIM)", blocks=(Text(text=_SOURCE), Tabled(table=table)))


def _limits(analysis: choice.Analysis) -> Section:
    limits = tuple(str(limit) for limit in analysis.get("limits") or ())
    return Section(id="limits", title="Limits", blocks=(Items(members=limits),) if limits else ())


def _left_out(analysis: choice.Analysis) -> Section:
    # What has no result for want of an arm is said at the top of the page.
    pairs = {f"{row['arm']} against {row['reference']}" for row in choice.entries(analysis, "comparisons")}
    found = [row for row in choice.entries(analysis, "left_out") if row.get("what") not in pairs]
    if not found:
        return Section(id="left_out", title="Left out", blocks=(Text(text="Nothing: all runs are in this report."),))
    rows = (Row(cells=tuple(map(tables.name_cell, each))) for each in _joined_seeds(found))
    columns = (Column(key="what", title="What", numeric=False), Column(key="why", title="Why", numeric=False))
    table = Table(name="left_out", caption="What is not in this report, and why", columns=columns, rows=tuple(rows))
    return Section(id="left_out", title="Left out", blocks=(Tabled(table=table),))


def _joined_seeds(found: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(what, why) of each entry; the seeds of an arm that are left out for one reason are one entry."""
    seeds: dict[tuple[str, str], list[str]] = {}
    for row in found:
        what, why = numbers.plain(row.get("what")), numbers.plain(row.get("why"))
        run = choice.RUN.fullmatch(what)
        seeds.setdefault((run["arm"] if run else what, why), []).extend([run["seed"]] if run else [])
    return [
        (f"{what}, seed{'s' * (len(of) > 1)} {', '.join(of)}" if of else what, why) for (what, why), of in seeds.items()
    ]
