"""A record of a folder: what is taken, and what is left out with which reason."""

import csv
import dataclasses
import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from jaxboost.config import load_config
from jaxboost.config.overrides import with_overrides
from jaxboost.errors import UserError
from jaxboost.studies import collect, compare, data_check, definition, finished_run, plan, record
from jaxboost.tasks import MULTI_LABEL
from tests.studies.records import made_up
from tests.studies.small_studies import BARE, PLAIN, RLLM, SMALL, dataset, small_study, write_run


@pytest.fixture
def study(tmp_path) -> pathlib.Path:
    """A study whose runs are all finished, and whose best rate is 0.001."""
    folder = tmp_path / "study"
    made = plan.make(small_study(), folder)
    stated = definition.check(made)
    figures = data_check.figures(dataset())
    known = definition.DataDefinition(about="x", fingerprint={"labels": "abc"}, figures=figures)
    definition.write(folder, dataclasses.replace(stated, data=(known,)))
    for run in made.runs:
        config = run.config.copy_and_resolve_references()
        if run.follows or run.arm.after:
            config.optim.lr = 1e-3
        write_run(config, run.folder, strengths={"val": config.optim.lr * 1000})
    return folder


def left_out(found: record.Record) -> dict[str, str]:
    return {each.what: each.why for each in found.left_out}


def test_a_study(study):
    found = collect.collect(study)
    assert (found.name, found.question, found.protocol, found.task) == (
        "small",
        "Does it run?",
        "validation",
        "binary-class",
    )
    assert [(arm.name, arm.group, arm.rung) for arm in found.arms] == [
        ("plain", "ladder", 0),
        ("rllm", "ladder", 1),
        ("bare", "control", None),
    ]
    assert [(run.arm, run.seed) for run in found.runs] == [
        (arm, k) for arm in ("plain", "rllm", "bare") for k in (0, 1)
    ]
    # The run of the first seed is the tuning run with the best rate.
    assert {run.result["config"]["optim"]["lr"] for run in found.runs_of("rllm")} == {1e-3}
    rates = found.arms[1].learning_rates
    assert list(rates) == ["0.0001", "0.001"]
    assert rates["0.001"] > rates["0.0001"]
    assert found.arms[0].learning_rates is None
    assert found.arms[1].changes == {"boost.kind": "rllm"}
    assert found.comparisons[0].main
    assert found.left_out == ()
    assert found.data["patients"] == {"train": 12, "val": 12, "test": 12}
    assert found.data["license"] == "CC"
    assert found.data["sha256"] == "abc (of the labels)"
    assert found.scores_of("rllm", "test").shape == (2, 24, 2)
    assert found.items["val"].patients[:3].tolist() == ["p0", "p0", "p1"]
    np.testing.assert_array_equal(found.items["test"].labels, dataset().splits["test"].labels)
    assert found.items["test"].names[:2].tolist() == ["test/0", "test/1"]


def test_images_that_were_left_out_are_counted(study):
    given = dataset()
    assert "excluded" not in data_check.figures(given)
    excluded = {"images without a row in labels.csv": 3}
    given = dataclasses.replace(given, info=dataclasses.replace(given.info, excluded=excluded))
    known = definition.DataDefinition(about="x", fingerprint={"labels": "a"}, figures=data_check.figures(given))
    definition.write(study, dataclasses.replace(definition.read(study), data=(known,)))
    assert collect.collect(study).data["excluded"] == excluded


def test_what_was_collected_is_read_again(study, tmp_path):
    found = collect.collect(study)
    record.write(found, tmp_path / "a")
    assert collect.collect(tmp_path / "a").runs == found.runs
    record.write(collect.collect(tmp_path / "a"), tmp_path / "b")
    for name in (record.RECORD, record.SCORES):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_what_has_not_run(study):
    shutil.rmtree(study / "runs" / "plain" / "seed1")
    (study / "runs" / "bare" / "seed0" / "result.json").unlink()
    found = collect.collect(study)
    assert left_out(found) == {
        "plain, seed 1": "it has not run yet",
        "bare, seed 0": "it is not finished: it has no result.json",
    }
    assert [run.seed for run in found.runs_of("bare")] == [1]


