"""The benchmarks run and report what they promise. Nothing is asserted about time: these machines are shared."""

import contextlib
import dataclasses
import json
import math
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks import contenders, convert, data, figures, folder, restated, seeds, train_step
from benchmarks import input as batches_made
from benchmarks.contenders import Case
from benchmarks.process import LateError, Remote
from jaxboost.errors import UserError
from jaxboost.models.frozen import split
from jaxboost.training import optim
from tests.reference import rllm
from tests.reference.llama_checkpoints import LAYERS, tiny_llama, write_sharded_safetensors

TINY = Case(model="vit3d_tiny", boost="rllm", family="llama-tiny", batch=2)

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")


def assert_positive(values):
    assert all(math.isfinite(value) and value > 0 for value in values), values


@pytest.mark.slow
def test_train_step(monkeypatch):
    """Equal losses over three steps included: `compare` raises where they differ."""
    monkeypatch.setattr(train_step, "TURN_SECONDS", 0.01)
    summary = train_step.compare(TINY, ["jaxboost", "torch_eager"], rounds=1)
    assert summary.items() >= dataclasses.asdict(TINY).items()
    assert_positive(summary[key] for key in ("peak_gflops", "ratio", "boost_over_plain"))
    names = ("jaxboost", "torch_eager", train_step.PLAIN)
    for name in names:
        result = summary[name]
        keys = ("step_s", "images_per_second", "share_of_peak", "flops_per_image", "peak_mb", *result["losses"])
        assert_positive(value if isinstance(value, float) else result[value] for value in keys)
        assert len(result["losses"]) == train_step.WARM_STEPS
        assert len(result["step_s_all"]) == 1
        assert result["compile_s"] >= 0
    # The loss of one batch falls, so steps update the weights.
    assert summary["jaxboost"]["losses"][-1] < summary["jaxboost"]["losses"][0]
    text = train_step.as_text(summary)
    assert all(f"\n{name} " in text for name in names)
    json.dumps(summary)


def test_losses_that_differ_are_refused():
    equal = {"jaxboost": [1.5, 1.25], "torch_eager": [1.5, 1.25 * (1 + 5e-5)]}
    train_step._check_losses(equal, 1e-4, 1e-4)
    # From the second step on: the gradients or the optimiser differ.
    other = equal | {"torch_compile": [1.5, 1.26]}
    with pytest.raises(AssertionError, match=r"losses differ: jaxboost \[1\.5, 1\.25\], torch_compile \[1\.5, 1\.26\]"):
        train_step._check_losses(other, 1e-4, 1e-4)
    train_step._check_losses(other, 1e-4, 3e-2)
    with pytest.raises(AssertionError, match="losses differ"):
        train_step._check_losses({"jaxboost": [1.26, 1.25], "torch_eager": [1.25, 1.25]}, 1e-4, 3e-2)
    with pytest.raises(AssertionError, match="losses differ"):
        train_step._check_losses({"jaxboost": [math.nan], "torch_eager": [math.nan]}, 3e-2, 3e-2)


def test_gradients_that_differ_are_refused():
    norms = {"jaxboost": {"head": 2.0, "bias": 1e-7}, "torch_eager": {"head": 2.006, "bias": 3e-6}}
    train_step._check_gradients(norms, 5e-3)
    for changes in ({"head": 2.02}, {"bias": 1e-4}, {"head": math.nan}):
        with pytest.raises(
            AssertionError, match=f"gradients of {next(iter(changes))} differ: jaxboost .*, torch_eager"
        ):
            train_step._check_gradients(norms | {"torch_eager": norms["torch_eager"] | changes}, 5e-3)
    with pytest.raises(AssertionError, match=r"train other tensors: .*bias"):
        train_step._check_gradients(norms | {"torch_eager": {"head": 2.0}}, 5e-3)


