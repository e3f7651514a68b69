"""Numbers of a config that mean nothing end in one line, before anything is read or made."""

import math

import pytest

from jaxboost.config import load_config, table, validate, validation
from jaxboost.config.loading import packaged_names
from jaxboost.data.pipeline import augment
from jaxboost.errors import UserError
from jaxboost.models.backbones import BACKBONES
from jaxboost.runs import cross_validation

FROZEN = {"model.frozen": True, "model.weights": "random"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optim.lr": math.inf}, "optim.lr: inf is not finite"),
        ({"optim.lr": math.nan}, "optim.lr: nan is not finite"),
        ({"optim.lr": -1e-3}, "optim.lr: -0.001 should be above 0"),
        # The computation has it as 0.
        ({"optim.lr": 1e-60}, "optim.lr: 1e-60 should be above 0"),
        ({"optim.eps": 1e-50}, "optim.eps: 1e-50 should be above 0"),
        ({"optim.weight_decay": 1e39}, "optim.weight_decay: 1e+39 is not finite in float32"),
        ({"optim.b1": math.nan}, "optim.b1: nan is not finite"),
        ({"optim.b2": 1.0}, "optim.b2: 1.0 should be below 1"),
        ({"optim.clip_norm": math.inf}, "optim.clip_norm: inf is not finite"),
        ({"optim.layer_decay": 1.5}, "optim.layer_decay: 1.5 should be at most 1"),
        ({"optim.warmup_epochs": 1e300}, "optim.warmup_epochs: 1e+300 is not finite in float32"),
        ({"train.epochs": 10**30}, "train.epochs: 1000000000000000000000000000000 should be at most 1000000"),
        ({"train.epochs": 10**5000}, "train.epochs: a number with this many digits is not finite"),
        ({"train.max_steps": 2**31}, "train.max_steps: 2147483648 should be at most 2147483647"),
        ({"train.batch_size": 10**9}, "train.batch_size: 1000000000 should be at most 65536"),
        ({"train.batch_size": -8}, "train.batch_size: -8 should be above 0"),
        ({"train.log_every": 0}, "train.log_every: 0 should be above 0"),
        ({"train.ema": math.nan}, "train.ema: nan is not finite"),
        ({"eval.batch_size": 2**40}, "eval.batch_size: 1099511627776 should be at most 65536"),
        ({"eval.bootstrap": 10**12}, "eval.bootstrap: 1000000000000 should be at most 1000000"),
        ({"seed": -1}, "seed: -1 should be 0 or more"),
        ({"seed": 2**70}, "seed: 1180591620717411303424 should be below 4294967296"),
        ({"data.spacing": 1e308}, "data.spacing: 1e+308 is not finite in float32"),
        ({"data.spacing": 1e30}, "data.spacing: 1e+30 should be at most 1000"),
        ({"data.window": (0.0, math.inf)}, "data.window: inf is not finite"),
        ({"data.size": 10**9}, "data.size: 1000000000 should be at most 8192"),
        ({"data.shares": (math.nan, 0.5, 0.5)}, "data.shares: nan is not finite"),
        ({"data.max_pixels": 0}, "data.max_pixels: 0 should be above 0"),
        ({"data.fold_seed": -1}, "data.fold_seed: -1 should be 0 or more"),
        ({"data.fold_seed": 2**32}, "data.fold_seed: 4294967296 should be below 4294967296"),
        ({"data.max_voxels": 10**30}, "data.max_voxels: 1000000000000000000000000000000 should be at most"),
        ({"model.image_size": 7 * 10**9}, "model.image_size: 7000000000 should be at most 8192"),
        ({"model.std": (math.inf,)}, "model.std: inf is not finite"),
        ({"mix.mixup": math.nan}, "mix.mixup: nan is not finite"),
        ({"augment.resize": 10**9}, "augment.resize: 1000000000 should be at most 8192"),
        ({"augment.flip": 1.2}, "augment.flip: 1.2 should be 0 to 1"),
        ({"augment.vertical_flip": -0.1}, "augment.vertical_flip: -0.1 should be 0 to 1"),
        ({"augment.color_jitter": 1.5}, "augment.color_jitter: 1.5 should be 0 to 1"),
        ({"augment.rand_augment_magnitude": 11.0}, "rand_augment_magnitude: 11.0 should be 0 to 10"),
        ({"augment.rand_augment_std": math.inf}, "rand_augment_std: inf is not finite"),
        ({"augment.rand_augment_ops": -1}, "rand_augment_ops: -1 should be 0 or more"),
        ({"augment.resize": -224}, "augment.resize: -224 should be 0 or more"),
        ({"augment.repeats": 0}, "augment.repeats: 0 should be 1 or more"),
        ({"augment.shift": -1}, "augment.shift: -1 should be 0 or more"),
        ({"augment.noise": 1.5}, "augment.noise: 1.5 should be 0 to 1"),
        ({"augment.interpolation": "bicubik"}, "interpolation: 'bicubik' is unknown, did you mean 'bicubic'?"),
        ({"boost.layers": (10**5000,)}, "boost.layers: a number with this many digits"),
        ({"boost.control": "shufled"}, "boost.control: 'shufled' is unknown, did you mean 'shuffled'"),
        ({"boost.control_seed": -1}, "boost.control_seed: -1 should be 0 or more"),
        ({"boost.lora_rank": -2}, "boost.lora_rank: -2 should be 0 or more"),
        ({"boost.lora_rank": 10**6}, "boost.lora_rank: 1000000 should be at most 4096"),
        ({"boost.lora_alpha": -1.0}, "boost.lora_alpha: -1.0 should be 0 or more"),
        ({"boost.layers": tuple(range(20_000))}, "boost.layers: 20000 entries should be at most 10000"),
    ],
)
def test_numbers_that_mean_nothing(changes, words, tmp_path):
    config = load_config("quickstart")
    config.update_from_flattened_dict({"data.root": str(tmp_path / "nowhere"), **changes})
    with pytest.raises(UserError) as error:
        cross_validation.train_and_evaluate(config, tmp_path / "run")
    assert words in str(error.value)
    assert len(str(error.value)) < 200
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_pneumollm():
    config = load_config("pneumollm")
    validation.validate_present(config)
    config.pneumollm.count = 10**9
    with pytest.raises(UserError, match=r"pneumollm\.count: 1000000000 should be at most 4096"):
        validation.validate_present(config)