def test_seeds_of_arms_that_have_fewer(tmp_path):
    one = dataclasses.replace(RLLM, tuned=False, seeds=1)
    made = plan.make(small_study(arms=(PLAIN, one, BARE)), tmp_path)
    definition.write(tmp_path, definition.check(made))
    for run in made.runs:
        write_run(run.config, run.folder)
    found = collect.collect(tmp_path)
    assert [len(found.runs_of(arm)) for arm in ("plain", "rllm", "bare")] == [2, 1, 1]
    assert found.left_out == ()


def test_layers_are_part_of_a_config_where_it_names_them(tmp_path):
    """Where it leaves them open, a run fills them in."""
    arms = [
        dataclasses.replace(RLLM, name=name, tuned=False, seeds=1, overrides={"boost.layers": layers})
        for name, layers in (("open", ()), ("first", (0,)), ("last", (3,)))
    ]
    made = plan.make(small_study(arms=tuple(arms), comparisons=()), tmp_path)
    definition.write(tmp_path, definition.check(made))
    for run in made.runs:
        write_run(with_overrides(run.config, {"boost.layers": (3,)}), run.folder)
    found = collect.collect(tmp_path)
    assert [(arm.name, len(found.runs_of(arm.name))) for arm in found.arms] == [("open", 1), ("first", 0), ("last", 1)]
    assert found.arms[2].changes == {"boost.layers": [3]}
    assert "differs in boost.layers ([0] there, [3] now)" in left_out(found)["first, seed 0"]


def test_an_arm_without_runs_stays_with_its_comparisons(study):
    """So a report names what is missing, and the main comparison is not silently another one."""
    shutil.rmtree(study / "runs" / "plain" / "seed0")
    _alter(study / "runs" / "plain" / "seed1", "result.json", lambda text: text[:-20])
    found = collect.collect(study)
    assert [arm.name for arm in found.arms] == ["plain", "rllm", "bare"]
    assert found.arms[0].missing.startswith("its result.json is damaged")
    assert {arm.missing for arm in found.arms[1:]} == {""}
    assert [(each.arm, each.reference, each.main) for each in found.comparisons] == [("rllm", "plain", True)]
    assert left_out(found)["rllm against plain"] == "no run of plain"
    said = compare.analyse(found, resamples=20)
    assert said["verdict"]["sentence"].endswith(
        "R-LLM minus Plain ViT: not known, because Plain ViT has no finished run"
    ), said["verdict"]["sentence"]
    shutil.rmtree(study / "runs" / "plain")
    assert collect.collect(study).arms[0].missing == "it has not run yet"


def test_a_copy_of_a_run_is_no_further_seed(study):
    """Its scores would count twice, as if two seeds had agreed."""
    folder = study / "runs" / "plain"
    shutil.rmtree(folder / "seed1")
    shutil.copytree(folder / "seed0", folder / "seed1")
    found = collect.collect(study)
    assert [run.seed for run in found.runs_of("plain")] == [0]
    assert left_out(found) == {"plain, seed 1": "it is a run of another config, which differs in seed (1 there, 0 now)"}


def test_runs_of_another_learning_rate_than_the_chosen_one(study):
    made = plan.make(small_study(), study)
    for key in ("rllm:1", "bare:0"):
        run = made.run(key)
        write_run(with_overrides(run.config, {"optim.lr": 0.02}), run.folder)
    text = "it is a run of another config, which differs in optim.lr (0.001 there, 0.02 now)"
    assert left_out(collect.collect(study)) == {"bare, seed 0": text, "rllm, seed 1": text}


