"""A run's folder that was damaged, moved or altered: the run goes on or is refused in one line, never otherwise."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest

from jaxboost import io
from jaxboost.config import continuing, load_config, table
from jaxboost.errors import UserError
from jaxboost.inference import open_run
from jaxboost.runs import cross_validation, datasets, finished, saved_config, train, workdir
from jaxboost.runs import result as results
from jaxboost.studies import definition
from jaxboost.training import source_tokens
from jaxboost.training.clock import PARTS
from jaxboost.training.log import MetricsLog
from tests.metrics import records
from tests.mutations import flip_bit, largest_file, mutations
from tests.training.own_folders import make_config, write_pictures

LAST = 8


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):
    """A finished run of two epochs, with checkpoints after the steps 4 and 8."""
    folder = tmp_path_factory.mktemp("runs") / "seed0"
    train.train_and_evaluate(make_config(pictures), folder)
    return folder


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def _figures(folder):
    """What the result says, without what is another each time."""
    result = json.loads((folder / "result.json").read_text())
    assert result.pop("sha256") == results.checksum(result)
    return {name: value for name, value in result.items() if name not in (*results.VARYING, "config")}


def _predictions(folder):
    return {path.name: path.read_bytes() for path in (folder / "predictions").iterdir()}


def test_a_run_whose_files_are_all_damaged_comes_to_the_same_end(
    whole, run, pictures, tmp_path, package_warnings, monkeypatch
):
    """The last state too, and the data have moved."""
    write, left = workdir.write_result, []

    def write_and_look(folder, result):
        left.extend(path.name for path in (folder / "checkpoints/latest").iterdir())
        return write(folder, result)

    monkeypatch.setattr(workdir, "write_result", write_and_look)
    (run / "result.json").write_bytes((run / "result.json").read_bytes()[:500])
    (run / "config.json").write_bytes(b"\0" * 700)
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(lines[0] + b"\0\0\0\0" + lines[1] + b'{"step": 4, "train_lo\n\xff\n' + lines[1])
    shutil.rmtree(run / "tensorboard")
    (run / "tensorboard").write_text("")
    flip_bit(largest_file(run / f"checkpoints/latest/{LAST}/state"))
    moved = shutil.copytree(pictures, tmp_path / "moved")
    result = train.train_and_evaluate(make_config(moved), run)
    assert result["steps"] == LAST
    # The result marks the run as finished: everything else was written before it.
    assert sorted(left) == ["4", str(LAST)]
    assert _figures(run) == _figures(whole)
    assert _predictions(run) == _predictions(whole)
    assert records(run)[-2:] == records(whole)[-2:]
    assert json.loads((run / "config.json").read_text())["data"]["root"] == str(moved)
    kept = ["config.json", "metrics.jsonl", "result.json", "tensorboard"]
    assert sorted(path.name for path in run.glob("*.damaged-*")) == [f"{name}.damaged-1" for name in kept]
    text = "\n".join(package_warnings)
    for words in (
        "result.json is damaged (",
        "config.json is damaged (",
        f"the checkpoint of step {LAST} is damaged (array ",
        "going on from step 4",
        "metrics.jsonl was damaged: it is kept as metrics.jsonl.damaged-1",
    ):
        assert words in text
    # From then on it is an ordinary finished run.
    package_warnings.clear()
    assert train.train_and_evaluate(make_config(pictures), run)["test"] == result["test"]
    assert not [line for line in package_warnings if "damaged" in line]


def test_what_a_kill_at_the_end_left_is_removed_by_the_next_start(run, pictures):
    for name in ("latest/9.orbax-checkpoint-tmp", "best/9.orbax-checkpoint-tmp"):
        (run / "checkpoints" / name).mkdir()
    shutil.copytree(run / "checkpoints/latest/4", run / "checkpoints/latest/2")
    train.train_and_evaluate(make_config(pictures), run)
    left = sorted(path.relative_to(run / "checkpoints").as_posix() for path in (run / "checkpoints").glob("*/*"))
    assert [name for name in left if name.startswith("latest")] == ["latest/4", f"latest/{LAST}"]
    assert not [name for name in left if "tmp" in name]


def test_damaged_weights_are_not_predicted_with(run):
    step = run / f"checkpoints/best/{json.loads((run / 'result.json').read_text())['selection']['step']}"
    flip_bit(largest_file(step / "params"))
    with pytest.raises(
        UserError, match=r"the weights of the best epoch, step .*, are damaged .*: bring the folder back"
    ):
        open_run.open_run(run)


def _damage(path, content):
    if content is None:
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(content(path.read_bytes()))


DAMAGES = {
    "empty": lambda _: b"",
    "half": lambda content: content[: len(content) // 2],
    "NUL bytes": lambda content: b"\0" * len(content),
    "not UTF-8": lambda content: b"\xff\xfe" + content,
    "another JSON": lambda _: b'{"lr": 1}',
    "a list": lambda _: b"[]",
    "deep": lambda _: b"[" * 100_000,
    "deep, and closed": lambda _: b'{"seed": ' + b"[" * 900 + b"]" * 900 + b"}",
    "long number": lambda _: b'{"seed": ' + b"9" * 5000 + b"}",
    "a folder": None,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_config_and_result_do_not_block_a_run(name, run, pictures, package_warnings):
    config = train.resolved(make_config(pictures), run)
    before = (run / "config.json").read_bytes()
    _damage(run / "config.json", DAMAGES[name])
    # The result says what the config was.
    assert workdir.finished_result(run, config).steps == LAST
    _damage(run / "result.json", DAMAGES[name])
    assert workdir.finished_result(run, config) is None
    other = train.resolved(make_config(pictures, optim__lr=2e-2), run)
    with pytest.raises(UserError, match=r"of another config, which differs in optim\.lr \(0\.01 there, 0\.02 now\)"):
        workdir.finished_result(run, other)
    with pytest.raises(UserError, match=r"(config|result)\.json is damaged|has no config\.json"):
        open_run.open_run(run)
    package_warnings.clear()
    workdir.create(run, config)
    assert (run / "config.json").read_bytes() == before
    assert (run / "config.json.damaged-1").exists()
    assert (run / "result.json.damaged-1").exists()
    assert not (run / "result.json").exists()
    assert package_warnings == [
        f"{run}/{name} was damaged: it is kept as {name}.damaged-1" for name in ("config.json", "result.json")
    ]


def test_another_config_is_refused_whatever_is_left(run, pictures):
    """Without config.json the result says what the config was, without that the checkpoint."""
    other = make_config(pictures, optim__lr=2e-2)
    match = r"differs in optim\.lr \(0\.01 there, 0\.02 now\)"
    for name in ("config.json", "result.json"):
        (run / name).unlink()
        files = sorted(run.rglob("*"))
        with pytest.raises(UserError, match=match):
            train.train_and_evaluate(other, run)
        assert sorted(run.rglob("*")) == files
    assert workdir.finished_result(run, train.resolved(make_config(pictures), run)) is None
    # A config.json of another run does not help.
    workdir.create(run, train.resolved(other, run))
    with pytest.raises(UserError, match=match):
        train.train_and_evaluate(other, run)


@pytest.mark.parametrize(
    ("section", "kind", "config"),
    [
        ("boost", saved_config.Boost, table.get_config()),
        ("model", saved_config.Model, table.get_config()),
        ("llama", saved_config.Llama, table.get_pneumollm_config()),
        ("pneumollm", saved_config.PneumoLLM, table.get_pneumollm_config()),
        ("clip", saved_config.Clip, table.get_clip_config()),
        ("baseline", saved_config.Baseline, table.get_baseline_config()),
    ],
)
def test_sections_that_a_model_is_built_from_are_read_whole(section, kind, config):
    """A field that was left out would be missing, or at another value than the run had."""
    assert {field.name for field in dataclasses.fields(kind)} == set(config[section])


def test_what_may_change_between_sessions(pictures):
    now = continuing.fixed_fields(continuing.to_dict(make_config(pictures)))
    assert {"data.root", "train.log_every", "train.compilation_cache", "boost.block"}.isdisjoint(now)
    # The checkpoint of an earlier version may hold a field that may change now.
    assert continuing.differing({**now, "train.compilation_cache": True}, now) == []
    moved = make_config("elsewhere", data__masks="a", data__max_pixels=5)
    before = continuing.fixed_fields(continuing.to_dict(make_config(pictures, data__masks="b")))
    assert continuing.differing(before, continuing.fixed_fields(continuing.to_dict(moved))) == []
    assert continuing.differing(before, now) == ["data.masks (True there, False now)"]
    # A config of an earlier version has fewer fields, and is the same where the new ones are as they were.
    older = _without_added(continuing.to_dict(make_config(pictures)))
    assert continuing.differing(continuing.fixed_fields(older), now) == []
    assert continuing.differing(continuing.fixed_fields(older), {**now, "data.nan": "0"}) == [
        "data.nan ('' there, '0' now)"
    ]


def _without_added(config):
    """What an earlier version would have written of a config."""
    for name in continuing.ADDED:
        section, _, field = name.partition(".")
        # Those of other systems are not there.
        config.get(section, {}).pop(field, None)
    return config


@pytest.mark.parametrize("name", ["quickstart", "pneumollm", "pneumollm:coop_clip", "pneumollm:blip2", "baseline"])
def test_runs_and_studies_of_earlier_versions_go_on(name):
    now = load_config(name)
    before = _without_added(continuing.to_dict(now))
    assert continuing.differing(continuing.fixed_fields(before), continuing.fixed_fields(continuing.to_dict(now))) == []
    assert definition.differing(before, continuing.to_dict(now)) == []


def test_data_of_a_finished_run_that_moved(run, pictures, tmp_path, package_warnings):
    result = json.loads((run / "result.json").read_text())
    moved = shutil.copytree(pictures, tmp_path / "moved")
    assert train.train_and_evaluate(make_config(moved), run) == result
    changed = write_pictures(tmp_path / "changed")
    shutil.copyfile(changed / "dark" / "00.png", changed / "bright" / "00.png")
    (changed / "dark" / "00.png").unlink()
    for others in (changed, tmp_path / "nowhere"):
        with pytest.raises(UserError) as error:
            train.train_and_evaluate(make_config(others), run)
        assert "\n" not in str(error.value)
    images = write_pictures(tmp_path / "other pixels")
    shutil.copyfile(images / "dark" / "00.png", tmp_path / "kept.png")
    shutil.copyfile(images / "dark" / "02.png", images / "dark" / "00.png")
    shutil.copyfile(tmp_path / "kept.png", images / "dark" / "02.png")
    with pytest.raises(UserError, match=r"is a finished run with other data than those in .*other pixels: give"):
        train.train_and_evaluate(make_config(images), run)


def test_folds_of_another_config_without_any_config(whole, pictures, tmp_path):
    """Nothing is written before the folds agree."""
    folds = tmp_path / "runs"
    shutil.copytree(whole, folds / "fold1", ignore=shutil.ignore_patterns("config.json", "result.json"))
    config = make_config(pictures, data__folds=2, data__shares=(0.7, 0.1, 0.2), data__val_share=0.25)
    with pytest.raises(UserError, match=r"fold1 holds a run of another config, which differs in data\.fold "):
        cross_validation.train_and_evaluate(config, folds)
    assert [path.name for path in folds.iterdir()] == ["fold1"]


def test_a_folds_file_that_moved(pictures, tmp_path):
    config = make_config(pictures, data__folds=2, data__val_share=0.25)
    (tmp_path / "run").mkdir()
    datasets.fold_of(datasets.load(config), config, 0, tmp_path / "run" / "folds.csv")
    for name in ("same", "other"):
        shutil.copyfile(tmp_path / "run" / "folds.csv", tmp_path / name)
    table = (tmp_path / "other").read_text()
    (tmp_path / "other").write_text(table.replace("bright,0", "bright,x").replace("bright,1", "bright,0"))
    config.data.folds_file = str(tmp_path / "same")
    cross_validation._check_folds_file(config, tmp_path / "run")
    config.data.folds_file = str(tmp_path / "other")
    with pytest.raises(UserError, match=r"other has other folds than .*folds\.csv, with which the run started"):
        cross_validation.train_and_evaluate(config, tmp_path / "run")


def test_a_splits_file_that_is_damaged(whole, run, pictures):
    """What to do is said; once it was removed, the same splits are made again."""
    (run / "result.json").unlink()
    for content in (b"\0" * 50, (run / "splits.csv").read_bytes()[:-30], b"\xff", None):
        if content is None:
            (run / "splits.csv").unlink()
            (run / "splits.csv").mkdir()
        else:
            (run / "splits.csv").write_bytes(content)
        with pytest.raises(UserError, match=r"splits\.csv.*if it is damaged, remove it"):
            datasets.own_splits(make_config(pictures), run).load()
    (run / "splits.csv").rmdir()
    splits = datasets.own_splits(make_config(pictures), run)
    splits.load()
    splits.prepare()
    assert (run / "splits.csv").read_bytes() == (whole / "splits.csv").read_bytes()


def _or_mistake(function, *arguments):
    """What the function returns, or "refused" for a mistake that is reported in one short line."""
    try:
        return function(*arguments)
    except UserError as error:
        text = str(error)
    assert "\n" not in text
    assert len(text) < 1500
    return "refused"


@pytest.mark.parametrize("name", ["config.json", "result.json"])
def test_mutants_of_run_files(name, whole, tmp_path):
    """Each is refused, or counts as missing, or says what the file said."""
    # The same bytes each time, whatever the place and what the run cost.
    costs = {"seconds": 1.0, "seconds_by_part": dict.fromkeys(PARTS, 0.14), "memory_gb": 1.5}
    whole = _altered(whole, tmp_path / "whole", {"data.root": "/data"}, costs)
    config, content = train.resolved(make_config("/data"), whole), (whole / name).read_bytes()
    said, (expected, _) = workdir.finished_result(whole, config).to_json(), finished.read(whole)
    outcomes = set()
    for number, (_, damaged) in enumerate(mutations(content, 60, header=len(content))):
        run = tmp_path / str(number)
        run.mkdir()
        for other in ("config.json", "result.json"):
            shutil.copyfile(whole / other, run / other)
        (run / name).write_bytes(damaged)
        found = _or_mistake(workdir.finished_result, run, config)
        outcomes.add(found if isinstance(found, str) else found is None)
        assert found in (None, "refused") or found.to_json() == said
        opened = _or_mistake(finished.read, run)
        # What decides of a prediction is what it was. The source of weights may change, and so may a mutant.
        assert opened == "refused" or (_fixed(opened[0]), opened[1].to_json()) == (_fixed(expected), said)
    # Another config is refused, another result is none.
    assert outcomes - {False} == ({"refused"} if name == "config.json" else {True})


def _fixed(config):
    return continuing.fixed_fields(continuing.to_dict(config))


def _altered(whole, folder, config=None, result=None):
    """A copy with changed entries (dotted names), checksums and all."""
    run = shutil.copytree(whole, folder)
    for name, changes in (("config.json", config or {}), ("result.json", result or {})):
        content = json.loads((run / name).read_text())
        for path, value in changes.items():
            place = content
            *parents, last = path.split(".")
            for parent in parents:
                place = place[parent]
            place[last] = value
        if name == "result.json":
            for path, value in (config or {}).items():
                section, _, field = path.rpartition(".")
                (content["config"][section] if section else content["config"])[field] = value
            content |= {"sha256": results.checksum(content), "costs_sha256": results.costs_checksum(content)}
        (run / name).write_text(json.dumps(content))
    return run


@pytest.mark.parametrize(
    ("config", "result", "match"),
    [
        ({"model.image_size": 10**9}, {}, "model.image_size: 1000000000 should be at most 8192"),
        ({"model.image_size": 5600}, {}, "the model of config.json has .* trainable parameters, that of result.json"),
        ({"model.image_size": "28"}, {}, "model.image_size: Input should be a valid integer"),
        ({"model.backbone": "vit_b16"}, {}, "patch size 16|the model of"),
        ({"model.backbone": 5}, {}, "model.backbone: Input should be a valid string"),
        ({"model.backbone": "none"}, {}, "model.backbone: 'none' is unknown"),
        ({"model.mean": [math.pi] * 5000}, {}, "model.mean"),
        ({"seed": -1}, {}, "seed: -1 should be 0 or more"),
        ({"boost.kind": "rllm", "boost.layers": list(range(5000))}, {}, "boost.layers: .* at most 1000"),
        ({"boost": {}}, {}, "boost.family: Field required"),
        ({"data.spacing": 1e308}, {}, "data.spacing"),
        ({"eval.batch_size": 10**15}, {}, "eval.batch_size: .* should be at most 65536"),
        ({}, {"selection.step": 10**30}, "selection.step"),
        ({}, {"selection.step": -1}, "selection.step"),
        ({}, {"selection.step": "../../x"}, "selection.step"),
        ({}, {"selection.step": 5}, "best epoch are missing .*best/5"),
        ({}, {"selection.sha256": "0" * 64}, "are damaged .they are another run's"),
        ({}, {"classes": []}, "classes"),
        ({}, {"classes": ["a", "b", "c"]}, "the model of config.json has .* trainable parameters"),
        ({}, {"task": "x"}, "task"),
        ({}, {"threshold": {"value": "x"}}, "threshold"),
        ({}, {"parameters": None}, "parameters"),
        ({}, {"test.ci95": [1]}, "test.ci95"),
    ],
)
def test_run_files_that_ask_for_too_much(config, result, match, whole, tmp_path):
    """Their checksums are right: somebody made them so."""
    with pytest.raises(UserError, match=match) as error:
        open_run.open_run(_altered(whole, tmp_path / "run", config, result))
    assert len(str(error.value)) < 1000


def test_a_result_of_an_earlier_version_is_read(whole, tmp_path, pictures):
    run = shutil.copytree(whole, tmp_path / "run")
    result = json.loads((run / "result.json").read_text())
    for name in ("sha256", "costs_sha256", "splits_sha256"):
        del result[name]
    del result["selection"]["sha256"]
    (run / "result.json").write_text(json.dumps(result))
    for found in (workdir.finished_result(run, train.resolved(make_config(pictures), run)), finished.read(run)[1]):
        before = {"format": 1, "splits_sha256": None, "selection": result["selection"] | {"sha256": ""}}
        assert found.to_json() == result | before
    images = np.zeros((2, 28, 28), np.uint8)
    np.testing.assert_array_equal(open_run.open_run(run).predict(images), open_run.open_run(whole).predict(images))


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": 1e6},
        {"seconds_by_part": {"start": 1e6}},
        {"seconds_by_part": None},
        {"memory_gb": 1e6},
        {"costs_sha256": None},
        {"costs_sha256": "0" * 64},
    ],
)
def test_costs_that_were_altered(change, run, package_warnings):
    """They have a checksum of their own: that of the figures is the same for the same figures."""
    result = json.loads((run / "result.json").read_text())
    assert workdir.read_result(run) is not None
    (run / "result.json").write_text(json.dumps(result | change))
    assert results.checksum(result | change) == result["sha256"]
    assert workdir.read_result(run) is None
    (warning,) = package_warnings
    assert "altered after it was written" in warning


def test_a_result_that_lost_its_checksum(run):
    """An earlier version wrote none, but then none of the costs either."""
    result = json.loads((run / "result.json").read_text())
    del result["sha256"]
    (run / "result.json").write_text(json.dumps(result | {"seed": 5}))
    assert workdir.read_result(run) is None


def test_a_result_of_a_later_version_is_kept(run, pictures):
    """It is not taken for damaged, which would evaluate the run again and rename the file."""
    result = json.loads((run / "result.json").read_text())
    later = {name: value for name, value in result.items() if name != "sha256"} | {"format": 2, "scores": []}
    (run / "result.json").write_text(json.dumps(later | {"sha256": results.checksum(later)}))
    for attempt in (
        lambda: workdir.finished_result(run, train.resolved(make_config(pictures), run)),
        lambda: open_run.open_run(run),
    ):
        with pytest.raises(UserError, match="has the format 2, this jaxboost reads up to 1: install the version"):
            attempt()
    assert json.loads((run / "result.json").read_text())["format"] == 2


def test_mutants_of_the_metrics(tmp_path):
    """The records that are whole stay, in their order; nothing else does."""
    content = "".join(json.dumps({"step": step, "train_loss": 1 / step}) + "\n" for step in range(1, 21)).encode()
    lines = content.splitlines()
    for number, (_, damaged) in enumerate(mutations(content, 60)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "metrics.jsonl").write_bytes(damaged)
        with MetricsLog(folder, resume_step=15) as metrics:
            metrics.write(16, {"train_loss": 0.5})
        *kept, last = (folder / "metrics.jsonl").read_bytes().splitlines()
        assert json.loads(last) == {"step": 16, "train_loss": 0.5}
        assert all(json.loads(line)["step"] <= 15 for line in kept)
        # Most of the lines are untouched.
        whole = [line for line in kept if line in lines]
        assert len(whole) >= min(len(kept) - 2, 15)
        aside = folder / "metrics.jsonl.damaged-1"
        assert not aside.exists() or aside.read_bytes() == damaged


def test_a_metrics_file_that_is_none(tmp_path, package_warnings):
    (tmp_path / "metrics.jsonl").mkdir()
    with MetricsLog(tmp_path, resume_step=3):
        pass
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    assert package_warnings == [f"{tmp_path}/metrics.jsonl was damaged: it is kept as metrics.jsonl.damaged-1"]


def test_set_aside_twice(tmp_path):
    for number in (1, 2, 3):
        (tmp_path / "x.json").write_text(str(number))
        assert io.set_aside(tmp_path / "x.json").name == f"x.json.damaged-{number}"
    assert (tmp_path / "x.json.damaged-2").read_text() == "2"


def test_source_tokens_of_earlier_versions_that_are_damaged(tmp_path, package_warnings):
    good = {"digests": np.array(["a", "b"]), "tokens": np.ones((2, 3, 4), np.float32)}
    file = tmp_path / "source-tokens-x.npz"

    def write(**changes):
        np.savez(file, **{**good, **changes})

    write()
    assert [digest for digest, _ in source_tokens._read_older([file])] == ["a", "b"]
    content = file.read_bytes()
    attempts = [
        lambda: file.write_bytes(content[:-40]),
        lambda: file.write_bytes(b""),
        lambda: file.write_bytes(content.replace(b"(2, 3, 4)", b"(2, 9, 4)")),
        lambda: write(tokens=np.ones((3, 3, 4), np.float32)),
        lambda: write(tokens=np.full((2, 3, 4), np.nan, np.float32)),
        lambda: write(tokens=np.ones((2, 3, 4))),
        lambda: write(digests=np.array([1, 2])),
        lambda: write(digests=np.array(["a", "a"])),
        file.mkdir,
    ]
    for number, attempt in enumerate(attempts, 1):
        attempt()
        package_warnings.clear()
        assert list(source_tokens._read_older([file])) == []
        assert package_warnings[0].startswith(
            "the cached arrays in source-tokens-x.npz are damaged and are computed again: "
        )
        assert (tmp_path / f"source-tokens-x.npz.damaged-{number}").exists()


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"\0" * 700)])
def test_the_config_of_a_finished_run_is_written_anew(damage, whole, run, pictures):
    """A prediction, which reads it, says that the training command does that."""
    damage(run / "config.json")
    assert train.train_and_evaluate(make_config(pictures), run) == workdir.read_result(whole).to_json()
    assert json.loads((run / "config.json").read_text()) == json.loads((whole / "config.json").read_text())
    assert _figures(run) == _figures(whole)
    assert not (run / "run.lock").exists()


@pytest.mark.parametrize("kind", ["half", "folder"])
def test_a_damaged_result_of_finished_folds_is_set_aside(kind, whole, pictures, tmp_path, monkeypatch):
    config = make_config(pictures)
    config.data.folds = 2
    result = workdir.read_result(whole)

    def read_result(folder, **_):
        if not folder.name.startswith("fold"):
            return None
        fold = {"folds": 2, "fold": int(folder.name.removeprefix("fold"))}
        return dataclasses.replace(result, config=result.config | {"data": result.config["data"] | fold})

    for number in range(2):
        (tmp_path / f"fold{number}").mkdir()
    monkeypatch.setattr(train, "train_and_evaluate", lambda *given: result.to_json())
    monkeypatch.setattr(workdir, "read_result", read_result)
    path = tmp_path / "result.json"
    if kind == "half":
        path.write_text('{"dataset": "pict')
    else:
        path.mkdir()
    found = cross_validation.train_and_evaluate(config, tmp_path)
    assert json.loads(path.read_text()) == found
    assert [fold["auc"] for fold in found["folds"]] == [result.test.auc] * 2
    assert (tmp_path / "result.json.damaged-1").is_dir() == (kind == "folder")
    assert (tmp_path / "result.json.damaged-1").exists()