@pytest.mark.parametrize(("field", "value"), [("train.epochs", 10**6), ("optim.schedule_epochs", 1e6)])
def test_more_steps_than_can_be_counted(field, value):
    config = load_config("quickstart", **{field: value})
    validation.check_steps(config, 2147)
    with pytest.raises(UserError, match=rf"{field}: 1000000(\.0)? epochs of 2148 steps are more than 2147483647 steps"):
        validation.check_steps(config, 2148)


def test_fewer_steps_than_an_update_needs():
    # A longer schedule adds no step.
    config = load_config("quickstart", **{"train.accumulate": 16, "optim.schedule_epochs": 50.0})
    config.train.epochs = 4
    validation.check_steps(config, 4)
    with pytest.raises(
        UserError, match=r"train\.accumulate: 16 is more than the 12 steps of all epochs, nothing would"
    ):
        validation.check_steps(config, 3)


@pytest.mark.parametrize("name", [name for name, field in table.ALL_FIELDS.items() if field.range])
def test_the_bounds_themselves_are_allowed(name):
    found = table.ALL_FIELDS[name].range
    for bound in (found.least, found.most):
        assert bound is None or found.wanted(bound) == ""
    for bound in (found.above, found.below):
        assert bound is None or found.wanted(bound) != ""


@pytest.mark.parametrize("name", packaged_names())
@pytest.mark.parametrize("argument", ["", ":reference"])
def test_packaged_configs_have_no_problem(name, argument):
    if argument and name in ("baseline", "quickstart", "pneumollm_quickstart"):
        argument = ""
    assert validation.problems(load_config(name + argument)) == []


