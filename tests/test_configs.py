"""Every config of the paper's tables: its docstring's cost, its arguments, and that its first step can be traced."""

import importlib
import json
import pathlib

import jax
import pytest
from ml_collections import ConfigDict

from jaxboost.analysis.describe import describe
from jaxboost.config import paper
from jaxboost.data.sources.medmnist import medmnist_info
from jaxboost.runs import datasets
from jaxboost.systems import prepare
from jaxboost.training import optim, program, step
from tests.scripts import REPOSITORY

TWO_D = [f"{name}mnist_vits" for name in ("breast", "retina", "pneumonia", "derma", "oct", "organa")]
THREE_D = [
    f"{name}mnist3d_{encoder}"
    for name in ("fracture", "adrenal", "nodule", "vessel")
    for encoder in ("vit3d", "vivits", "vivitm")
]
LEAVES = [*TWO_D, *THREE_D]


def _config(leaf: str, argument: str = "") -> ConfigDict:
    return importlib.import_module(f"configs.{leaf}").get_config(argument)


def cost(config: ConfigDict) -> str:
    """The line of a config's docstring."""
    found = describe(config)
    flops = found["flops_per_image"]
    images = medmnist_info()[config.data.name]["n_samples"]["train"]
    return (
        f"Cost: {found['trainable'] / 1e6:.1f} M trained parameters, {flops['with_boost'] / 1e9:.1f} GFLOP an image"
        f" forward ({flops['without_boost'] / 1e9:.1f} without the booster); {images:,} images."
    )


def test_there_is_a_config_for_each_row():
    assert sorted(LEAVES) == sorted(path.stem for path in pathlib.Path(REPOSITORY, "configs").glob("*mnist*.py"))


@pytest.mark.parametrize("leaf", LEAVES)
def test_docstring_names_command_cost_and_figures(leaf):
    text = importlib.import_module(f"configs.{leaf}").__doc__
    assert f"python train.py --config configs/{leaf}.py\n" in text
    assert cost(_config(leaf)) in text
    assert "The paper (Table" in text
    assert "Strongest" in text


def _trace_step(config: ConfigDict) -> tuple[step.TrainState, tuple[step.TrainState, dict[str, jax.ShapeDtypeStruct]]]:
    """Shapes of the state before a training step of the config, and of what the step returns; it is not compiled."""
    info = datasets.describe(config)
    system = prepare(config, info, with_weights=False)
    made = program.make_program(config, system.graphdef, program.make_objective(config, info), steps_per_epoch=100)
    state = made.state_shapes(system.params, system.stats)
    batch = program.batch_shapes(config, info)
    return state, jax.eval_shape(made.train_step, state, system.frozen, batch, jax.random.key(0))


@pytest.mark.parametrize(
    ("leaf", "argument"),
    [
        *((leaf, "") for leaf in (*TWO_D[1:3], *THREE_D[:3])),
        *(
            (leaf, argument)
            for leaf, known in ((TWO_D[0], paper.ARGUMENTS_2D), (THREE_D[0], paper.ARGUMENTS_3D))
            for argument in known
        ),
    ],
)
def test_first_step_can_be_traced(leaf, argument):
    before, (after, outputs) = _trace_step(_config(leaf, argument))
    assert jax.tree.map(lambda leaf: leaf.shape, before) == jax.tree.map(lambda leaf: leaf.shape, after)
    assert outputs["loss"].shape == ()


@pytest.mark.parametrize("leaf", LEAVES)
def test_reference_is_marked(leaf):
    config = _config(leaf, "reference")
    assert config.eval.protocol == "reference"
    assert _config(leaf).eval.protocol == "validation"


def test_reference_2d_is_the_last_quarter_of_a_cosine():
    config = _config("breastmnist_vits", "reference")
    _, rate = optim.make_optimizer(**config.optim, steps_per_epoch=4, epochs=config.train.epochs)
    # The released code's rates, at the first and last of an epoch's 4 steps.
    golden = json.loads((REPOSITORY / "tests/models/golden/released_code.json").read_text())["learning_rates_2d_code"]
    for epoch, expected in zip(golden["epochs"], golden["lr"], strict=True):
        for within in (0, 3):
            assert float(rate(4 * (epoch - 300) + within)) == pytest.approx(expected, abs=1e-9)


def test_reference_3d_is_adam_at_a_constant_rate():
    config = _config("vesselmnist3d_vivitm", "reference")
    assert (config.optim.name, config.train.batch_size, config.train.epochs) == ("adam", 32, 100)
    _, rate = optim.make_optimizer(**config.optim, steps_per_epoch=4, epochs=config.train.epochs)
    assert [float(rate(number)) for number in (0, 399)] == pytest.approx([1e-5, 1e-5])


@pytest.mark.parametrize("leaf", ["breastmnist_vits", "vesselmnist3d_vit3d"])
def test_unknown_argument(leaf):
    with pytest.raises(ValueError, match="unknown argument 'referense': give one of reference, resnet18"):
        _config(leaf, "referense")
