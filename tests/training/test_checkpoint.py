"""Run checkpoints: what is restored, and what is left after a kill between two saves."""

import json
import pathlib

import flax.struct
import jax
import optax
import orbax.checkpoint as ocp
import pytest

from jaxboost.errors import UserError
from jaxboost.training.checkpoints.checkpointer import Best, Checkpointer, Progress
from jaxboost.training.checkpoints.progress import from_json, to_json
from jaxboost.training.checkpoints.stored import DamagedError
from tests.training.small_runs import assert_same, on_host
from tests.training.states import (
    FINGERPRINTS,
    best_weights,
    make_params,
    progress_note,
    restore_state,
    saved_steps,
    train_iterator,
    train_state,
    with_grains_position,
)


def _assert_nothing_temporary(folder):
    assert [path for path in folder.rglob("*") if "tmp" in path.relative_to(folder).as_posix()] == []


def test_resume_restores_everything(tmp_path):
    folder, iterator = tmp_path / "checkpoints", train_iterator()
    state, best = train_state(1, 3), Best(epoch=2, step=2, value=0.1 + 0.2)
    for _ in range(3):
        next(iterator)
    with Checkpointer(folder) as checkpointer:
        assert checkpointer.latest_step() is None
        checkpointer.save_best(2, *best_weights(2))
        checkpointer.save_latest(state, iterator, progress_note(best, seconds=12.25))
    following = [next(iterator) for _ in range(4)]

    restored_iterator = train_iterator()
    with Checkpointer(folder) as checkpointer:
        assert checkpointer.latest_step() == 3
        restored, progress = checkpointer.restore_latest(train_state(99, 0), restored_iterator, FINGERPRINTS)
        weights = checkpointer.restore_best(progress.best.step, restored.params, restored.stats)
    assert progress == Progress(fingerprints=FINGERPRINTS, best=best, seconds=12.25)
    assert isinstance(progress.best, Best)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert_same(restored, state)
    assert_same(weights, best_weights(2))
    for batch in following:
        assert_same(next(restored_iterator), batch)
    _assert_nothing_temporary(tmp_path)


def test_the_position_that_grain_wrote_is_read(tmp_path):
    """Earlier versions kept the position in an item of grain's, in a file for each process."""
    folder, iterator = tmp_path / "checkpoints", train_iterator()
    for _ in range(3):
        next(iterator)
    with Checkpointer(folder) as checkpointer:
        checkpointer.save_latest(train_state(1, 3), iterator, progress_note())
    with_grains_position(folder / "latest/3")
    restored = train_iterator()
    with Checkpointer(folder) as checkpointer:
        checkpointer.restore_latest(train_state(99, 0), restored, FINGERPRINTS)
    assert_same(next(restored), next(iterator))
    # Its checksum is that of the item, as before.
    (folder / "latest/3/data/process_0-of-1.json").write_text('{"next_index": 2}')
    with Checkpointer(folder) as checkpointer, pytest.raises(UserError, match="data is not what was saved"):
        checkpointer.restore_latest(train_state(99, 0), train_iterator(), FINGERPRINTS)


@flax.struct.dataclass
class EarlierState:
    """What a state was before there were statistics."""

    step: jax.Array
    params: dict
    opt_state: optax.OptState


def test_model_without_statistics(tmp_path):
    """Its checkpoints are those of a time before there were any."""
    state = train_state(1, 3).replace(stats={})
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save_best(2, make_params(2), {})
        checkpointer.save_latest(state, train_iterator(), progress_note(Best(epoch=1, step=2, value=0.5)))
    assert sorted(path.name for path in (tmp_path / "best/2").iterdir() if path.is_dir()) == ["checksums", "params"]
    with ocp.CheckpointManager(tmp_path / "latest") as manager:
        earlier = EarlierState(step=state.step, params=state.params, opt_state=state.opt_state)
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, earlier)
        restored = manager.restore(3, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))["state"]
    assert_same(restored, earlier)
    target = train_state(99, 0).replace(stats={})
    with Checkpointer(tmp_path) as checkpointer:
        restored, _ = checkpointer.restore_latest(target, train_iterator(), FINGERPRINTS)
        weights = checkpointer.restore_best(2, target.params, target.stats)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert_same(restored, state)
    assert weights[1] == {}
    assert_same(weights[0], make_params(2))


@pytest.mark.parametrize("value", [0.1 + 0.2, float("nan")])
def test_progress_as_json(value):
    progress = Progress(
        fingerprints=FINGERPRINTS,
        best=Best(epoch=2, step=9, value=value, sha256="ab"),
        seconds=1 / 3,
        config={"optim.lr": 0.1, "boost.layers": [31], "boost.rope": False},
        validated=False,
    )
    note = json.loads(json.dumps(to_json(progress), allow_nan=False))
    found = from_json(pathlib.Path("x"), note)
    # NaN is not equal to itself.
    assert repr(found) == repr(progress)
    assert from_json(pathlib.Path("x"), to_json(progress_note())) == progress_note()
    for change in ({"seconds": "1"}, {"seconds": -1.0}, {"best": {"epoch": 0}}, {"fingerprints": None}, {"more": 1}):
        with pytest.raises(DamagedError):
            from_json(pathlib.Path("x"), {**note, **change})


