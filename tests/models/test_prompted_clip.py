"""CoOp and CoCoOp against their restatement around transformers' CLIP: logits, loss, gradients of what learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxboost import systems
from jaxboost.config import get_clip_config
from jaxboost.data.dataset import DatasetInfo
from jaxboost.errors import UserError
from jaxboost.models.frozen import count, merge
from jaxboost.models.prompted_clip import METHODS
from jaxboost.systems import start
from jaxboost.training import step
from jaxboost.training.optim import decay_mask
from tests.convert import clip_checkpoints as clip
from tests.models import clip_cases
from tests.models.clip_cases import CLASSES, MEAN, SIDE, STD
from tests.models.parity import assert_close, assert_states_close, normal
from tests.reference import rllm
from tests.reference.prompted_clip import Prompted
from tests.reference.weights import module_state

CONTEXT = 3
INFO = DatasetInfo(
    name="small",
    task="multi-class",
    classes=CLASSES,
    channels=1,
    ndim=2,
    size=SIDE,
    n_samples={},
    license="",
)
LABELS = np.array([0, 2, 1, 2, 0])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    with clip_cases.known(tmp_path_factory.mktemp("clip")) as checkpoint:
        yield checkpoint


def make_config(checkpoint, method, **changes):
    config = get_clip_config()
    fields = {
        "model.backbone": clip_cases.NAME,
        "model.weights": str(checkpoint.folder / "vision"),
        "model.image_size": SIDE,
        "model.mean": MEAN,
        "model.std": STD,
        "model.dtype": "float32",
        "clip.method": method,
        "clip.text": str(checkpoint.folder / "text"),
        "clip.context": CONTEXT,
    }
    config.update_from_flattened_dict(fields | changes)
    return config


def make(checkpoint, method):
    """The system, random trained weights, the frozen weights, and five grey images."""
    system = systems.prepare(make_config(checkpoint, method), INFO)
    params, frozen, _, _ = start.initialise(system, seed=0, replicated=step.make_mesh()[0])
    leaves, tree = jax.tree.flatten(params)
    params = jax.tree.unflatten(tree, [0.5 * normal(leaf.shape, number) for number, leaf in enumerate(leaves)])
    return system, params, frozen, np.random.default_rng(2).integers(0, 256, (5, SIDE, SIDE, 1), np.uint8)


@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradients_match_the_restatement(checkpoint, method):
    system, params, frozen, images = make(checkpoint, method)
    names = [clip_cases.PROMPTS[name] for name in CLASSES]
    names = [each["called"] if isinstance(each, dict) else name for each, name in zip(names, CLASSES, strict=True)]
    tokenizer = clip.tokenizer(str(checkpoint.folder / "source"))
    model = Prompted(checkpoint.model, tokenizer, names, context=CONTEXT, conditional=method == "cocoop_clip")
    learned = module_state(params["context"])
    missing, unexpected = model.load_state_dict(learned, strict=False)
    assert unexpected == []
    assert all(name.startswith("clip.") for name in missing)
    logits = model(rllm.pixels(torch.from_numpy(images), MEAN, STD))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(LABELS))
    loss.backward()
    # Neither all classes nor all images are alike.
    assert float(logits.detach().std(0).min()) > 1e-2
    assert float(logits.detach().std(1).min()) > 1e-2

    @jax.jit
    def ours(params):
        def of(params):
            logits = merge(system.graphdef, params, frozen)(images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean(), logits

        return jax.value_and_grad(of, has_aux=True)(params)

    (value, found), gradients = ours(params)
    assert_close(found, logits.detach(), name="logits")
    assert float(value) == pytest.approx(float(loss.detach()), rel=1e-5)
    theirs = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert set(theirs) == set(learned)
    assert_states_close(module_state(gradients["context"]), theirs)


@pytest.mark.parametrize("method", METHODS)
def test_tokens_and_texts_that_are_computed_before_give_the_same_logits(checkpoint, method):
    system, params, frozen, images = make(checkpoint, method)

    @jax.jit
    def run(params, frozen):
        model = merge(system.graphdef, params, frozen)
        tokens, texts = model.encode(images), model.precompute()
        return model(images), model(tokens), model(images, texts), tokens, texts, model.features(images)

    plain, by_tokens, by_texts, tokens, texts, features = run(params, frozen)
    assert tokens.shape == (5, 1, clip_cases.vision.WIDTH)
    assert (texts is None) == (method == "cocoop_clip")
    assert_close(by_tokens, plain)
    assert_close(by_texts, plain)
    np.testing.assert_allclose(np.linalg.norm(features, axis=-1), 1, rtol=1e-6)


def test_what_is_trained(checkpoint):
    """The context alone, and in CoCoOp a meta-network of two layers; both encoders are frozen."""
    width, shared = clip.WIDTH, clip.EMBEDDING_WIDTH
    found = {method: systems.prepare(make_config(checkpoint, method), INFO) for method in METHODS}
    assert count(found["coop_clip"].params) == CONTEXT * width
    hidden = max(1, shared // 16)
    meta = shared * hidden + hidden + hidden * width + width
    assert count(found["cocoop_clip"].params) == CONTEXT * width + meta
    for system in found.values():
        assert set(system.params) == {"context"}
        # Learned tokens have no weight decay.
        assert decay_mask(system.params)["context"]["prompts"] is False
        assert set(system.frozen) == {"encoder", "head_norm", "classes", "text"}


def test_published_sizes():
    """CoOp on ViT-B/16 learns 16 x 512 numbers; CoCoOp's meta-network has 512 -> 32 -> 512 (Zhou et al. 2022b)."""
    config = get_clip_config()
    config.update_from_flattened_dict({"model.backbone": "clip_vit_b16", "model.image_size": 224})
    expected = {"coop_clip": 16 * 512, "cocoop_clip": 16 * 512 + 512 * 32 + 32 + 32 * 512 + 512}
    for method, number in expected.items():
        config.clip.method = method
        system = systems.prepare(config, INFO, with_weights=False)
        assert count(system.params) == number
        # The text encoder without its token embeddings has 63.4 - 25.3 million weights, the image encoder 86.2.
        text = 77 * 512 + 12 * (12 * 512**2 + 13 * 512) + 2 * 512 + 512 * 512
        assert count(system.frozen["text"]) == text