def test_figures_of_patients(study):
    """With eval.unit=patient the record has a sample for each patient, as result.json has."""
    for run in plan.make(small_study(), study).runs:
        changes = {"eval.unit": "patient"} | ({"optim.lr": 1e-3} if run.follows or run.arm.after else {})
        write_run(with_overrides(run.config, changes), run.folder, given=dataset_of_pairs())
    stated = definition.read(study)
    arms = [
        dataclasses.replace(arm, config={**arm.config, "eval": {**arm.config["eval"], "unit": "patient"}})
        for arm in stated.arms
    ]
    definition.write(study, dataclasses.replace(stated, arms=tuple(arms)))
    found = collect.collect(study)
    assert found.left_out == ()
    assert found.data["unit"] == "patient"
    test = found.items["test"]
    assert test.patients.tolist() == [f"p{number}" for number in range(12)]
    assert test.names.tolist() == [f"test/{2 * number}" for number in range(12)]
    assert test.labels[:, 0].tolist() == [number % 3 // 2 for number in range(12)]
    folder = study / "runs" / "plain" / "seed0"
    with (folder / "predictions" / "test.csv").open(newline="") as file:
        rows = np.array([[float(cell) for cell in row[3:]] for row in list(csv.reader(file))[1:]])
    np.testing.assert_allclose(found.scores["plain", 0, "test"], rows.reshape(12, 2, 2).mean(1), rtol=1e-6)
    limits = compare.analyse(found, resamples=20)["limits"]
    assert "A sample is a patient: the probabilities of a patient's images were averaged." in limits
    # A run over images is not mixed with them.
    run = plan.make(small_study(), study).run("plain:1")
    images = with_overrides(run.config, {"eval.unit": "image"})
    write_run(images, study / "any" / "a", given=dataset_of_pairs())
    for seed in (1, 2):
        patients = {"eval.unit": "patient", "seed": seed}
        write_run(with_overrides(images, patients), study / "any" / f"b{seed}", given=dataset_of_pairs())
    assert left_out(collect.collect(study / "any")) == {
        "a": "its figures are of images, and those of the others of patients (eval.unit)"
    }


def dataset_of_pairs():
    """Samples whose patients have two images of one class each."""
    given = dataset()
    splits = {
        name: dataclasses.replace(split, labels=np.repeat(split.labels[:12], 2, axis=0))
        for name, split in given.splits.items()
    }
    return dataclasses.replace(given, splits=splits)


def test_a_rate_that_is_not_chosen_yet(study):
    shutil.rmtree(study / "runs" / "rllm" / "lr=0.0001")
    found = collect.collect(study)
    assert left_out(found) == {"rllm, seed 0": "runs that tune its learning rate remain: 1"}
    assert [run.seed for run in found.runs_of("rllm")] == [1]


def _alter(folder: pathlib.Path, name: str, change) -> None:
    path = folder / name
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("result.json", lambda text: text[:-20], "its result.json is damaged"),
        ("result.json", lambda text: text.replace("plain", "x").replace('"seed": 1', '"seed": 3'), "altered"),
        ("predictions/test.csv", lambda text: text.replace("benign", "healthy", 1), r"test\.csv is damaged"),
        ("predictions/test.csv", lambda text: text.replace("p3,benign", "p3,unknown"), r"test\.csv is damaged"),
        ("predictions/test.csv", lambda text: "\n".join(text.splitlines()[:-1]), "has 23 samples, not 24"),
        ("predictions/test.csv", lambda text: text + "x,y\n", r"test\.csv is damaged"),
        ("predictions/test.csv", lambda text: "", r"test\.csv (is damaged|cannot be read)"),
        (
            "predictions/test.csv",
            lambda text: "\n".join([*text.splitlines()[:-1], "test/23,p11,malignant,nan,nan"]),
            "probabilities that are no numbers",
        ),
    ],
)
def test_damaged_runs(study, name, change, why):
    _alter(study / "runs" / "plain" / "seed1", name, change)
    found = collect.collect(study)
    (text,) = left_out(found).values()
    assert re.search(why, text), text
    assert [run.seed for run in found.runs_of("plain")] == [0]


