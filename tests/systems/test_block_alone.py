"""`boost.block` or `llama.block` alone is enough: the block says which width, layers and constants it has."""

import importlib
import logging

import pytest

from configs import pneumollm_quickstart, quickstart
from jaxboost import convert, systems
from jaxboost.analysis.describe import describe
from jaxboost.data.dataset import DatasetInfo
from jaxboost.errors import UserError
from jaxboost.models.llama import FAMILIES
from jaxboost.runs import datasets, train, workdir
from tests.reference import llama_checkpoints

IMAGES = DatasetInfo("radiographs", "binary-class", ("a", "b"), 1, 2, 224, {}, "")


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    """Blocks of two models of 4 layers: `one` (layer 3) and `all` of llama-tiny, `narrow` of no family."""
    folder = tmp_path_factory.mktemp("blocks")
    source = llama_checkpoints.write_safetensors(llama_checkpoints.tiny_llama(0), folder / "source")
    convert.convert(source, "3", folder / "one")
    convert.convert(source, "all", folder / "all")
    model = llama_checkpoints.tiny_llama(0, hidden_size=32, intermediate_size=48)
    convert.convert(llama_checkpoints.write_safetensors(model, folder / "other"), "1", folder / "narrow")
    return folder


@pytest.fixture
def log(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("jaxboost"), "propagate", True)
    caplog.set_level(logging.INFO, logger="jaxboost")
    return caplog


def config_of(name, **changes):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.update_from_flattened_dict({field.replace("__", "."): value for field, value in changes.items()})
    return config


def prepare(config):
    return systems.prepare(config, datasets.describe(config))


@pytest.mark.parametrize("name", ["vesselmnist3d_vivitm", "quickstart"])
@pytest.mark.parametrize(
    ("block", "width", "mlp_width", "layers"),
    [("one", 64, 96, [3]), ("narrow", 32, 48, [1]), ("all", 64, 96, [0, 1, 2, 3])],
)
def test_any_block_under_any_config(name, block, width, mlp_width, layers, blocks, log):
    config = config_of(name, boost__block=str(blocks / block))
    system = prepare(config)
    (part,) = system.pretrained
    assert part.about["layers"] == layers
    assert (part.about["arguments"]["width"], part.about["arguments"]["mlp_width"]) == (width, mlp_width)
    assert system.frozen["boost"]["block"]["layers"]["up"].shape == (len(layers), width, mlp_width)
    assert f"is not of the family {config.boost.family}: its own shapes are used, width {width}" in log.text
    assert ("all layers of the block at" in log.text) == (len(layers) > 1)
    if len(layers) > 1:
        assert "boost.layers names none: all layers" in log.text
        assert "are used, 0, 1, 2, 3" in log.text
    assert list(systems.with_layers(config).boost.layers) == layers


def test_the_control_without_a_layer_has_the_width_of_the_block(blocks):
    narrow = prepare(config_of("quickstart", boost__block=str(blocks / "narrow"), boost__kind="mlp"))
    assert narrow.pretrained == ()
    assert narrow.params["boost"]["encode"]["kernel"].shape == (128, 32)
    assert narrow.width == 32


@pytest.mark.parametrize(
    ("name", "changes"), [("quickstart", {"boost__kind": "mlp"}), ("pneumollm_quickstart", {"llama__used": False})]
)
def test_a_named_block_that_is_missing_gives_no_width(name, changes, blocks, tmp_path):
    """The width of the family would be another model than the named one; without a name it is what is asked for."""
    section = "boost" if name == "quickstart" else "llama"
    changes = changes if section == "boost" else {**changes, "pneumollm__vision": "random"}
    missing = {f"{section}__block": str(tmp_path / "none"), f"{section}__convert": False}
    config = config_of(name, **changes, **missing)
    with pytest.raises(UserError, match=rf"no block at .*none: make it .*; or leave {section}\.block empty"):
        systems.prepare(config, IMAGES)
    config[section].block = ""
    assert systems.prepare(config, IMAGES).width == FAMILIES["smollm2-135m"].width
    # It is converted where the config says so, and shapes alone need no block.
    made = {f"{section}__block": str(tmp_path / "made"), f"{section}__source": str(blocks / "other")}
    config = config_of(name, **changes, **made)
    assert systems.prepare(config, IMAGES, with_weights=False).width == FAMILIES["smollm2-135m"].width
    assert systems.prepare(config, IMAGES).width == 32


def test_random_layers_are_those_of_the_family():
    random = {"boost__block": "random", "boost__family": "llama-tiny"}
    (part,) = prepare(config_of("quickstart", **random, boost__layers=(3, 0))).pretrained
    assert part.about["layers"] == [3, 0]
    with pytest.raises(UserError, match=r"boost\.layers: llama-tiny has 4 layers, 0 to 3, not layer 4, 99: choose"):
        prepare(config_of("quickstart", **random, boost__layers=(3, 4, 99)))
    # A run of an earlier version may have them.
    config = config_of("quickstart", **random, boost__layers=(99,))
    recorded = systems.Recorded(parts={}, width=None)
    assert systems.prepare(config, datasets.describe(config), recorded=recorded).pretrained


def test_a_block_under_pneumollm(blocks, log):
    changes = {"llama.block": str(blocks / "all"), "pneumollm.vision": "random"}
    config = pneumollm_quickstart.get_config()
    config.update_from_flattened_dict(changes)
    vision, llama = systems.prepare(config, IMAGES).pretrained
    assert vision.role == "vision"
    assert llama.about["layers"] == [0, 1, 2, 3]
    assert llama.about["arguments"]["width"] == 64
    assert "llama.layers names none: all layers" in log.text
    assert systems.with_layers(config).llama.layers == (0, 1, 2, 3)