@pytest.mark.parametrize(
    ("changes", "named", "message"),
    [
        ({"model": "clip_vit_b16"}, ["jaxboost"], "--model: 'clip_vit_b16' is unknown"),
        ({"model": "dinov2_s14"}, ["jaxboost"], "--model: 'dinov2_s14' is unknown"),
        ({"model": "resnet18_3d"}, ["jaxboost"], "--model: 'resnet18_3d' is unknown"),
        ({"model": "swin_tiny"}, ["jaxboost"], "--boost: PyTorch's side of swin_tiny is timm's model, .*: give none"),
        (
            {"model": "swin_tiny", "boost": "none", "sdpa": True},
            ["torch_eager"],
            "--sdpa: timm's swin_tiny chooses its attention by itself: leave it out",
        ),
        ({"path": "short"}, ["jaxboost"], "--path: 'short' is unknown"),
        (
            {"path": "absorbed", "boost": "mlp"},
            ["jaxboost"],
            "--path absorbed: .*kind mlp has no LLM layer: leave it out",
        ),
        ({"channels_last": True}, ["torch_eager"], "--channels_last: vit3d_tiny has no 2D convolution: leave it out"),
        ({"dtype": "float64"}, ["jaxboost"], "--dtype: 'float64' is unknown"),
        ({}, [], "--contenders is empty: give some of jaxboost, torch_eager"),
        ({}, ["torch"], "--contenders: 'torch' is unknown, did you mean 'torch_eager'"),
    ],
)
def test_values_that_cannot_be_benchmarked(changes, named, message):
    with pytest.raises(UserError, match=message):
        train_step.check(dataclasses.replace(TINY, **changes), named)


@pytest.mark.parametrize("model", ["vit_ti16", "vit_s", "vit_b16", "vit_l16", "vit_tiny", "vivit_tiny", "vit3d"])
def test_pytorch_restates_the_models_that_can_be_benchmarked(model):
    case = dataclasses.replace(TINY, model=model)
    train_step.check(case, ["torch_eager"])
    assert restated.module(case) is not None


@pytest.mark.parametrize("model", ["convnextv2_atto", "resnet50", "efficientnet_lite0"])
def test_timms_models_take_all_our_weights(model):
    """By name and shape; `TorchEager` loads them strictly, and equal losses show the rest."""
    case = dataclasses.replace(TINY, model=model, boost="none")
    train_step.check(case, ["torch_eager"])
    _, *states = split(nnx.eval_shape(lambda: case.build(nnx.Rngs(0))))
    arrays = [jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), tree) for tree in states]
    ours = {name: tuple(tensor.shape) for name, tensor in restated.state(case, *arrays).items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in restated.module(case).state_dict().items()}
    theirs = {name: shape for name, shape in theirs.items() if not name.endswith("num_batches_tracked")}
    # Linear layers of the small ConvNeXts are 1 x 1 convolutions in timm.
    assert ours == {name: shape[:2] if "mlp.fc" in name else shape for name, shape in theirs.items()}
    assert case.image_size == 224


def test_the_same_weights_of_timms_models_decay():
    case = dataclasses.replace(TINY, model="swin_tiny", boost="none")
    shapes = split(nnx.eval_shape(lambda: case.build(nnx.Rngs(0))))[1]
    ours = sum(jax.tree.leaves(optim.decay_mask(shapes)))
    assert ours == sum(restated.decays(name, weight.ndim) for name, weight in restated.module(case).named_parameters())


IMAGES = (
    data.Images(name="resized", shape=(8, 8, 3), image_size=16, samples=12),
    data.Images(name="tiny volumes", shape=(28, 28, 28, 1), image_size=28, samples=8, backbones=("vit3d_tiny",)),
)


def test_data():
    summary = data.compare(IMAGES, batches=(2, 8), rounds=1, steps=False, turn_seconds=0.01)
    named = [(case["name"], case["batch"]) for case in summary["cases"]]
    assert named == [("resized", 2), ("resized", 8), ("tiny volumes", 2), ("tiny volumes", 8)]
    for case in summary["cases"]:
        assert case["backbone"] is case["consumed_images_per_second"] is case["ratio"] is None
        assert_positive([case["delivered_images_per_second"]])
    text = data.as_text(summary)
    assert "resized" in text
    assert "tiny volumes" in text
    json.dumps(summary)