def test_a_run_without_predictions(study):
    (study / "runs" / "plain" / "seed1" / "predictions" / "val.csv").unlink()
    assert "it has no predictions/val.csv" in left_out(collect.collect(study))["plain, seed 1"]


def test_a_run_of_another_config(study):
    run = plan.make(small_study(), study).run("plain:1")
    write_run(with_overrides(run.config, {"train.epochs": 9}), run.folder)
    why = left_out(collect.collect(study))["plain, seed 1"]
    assert why == "it is a run of another config, which differs in train.epochs (1 there, 9 now)"


@pytest.mark.parametrize(
    ("given", "entries", "why"),
    [
        (dataset(n=20), {}, "it has other splits: 20 val samples, not 24"),
        (dataset(shift=1), {}, "it has other labels: those of 16 val samples"),
        (dataset(), {"dataset": "vesselmnist3d"}, "it is of another data set: vesselmnist3d, not lidcshapes3d"),
        (dataset(), {"data_sha256": "1"}, ""),
    ],
)
def test_foreign_runs(study, given, entries, why):
    run = plan.make(small_study(), study).run("plain:1")
    write_run(run.config, run.folder, given=given, **entries)
    assert left_out(collect.collect(study)) == ({"runs/plain/seed1": why} if why else {})


def test_data_that_changed_between_runs(study):
    for run in plan.make(small_study(), study).runs:
        config = with_overrides(run.config, {"optim.lr": 1e-3} if run.follows or run.arm.after else {})
        strengths = {"val": config.optim.lr * 1000}
        write_run(config, run.folder, strengths=strengths, data_sha256="2" if run.key == "plain:1" else "1")
    assert left_out(collect.collect(study)) == {
        "runs/plain/seed1": "its data have other content: the images changed between the runs"
    }


def test_data_that_changed_between_runs_most_of_which_have_a_part(tmp_path):
    """Parts of the data have no fingerprint of the whole; they do not hide that it changed."""
    for name, changes, digest in (
        ("a", {"data.train_fraction": 0.1}, "part 1"),
        ("b", {"data.train_fraction": 0.3}, "part 2"),
        ("c", {}, "1"),
        ("d", {"train.epochs": 2}, "2"),
        ("e", {"train.epochs": 3}, "2"),
    ):
        config = load_config("quickstart", **{**SMALL, "data.train_fraction": 1.0, **changes})
        write_run(config, tmp_path / name, data_sha256=digest)
    assert left_out(collect.collect(tmp_path)) == {
        "c": "its data have other content: the images changed between the runs"
    }


def test_clinical_columns_that_changed_between_runs(tmp_path):
    """Most runs with the same columns decide; arms with other columns, or without any, are of the same data."""
    for name, columns, digest, epochs in (
        ("a", ("age",), "2", 1),
        ("b", ("age",), "1", 2),
        ("c", ("age",), "1", 3),
        ("d", ("age", "sex"), "3", 4),
        ("e", (), None, 5),
    ):
        config = load_config("quickstart", **{**SMALL, "data.columns": columns, "train.epochs": epochs})
        write_run(config, tmp_path / name, data_sha256="1", **({"columns_sha256": digest} if digest else {}))
    assert left_out(collect.collect(tmp_path)) == {
        "a": "its clinical columns have other content: the table changed between the runs"
    }


def _runs(folder: pathlib.Path, **arms) -> None:
    for name, changes in arms.items():
        for seed in (0, 1):
            config = load_config("quickstart", **{**SMALL, "seed": seed, **changes})
            write_run(config, folder / name / f"seed{seed}")


