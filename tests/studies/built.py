"""Records whose truth is known: an arm's scores are its strength times the label, and noise."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jaxboost.studies.record import ArmRecord, ComparisonRecord, Items, Record, RunRecord
from jaxboost.tasks import BINARY, MULTI_LABEL


def _items(split: str, n: int, task: str, classes: int, per_patient: int) -> Items:
    # The splits begin with different classes.
    patients = (np.arange(n) + (split == "val")) // per_patient
    if task == MULTI_LABEL:
        labels = np.stack([(patients >> column) & 1 for column in range(classes)], 1)
    else:
        labels = (patients % classes)[:, None]
    return Items(
        names=np.array([f"{split}/{number}" for number in range(n)], str),
        patients=np.array([f"{split}{'-p' if per_patient > 1 else '/'}{number}" for number in patients], str),
        labels=labels.astype(np.int64),
    )


def probabilities(labels: np.ndarray, strength: float, task: str, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Probabilities float32 (n, classes) that tell the labels (n, L) apart by `strength` standard deviations.

    Most of the noise is that of the items, which is the same for all runs.
    """
    truth = labels if task == MULTI_LABEL else np.eye(classes)[labels[:, 0]]
    hardness = np.random.default_rng(len(labels)).normal(size=truth.shape)
    logits = strength * truth + 0.9 * hardness + 0.44 * rng.normal(size=truth.shape)
    if task == MULTI_LABEL:
        return (1 / (1 + np.exp(strength / 2 - logits))).astype(np.float32)
    odds = np.exp(logits)
    return (odds / odds.sum(1, keepdims=True)).astype(np.float32)


def build(
    strengths: Mapping[str, float],
    *,
    n: int = 120,
    seeds: int | Mapping[str, int] = 3,
    task: str = BINARY,
    classes: int = 2,
    per_patient: int = 1,
    rungs: bool = True,
    pairs: Sequence[tuple[str, str]] = (),
) -> Record:
    """A record of arms, in the order of their rungs.

    Args:
      strengths: name -> how well the arm tells the classes apart.
      n: number of test items; half as many are in the validation split.
      seeds: number of seeds, or of each arm.
      task, classes: of the data set.
      per_patient: items of a patient.
      rungs: whether the arms have rungs.
      pairs: arm and reference of each comparison; the first is the main one.
    """
    items = {split: _items(split, size, task, classes, per_patient) for split, size in (("val", n // 2), ("test", n))}
    scores, runs = {}, []
    for place, (arm, strength) in enumerate(strengths.items()):
        for seed in range(seeds if isinstance(seeds, int) else seeds[arm]):
            rng = np.random.default_rng([place, seed])
            for split, members in items.items():
                scores[arm, seed, split] = probabilities(members.labels, strength, task, classes, rng)
            result = {"parameters": {"trainable": 10 * (place + 1), "frozen": 5}, "seconds": 2.0 + seed, "config": {}}
            runs.append(RunRecord(arm=arm, seed=seed, result=result))
    return Record(
        name="ladder",
        question="Does it help?",
        expected="No.",
        quick=False,
        protocol="validation",
        task=task,
        classes=tuple(f"class {number}" for number in range(classes)),
        data={"name": "made up"},
        arms=tuple(
            ArmRecord(name=name, title=f"Arm {name}", rung=place if rungs else None)
            for place, name in enumerate(strengths)
        ),
        comparisons=tuple(
            ComparisonRecord(arm=arm, reference=reference, claim="it helps", main=place == 0)
            for place, (arm, reference) in enumerate(pairs)
        ),
        runs=tuple(runs),
        items=items,
        scores=scores,
    )


def with_results(record: Record, arm: str, **entries: object) -> Record:
    """The record with further entries in the results of an arm's runs."""
    runs = [
        dataclasses.replace(run, result={**run.result, **entries}) if run.arm == arm else run for run in record.runs
    ]
    return dataclasses.replace(record, runs=tuple(runs))


def with_items(record: Record, split: str, **arrays: object) -> Record:
    """The record with other arrays of the items of a split."""
    items = {**record.items, split: dataclasses.replace(record.items[split], **arrays)}
    return dataclasses.replace(record, items=items)