@pytest.mark.slow
def test_data_and_steps():
    summary = data.compare(
        IMAGES, batches=(4,), rounds=1, steps=True, family="llama-tiny", step_batch=2, turn_seconds=0.01
    )
    without, case = summary["cases"]
    assert without["backbone"] is None
    assert case["backbone"] == "vit3d_tiny"
    assert_positive([case["consumed_images_per_second"]])
    assert case["ratio"] == case["delivered_images_per_second"] / case["consumed_images_per_second"]
    assert "vit3d_tiny" in data.as_text(summary)


def test_what_is_delivered_has_the_paper_s_sizes():
    """A step is compared with batches that it could be given."""
    for images in data.IMAGES:
        assert images.split().images.shape == (images.samples, *images.shape)
        assert images.samples >= max(data.BATCHES)
        for backbone in images.backbones:
            wanted = Case(model=backbone, boost="rllm", family="llama-7b", batch=1).images().shape[1:-1]
            assert wanted == (images.image_size,) * (len(images.shape) - 1)


@pytest.mark.slow
def test_convert():
    """Equal outputs included: `compare` raises where they differ."""
    summary = convert.compare(
        lambda folder: write_sharded_safetensors(tiny_llama(0), folder), layer=LAYERS - 1, rounds=1
    )
    assert_positive(summary[key] for key in ("ratio", "ratio_torch_mmap"))
    for name in convert.CONTENDERS:
        assert_positive(summary[name][key] for key in ("seconds", "bytes_read", "peak_mb"))
    assert summary["torch"]["bytes_read"] >= summary["checkpoint_bytes"]
    text = convert.as_text(summary)
    assert all(f"\n{name} " in text for name in convert.CONTENDERS)
    json.dumps(summary)


@pytest.mark.parametrize("how", ["read", "mapped"])
def test_bytes_read(how, tmp_path):
    """The same bytes count the same, whether they are read or mapped; what is not touched does not count."""
    size = 32 * 2**20
    path = tmp_path / "bytes"
    np.ones(2 * size, np.uint8).tofile(path)

    def work():
        array = np.fromfile(path, np.uint8, count=size) if how == "read" else np.memmap(path, np.uint8, "r")
        assert array[:size].sum(dtype=np.int64) == size
        return array

    assert convert._measured(work)["bytes_read"] == pytest.approx(size, rel=0.1)


class Holder:
    """Takes memory in its process and gives it back."""

    def sleep(self, seconds):
        time.sleep(seconds)

    def hold(self, count):
        return int(np.ones(count, np.uint8).sum(dtype=np.int64))

    def fail(self):
        raise ValueError("on purpose")


def test_remote():
    count = 200 * 10**6
    with Remote(Holder) as remote:
        assert remote.call("hold", count) == count
        held = remote.peak_mb()
        remote.reset_peak()
        assert held - remote.peak_mb() == pytest.approx(count / 1e6, rel=0.1)
        with pytest.raises(RuntimeError, match="on purpose"):
            remote.call("fail")
        assert remote.call("hold", 1) == 1


def test_a_contender_that_takes_too_long_is_left_out(capsys):
    here = types.SimpleNamespace(call=lambda method, *arguments: getattr(Holder(), method)(*arguments))
    with Remote(Holder, limit_s=1.0) as slow:
        race = train_step._Race({"quick": here, "slow": slow})
        assert race.each(lambda name, remote: remote.call("sleep", 60 if name == "slow" else 0)) == {"quick": None}
        assert race.late == {"slow": "not done within 1 s"}
        assert race.each(lambda _, remote: remote.call("hold", 1)) == {"quick": 1}
        with pytest.raises(LateError):
            slow.call("hold", 1)
        # The names of those that are late, where nobody is left.
        race.remotes = {"slow": slow}
        with pytest.raises(UserError, match=r"no contender was done in time: give a longer --limit_s \(slow\)"):
            race.each(lambda _, remote: remote.call("hold", 1))
    assert "slow is left out: not done within 1 s" in capsys.readouterr().out


