"""Statistics of batch norms in a run: a tiny ResNet on the silhouettes of the LIDC shapes, through the real loop."""

import itertools
import json

import jax
import numpy as np
import optax
import pytest

from jaxboost.analysis.describe import describe
from jaxboost.config import validate
from jaxboost.errors import UserError
from jaxboost.models import frozen
from jaxboost.models.backbones import BACKBONES
from jaxboost.runs import assembly, train
from jaxboost.runs.result import VARYING
from jaxboost.training import optim, program, step
from jaxboost.training.checkpoints.checkpointer import Checkpointer
from tests.scripts import devices, run_script
from tests.training.small_runs import assert_same, on_host, scores_of, take_step, take_steps
from tests.training.tiny_resnet import TINY, tiny_config

# What is replaced here are functions of the host, and rows of BACKBONES: another structure is another program.
pytestmark = pytest.mark.same_programs

# Kernels of the stem, two blocks and a projection, their norms, and the head.
KERNELS = 9 * (3 * 4 + 4 * 4 + 4 * 4 + 4 * 8 + 8 * 8) + 4 * 8
NORMED = 3 * 4 + 3 * 8
TRAINABLE = KERNELS + 2 * NORMED + 2 * 8 + 2


@pytest.fixture(autouse=True, scope="module")
def _tiny_resnet():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "resnet_tiny", TINY)
        yield


@pytest.fixture
def run(few_lidc_root, tmp_path):
    return assembly.assemble(tiny_config(few_lidc_root), tmp_path / "run")


def test_a_step_moves_all_statistics(run):
    before = on_host(run.state.stats)
    assert sum(leaf.size for leaf in before.values()) == 2 * NORMED
    assert all((leaf == ("variance" in path)).all() for path, leaf in before.items())
    old = run.state
    take_steps(run, 1)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
    after = on_host(run.state.stats)
    assert after.keys() == before.keys()
    assert not any((after[path] == before[path]).any() for path in before)


def test_statistics_are_not_trained(run):
    assert frozen.count(run.state.params) == TRAINABLE
    for name in ("mu", "nu"):
        moment = optax.tree_utils.tree_get(run.state.opt_state, name)
        assert jax.tree.structure(moment) == jax.tree.structure(run.state.params)
    decays = on_host(optim.decay_mask(run.state.params))
    assert {path for path in decays if decays[path]} == {path for path in decays if "kernel" in path}


def test_evaluation_takes_the_running_averages(run):
    take_steps(run, 3)
    batch = step.put(next(run.feed.iterator), run.program.by_batch)
    losses, scores = run.program.bind_eval_step(run.state.params, run.frozen, run.state.stats)(batch)
    # The first image keeps its score whatever is in the batch beside it.
    alone = {"image": batch["image"].at[1:].set(255 - batch["image"][1:]), "label": batch["label"]}
    _, others = run.program.bind_eval_step(run.state.params, run.frozen, run.state.stats)(alone)
    np.testing.assert_allclose(others[0], scores[0], rtol=1e-5)
    assert not np.allclose(others[1:], scores[1:], rtol=1e-2)
    shifted = jax.tree.map(lambda leaf: leaf + 1, run.state.stats)
    assert not np.allclose(
        run.program.bind_eval_step(run.state.params, run.frozen, shifted)(batch)[1], scores, rtol=1e-2
    )
    _, outputs = take_step(run, batch)
    assert abs(float(outputs["loss"]) - float(losses.mean())) > 1e-3


def test_evaluation_refuses_to_go_without_them(run):
    with pytest.raises(ValueError, match="leaves"):
        run.program.bind_eval_step(run.state.params, run.frozen)


def test_each_accumulated_step_moves_the_statistics(few_lidc_root, tmp_path):
    run = assembly.assemble(tiny_config(few_lidc_root, {"train.accumulate": 2}), tmp_path / "run")
    states = [on_host((run.state.params, run.state.stats))]
    for _ in range(2):
        take_steps(run, 1)
        states.append(on_host((run.state.params, run.state.stats)))
    moved = [
        {path for path in start if not np.array_equal(start[path], end[path])}
        for start, end in itertools.pairwise(states)
    ]
    assert moved[0] == {path for path in states[0] if path.startswith("[1]")}
    assert moved[1] == set(states[0])


