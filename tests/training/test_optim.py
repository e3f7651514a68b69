"""Schedule and optimiser against closed forms and torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxboost.errors import UserError
from jaxboost.training import layer_decay, optim

SECTION = dict(
    name="adamw", lr=1e-2, schedule="cosine", warmup_epochs=1.0, warmup_from=0.0, final_lr=1e-4, weight_decay=0.1,
    b1=0.9, b2=0.95, eps=1e-6, clip_norm=0.0, steps_per_epoch=5, epochs=4,
)  # fmt: skip


def test_cosine_with_warmup():
    _, rate = optim.make_optimizer(**SECTION)
    steps = np.arange(25)
    expected = np.where(
        steps < 5,
        1e-2 * steps / 5,
        1e-4 + (1e-2 - 1e-4) * (1 + np.cos(np.pi * np.clip((steps - 5) / 15, 0, 1))) / 2,
    )
    np.testing.assert_allclose([rate(step) for step in steps], expected, rtol=1e-5)


def test_constant():
    _, rate = optim.make_optimizer(**{**SECTION, "schedule": "constant", "warmup_epochs": 0.0})
    assert {rate(step) for step in range(30)} == {1e-2}


def test_steps_down():
    _, rate = optim.make_optimizer(**{**SECTION, "schedule": "steps"})
    # 20 steps, the first five of them the warm-up.
    expected = [
        1e-2 * step / 5 if step < 5 else 1e-2 if step < 10 else 1e-3 if step < 15 else 1e-4 for step in range(20)
    ]
    np.testing.assert_allclose([rate(step) for step in range(20)], expected, rtol=1e-5)


@pytest.mark.parametrize(("name", "weight_decay"), [("adamw", 0.1), ("adam", 0.0)])
@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_steps_equal_torch(name, weight_decay, clip_norm):
    """AdamW with decay on the kernel alone, gradient clipping, and the schedule: five steps as torch takes them."""
    rng = np.random.default_rng(0)
    start = {"kernel": rng.normal(size=(3, 4)).astype("f"), "bias": rng.normal(size=4).astype("f")}
    section = {**SECTION, "name": name, "weight_decay": weight_decay, "clip_norm": clip_norm}
    tx, rate = optim.make_optimizer(**section)
    params = {key: jnp.asarray(value) for key, value in start.items()}
    state = tx.init(params)

    theirs = {key: torch.nn.Parameter(torch.tensor(value)) for key, value in start.items()}
    groups = [
        {"params": [theirs["kernel"]], "weight_decay": weight_decay},
        {"params": [theirs["bias"]], "weight_decay": 0.0},
    ]
    optimizer = (torch.optim.AdamW if name == "adamw" else torch.optim.Adam)(groups, betas=(0.9, 0.95), eps=1e-6)
    for number in range(5):
        grads = {key: rng.normal(size=value.shape).astype("f") for key, value in start.items()}
        updates, state = tx.update({k: jnp.asarray(g) for k, g in grads.items()}, state, params)
        params = {key: params[key] + updates[key] for key in params}
        for key, grad in grads.items():
            theirs[key].grad = torch.tensor(grad)
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(list(theirs.values()), clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = float(rate(number))
        optimizer.step()
    for key in start:
        np.testing.assert_allclose(params[key], theirs[key].detach(), rtol=1e-5, atol=1e-6)


def test_decay_spares_biases_norms_positions_and_cls():
    tree = {
        "modality": 0,
        "encoder": {
            "positions": 0, "cls": 0, "registers": 0, "pool": {"probe": 0}, "spatial_cls": 0, "transformer": {
                "attention": {"qkv": {"kernel": 1, "bias": 0}, "biases": 0}, "mlp_norm": {"scale": 0, "bias": 0}
            },
        },
        "boost": {"encode": {"kernel": 1}, "block": {"layers": {"q": 1, "attention_norm": 0}, "final_norm": 0}},
    }  # fmt: skip
    assert optim.decay_mask(tree) == {
        "modality": False,
        "encoder": {
            "positions": False, "cls": False, "registers": False, "pool": {"probe": False}, "spatial_cls": False,
            "transformer": {
                "attention": {"qkv": {"kernel": True, "bias": False}, "biases": False},
                "mlp_norm": {"scale": False, "bias": False},
            },
        },
        "boost": {
            "encode": {"kernel": True},
            "block": {"layers": {"q": True, "attention_norm": False}, "final_norm": False},
        },
    }  # fmt: skip


def test_a_warm_up_that_does_not_fit():
    with pytest.raises(UserError, match="20 warm-up steps do not fit in 20 steps"):
        optim.make_optimizer(**{**SECTION, "warmup_epochs": 4.0})


def test_schedule_that_began_before_the_run():
    """The reference's: a cosine over 400 epochs, of which 300 are over."""
    section = {**SECTION, "warmup_epochs": 0.0, "epochs": 100, "schedule_epochs": 400.0, "schedule_from": 300.0}
    _, rate = optim.make_optimizer(**section)
    epochs = np.array([0, 50, 100])
    expected = 1e-4 + (1e-2 - 1e-4) * (1 + np.cos(np.pi * (300 + epochs) / 400)) / 2
    np.testing.assert_allclose([rate(5 * epoch) for epoch in epochs], expected, rtol=1e-5)


