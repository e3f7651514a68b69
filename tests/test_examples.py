"""The programs of examples/ run, train, and are as short as README says."""

import pathlib

import jax
import numpy as np
from flax import nnx

from examples import boost_a_function, boost_your_model
from jaxboost.models import frozen

TEXT = pathlib.Path(boost_your_model.__file__).read_text()


def test_your_model_is_trained_and_the_block_is_not():
    images, labels = boost_your_model.two_kinds()
    model, losses = boost_your_model.train(None, images, labels, steps=10)
    assert losses[-1] < 0.5 * losses[0]
    found = nnx.to_pure_dict(nnx.state(model.boost.block, frozen.Frozen))
    drawn = nnx.to_pure_dict(nnx.state(boost_your_model.random_block(), frozen.Frozen))
    jax.tree.map(np.testing.assert_array_equal, found, drawn)


def test_a_function_is_trained():
    _, losses = boost_a_function.train(None, *boost_your_model.two_kinds(), steps=10)
    assert losses[-1] < 0.5 * losses[0]


def test_the_boosting_is_six_lines_of_twenty():
    assert sum(line.endswith("# boost") for line in TEXT.splitlines()) == 6
    start, end = TEXT.index("class YourClassifier"), TEXT.index("def random_block")
    lines = [line for line in TEXT[start:end].splitlines() if line.strip() and '"""' not in line]
    assert len(lines) <= 22