def test_resume_before_the_first_validation(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save_latest(train_state(1, 1), train_iterator(), progress_note())
    with Checkpointer(tmp_path) as checkpointer:
        _, progress = restore_state(checkpointer)
        assert progress == progress_note()
        # A session that was cut off before its first validation goes on to one.
        checkpointer.save_best(2, *best_weights(2))
        assert_same(checkpointer.restore_best(2, *best_weights(0)), best_weights(2))


def test_restored_arrays_take_the_targets_sharding(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save_best(1, *best_weights(1))
        checkpointer.save_latest(train_state(1, 1), train_iterator(), progress_note(Best(epoch=1, step=1, value=0.5)))
    target = train_state(99, 0)
    with Checkpointer(tmp_path) as checkpointer:
        state, _ = checkpointer.restore_latest(target, train_iterator(), FINGERPRINTS)
        best = checkpointer.restore_best(1, target.params, target.stats)
    targets = (target, (target.params, target.stats))
    for ours, theirs in zip(jax.tree.leaves((state, best)), jax.tree.leaves(targets), strict=True):
        assert ours.sharding == theirs.sharding
        assert ours.committed == theirs.committed or ours.sharding.is_fully_replicated


def test_best_may_be_saved_twice_at_a_step(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save_best(2, *best_weights(1))
        checkpointer.save_best(2, *best_weights(2))
        assert_same(checkpointer.restore_best(2, *best_weights(0)), best_weights(2))
    with Checkpointer(tmp_path) as checkpointer:
        assert_same(checkpointer.restore_best(2, *best_weights(0)), best_weights(2))
        checkpointer.save_best(2, *best_weights(3))
        assert_same(checkpointer.restore_best(2, *best_weights(0)), best_weights(3))
    assert saved_steps(tmp_path / "best") == [2]
    _assert_nothing_temporary(tmp_path)


def test_best_of_latest_outlives_a_kill_between_the_two_saves(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save_best(2, *best_weights(2))
        checkpointer.save_latest(train_state(1, 3), train_iterator(), progress_note(Best(epoch=1, step=2, value=0.7)))
        checkpointer.save_best(4, *best_weights(4))
    # Cut off here, and once more at the same place.
    for attempt in (5, 6):
        with Checkpointer(tmp_path) as checkpointer:
            state, progress = restore_state(checkpointer)
            assert int(state.step) == 3
            assert progress.best == Best(epoch=1, step=2, value=0.7)
            assert_same(checkpointer.restore_best(2, state.params, state.stats), best_weights(2))
            checkpointer.save_best(4, *best_weights(attempt))
            assert_same(checkpointer.restore_best(4, state.params, state.stats), best_weights(attempt))
    with Checkpointer(tmp_path) as checkpointer:
        state, _ = restore_state(checkpointer)
        assert_same(checkpointer.restore_best(2, state.params, state.stats), best_weights(2))
        checkpointer.save_best(4, *best_weights(7))
        checkpointer.save_latest(train_state(1, 4), train_iterator(), progress_note(Best(epoch=2, step=4, value=0.8)))
    with Checkpointer(tmp_path) as checkpointer:
        state, progress = restore_state(checkpointer)
        assert_same(checkpointer.restore_best(progress.best.step, state.params, state.stats), best_weights(7))
    _assert_nothing_temporary(tmp_path)


def test_stale_best_does_not_block_an_earlier_one(tmp_path):
    """After the kill the run may find its next best at a step before the stale one: SIGTERM moved the validation."""
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save_best(2, *best_weights(2))
        checkpointer.save_latest(train_state(1, 3), train_iterator(), progress_note(Best(epoch=1, step=2, value=0.7)))
        checkpointer.save_best(8, *best_weights(8))
    with Checkpointer(tmp_path) as checkpointer:
        restore_state(checkpointer)
        checkpointer.save_best(4, *best_weights(4))
        checkpointer.save_latest(train_state(1, 4), train_iterator(), progress_note(Best(epoch=2, step=4, value=0.8)))
    with Checkpointer(tmp_path) as checkpointer:
        state, progress = restore_state(checkpointer)
        assert_same(checkpointer.restore_best(progress.best.step, state.params, state.stats), best_weights(4))


def test_old_checkpoints_are_removed(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        for number in range(1, 6):
            checkpointer.save_best(number, *best_weights(number))
            best = Best(epoch=number, step=number, value=number / 10)
            checkpointer.save_latest(train_state(number, number), train_iterator(), progress_note(best))
    assert saved_steps(tmp_path / "latest") == [4, 5]
    assert saved_steps(tmp_path / "best") == [4, 5]
    with Checkpointer(tmp_path) as checkpointer:
        state, progress = restore_state(checkpointer)
        assert_same(state, train_state(5, 5))
        assert_same(checkpointer.restore_best(progress.best.step, state.params, state.stats), best_weights(5))
    _assert_nothing_temporary(tmp_path)


def test_another_block_is_refused(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save_latest(train_state(1, 1), train_iterator(), progress_note())
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(
            UserError, match=r"trained with other block \(0123456789ab there, fedcba987654 now\): give the same as then"
        ):
            checkpointer.restore_latest(
                train_state(99, 0), train_iterator(), FINGERPRINTS | {"block": "fedcba9876543210" * 4}
            )
        with pytest.raises(
            UserError, match=r"block \(0123456789ab there, none now\) and data \(111111111111 there, none"
        ):
            checkpointer.restore_latest(train_state(99, 0), train_iterator(), {})
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}


def test_state_of_the_saver_is_untouched(tmp_path):
    state = train_state(1, 1)
    before = on_host(state)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save_best(1, state.params, state.stats)
        checkpointer.save_latest(state, train_iterator(), progress_note(Best(epoch=1, step=1, value=0.5)))
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert_same(on_host(state), before)
