"""A model card in the form of the Hugging Face hub, for one arm of a study."""

import html
import re

from jaxboost.reporting import choice, numbers
from jaxboost.studies.record import Record

_METRICS = {"auc": ("roc_auc", "AUC"), "acc": ("accuracy", "accuracy")}
_NOT_FOR = (
    "Diagnosis, triage, treatment, or any other decision about a patient. It is no medical device.",
    "Images from other scanners, sites, protocols or patient groups than those of its data, before a test there.",
    "Images of anything else than its classes: it has no class for what it does not know, and always answers.",
    "A probability that is taken at its word: see the calibration in the report.",
    "Proof that a method is better: see the intervals and the verdict in the report.",
)


def text(analysis: choice.Analysis, record: Record) -> str | None:
    """The model card; None where no figure is sound, see `choice.card_arm`.

    Returns:
      Markdown with a head in YAML. It needs no network.
    """
    # The import takes half a second.
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    arm = choice.card_arm(analysis)
    if arm is None:
        return None
    dataset = numbers.plain((analysis.get("data") or {}).get("name") or "unnamed")
    metrics = {key: (arm.get("metrics") or {}).get(key) or {} for key in _METRICS}
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=re.sub(r"[^\w.-]+", "-", dataset) or "unnamed",
            dataset_name=dataset,
            dataset_split="test",
            metric_type=_METRICS[key][0],
            metric_name=f"{_METRICS[key][1]}, mean over {len(arm.get('seeds') or ())} seeds",
            metric_value=round(entry["mean"], 4),
        )
        for key, entry in metrics.items()
        if numbers.is_number(entry.get("mean"))
    ]
    title = " ".join(str(arm["title"]).split()) or "unnamed"
    head = ModelCardData(
        library_name="jaxboost",
        pipeline_tag="image-classification",
        tags=["medical-imaging", "jaxboost", *(["trial"] if record.quick else [])],
        model_name=title,
        eval_results=results or None,
    )
    lines = [f"# {_markdown(title)}", "", *_body(analysis, record, arm, dataset, metrics)]
    return str(ModelCard(f"---\n{head.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n", ignore_metadata_errors=False))


def _body(
    analysis: choice.Analysis, record: Record, arm: choice.Arm, dataset: str, metrics: dict[str, dict]
) -> list[str]:
    verdict = analysis.get("verdict") or {}
    why = (
        "the simplest arm of the study that nothing beats"
        if arm["name"] == verdict.get("simplest")
        else "the arm of the study that is best on validation"
    )
    lines = [f"An image classifier for {_markdown(dataset)}, made with jaxboost: {why}.", ""]
    if record.quick:
        lines += ["**This is a trial: few epochs, one seed. Its figures show nothing.**", ""]
    if arm.get("note"):
        lines += [_markdown(arm["note"]), ""]
    lines += ["## What it is for", "", "Research on methods for image classification, on data like those below.", ""]
    lines += ["## What it must not be used for", "", *(f"- {each}" for each in _NOT_FOR), ""]
    lines += ["## Figures on the test split", "", "| metric | mean | 95 % interval over patients |", "|---|---|---|"]
    lines += [
        f"| {_METRICS[key][1]} | {numbers.score(entry.get('mean'))} |"
        f" {numbers.interval(entry.get('low'), entry.get('high'))} |"
        for key, entry in metrics.items()
    ]
    calibration = arm.get("calibration") or {}
    lines += [
        "",
        f"Brier score {numbers.score(calibration.get('brier'))}, ECE {numbers.score(calibration.get('ece'))}.",
    ]
    lines += ["", f"Verdict of the study: {_markdown(str(verdict.get('sentence') or numbers.UNDEFINED))}", ""]
    lines += ["## Data and training", ""]
    data = analysis.get("data") or {}
    facts = {
        "Classes": "; ".join(record.classes),
        "Images": data.get("splits"),
        "Patients": data.get("patients"),
        "Licence of the data": data.get("license"),
        "SHA-256 of the data": (analysis.get("provenance") or {}).get("data_sha256"),
        "Clinical columns": _columns(record, str(arm["name"])),
        "Parameters": arm.get("parameters"),
        "Seeds": len(arm.get("seeds") or ()),
        "Epoch picked on": "validation",
    }
    lines += [f"- {name}: {_markdown(numbers.plain(value))}" for name, value in facts.items() if value]
    limits = analysis.get("limits") or ()
    return lines + (["", "## Limits", "", *(f"- {_markdown(str(limit))}" for limit in limits)] if limits else [])


def _columns(record: Record, arm: str) -> str:
    """The clinical columns that an arm reads, with what is read of them: "age; sex (F, M)"; "" without any."""
    runs = record.runs_of(arm)
    columns = (runs[0].result.get("columns") if runs else None) or ()
    kinds = [f" ({', '.join(each['categories'])})" if each.get("categories") else "" for each in columns]
    return "; ".join(f"{each['name']}{kind}" for each, kind in zip(columns, kinds, strict=True))


def _markdown(text: str) -> str:
    """A text in one line, without HTML and without Markdown's special characters."""
    return re.sub(r"([\\`*_\[\]#|])", r"\\\1", html.escape(" ".join(text.split()), quote=False))
