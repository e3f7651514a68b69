"""Damaged checkpoints: noticed, set aside, and the one before taken; never used without a word."""

import gc
import json
import shutil

import jax
import numpy as np
import pytest

from jaxboost.config import continuing
from jaxboost.errors import UserError
from jaxboost.training.checkpoints import checkpoint_folder, stored
from jaxboost.training.checkpoints.checkpointer import Best, Checkpointer, Progress
from tests.mutations import flip_bit, largest_file, mutations
from tests.training.small_runs import assert_same, on_host
from tests.training.states import (
    FINGERPRINTS,
    best_weights,
    saved_steps,
    train_iterator,
    train_state,
    with_grains_position,
)

CONFIG = {"optim.lr": 0.1, "seed": 0}


@pytest.fixture(scope="module", autouse=True)
def _objects_of_other_tests_are_no_garbage():
    """Each damage is followed by a collection, which would search through all that earlier tests have made."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """Checkpoints of the steps 1 and 2, each with a best of its own."""
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    _save(folder, {1: 1, 2: 2})
    return folder


@pytest.fixture
def folder(two_steps, tmp_path):
    return shutil.copytree(two_steps, tmp_path / "checkpoints")


def _save(folder, bests):
    """Saves the steps of `bests` (step -> step of the best then)."""
    iterator, sums = train_iterator(), {}
    with Checkpointer(folder) as checkpointer:
        for number, best in bests.items():
            next(iterator)
            if best == number:
                sums[best] = checkpointer.save_best(best, *best_weights(best))
            progress = Progress(
                fingerprints=FINGERPRINTS,
                best=Best(epoch=best, step=best, value=best / 10, sha256=sums[best]),
                seconds=float(number),
                config=CONFIG,
            )
            checkpointer.save_latest(train_state(number, number), iterator, progress)


def _resume(folder, config=CONFIG):
    """The step that is gone on from, once all that was restored is seen to be that step's."""
    iterator = train_iterator()
    with Checkpointer(folder) as checkpointer:
        state, progress = checkpointer.restore_latest(train_state(99, 0), iterator, FINGERPRINTS, config)
        best = checkpointer.restore_best(progress.best.step, state.params, state.stats, progress.best.sha256)
    number = int(state.step)
    assert_same(state, train_state(number, number))
    assert_same(best, best_weights(progress.best.step))
    assert iterator.get_state() == {"next_index": number}
    assert progress.seconds == number
    return number