def test_all_problems_are_in_one_message():
    config = load_config("quickstart")
    config.optim.lr = -1.0
    config.model.backbone = "vivit_tny"
    config.data.folds = 1
    config.train.max_steps, config.train.accumulate = 2, 4
    with pytest.raises(UserError) as error:
        validate(config)
    assert str(error.value) == (
        "config field model.backbone: 'vivit_tny' is unknown, did you mean 'vivit_tiny'?; valid: "
        f"{', '.join(BACKBONES)}; config field optim.lr: -1.0 should be above 0;"
        " config field train.max_steps: 2 is less than train.accumulate, 4: nothing would be trained;"
        " config field data.folds: 1 should be 2 or more, or 0 for no cross-validation"
    )


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("quickstart", {"optim.schedule_from": 1.0}, "schedule_epochs: the schedule ends before the run"),
        ("quickstart", {"optim.schedule_from": 1.0}, "before the run, after 5 epochs: set it to optim.schedule_from"),
        ("quickstart", {"optim.warmup_epochs": 5.0}, "warmup_epochs: 5.0 warm-up epochs do not fit in 5 epochs"),
        ("quickstart", {"optim.name": "adamm"}, "optim.name: 'adamm' is unknown, did you mean 'adam'"),
        ("quickstart", {"optim.schedule": "cos"}, "optim.schedule: 'cos' is unknown, did you mean 'cosine'"),
        ("quickstart", {"mix.mixup": -1.0}, "mix.mixup: -1.0 should be 0 or more"),
        ("quickstart", {"mix.switch": 1.5}, "mix.switch: 1.5 should be 0 to 1"),
        ("quickstart", {"mix.label_smoothing": 1.0}, "mix.label_smoothing: 1.0 should be 0 to below 1"),
        ("quickstart", {"optim.name": "adam"}, "weight_decay: adam has none, set it to 0 (it is 0.05)"),
        ("quickstart", {"data.fold": 1}, "data.fold and data.folds_file belong to a cross-validation"),
        ("quickstart", {"data.folds": 5, "data.fold": 5}, "data.fold: 5 should be 0 to 4, or -1 for all"),
        ("quickstart", {"data.folds": 5, "data.val_share": 0.0}, "data.val_share: 0.0 should be above 0"),
        ("quickstart", {"data.shares": (0.5, 0.5)}, "data.shares=(0.5, 0.5)"),
        ("quickstart", {"data.name": "lidcshapes"}, "data.name: 'lidcshapes' is unknown"),
        ("quickstart", {"data.size": 30}, "size"),
        ("quickstart", {"model.backbone": "vit_tiny"}, "is 3-D but backbone vit_tiny takes 2-D input"),
        ("quickstart", {"model.image_size": 56}, "volumes are not resampled"),
        ("breastmnist_vits", {"model.image_size": 230}, "230 is not a multiple of the patch size 16 of backbone vit_s"),
        ("quickstart", {"model.mean": (1.0, 2.0)}, "model.mean: give 1 or 3 values"),
        ("quickstart", {"model.std": (0.0,)}, "model.std: (0.0,) should not be 0"),
        ("quickstart", {"model.weights": "blocks/x"}, "model.weights: backbone vivit_tiny cannot load weights"),
        ("quickstart", {"model.frozen": True}, "model.frozen: an untrained encoder would stay untrained"),
        ("quickstart", {"boost.path": "absorbed", "boost.rope": True}, "boost.path: absorbed does without keys"),
        (
            "quickstart",
            {"boost.path": "absorbed", "boost.lora_rank": 1},
            "does without keys and values, but LoRA",
        ),
        ("quickstart", {"boost.path": "absorbed", "boost.kind": "layer"}, "but kind layer has no LLM layer"),
        ("quickstart", {"boost.control": "matched", "boost.block": "random"}, "but boost.block is random: name its"),
        (
            "quickstart",
            {"boost.control": "matched", "boost.block": ""},
            "empty: name its folder, or set boost.control to",
        ),
        (
            "quickstart",
            {"boost.control": "matched", "boost.kind": "none"},
            "kind=none has no LLM layers, set it to",
        ),
        ("quickstart", {"boost.control": "shuffled", "boost.kind": "identity"}, "identity has no LLM layers, set it"),
        ("quickstart", {"boost.control_seed": 1}, "control_seed: it has no effect without boost.control, set it to 0"),
        ("quickstart", {"boost.lora_rank": 4, "boost.kind": "layer"}, "lora_rank: boost.kind=layer has no LLM layers"),
        (
            "quickstart",
            {"boost.lora_rank": 4, "boost.trainable": True},
            "trains the whole matrices, set boost.l",
        ),
        ("quickstart", {"boost.lora_alpha": 4.0}, "lora_alpha: it has no effect without boost.lora_rank, set it to 0"),
        ("quickstart", {"boost.layers": (-1,)}, "boost.layers: (-1,) should be layer numbers from 0"),
        ("quickstart", {"boost.block": "random", "boost.final_norm": "loaded"}, "a random block has no norm to load"),
        ("quickstart", {"boost.block": "random", "boost.adapter": "owner/name"}, "a random block has no adapter: set"),
        ("quickstart", {"augment.flip": 0.5}, "augment.flip: 0.5 is for 2-D images, these are 3-D"),
        ("quickstart", {"mix.erase": 0.5}, "mix.erase: it is only for 2-D images"),
        ("quickstart", {"mix.mixup": 0.5, "train.last_batch": "keep"}, "last_batch: mixup and cutmix need whole"),
        ("breastmnist_vits:resnet18", {"boost.kind": "rllm"}, "backbone resnet18 gives one pooled feature"),
        ("breastmnist_vits:resnet18", {"train.last_batch": "keep"}, "last_batch: batch norms need whole batches"),
        (
            "breastmnist_vits:resnet18",
            {"model.frozen": True},
            "model.frozen: an untrained encoder would stay untrained",
        ),
        (
            "breastmnist_vits",
            {"model.last_block": True},
            "model.last_block: the whole encoder is trained: set model.froz",
        ),
        (
            "breastmnist_vits",
            {"model.lora_rank": 4},
            "model.lora_rank: the whole encoder is trained: set model.frozen=T",
        ),
        (
            "breastmnist_vits",
            FROZEN | {"model.lora_rank": 4, "model.last_block": True},
            "model.last_block and model.lora_rank: both say what is trained: set model.lora_rank=0",
        ),
        (
            "breastmnist_vits",
            FROZEN | {"model.lora_alpha": 8.0},
            "model.lora_alpha: it has no effect without model.lora",
        ),
        ("breastmnist_vits", FROZEN | {"model.lora_targets": ("up",)}, "model.lora_targets: it has no effect without"),
        (
            "breastmnist_vits",
            FROZEN | {"model.lora_rank": 4, "model.lora_targets": ("qkv", "proj")},
            "model.lora_targets: qkv, proj should be one or more of qkv, out, up, down, the matrices of vit_s",
        ),
        (
            "breastmnist_vits",
            FROZEN | {"model.lora_rank": 4, "model.backbone": "convnext_tiny"},
            "model.lora_targets: qkv should be one or more of up, down, the matrices of convnext_tiny",
        ),
        (
            "breastmnist_vits:resnet18",
            FROZEN | {"model.lora_rank": 4},
            "model.lora_rank: backbone resnet18 has convolutions, no linear layers that LoRA changes: set it to 0",
        ),
        (
            "breastmnist_vits",
            FROZEN | {"model.last_block": True, "model.drop_path": 0.1},
            "model.drop_path: it would also drop the frozen blocks below the last one, set it to 0",
        ),
        (
            "breastmnist_vits",
            {"model.backbone": "siglip_b16", "boost.kind": "rllm"},
            "backbone siglip_b16 gives one pooled feature, no tokens: set boost.kind=none",
        ),
        (
            "breastmnist_vits",
            {"model.backbone": "siglip_b16", "boost.kind": "none", "model.frozen": True, "model.weights": ""},
            "config field model.frozen: an untrained encoder would stay untrained",
        ),
        ("breastmnist_vits", {"optim.layer_decay": 0.7, "model.frozen": True}, "layer_decay: it is for encoders with"),
        ("pneumollm", {"optim.layer_decay": 0.7}, "layer_decay: it is for encoders with trained layers, set it to 1"),
        ("breastmnist_vits", {"augment.resize": 200}, "resize: 200 is less than model.image_size=224, to which it is"),
        (
            "quickstart",
            {"train.class_weights": "1;2"},
            "'1;2' should be empty, \"balanced\", or a number from 0 for each",
        ),
        (
            "quickstart",
            {"train.class_weights": "0,0"},
            "class_weights: '0,0' should be empty, \"balanced\", or a number",
        ),
        (
            "quickstart",
            {"train.class_weights": "1,2,3"},
            "class_weights: '1,2,3' should be empty, \"balanced\", or 2 numb",
        ),
        (
            "breastmnist_vits",
            {"data.name": "chestmnist", "train.sampling": "balanced", "eval.metric": "auc"},
            "train.sampling: balanced draws a sample by its class, but these have several labels",
        ),
        (
            "breastmnist_vits",
            {"augment.crop_scale": (1.0, 0.5)},
            "augment.crop_scale: (1.0, 0.5) should be (low, high)",
        ),
        (
            "dermamnist_vits",
            {"eval.metric": "avg"},
            "eval.metric: avg is for binary tasks, and dermamnist is multi-class",
        ),
        ("pneumollm", {"pneumollm.every": 25}, "pneumollm.every: 25 is more than the 24 layers of the encoder"),
        ("pneumollm:conv14", {"model.image_size": 230}, "not a multiple of the patch size 14 of backbone conv14"),
        ("pneumollm", {"pneumollm.tokens": "prompts"}, "pneumollm.tokens: 'prompts' is unknown"),
        ("pneumollm", {"llama.weights": "int4"}, "llama.weights: 'int4' is unknown"),
        ("pneumollm", {"data.window": (2.0, 1.0)}, "data.window=(2.0, 1.0): give (low, high) with low below high"),
        ("pneumollm", {"data.window": (1.0,)}, "data.window=(1.0,): give (low, high) with low below high"),
        ("pneumollm", {"data.nan": "zero"}, "data.nan='zero'"),
        ("pneumollm_quickstart", {"data.name": "lidcshapes3d"}, "PneumoLLM takes 2-D images"),
    ],
)
def test_fields_that_do_not_go_together(name, changes, words):
    (problem,) = validation.problems(load_config(name, **changes))
    assert words in problem