def test_any_runs(tmp_path):
    _runs(tmp_path, a_plain={"boost.kind": "none"}, b_rllm={}, c_out={"boost.kind": "out"})
    found = collect.collect(tmp_path)
    assert [(arm.name, arm.changes) for arm in found.arms] == [
        ("a_plain", {}),
        ("b_rllm", {"boost.kind": "rllm"}),
        ("c_out", {"boost.kind": "out"}),
    ]
    assert [(each.arm, each.reference, each.main) for each in found.comparisons] == [
        ("b_rllm", "a_plain", False),
        ("c_out", "a_plain", False),
    ]
    assert found.data["splits"] == {"train": 24, "val": 24, "test": 24}
    assert found.data["patients"] == {"val": 12, "test": 12}
    assert found.data["license"] == "CC BY 3.0"
    only = collect.collect(tmp_path / "b_rllm")
    assert [(arm.name, len(only.runs_of(arm.name))) for arm in only.arms] == [("b_rllm", 2)]
    assert [arm.name for arm in collect.collect(tmp_path / "b_rllm" / "seed1").arms] == ["b_rllm"]


def test_runs_of_the_reference_protocol_are_never_mixed_with_sound_ones(tmp_path):
    _runs(tmp_path, a_reference={"eval.protocol": "reference"}, b_rllm={}, c={"eval.protocol": "reference", "seed": 0})
    shutil.rmtree(tmp_path / "b_rllm" / "seed1")
    found = collect.collect(tmp_path)
    assert [(run.arm, run.seed) for run in found.runs] == [("b_rllm", 0)]
    assert {"a_reference/seed0", "a_reference/seed1"} < {*left_out(found)}
    assert "protocol reference" in left_out(found)["a_reference/seed0"]
    # Where there are no others, they are a record of their own, without a validation split.
    shutil.rmtree(tmp_path / "b_rllm")
    alone = collect.collect(tmp_path)
    assert alone.protocol == "reference"
    assert {*alone.items} == {"test"}


def test_runs_of_one_name_with_other_configs_are_other_arms(tmp_path):
    write_run(load_config("quickstart", **SMALL), tmp_path / "x" / "seed0")
    write_run(load_config("quickstart", **{**SMALL, "seed": 1, "train.epochs": 3}), tmp_path / "x" / "seed1")
    write_run(load_config("quickstart", **SMALL), tmp_path / "x" / "seed2")
    found = collect.collect(tmp_path)
    assert [arm.name for arm in found.arms] == ["x", "x_seed1"]
    assert left_out(found) == {"x/seed2": "another run of x has the seed 0 too"}
    # A name that is taken becomes longer, and never joins runs of other configs.
    write_run(load_config("quickstart", **{**SMALL, "seed": 7, "train.epochs": 4}), tmp_path / "x_seed1" / "seed7")
    found = collect.collect(tmp_path)
    assert [(arm.name, [run.seed for run in found.runs_of(arm.name)]) for arm in found.arms] == [
        ("x", [0]),
        ("x_seed1", [1]),
        ("x_seed1_seed7", [7]),
    ]
    # Where the data are does not matter.
    write_run(load_config("quickstart", **{**SMALL, "seed": 4, "data.root": "moved"}), tmp_path / "x" / "seed4")
    assert [run.seed for run in collect.collect(tmp_path).runs_of("x")] == [0, 4]


@pytest.mark.parametrize("name", ["gone", "empty"])
def test_folders_without_runs(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"there is no such folder|has no finished run"):
        collect.collect(tmp_path / name)


def test_a_folder_of_a_record(tmp_path):
    record.write(made_up(), tmp_path)
    assert collect.collect(tmp_path).arms == made_up().arms


