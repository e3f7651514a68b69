"""The items of CLAIM's 2024 update, in our own words, and what a program can fill in.

Source: Tejani et al., Checklist for Artificial Intelligence in Medical Imaging (CLAIM): 2024 Update, Radiology:
Artificial Intelligence 6 (4), e240300, 2024, doi 10.1148/ryai.240300. The numbers are the checklist's; they and the
contents agree with two public transcriptions of it, and were not compared with the article itself.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from jaxboost.reporting import choice, numbers
from jaxboost.reporting.sections import arms
from jaxboost.studies.record import Record

Analysis = Mapping[str, Any]
_Fill = Callable[[Analysis, Record], str]


def checklist(analysis: Analysis, record: Record, pictures: Collection[str] = ()) -> list[dict[str, Any]]:
    """All items: [{"item", "text", "filled"}]; "text" is "" where only the authors can write it.

    Args:
      analysis, record: what the report is made from.
      pictures: the kinds of pictures that the report has; those with maps show errors too.
    """
    found, kinds = [], {*pictures} | ({"image"} if pictures else set())
    for number, (item, fill) in enumerate(_ITEMS, start=1):
        text = fill(analysis, record) if callable(fill) else "the pictures above" if fill in kinds else ""
        found.append({"item": f"{number}. {item}", "text": text, "filled": bool(text)})
    return found


def _always(text: str) -> _Fill:
    return lambda analysis, record: text


def _data(name: str, lead: str = "") -> _Fill:
    """Fills in an entry about the data set, if it is known."""

    def fill(analysis: Analysis, record: Record) -> str:
        value = (analysis.get("data") or {}).get(name)
        return lead + numbers.plain(value) if value not in (None, "", {}, []) else ""

    return fill


def _aims(analysis: Analysis, record: Record) -> str:
    return f"{record.question} Expected before the runs: {record.expected}" if record.question else ""


def _preprocessing(analysis: Analysis, record: Record) -> str:
    return "the sections data and model of each config, under Provenance" if _configs(analysis) else ""


def _configs(analysis: Analysis) -> Mapping[str, Any]:
    return (analysis.get("provenance") or {}).get("configs") or {}


def _level(analysis: Analysis, record: Record) -> str:
    if not choice.patients_known(analysis, record):
        return "images: patients are not known"
    if any(run.result.get("folds") for run in record.runs):
        # A patient is in the test split of one fold and in the validation split of another.
        return "patients, in each fold of the cross-validation"
    patients = [set(record.items[split].patients.tolist()) for split in ("val", "test") if split in record.items]
    shared = len(patients[0] & patients[1]) if len(patients) == 2 else 0
    return f"images: {shared} patients are in validation and in test" if shared else "patients"


def _partitions(analysis: Analysis, record: Record) -> str:
    data = analysis.get("data") or {}
    return f"{numbers.plain(data['splits'])} images" if data.get("splits") else ""


def _sample_size(analysis: Analysis, record: Record) -> str:
    main = choice.main_comparison(analysis)
    smallest = ((main or {}).get("detectable") or {}).get("auc")
    if not numbers.is_number(smallest):
        return ""
    return f"not planned; this test set shows a difference in AUC of {numbers.score(smallest)} with 80 % power"


def _model(analysis: Analysis, record: Record) -> str:
    arms = choice.arms(analysis)
    return f"{len(arms)} arms, each by its config and number of parameters" if arms else ""


def _software(analysis: Analysis, record: Record) -> str:
    return numbers.plain((analysis.get("provenance") or {}).get("versions") or "")


def _weights(analysis: Analysis, record: Record) -> str:
    blocks = (analysis.get("provenance") or {}).get("blocks") or {}
    found = [f"{role}: {entry.get('source')}" for role, entry in blocks.items() if isinstance(entry, Mapping)]
    return f"pretrained: {', '.join(found)}; the rest random, one seed a run" if found else "random, one seed a run"


def _training(analysis: Analysis, record: Record) -> str:
    return "the sections train, optim and augment of each config, under Provenance" if _configs(analysis) else ""


def _selection(analysis: Analysis, record: Record) -> str:
    if record.protocol == "reference":
        return "as in the papers: the best epoch on the test split, so all figures are too high"
    return "the best epoch on validation; the test split was read once"


def _metrics(analysis: Analysis, record: Record) -> str:
    found = dict.fromkeys(name for arm in choice.arms(analysis) for name in arm.get("metrics") or {})
    names = [arms.SCORES[name][0] if name in arms.SCORES else name for name in found]
    return ", ".join([*names, "Brier score", "ECE"]) if found else ""


def _statistics(analysis: Analysis, record: Record) -> str:
    return (
        "95 % intervals over patients; paired differences with patients and seeds drawn again; DeLong, exact McNemar,"
        " Holm over all comparisons"
    )


def _robustness(analysis: Analysis, record: Record) -> str:
    controls = choice.by_group(analysis, "control")
    seeds = max((len(arm.get("seeds") or ()) for arm in choice.arms(analysis)), default=0)
    found = [f"{seeds} seeds"] * (seeds > 1) + [f"{len(controls)} controls"] * bool(controls)
    return " and ".join(found)


def _included(analysis: Analysis, record: Record) -> str:
    data = analysis.get("data") or {}
    found = {name: data[name] for name in ("patients", "splits", "excluded") if data.get(name)}
    return "; ".join(f"{name}: {numbers.plain(value)}" for name, value in found.items())


def _performance(analysis: Analysis, record: Record) -> str:
    return "on the test split: the ladder above, with intervals" if choice.arms(analysis) else ""


def _limits(analysis: Analysis, record: Record) -> str:
    return "the section Limits" if analysis.get("limits") else ""


# The item, and what fills it: a function, a kind of pictures, or None.
_ITEMS: tuple[tuple[str, _Fill | str | None], ...] = (
    ("The title says that AI is used, and of which kind", None),
    ("The abstract summarises design, methods, results and conclusions", None),
    ("Background, and the role that the method should play in care", None),
    ("Aims and hypotheses", _aims),
    ("Prospective or retrospective: whether the data were collected for the study", None),
    ("Goal of the study", _always("exploratory: arms are compared on one data set")),
    ("Sources of the data", _data("source")),
    ("Criteria by which patients or images were included and excluded", None),
    ("What was done to the images before training", _preprocessing),
    ("Whether a part of the data was selected, how, and by whom", None),
    ("How patients' identities were removed", None),
    ("What was done about missing data", None),
    ("How the images were acquired", None),
    ("Definition of the reference standard (the labels)", None),
    ("Why this reference standard was chosen", None),
    ("Who made the labels, with which qualification", None),
    ("How the test set was labelled, and with which tools", None),
    ("How much the labels vary between and within readers, and how conflicts were settled", None),
    ("How the data were divided into partitions, and in which proportions", _partitions),
    ("At which level the partitions are disjoint: patients, series or images", _level),
    ("Intended size of the test set, and how it was found", _sample_size),
    ("Full description of the model", _model),
    ("Software with versions", _software),
    ("How weights were initialised, and from what if pretrained", _weights),
    ("How training was done: augmentation, hyperparameters, when it stopped", _training),
    ("How the final model was chosen", _selection),
    (
        "Ensembles, if there are any",
        _always("figures are of single runs; the paired tests and the ROC average the runs of an arm"),
    ),
    ("Metrics of performance", _metrics),
    ("Statistical significance and uncertainty", _statistics),
    ("Analysis of robustness or sensitivity", _robustness),
    ("Methods that explain predictions, if there are any", "gradcam"),
    ("Evaluation on internal data", _always("the test split of the same data set")),
    ("Testing on data from elsewhere, or why there is none", None),
    ("Registration, if it is a clinical trial", None),
    ("Numbers of patients or images, included and excluded, as a flow chart", _included),
    ("Demographic and clinical features of the patients, in each partition", None),
    ("Performance of the final model against the reference standard, on all partitions", _performance),
    ("Diagnostic accuracy and its precision, such as 95 % intervals", _performance),
    ("Analysis of the cases that were classified wrongly", "image"),
    ("Limits of the study", _limits),
    ("What follows for practice, with the intended use", None),
    ("Where the full protocol is", _always("the study and its configs, under Provenance")),
    ("Availability of software, model and data", None),
    ("Funding, and the role of funders", None),
)