def test_types_and_names():
    config = load_config("quickstart").unlock()
    with config.ignore_type():
        config.train.epochs = "5"
        config.seed = True
        config.model.mean = 0.5
    config.optim.lrr = 1.0
    del config.data.folds
    assert validation.problems(config) == [
        "config field optim.lrr is unknown: did you mean 'optim.lr'?",
        "config field seed: True should be a whole number",
        "config field data.folds is missing: start from jaxboost.config.get_config(), get_pneumollm_config(),"
        " get_clip_config(), get_blip2_config() or get_baseline_config()",
        "config field model.mean: 0.5 should be a tuple",
        "config field train.epochs: '5' should be a whole number",
    ]


def test_the_table_has_the_choices_of_the_code():
    """What is written out in the table, so that it needs no import, is what the other rooms know."""
    assert table.ALL_FIELDS["augment.interpolation"].allowed() == tuple(augment.FILTERS)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("breastmnist_vits", {"optim.layer_decay": 0.7}),
        ("quickstart", {"optim.layer_decay": 0.7}),
        ("breastmnist_vits", {"augment.resize": 224}),
        ("quickstart", {"train.class_weights": "1,2.5"}),
        # A control without a layer reads no norm of one.
        ("quickstart", {"boost.kind": "mlp", "boost.block": "random", "boost.final_norm": "loaded"}),
        ("quickstart", {"boost.control": "shuffled", "boost.control_seed": 2, "boost.lora_rank": 4}),
        ("quickstart", {"boost.control": "matched", "boost.trainable": True}),
        ("quickstart", {"boost.kind": "layer", "boost.path": "full"}),
        # conv14 has no layers to take tokens from.
        ("pneumollm:conv14", {"pneumollm.every": 25}),
    ],
)
def test_fields_that_go_together(name, changes):
    assert validation.problems(load_config(name, **changes)) == []


@pytest.mark.parametrize("name", table.RLLM_FIELDS)
def test_a_field_that_is_missing_is_one_problem(name):
    config = load_config("quickstart").unlock()
    section, _, field = name.rpartition(".")
    del (config[section] if section else config)[field]
    (problem,) = validation.problems(config)
    assert problem.startswith(f"config field {name} is missing")


@pytest.mark.parametrize("name", table.ALL_FIELDS)
def test_each_field_says_what_it_means(name):
    field = table.ALL_FIELDS[name]
    assert len(field.meaning) > 5
    # Only fields of the first version have no value for what earlier versions did. Where "auto" is the default, a run
    # of an earlier version keeps what that version did.
    assert field.before in (None, field.default) or (field.resume == "auto" and field.before != "auto")
