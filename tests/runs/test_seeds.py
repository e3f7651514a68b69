"""Several seeds in one program give what each seed gives alone."""

import json

import jax
import numpy as np
import pytest

from jaxboost import convert
from jaxboost.config import get_pneumollm_config
from jaxboost.config.overrides import with_overrides
from jaxboost.errors import UserError
from jaxboost.evaluation import evaluate
from jaxboost.io import read_json
from jaxboost.models.backbones import BACKBONES, Backbone
from jaxboost.models.image_llm import ENCODERS
from jaxboost.models.vit import ViT
from jaxboost.models.vit3d import ViT3D
from jaxboost.runs import seeds, train, workdir
from jaxboost.training import program, several, step
from jaxboost.training.engine import Together
from jaxboost.training.recording import Recording
from tests.convert import vision_checkpoints as vision
from tests.metrics import records
from tests.reference.llama_checkpoints import tiny_llama, write_safetensors
from tests.training.small_runs import small_config
from tests.training.stopped_runs import send_in
from tests.training.tiny_resnet import TINY as TINY_RESNET
from tests.training.tiny_resnet import tiny_config

# Small, so that most of a test's time is compilation.
SHAPE = {"width": 16, "depth": 2, "heads": 2, "mlp_width": 24, "patch": 14}
TINY_3D = Backbone(encoder=ViT3D, ndim=3, arguments={**SHAPE, "head_dim": 8}, head_eps=1e-5)
TINY_2D = Backbone(encoder=ViT, ndim=2, arguments=SHAPE, head_eps=1e-6)

# Two epochs of three steps, with everything that a seed decides: order, augmentation, mixing, dropped paths.
CHANGES = {
    "train.max_steps": 6,
    "train.epochs": 2,
    "train.log_every": 1,
    "train.ema": 0.5,
    "augment.volume_flips": True,
    "mix.mixup": 0.2,
    "model.drop_path": 0.2,
    "seed": 3,
    "model.backbone": "tiny_3d",
}


def assert_near(folder, alone):
    """Stated tolerance: losses and predictions to 1e-5, as two programs may round differently."""
    found, expected = records(folder), records(alone)
    assert [record.keys() for record in found] == [record.keys() for record in expected]
    for ours, theirs in zip(found, expected, strict=True):
        for name, value in ours.items():
            assert value == pytest.approx(theirs[name], rel=2e-4 if name == "grad_norm" else 1e-5, abs=1e-5), name
    for split in ("val", "test"):
        ours, theirs = (predictions(each, split) for each in (folder, alone))
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    ours, theirs = (read_json(each / "config.json") for each in (folder, alone))
    ours["train"]["steps_per_call"] = theirs["train"]["steps_per_call"]
    assert ours == theirs


def predictions(folder, split):
    lines = (folder / "predictions" / f"{split}.csv").read_text().splitlines()[1:]
    return np.array([[float(value) for value in line.split(",")[-2:]] for line in lines])


def damage(checkpoint):
    """Changes a byte of the largest file."""
    file = max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)


# An encoder that is drawn for each seed, and never changes.
RANDOM_TOKENS = {
    "model.frozen": True,
    "model.weights": "random",
    "model.drop_path": 0.0,
    "augment.volume_flips": False,
    "mix.mixup": 0.0,
}
# The same on silhouettes, whose images nothing changes at random.
PLAIN = {
    "data.name": "lidcsilhouettes",
    "optim.lr": 1e-2,
    "train.max_steps": 6,
    "train.epochs": 2,
    "train.log_every": 1,
    "train.checkpoint_every": 0,
    "seed": 3,
}


def config_of(root, **changes):
    return small_config(root, {**CHANGES, **changes})


@pytest.fixture(autouse=True, scope="module")
def _tiny_backbones():
    with pytest.MonkeyPatch.context() as patch:
        for name, backbone in (("tiny_3d", TINY_3D), ("tiny_2d", TINY_2D), ("resnet_tiny", TINY_RESNET)):
            patch.setitem(BACKBONES, name, backbone)
        patch.setitem(ENCODERS, "tiny_2d", TINY_2D)
        yield


