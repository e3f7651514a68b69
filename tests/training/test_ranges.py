"""Numbers of a config that mean nothing end in one line, before anything is read or made."""

import math

import pytest

from configs import pneumollm, quickstart
from jaxboost.config import ranges
from jaxboost.errors import UserError
from jaxboost.runs import cross_validation, train


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
        ({"train.epochs": 10**5000}, "train.epochs: a number of so many digits is not finite"),
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
        ({"data.max_voxels": 10**30}, "data.max_voxels: 1000000000000000000000000000000 should be at most"),
        ({"model.image_size": 7 * 10**9}, "model.image_size: 7000000000 should be at most 8192"),
        ({"model.std": (math.inf,)}, "model.std: inf is not finite"),
        ({"mix.mixup": math.nan}, "mix.mixup: nan is not finite"),
        ({"augment.resize": 10**9}, "augment.resize: 1000000000 should be at most 8192"),
        ({"boost.layers": (10**5000,)}, "boost.layers: a number of so many digits"),
        ({"boost.layers": tuple(range(20_000))}, "boost.layers: 20000 entries should be at most 10000"),
    ],
)
def test_numbers_that_mean_nothing(changes, words, tmp_path):
    config = quickstart.get_config()
    config.update_from_flattened_dict({"data.root": str(tmp_path / "nowhere"), **changes})
    for run in (train.train_and_evaluate, cross_validation.train_and_evaluate):
        with pytest.raises(UserError) as error:
            run(config, tmp_path / "run")
        assert words in str(error.value)
        assert len(str(error.value)) < 200
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_pneumollm():
    config = pneumollm.get_config("")
    ranges.check_numbers(config)
    config.pneumollm.count = 10**9
    with pytest.raises(UserError, match=r"pneumollm\.count: 1000000000 should be at most 4096"):
        ranges.check_numbers(config)


def test_more_steps_than_can_be_counted():
    config = quickstart.get_config()
    config.train.epochs = 10**6
    ranges.check_steps(config, 2147)
    with pytest.raises(UserError, match=r"train\.epochs: 1000000 epochs of 2148 steps are more than 2147483647 steps"):
        ranges.check_steps(config, 2148)


@pytest.mark.parametrize("name", sorted(ranges.RANGES))
def test_the_bounds_themselves_are_allowed(name):
    """Each range has a field, and takes the numbers that it says it takes."""
    config = quickstart.get_config() if not name.startswith("pneumollm") else pneumollm.get_config("")
    section, _, field = name.rpartition(".")
    assert field in (config[section] if section else config)
    found = ranges.RANGES[name]
    for bound in (found.least, found.most):
        assert bound is None or found.wanted(bound) == ""
    for bound in (found.above, found.below):
        assert bound is None or found.wanted(bound) != ""