def test_describe_has_the_shapes_of_the_block_that_is_trained(blocks, tmp_path):
    config = config_of("quickstart", boost__block=str(blocks / "narrow"))
    found = describe(config)
    assert (found["trainable"], found["frozen"]) == _sizes(prepare(config))
    missing = config_of("quickstart", boost__block=str(tmp_path / "none"))
    family = FAMILIES["smollm2-135m"]
    assert describe(missing)["frozen"] == (
        family.width * (2 * family.heads * family.head_dim + 2 * family.kv_heads * family.head_dim)
        + 3 * family.width * family.mlp_width
        + 3 * family.width
    )


def _sizes(system):
    from jaxboost.models.frozen import count

    return count(system.params), count(system.frozen)


def test_chosen_layers_are_used(blocks, log):
    (part,) = prepare(
        config_of("vesselmnist3d_vivitm", boost__block=str(blocks / "all"), boost__layers=(2, 0))
    ).pretrained
    assert part.about["layers"] == [2, 0]
    assert "names none" not in log.text


@pytest.mark.parametrize(
    ("block", "layers", "words", "converts"),
    [
        # The model has no such layer: nobody is sent to convert it.
        ("one", (31,), r"holds the layers 3 of source, not layer 31: .*\(source has 4 layers, 0 to 3\)", False),
        ("all", (0, 9), r"holds the layers 0, 1, 2, 3 of source, not layer 9: .* has 4 layers", False),
        ("one", (0, 3), r"holds the layers 3 of source, not layer 0: choose among them, or give \(\)", True),
    ],
)
def test_a_chosen_layer_that_the_block_lacks(block, layers, words, converts, blocks):
    config = config_of("quickstart", boost__block=str(blocks / block), boost__layers=layers)
    with pytest.raises(UserError, match=rf"config field boost\.layers: the block at .* {words}") as mistake:
        prepare(config)
    assert ("jaxboost convert --source SOURCE --part block --layers 0,3" in str(mistake.value)) == converts


def test_a_missing_block_is_converted_from_the_end_of_its_own_model(blocks, tmp_path, log):
    changes = {"boost__block": str(tmp_path / "made"), "boost__source": str(blocks / "source")}
    with pytest.raises(UserError, match=r"no block at .*made: make it with .* --layers -1 --out .*made"):
        prepare(config_of("vesselmnist3d_vivitm", **changes))
    with pytest.raises(UserError, match=r"make it with .* --layers -1 --dtype bfloat16 --out .*made`$"):
        prepare(config_of("vesselmnist3d_vivitm", model__dtype="bfloat16", **changes))
    config = config_of("vesselmnist3d_vivitm", boost__convert=True, **changes)
    assert systems.with_layers(config).boost.layers == ()
    # What a run has recorded before its block was removed.
    assert systems.with_layers(config, lambda: {"boost.layers": [3]}).boost.layers == (3,)
    (part,) = prepare(config).pretrained
    assert f"converting the last layer of {blocks / 'source'}" in log.text
    assert part.about["layers"] == [3]
    assert systems.with_layers(config).boost.layers == (3,)


@pytest.mark.parametrize(
    ("name", "changes", "layers"),
    [
        ("vesselmnist3d_vivitm", {"boost__block": "random"}, (31,)),
        ("vesselmnist3d_vivitm", {"boost__kind": "none"}, (31,)),
        ("quickstart", {"boost__block": "random"}, (29,)),
        ("pneumollm", {"llama__block": "random"}, tuple(range(32))),
        ("pneumollm", {"llama__used": False}, tuple(range(32))),
        ("pneumollm_quickstart", {"llama__block": "random"}, tuple(range(30))),
    ],
)
def test_without_a_block_the_layers_are_those_of_the_family(name, changes, layers):
    config = systems.with_layers(config_of(name, **changes))
    assert config["llama" if "llama" in config else "boost"].layers == layers


def test_a_run_of_the_quick_start_records_the_layers(blocks, few_lidc_root, tmp_path):
    """The same command goes on, also the one that names the layers, and also when the block is gone."""
    config = quickstart.get_config()
    changes = {
        "data.root": str(few_lidc_root),
        "boost.convert": False,
        "train.max_steps": 1,
        "train.batch_size": 16,
        "eval.batch_size": 24,
        "eval.bootstrap": 5,
    }
    config.update_from_flattened_dict({**changes, "boost.block": str(blocks / "one")})
    result = train.train_and_evaluate(config, tmp_path / "run")
    assert result["block"]["layers"] == result["config"]["boost"]["layers"] == [3]
    assert workdir.read_config(tmp_path / "run")["boost"]["layers"] == [3]
    assert config.boost.layers == ()
    named = config.copy_and_resolve_references()
    named.boost.layers = (3,)
    gone = config.copy_and_resolve_references()
    gone.boost.block = str(tmp_path / "gone")
    for same in (config, named, gone):
        assert train.train_and_evaluate(same, tmp_path / "run") == result
    other = config.copy_and_resolve_references()
    other.boost.block = str(blocks / "all")
    with pytest.raises(UserError, match=r"differs in boost\.layers \(\[3\] there, \[0, 1, 2, 3\] now\)"):
        train.train_and_evaluate(other, tmp_path / "run")