def test_context_that_is_too_long(checkpoint):
    # The longest class name has 14 tokens with start, full stop and end.
    tokens = len(clip.tokenizer(str(checkpoint.folder / "source"))("without light.")["input_ids"])
    most = clip.CONTEXT - tokens
    systems.prepare(make_config(checkpoint, "coop_clip", **{"clip.context": most}), INFO)
    with pytest.raises(UserError, match=rf"more than the text encoder's 32: set it to {most} or less"):
        systems.prepare(make_config(checkpoint, "coop_clip", **{"clip.context": most + 1}), INFO)


def test_a_missing_encoder_is_converted_before_the_text_encoder_is_compared(checkpoint, tmp_path):
    fields = {"model.weights": str(tmp_path / "vision"), "model.weights_source": str(checkpoint.folder / "source")}
    with pytest.raises(UserError, match=r"no encoder at .*: make it with `jaxboost convert --source"):
        systems.prepare(make_config(checkpoint, "coop_clip", **fields), INFO)
    systems.prepare(make_config(checkpoint, "coop_clip", **fields, **{"model.weights_convert": True}), INFO)
    assert (tmp_path / "vision" / "manifest.json").exists()


def test_the_random_control(checkpoint):
    """An encoder of images that was not pretrained; the text encoder stays."""
    system = systems.prepare(make_config(checkpoint, "coop_clip", **{"model.weights": "random"}), INFO)
    assert {part.role: part.about["source"] for part in system.pretrained} == {"encoder": "random", "text": "source"}
    other = {"model.weights": "random", "model.backbone": "vit_tiny"}
    with pytest.raises(UserError, match=r"vision encoder of width 24, and model\.backbone=vit_tiny has 128: choose"):
        systems.prepare(make_config(checkpoint, "coop_clip", **other), INFO)


def test_16_bits_are_near(checkpoint):
    system, params, frozen, images = make(checkpoint, "cocoop_clip")
    half = systems.prepare(make_config(checkpoint, "cocoop_clip", **{"model.dtype": "bfloat16"}), INFO)
    exact, near = (
        jax.jit(lambda p, f, made=made: merge(made.graphdef, p, f)(images))(params, frozen) for made in (system, half)
    )
    assert near.dtype == jnp.float32
    # What all classes have in common says nothing: the rest should be near, measured by its own size.
    exact, near = (logits - logits.mean(-1, keepdims=True) for logits in (exact, near))
    assert 0 < float(jnp.abs(exact - near).max()) < 0.15 * float(exact.std())