def _encoder(*stacks: tuple[str, int]) -> dict:
    def stack(depth):
        return {"blocks": {"kernel": jnp.ones((depth - 1, 2, 2))}, "last": {"kernel": jnp.ones((2, 2))}}

    return {name: stack(depth) for name, depth in stacks}


def test_layer_decay_of_one_stack():
    params = {
        "encoder": _encoder(("transformer", 3)) | {"cls": jnp.ones(2), "embedding": {"kernel": jnp.ones((2, 2))}},
        "head": {"kernel": jnp.ones((2, 2))},
        "boost": {"encode": {"kernel": jnp.ones((2, 2))}},
    }
    found = layer_decay.factors(params, 0.5)
    np.testing.assert_allclose(found["encoder"]["transformer"]["blocks"]["kernel"][:, 0, 0], [0.5**3, 0.5**2])
    assert found["encoder"]["transformer"]["last"]["kernel"] == 0.5
    assert found["encoder"]["cls"] == found["encoder"]["embedding"]["kernel"] == 0.5**4
    assert found["head"]["kernel"] == found["boost"]["encode"]["kernel"] == 1


def test_layer_decay_of_two_stacks():
    more = {
        "spatial_norm": {"scale": jnp.ones(2)},
        "temporal_norm": {"scale": jnp.ones(2)},
        "temporal_cls": jnp.ones(2),
    }
    params = {"encoder": _encoder(("spatial", 2), ("temporal", 2)) | more | {"spatial_cls": jnp.ones(2)}}
    found = layer_decay.factors(params, 0.5)["encoder"]
    np.testing.assert_allclose(found["spatial"]["blocks"]["kernel"], np.full((1, 1, 1), 0.5**4))
    assert found["spatial"]["last"]["kernel"] == found["spatial_norm"]["scale"] == found["temporal_cls"] == 0.5**3
    np.testing.assert_allclose(found["temporal"]["blocks"]["kernel"], np.full((1, 1, 1), 0.5**2))
    assert found["temporal"]["last"]["kernel"] == found["temporal_norm"]["scale"] == 0.5
    assert found["spatial_cls"] == 0.5**5


def test_layer_decay_multiplies_the_rate_weight_decay_included():
    params = {"encoder": _encoder(("transformer", 2)), "head": {"kernel": jnp.ones((2, 2))}}
    grads = jax.tree.map(lambda leaf: 0.3 * leaf, params)
    plain, _ = optim.make_optimizer(**SECTION)
    decayed, _ = optim.make_optimizer(**SECTION, layer_decay=0.5)
    steps = []
    for tx in (plain, decayed):
        state = tx.init(params)
        _, state = tx.update(grads, state, params)  # the warm-up's first rate is 0
        steps.append(tx.update(grads, state, params)[0])
    assert float(steps[0]["head"]["kernel"][0, 0]) != 0
    expected = jax.tree.map(lambda u, f: u * f, steps[0], layer_decay.factors(params, 0.5))
    jax.tree.map(lambda ours, wanted: np.testing.assert_allclose(ours, wanted, rtol=1e-6), steps[1], expected)