@pytest.fixture(scope="module")
def block(tmp_path_factory):
    """A converted layer of a tiny LLaMA."""
    folder = tmp_path_factory.mktemp("block")
    write_safetensors(tiny_llama(0), folder / "checkpoint")
    convert.convert(str(folder / "checkpoint"), "-1", folder / "block")
    return folder / "block"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A converted encoder, `TINY_2D`."""
    folder = tmp_path_factory.mktemp("encoder")
    shape = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24}
    vision.tiny("vit", **shape, patch_size=14, image_size=28).save_pretrained(folder / "source")
    convert.convert(str(folder / "source"), "all", folder / "encoder")
    return folder / "encoder"


def test_trees_are_divided_and_joined():
    tree = {"a": {"x": 1, "y": {"z": 2}}, "b": 3, "c": {"d": 4}}
    named, rest = several.divided(tree, [("a", "y"), ("c",)])
    assert named == {"a": {"y": {"z": 2}}, "c": {"d": 4}}
    assert rest == {"a": {"x": 1}, "b": 3}
    assert several.joined(named, rest) == several.joined(rest, named) == tree
    assert several.divided(tree, []) == ({}, tree)


@pytest.mark.parametrize(
    ("steps", "common"),
    [([(), ()], 0), ([(3, 6), (6, 9)], 6), ([(3, 6), (3, 6)], 6), ([(270, 300), ()], None), ([(3,), (6, 9)], None)],
)
def test_the_step_from_which_all_go_on(steps, common, tmp_path):
    folders = [tmp_path / str(index) for index in range(len(steps))]
    for folder, found in zip(folders, steps, strict=True):
        for number in found:
            (folder / "checkpoints/latest" / str(number)).mkdir(parents=True)
    assert train.common_step(folders) == common


@pytest.mark.same_programs
def test_a_seed_that_is_further_along_is_never_thrown_back(few_lidc_root, tmp_path, monkeypatch):
    runs = seeds.of_config(config_of(few_lidc_root, **{"train.seeds": 2}), tmp_path)
    (tmp_path / "seed3/checkpoints/latest/300").mkdir(parents=True)
    alone = []
    monkeypatch.setattr(train, "train_and_evaluate", lambda config, folder: alone.append(folder.name) or {})
    monkeypatch.setattr(seeds, "_train", lambda todo: 1 / 0)
    assert seeds.train_and_evaluate(runs).keys() == runs.keys()
    assert alone == ["seed3", "seed4"]


def test_seeds_that_began_with_other_choices_are_refused(few_lidc_root, tmp_path):
    runs = seeds.of_config(config_of(few_lidc_root, **{"train.seeds": 2, "model.dtype": "auto"}), tmp_path)
    workdir.create(tmp_path / "seed4", with_overrides(runs[tmp_path / "seed4"], {"model.dtype": "bfloat16"}))
    with pytest.raises(UserError, match=r"seed4 was started with model\.dtype='bfloat16', .* with 'float32'"):
        seeds.train_and_evaluate(runs)


def train_alone(config, number, folder):
    """The lone run of a seed, one step in each call."""
    fields = {"seed": number, "train.seeds": 1, "train.steps_per_call": 1}
    train.train_and_evaluate(with_overrides(config, fields), folder)


def steps_of(runs):
    """The steps of the checkpoints of each run."""
    return [sorted(path.name for path in folder.glob("checkpoints/latest/*")) for folder in runs]


@pytest.fixture
def held(monkeypatch):
    """What trains several seeds, in the order of the starts."""
    made = []
    monkeypatch.setattr(seeds, "Together", lambda *arguments: made.append(Together(*arguments)) or made[-1])
    return made


def frozen_arrays(engine):
    """Number of frozen arrays that each seed has, and of those that are there once."""
    return [len(jax.tree.leaves(engine._frozen[name])) for name in (several.OWN, several.SHARED)]


@pytest.mark.same_programs
def test_two_seeds_go_on_after_a_damaged_checkpoint(few_lidc_root, tmp_path, monkeypatch, block, held):
    """Data on the device, in calls of two steps; a loaded block, which is there once."""
    changes = {"data.on_device": "true", "train.steps_per_call": 2, "boost.block": str(block), "boost.layers": ()}
    config = config_of(few_lidc_root, **{**changes, "train.seeds": 2})
    runs = seeds.of_config(config, tmp_path)
    assert [folder.name for folder in runs] == ["seed3", "seed4"]
    with monkeypatch.context() as patched:
        # In the second epoch, after step 5: calls of two steps and one.
        send_in(patched, step, "put", call=3)
        assert seeds.train_and_evaluate(runs) is None
    own, shared = frozen_arrays(held[0])
    assert (own, shared > 0) == (0, True)
    assert steps_of(runs) == [["3", "5"]] * 2
    # It is found only when it is read.
    damage(tmp_path / "seed4/checkpoints/latest/5")
    found = seeds.train_and_evaluate(runs)
    assert found.keys() == runs.keys()
    for folder, content in found.items():
        assert json.loads((folder / "result.json").read_text()) == content
        assert (folder / "checkpoints").exists()
    train_alone(config, 3, tmp_path / "alone")
    assert_near(tmp_path / "seed3", tmp_path / "alone")
    losses = [[record["train_loss"] for record in records(folder) if "train_loss" in record] for folder in runs]
    assert all(one != other for one, other in zip(*losses, strict=True))
    # Finished runs are left as they are.
    assert seeds.train_and_evaluate(runs) == found


@pytest.mark.same_programs
def test_two_seeds_go_on_after_a_stop_in_a_validation(few_lidc_root, tmp_path, monkeypatch, held):
    """A random frozen encoder and block, which each seed draws, and a smaller last batch."""
    drawn = {"model.frozen": True, "model.weights": "random", "model.drop_path": 0.0}
    kept = {"train.batch_size": 20, "train.last_batch": "keep", "mix.mixup": 0.0}
    config = config_of(few_lidc_root, **{**drawn, **kept, "train.seeds": 2})
    runs = seeds.of_config(config, tmp_path)
    with monkeypatch.context() as patched:
        # The first call is for the compilation, the second the validation of the first epoch.
        send_in(patched, evaluate, "run_batches", call=2)
        assert seeds.train_and_evaluate(runs) is None
    own, shared = frozen_arrays(held[0])
    assert (own > 0, shared) == (True, 0)
    assert steps_of(runs) == [["3"]] * 2
    assert not any("val_loss" in record for folder in runs for record in records(folder))
    with monkeypatch.context() as patched:
        send_in(patched, step, "put", call=2)
        assert seeds.train_and_evaluate(runs) is None
    assert steps_of(runs) == [["3", "5"]] * 2
    # A kill may have come between the saves of the two.
    (tmp_path / "seed4/checkpoints/latest/5").rename(tmp_path / "gone")
    program.forget()  # as in another process
    seeds.train_and_evaluate(runs)
    train_alone(config, 4, tmp_path / "alone")
    assert_near(tmp_path / "seed4", tmp_path / "alone")


def tokens_config(root, encoder):
    """R-LLM on the tokens of a loaded frozen encoder, on the device, with a smaller last batch."""
    fields = {
        "model.backbone": "tiny_2d",
        "model.weights": str(encoder),
        "model.frozen": True,
        "train.batch_size": 20,
        "train.last_batch": "keep",
        "data.on_device": "true",
        "train.steps_per_call": 0,
    }
    return small_config(root, PLAIN | fields)


def pneumollm_config(root, encoder):
    """PneumoLLM on the tokens of a loaded encoder."""
    fields = {
        "data.root": str(root),
        "model.backbone": "tiny_2d",
        "model.image_size": 28,
        "model.dtype": "float32",
        "pneumollm.vision": str(encoder),
        "pneumollm.vision_adapters": False,
        "pneumollm.every": 1,
        "llama.family": "llama-tiny",
        "llama.block": "random",
        "llama.layers": (0,),
        "llama.final_norm": "ones",
        "optim.warmup_epochs": 0.0,
        "train.batch_size": 16,
        "eval.batch_size": 24,
        "eval.bootstrap": 20,
    }
    return with_overrides(get_pneumollm_config(), PLAIN | fields)


def last_block_config(root, encoder):
    """The last block of a loaded encoder is trained, and the rest is there once."""
    fields = {"model.backbone": "tiny_2d", "model.weights": str(encoder), "model.frozen": True}
    return small_config(root, PLAIN | fields | {"model.last_block": True, "boost.kind": "none"})


def norms_config(root, encoder):
    """An encoder with batch norms."""
    return tiny_config(root, PLAIN | {"train.batch_size": 16, "train.ema": 0.5})


@pytest.mark.parametrize("make", [tokens_config, pneumollm_config, last_block_config, norms_config])
def test_two_seeds_are_those_alone(few_lidc_root, tmp_path, monkeypatch, encoder, held, make):
    """All copies at once, as on an accelerator."""
    config = make(few_lidc_root, encoder)
    config.train.seeds = 2
    runs = seeds.of_config(config, tmp_path)
    monkeypatch.setattr(program, "Over", lambda one_by_one: several.Over(one_by_one=False))
    if make is norms_config:
        with monkeypatch.context() as patched:
            # Between the validations of the two, after the first epoch.
            send_in(patched, Recording, "validate")
            assert seeds.train_and_evaluate(runs) is None
        assert [(records(folder)[-1]["step"], "val_loss" in records(folder)[-1]) for folder in runs] == [(3, True)] * 2
    seeds.train_and_evaluate(runs)
    assert bool(jax.tree.leaves(held[0]._states.stats)) == (make is norms_config)
    # The tokens are those of all seeds.
    has_tokens = make in (tokens_config, pneumollm_config)
    assert len(list(tmp_path.rglob("source-tokens-*/*.npy"))) == has_tokens
    if make is last_block_config:
        own, shared = frozen_arrays(held[0])
        assert (own, shared > 0) == (0, True)
    train_alone(config, 4, tmp_path / "alone")
    assert_near(tmp_path / "seed4", tmp_path / "alone")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.folds": 3}, "data.folds, as its folds"),
        ({"data.train_fraction": 0.5}, "data.train_fraction, as each seed draws other samples"),
        ({"train.fsdp": True}, "train.fsdp"),
        (RANDOM_TOKENS, "model.weights=random, as each seed would keep other tokens of its frozen encoder"),
    ],
)
def test_what_does_not_go_together_is_refused(few_lidc_root, tmp_path, changes, words):
    config = config_of(few_lidc_root, **{**changes, "train.seeds": 2})
    with pytest.raises(UserError, match=rf"train\.seeds: it does not go together with {words}.*set train\.seeds=1"):
        seeds.train_and_evaluate(seeds.of_config(config, tmp_path))
    assert not list(tmp_path.iterdir())


def test_tokens_of_random_encoders_are_refused(few_lidc_root, tmp_path):
    config = pneumollm_config(few_lidc_root, "random")
    config.train.seeds = 2
    with pytest.raises(UserError, match=r"with pneumollm\.vision=random, as .* set train\.seeds=1.*other$"):
        seeds.train_and_evaluate(seeds.of_config(config, tmp_path))
    # Where the encoder runs at each step, each seed may have its own.
    config = config_of(few_lidc_root, **RANDOM_TOKENS)
    with pytest.raises(UserError, match=r"or set model\.cache_gb=0"):
        seeds.check(config)
    config.model.cache_gb = 0.0
    seeds.check(config)


def test_one_folder_is_not_enough(few_lidc_root, tmp_path):
    with pytest.raises(UserError, match=r"train\.seeds: 2 runs need several folders"):
        train.train_and_evaluate(config_of(few_lidc_root, **{"train.seeds": 2}), tmp_path / "run")