def test_resumed_run_ends_the_same(few_lidc_root, tmp_path, monkeypatch):
    config = tiny_config(few_lidc_root)
    result = train.train_and_evaluate(config, tmp_path / "whole")
    put, calls = step.put, []

    def put_or_die(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return put(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(step, "put", put_or_die)
        with pytest.raises(KeyboardInterrupt):
            train.train_and_evaluate(config, tmp_path / "cut")
    with Checkpointer(tmp_path / "cut" / "checkpoints") as checkpointer:
        assert checkpointer.latest_step() == 2
    program.forget()  # as in another process
    again = train.train_and_evaluate(config, tmp_path / "cut")
    assert again | dict.fromkeys(VARYING) == result | dict.fromkeys(VARYING)
    assert result["parameters"] == {"trainable": TRAINABLE, "frozen": 0, "trainable_mib": round(TRAINABLE / 2**18, 2)}

    states = {}
    for name in ("whole", "cut"):
        run = assembly.assemble(config, tmp_path / "none")
        start = on_host(run.state.stats)
        with Checkpointer(tmp_path / name / "checkpoints") as checkpointer:
            state, _ = checkpointer.restore_latest(run.state, run.feed.iterator, run.progress.fingerprints)
            best = checkpointer.restore_best(4, run.state.params, run.state.stats)
        # The only validation is after the last step.
        assert_same(best, (state.params, state.stats))
        assert not any(np.array_equal(leaf, start[path]) for path, leaf in on_host(state.stats).items())
        states[name] = state
        # The figures are those of the running averages that were kept.
        loss, _ = scores_of(run, *best, "val")
        logged = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert next(line["val_loss"] for line in logged if "val_loss" in line) == pytest.approx(loss, rel=1e-6)
    assert_same(states["cut"], states["whole"])


STEPS = """
import json, pathlib, sys
import jax
from jaxboost.runs import assembly, train
from jaxboost.models.backbones import BACKBONES
from tests.training.small_runs import scores_of, take_steps
from tests.training.tiny_resnet import TINY, tiny_config

BACKBONES["resnet_tiny"] = TINY
run = assembly.assemble(tiny_config(pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2]))
losses = take_steps(run, 2)
print(json.dumps([len(jax.local_devices()), losses, [leaf.tolist() for leaf in jax.tree.leaves(run.state.stats)]]))
"""


def test_statistics_are_of_the_batch_over_all_devices(run, few_lidc_root, tmp_path):
    process = run_script("-c", STEPS, few_lidc_root, tmp_path, env=devices(8))
    assert process.returncode == 0, process.stderr
    count, losses, stats = json.loads(process.stdout.splitlines()[-1])
    assert count == 8
    np.testing.assert_allclose(losses, take_steps(run, 2), rtol=1e-4)
    for ours, theirs in zip(stats, jax.tree.leaves(run.state.stats), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_describe(few_lidc_root):
    result = describe(tiny_config(few_lidc_root, {"train.batch_size": 8}), memory=True)
    assert (result["trainable"], result["frozen"], result["tokens"]) == (TRAINABLE, 0, 1)
    # Stem and first block at 28 x 28 pixels, the second block with its projection at 14 x 14, and the head.
    expected = 28**2 * 9 * (3 * 4 + 2 * 4 * 4) + 14**2 * (9 * (4 * 8 + 8 * 8) + 4 * 8) + 2 * 8
    assert result["flops_per_image"] == {"with_boost": 2 * expected, "without_boost": 2 * expected}
    assert result["step_memory_gb"]["total"] > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"boost.kind": "rllm"}, "^backbone resnet_tiny gives one pooled feature, no tokens: set boost.kind=none$"),
        ({"boost.kind": "mlp", "model.backbone": "resnet18"}, "backbone resnet18 gives one pooled feature"),
        ({"boost.kind": "rlm"}, "did you mean 'rllm'"),
        ({"model.image_size": 0}, "^config field model.image_size: 0 should be above 0$"),
        ({"model.backbone": "resnet18_acs"}, "is 2-D but backbone resnet18_acs takes 3-D input: .*resnet50"),
        ({"model.backbone": "resnet81"}, "did you mean 'resnet"),
    ],
)
def test_mistakes(changes, words, few_lidc_root):
    config = tiny_config(few_lidc_root, changes)
    with pytest.raises(UserError, match=words):
        validate(config)