def _change(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_nothing_is_said_of_a_whole_checkpoint(folder, package_warnings):
    assert _resume(folder) == 2
    assert not package_warnings
    assert sorted(path.name for path in folder.iterdir()) == ["best", "latest"]


DAMAGES = {
    "bit of an array": lambda step: flip_bit(largest_file(step / "state")),
    "cut off": lambda step: largest_file(step / "state").write_bytes(largest_file(step / "state").read_bytes()[:-7]),
    "empty file": lambda step: (step / "state" / "manifest.ocdbt").write_bytes(b""),
    "part is missing": lambda step: shutil.rmtree(step / "state"),
    "position is missing": lambda step: shutil.rmtree(step / "position"),
    "progress is missing": lambda step: shutil.rmtree(step / "progress"),
    "checksums are missing": lambda step: shutil.rmtree(step / "checksums"),
    "nothing left": lambda step: (shutil.rmtree(step), step.mkdir()),
    "another step's": lambda step: (shutil.rmtree(step), shutil.copytree(step.parent / "1", step)),
    "position in the data": lambda step: _change(
        step / "position" / "metadata", lambda content: content.update(next_index=3)
    ),
    "position is no number": lambda step: (step / "position" / "metadata").write_text('{"next_index": "x"}'),
    "best value": lambda step: _change(
        step / "progress" / "metadata", lambda content: content["best"].update(value=0.9)
    ),
    "seconds": lambda step: _change(step / "progress" / "metadata", lambda content: content.update(seconds=1e9)),
    "config": lambda step: _change(step / "progress" / "metadata", lambda content: content["config"].update(seed=1)),
    "name of a field": lambda step: (step / "progress" / "metadata").write_text(
        (step / "progress" / "metadata").read_text().replace('"config"', '"bonfig"')
    ),
    "checksum": lambda step: _change(
        step / "checksums" / "metadata", lambda content: content["notes"].update(position="0")
    ),
    "no JSON": lambda step: (step / "progress" / "metadata").write_bytes(b"\0" * 300),
    "deep JSON": lambda step: (step / "progress" / "metadata").write_bytes(b"[" * 100_000),
    "best's weights": lambda step: flip_bit(largest_file(step.parents[1] / "best/2/params")),
    "best is missing": lambda step: shutil.rmtree(step.parents[1] / "best/2"),
    "best of another step": lambda step: (
        shutil.rmtree(step.parents[1] / "best/2"),
        shutil.copytree(step.parents[1] / "best/1", step.parents[1] / "best/2"),
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_the_one_before_is_taken(name, folder, package_warnings):
    DAMAGES[name](folder / "latest" / "2")
    assert _resume(folder) == 1
    (warning,) = package_warnings
    assert warning.startswith("the checkpoint of step 2 is damaged (")
    assert "going on from step 1, what came after is done again" in warning
    assert warning.endswith(f"is kept as {folder}/damaged-latest-2")
    assert saved_steps(folder / "latest") == [1]
    assert saved_steps(folder / "best") == [1]
    package_warnings.clear()
    # Another time there is nothing more to say, and what is saved then is found.
    assert _resume(folder) == 1
    assert not package_warnings
    with Checkpointer(folder) as checkpointer:
        _, progress = checkpointer.restore_latest(train_state(99, 0), train_iterator(), FINGERPRINTS, CONFIG)
        checkpointer.save_latest(train_state(2, 2), _moved(2), Progress(FINGERPRINTS, progress.best, 2.0, CONFIG))
    assert _resume(folder) == 2


def _moved(count):
    iterator = train_iterator()
    for _ in range(count):
        next(iterator)
    return iterator


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("part", ["latest/2", "best/2"])
def test_any_damage_of_any_file_is_noticed(part, two_steps, tmp_path, package_warnings):
    """What comes back is step 2 as it was saved, or step 1 with a warning."""
    found = set()
    files = sorted(path.relative_to(two_steps) for path in (two_steps / part).rglob("*") if path.is_file())
    for number, file in enumerate(files):
        _, damaged = list(mutations((two_steps / file).read_bytes(), 2))[number % 2]
        folder = shutil.copytree(two_steps, tmp_path / str(number))
        (folder / file).write_bytes(damaged)
        package_warnings.clear()
        step = _resume(folder)
        assert len(package_warnings) == (step == 1)
        found.add(step)
    assert found == {1, 2}


@pytest.mark.parametrize("name", ["7.bak", "old_9", "junk", "-3"])
def test_other_folders_are_no_checkpoints(name, folder, package_warnings):
    (folder / "latest" / name).mkdir()
    assert _resume(folder) == 2
    _save_third(folder)
    assert (folder / "latest" / name).is_dir()
    assert not package_warnings


def _save_third(folder):
    with Checkpointer(folder) as checkpointer:
        _, progress = checkpointer.restore_latest(train_state(99, 0), train_iterator(), FINGERPRINTS, CONFIG)
        checkpointer.save_latest(train_state(3, 3), _moved(3), Progress(FINGERPRINTS, progress.best, 3.0, CONFIG))
    assert _resume(folder) == 3


@pytest.mark.parametrize("name", ["3", "007", "\u0663", "9" * 30])
def test_what_is_no_step_but_has_such_a_name(name, folder, package_warnings):
    """A file, and names that are numbers for Orbax."""
    path = folder / "latest" / name
    path.write_text("x") if name == "3" else path.mkdir()
    assert _resume(folder) == 2
    assert package_warnings == [f"{path} is no checkpoint: it is kept as {folder}/damaged-latest-{name}"]
    _save_third(folder)


def test_an_empty_folder_of_a_higher_number(folder, package_warnings):
    (folder / "latest" / "900").mkdir()
    assert _resume(folder) == 2
    assert "the checkpoint of step 900 is damaged (it is empty): going on from step 2" in package_warnings[0]
    assert (folder / "damaged-latest-900").is_dir()


def test_what_a_kill_left_half_written_is_removed(folder):
    (folder / "latest" / "3.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    (folder / "best" / "3.orbax-checkpoint-tmp").mkdir()
    _save_third(folder)
    assert not list(folder.rglob("*tmp*"))


def test_none_can_be_read(folder):
    for step in (1, 2):
        flip_bit(largest_file(folder / "latest" / str(step) / "state"))
    before = sorted(folder.rglob("*"))
    with pytest.raises(
        UserError, match=r"no checkpoint in .* can be used \(step 2: .*; step 1: .*\): bring the folder"
    ):
        _resume(folder)
    # Nothing was moved: a backup of a part may help.
    assert sorted(folder.rglob("*")) == before


def test_a_best_that_both_refer_to(tmp_path):
    folder = tmp_path / "checkpoints"
    _save(folder, {1: 1, 2: 1})
    assert saved_steps(folder / "best") == [1]
    flip_bit(largest_file(folder / "best/1/params"))
    with pytest.raises(UserError, match=r"step 2: the best epoch's weights, best/1, are damaged: .*; step 1: the best"):
        _resume(folder)


def test_the_best_of_the_older_one_is_kept(tmp_path):
    """Of four bests those of the last two latest checkpoints stay, in spite of newer ones."""
    folder = tmp_path / "checkpoints"
    _save(folder, {1: 1, 2: 2, 3: 2, 4: 4})
    assert saved_steps(folder / "latest") == [3, 4]
    assert saved_steps(folder / "best") == [2, 4]
    flip_bit(largest_file(folder / "latest/4/state"))
    assert _resume(folder) == 3


def test_damage_of_the_best_that_shows_at_the_end(folder):
    target = train_state(99, 0)
    with Checkpointer(folder) as checkpointer:
        _, progress = checkpointer.restore_latest(target, train_iterator(), FINGERPRINTS, CONFIG)
        flip_bit(largest_file(folder / "best/2/params"))
        with pytest.raises(
            UserError, match=r"best/2: the weights of the best epoch, step 2, are damaged .*same command"
        ):
            checkpointer.restore_best(2, target.params, target.stats, progress.best.sha256)


def test_weights_of_another_run_are_noticed(folder, tmp_path):
    """They are whole, and of the same step."""
    with Checkpointer(tmp_path / "other") as checkpointer:
        checkpointer.save_best(2, *best_weights(77))
    shutil.rmtree(folder / "best/2")
    shutil.copytree(tmp_path / "other/best/2", folder / "best/2")
    assert _resume(folder) == 1


def test_another_model_is_noticed(folder):
    state = train_state(99, 0)
    params = {**state.params, "head": {"bias": np.zeros(3, np.float32)}}
    with (
        Checkpointer(folder) as checkpointer,
        pytest.raises(UserError, match=r"of another model: array state\.params\.head\.bias is float32\[2\] there"),
    ):
        checkpointer.restore_latest(state.replace(params=params), train_iterator(), FINGERPRINTS, CONFIG)
    assert _resume(folder) == 2


def test_another_config_is_refused(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"another config, which differs in optim\.lr \(0\.1 there, 0\.2 now\)"):
        _resume(folder, {**CONFIG, "optim.lr": 0.2})
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def _as_before(step):
    """Makes a step what earlier versions wrote."""
    shutil.rmtree(step / "checksums")
    if (step / "progress").exists():
        with_grains_position(step)
        _change(step / "progress" / "metadata", lambda note: (note.pop("config"), note["best"].pop("sha256")))


def test_checkpoints_of_earlier_versions_go_on(folder, package_warnings):
    for step in ("latest/1", "latest/2", "best/1", "best/2"):
        _as_before(folder / step)
    assert _resume(folder) == 2
    assert package_warnings == [checkpoint_folder.NO_CHECKSUMS % (folder / "latest/2")]
    # Even there the position must be that of the step.
    _change(folder / "latest/2/data/process_0-of-1.json", lambda content: content.update(next_index=3))
    assert _resume(folder) == 1


def test_a_config_of_an_earlier_version_lacks_fields(folder):
    now = continuing.fixed_fields({**continuing.ADDED, **CONFIG})
    assert _resume(folder, now) == 2
    with pytest.raises(UserError, match=r"differs in data\.nan \('' there, '0' now\)"):
        _resume(folder, {**now, "data.nan": "0"})


@pytest.mark.parametrize("name", ["", "latest", "best"])
def test_a_file_in_the_place_of_the_folder(name, tmp_path):
    path = tmp_path / "checkpoints" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    with pytest.raises(UserError, match="is not a folder: move it away"):
        Checkpointer(tmp_path / "checkpoints")


def test_tidying_a_finished_run(folder):
    """It keeps the last two states, their best weights and those of the result; a second time changes nothing."""
    shutil.copytree(folder / "best/1", folder / "best/7")
    for name in ("latest/5.orbax-checkpoint-tmp", "best/0", "latest/900"):
        (folder / name).mkdir()
    checkpoint_folder.tidy(folder, 7)
    assert sorted(path.name for path in (folder / "latest").iterdir()) == ["1", "2", "900"]
    assert saved_steps(folder / "best") == [1, 2, 7]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    checkpoint_folder.tidy(folder, 7)
    checkpoint_folder.tidy(folder / "missing", 7)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_checksums_see_what_they_should():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    sums = stored.of_trees({"a": {"b": array}})
    assert list(sums) == ["a.b"]
    assert sums["a.b"].startswith("float32[2,3] ")
    others = [array.reshape(3, 2), array.view(np.int32), array * np.float32(1 + 1e-7), -np.zeros_like(array)]
    found = {stored.of_trees({"a": {"b": other}})["a.b"] for other in [*others, np.zeros_like(array)]}
    assert len(found) == 5
    assert sums["a.b"] not in found
    # The same wherever it lies, and however it is stored.
    for same in (jax.numpy.asarray(array), np.asfortranarray(array)):
        assert stored.of_trees({"a": {"b": same}}) == sums
    scalar = stored.of_trees({"x": on_host({"s": jax.numpy.int32(3)})})
    assert next(iter(scalar.values())).startswith("int32[] ")
    bfloat16 = jax.numpy.ones((2,), jax.numpy.bfloat16)
    assert stored.of_trees({"x": bfloat16})["x"].startswith("bfloat16[2] ")