def test_pytorch_s_faster_ways_compute_the_same(tmp_path):
    """Autocast, fused attention and channels last change rounding alone; without autocast not even that much."""
    import torch

    case = Case(model="vit_tiny", boost="rllm", family="llama-tiny", batch=2)
    contenders.Weights().write(case, str(tmp_path))
    forward = rllm.Attention.forward

    def loss(**changes):
        try:
            return contenders.TorchEager(dataclasses.replace(case, **changes), str(tmp_path))._loss()
        finally:
            rllm.Attention.forward = forward

    plain = loss().item()
    assert loss(sdpa=True, channels_last=True).item() == pytest.approx(plain, rel=1e-5)
    half = loss(dtype="bfloat16")
    assert half.dtype == torch.float32
    assert half.item() != plain
    assert half.item() == pytest.approx(plain, rel=3e-2)


@pytest.mark.parametrize(("content", "allowed"), [('{"a": 1}', True), ("", True), ("# Title\n", False), ("[1]", False)])
def test_figures_replace_figures_alone(content, allowed, tmp_path):
    (tmp_path / "figures.json").write_text(content)
    if not allowed:
        with pytest.raises(UserError, match=r"--json .* already exists and is not a JSON file of results"):
            figures.check_figures(str(tmp_path / "figures.json"), "--json")
        return
    figures.check_figures(str(tmp_path / "figures.json"), "--json")
    figures.write_figures(str(tmp_path / "figures.json"), {"b": float("nan")})
    assert (tmp_path / "figures.json").read_text() == '{\n  "b": null\n}\n'
    figures.check_figures("", "--json")


def test_folder(tmp_path, monkeypatch):
    """The files are sound, and `compare` raises where two starts find other images."""

    class Here(contextlib.AbstractContextManager):
        """A contender in this process."""

        def __init__(self, make, *arguments):
            self._thing = make(*arguments)

        def call(self, method):
            return getattr(self._thing, method)()

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(folder, "Remote", Here)
    monkeypatch.setattr(folder, "SAMPLE_SECONDS", 0.001)
    monkeypatch.setenv("JAXBOOST_CACHE", "")
    case = folder.compare(6, tmp_path)
    assert [case[name]["images"] for name in folder.STARTS] == [6] * 3
    assert_positive([case["decoding"], *(case[name][part] for name in folder.STARTS for part in ("load", "mb"))])
    text = folder.as_text({"cores": 2, "cases": [case]})
    assert all(name in text for name in folder.STARTS)


@pytest.mark.slow
def test_input():
    cases = [
        batches_made.Case(
            name="tiny", shape=(8, 8, 1), image_size=16, augment=batches_made.RECIPE_2D, batch=4, samples=12
        ),
    ]
    summary = batches_made.compare(cases, rounds=1, turn_seconds=0.01)
    (case,) = summary["cases"]
    assert_positive(value for name, value in case.items() if name != "name")
    assert case["ratio_per_second"] == case["device_images_per_second"] / case["host_images_per_second"]
    assert "tiny" in batches_made.as_text(summary)
    json.dumps(summary)


@pytest.mark.slow
def test_seeds():
    summary = seeds.compare(model="vit3d_tiny", seeds=2, samples=60, epochs=1, batch=8, rounds=1)
    assert_positive(summary[f"{way}_s"] for way in seeds.WAYS)
    assert summary["at_once_over_one"] == summary["at_once_s"] / summary["one_s"]
    assert "2 seeds at once" in seeds.as_text(summary)
    json.dumps(summary)
