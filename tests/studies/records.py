"""A made-up record of a study: three arms with two seeds on 40 test samples of 25 patients."""

import numpy as np

from jaxboost.studies.record import ArmRecord, ComparisonRecord, Items, LeftOut, Record, RunRecord

ARMS = {"logistic": 0.9, "plain": 0.6, "rllm": 0.8}


def _items(split: str, n: int, rng: np.random.Generator) -> Items:
    patients = np.array([f"p{number}" for number in np.sort(rng.integers(0, 25, n))])
    labels = np.array([[int(patient[1:]) % 2] for patient in patients])
    labels[:2, 0] = 0, 1
    names = np.array([f"{split}/{number}" for number in range(n)])
    return Items(names=names, patients=patients, labels=labels, columns={"site": np.where(labels[:, 0], "A", "B")})


def made_up(task: str = "binary-class", seeds: int = 2) -> Record:
    """The record; the scores of an arm are its strength times the label, and noise."""
    rng = np.random.default_rng(0)
    items = {split: _items(split, n, rng) for split, n in (("val", 30), ("test", 40))}
    scores = {}
    for arm, strength in ARMS.items():
        for seed in range(seeds):
            for split, members in items.items():
                positive = 1 / (
                    1 + np.exp(-strength * (2 * members.labels[:, 0] - 1) - rng.normal(0, 1, len(members.labels)))
                )
                scores[arm, seed, split] = np.column_stack([1 - positive, positive]).astype(np.float32)
    runs = tuple(
        RunRecord(
            arm=arm,
            seed=seed,
            result={"seed": seed, "parameters": {"trainable": 1000, "frozen": 0}, "seconds": 1.5, "config": {}},
            curve=[{"step": step, "train_loss": 1 / step, "val_auc": 0.5 + 0.01 * step} for step in (1, 2, 3)],
        )
        for arm in ARMS
        for seed in range(seeds)
    )
    return Record(
        name="ladder",
        question="Does it help?",
        expected="No.",
        quick=True,
        protocol="validation",
        task=task,
        classes=("healthy", "ill"),
        data={"name": "made up", "ndim": 2, "splits": {"val": 30, "test": 40}},
        arms=tuple(ArmRecord(name=name, title=name.upper(), rung=rung) for rung, name in enumerate(ARMS)),
        comparisons=(ComparisonRecord(arm="rllm", reference="plain", claim="the layer helps", main=True),),
        runs=runs,
        items=items,
        scores=scores,
        left_out=(LeftOut(what="runs/mlp/seed0", why="it failed"),),
    )