def test_a_cross_validation_is_one_run(tmp_path):
    config = load_config("quickstart", **{**SMALL, "data.folds": 2})
    for fold in range(2):
        one = with_overrides(config, {"data.fold": fold})
        content = write_run(one, tmp_path / "cv" / f"fold{fold}", given=dataset(shift=fold))
    from jaxboost.config import continuing
    from jaxboost.runs import cross_validation, workdir

    results = [workdir.read_result(tmp_path / "cv" / f"fold{fold}") for fold in range(2)]
    whole = {**cross_validation.summarise(results), "config": continuing.to_dict(config)}
    workdir.write_result(tmp_path / "cv", whole)
    found = collect.collect(tmp_path)
    assert [(run.arm, run.seed) for run in found.runs] == [("cv", 0)]
    assert found.scores["cv", 0, "test"].shape == (48, 2)
    assert found.items["test"].labels[24:].tolist() == dataset(shift=1).splits["test"].labels.tolist()
    assert content["seed"] == 0


def test_labels_of_several_classes(tmp_path):
    path = tmp_path / "predictions" / "test.csv"
    path.parent.mkdir()
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ["file", "patient_id", "label", "a", "b", "c"],
                ["x", "p", "a|c", 0.5, 0.25, 1],
                ["y", "q", "", 0, 0, 0],
            ]
        )
    items, scores = finished_run._table(path, ["a", "b", "c"], MULTI_LABEL)
    assert items.labels.tolist() == [[1, 0, 1], [0, 0, 0]]
    assert scores.tolist() == [[0.5, 0.25, 1], [0, 0, 0]]


def test_the_curve_has_a_point_for_each_validation_and_no_times(tmp_path):
    entries = []
    for step in range(1, 301):
        entries.append({"step": step, "train_loss": 1 / step, "images_per_second": 7.0})
        entries.append({"step": step, "val_auc": 0.5})
    lines = [json.dumps(entry) for entry in entries]
    (tmp_path / "few.jsonl").write_text("\n".join(lines[:6]) + '\n{"step": 4, "val_')
    few = finished_run.curve(tmp_path / "few.jsonl")
    assert few == [{"step": step, "train_loss": 1 / step, "val_auc": 0.5} for step in (1, 2, 3)]
    (tmp_path / "many.jsonl").write_text("\n".join(lines))
    assert [entry["step"] for entry in finished_run.curve(tmp_path / "many.jsonl")] == list(range(10, 301, 10))
    assert finished_run.curve(tmp_path / "none.jsonl") == []


def test_columns_of_labels_csv_are_subgroups(tmp_path, monkeypatch):
    rows = [{"file": f"test/{n}", "label": "x", "site": "AB"[n % 2], "age": str(n), "sex": "f"} for n in range(24)]
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    config = {"data": {"source": "folder", "root": str(tmp_path)}}
    items = record.Items(
        names=np.array([f"test/{n}" for n in range(24)]),
        patients=np.array(["p"] * 24),
        labels=dataset().splits["test"].labels,
    )
    found = collect.subgroups.with_columns(items, config)
    # As a spreadsheet of another country saves it, which the reader of the data takes too.
    lines = [";".join(f" {cell}" for cell in row.values()) for row in rows]
    text = "# export\n" + "\n".join(["Path;Label; Site;age;sex", *lines])
    (tmp_path / "labels.csv").write_text(text.replace("test/1;", f"{tmp_path}/test/1;"), "utf-8-sig")
    again = collect.subgroups.with_columns(items, config)
    assert {name: values.tolist() for name, values in again.columns.items()} == {"Site": ["A", "B"] * 12}
    # A column with one value, or with many, makes no subgroups.
    assert {name: values.tolist() for name, values in found.columns.items()} == {"site": ["A", "B"] * 12}
    other = dataclasses.replace(items, names=np.array([f"other/{n}" for n in range(24)]))
    with pytest.raises(ValueError, match=r"labels\.csv lacks 24 of the samples now, such as other/0"):
        collect.subgroups.with_columns(other, config)
    assert collect.subgroups.with_columns(items, {"data": {"source": "", "root": str(tmp_path)}}).columns == {}
