"""ResNets against torchvision's, and against 3D and ACS forms of these: evaluation, a training pass, and counts."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jaxboost.models.backbones import BACKBONES
from jaxboost.models.boost import VARIANTS
from jaxboost.models.classifier import BoostSpec, build
from jaxboost.models.convolution import _convolution as xla_convolution
from jaxboost.models.frozen import count, merge, split, statistics
from jaxboost.models.llama import FAMILIES
from jaxboost.models.resnet import BatchNorm, Convolution, ResNet, _convolve, acs_bounds
from jaxboost.models.rngs import make_rngs
from tests.models.parity import (
    assert_close,
    assert_states_close,
    channels_first,
    cotangent,
    normal,
    relative_change,
)
from tests.reference import resnet
from tests.reference.weights import join

DEPTHS, BASE_WIDTH, CLASSES = (1, 2), 8, 5
# Of the largest element: a batch norm's gradient is what is left of sums over the batch that nearly cancel.
GRADIENT_TOLERANCE = 1e-4
KEY = jax.random.key(0)  # says that the model is trained
# block, convolution, stem, image size: odd sides show where a stride begins.
SMALL = [
    ("basic", "2d", "small", 13),
    ("bottleneck", "2d", "large", 29),
    ("basic", "3d", "small", 9),
    ("bottleneck", "3d", "large", 21),
    ("bottleneck", "acs", "small", 9),
    ("basic", "acs", "large", 21),
]


def randomise(tree: Any, seed: int) -> Any:
    """Random float32 arrays of the same shapes, none at its initial value; products keep their input's size."""
    rng = np.random.default_rng(seed)

    def walk(name: Any, node: Any) -> Any:
        if isinstance(node, Mapping):
            return {key: walk(key, value) for key, value in node.items()}
        noise = rng.standard_normal(node.shape, np.float32)
        drawn = {
            "kernel": noise * np.float32(np.sqrt(1 / np.prod(node.shape[:-1]))),
            "scale": 1 + 0.3 * noise,
            "bias": 0.3 * noise,
            "mean": 0.3 * noise,
            "variance": np.exp(0.3 * noise),
        }
        return jnp.asarray(drawn[name])

    return walk("", tree)


def small_resnet(block: str, convolution: str, stem: str, image_size: int, **changes: Any) -> ResNet:
    arguments = dict(
        image_size=image_size,
        channels=3,
        block=block,
        depths=DEPTHS,
        convolution=convolution,
        base_width=BASE_WIDTH,
        stem=stem,
        dtype=jnp.float32,
    )
    return ResNet(**arguments | changes, rngs=make_rngs(0))


def shapes(*case: Any, **changes: Any) -> tuple[nnx.GraphDef, dict[str, Any], dict[str, Any]]:
    graphdef, params, frozen, stats = split(nnx.eval_shape(lambda: small_resnet(*case, **changes)))
    assert frozen == {}
    return graphdef, params, stats


def inputs(case: tuple[Any, ...], batch: int = 4) -> np.ndarray:
    return normal((batch, *[case[3]] * (2 if case[1] == "2d" else 3), 3), 1)


def restated(case: tuple[Any, ...], params: Any, stats: Any) -> resnet.ResNet:
    block, convolution, stem, _ = case
    model = resnet.make(block, DEPTHS, convolution=convolution, stem=stem, classes=CLASSES, base_width=BASE_WIDTH)
    model.fc = torch.nn.Identity()
    return resnet.load(resnet.state(join(params, stats), DEPTHS), model)


@functools.cache
def passes(case: tuple[Any, ...], *, remat: bool = False, dtype: str = "float32") -> dict[str, Any]:
    """The token in evaluation; in training the token, the new statistics, and gradients."""
    graphdef, params, stats = shapes(*case, remat=remat, dtype=jnp.dtype(dtype))
    params, stats = randomise(params, 2), randomise(stats, 3)

    @jax.jit
    def run(params: Any, stats: Any, x: jax.Array) -> Any:
        evaluated = merge(graphdef, params, {}, stats)
        token = evaluated(x)

        def train(params: Any, x: jax.Array) -> tuple[jax.Array, Any]:
            model = merge(graphdef, params, {}, stats)
            return model(x, queries=1, key=KEY), statistics(model)

        trained, vjp, changed = jax.vjp(train, params, x, has_aux=True)
        gradients = vjp(jnp.asarray(cotangent(trained.shape), trained.dtype))
        return {
            "token": token,
            "untouched": statistics(evaluated),
            "trained": trained,
            "stats": changed,
            "gradients": gradients,
        }

    return {**run(params, stats, inputs(case)), "params": params, "before": stats}


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_evaluation_is_torchs(case: tuple[Any, ...]) -> None:
    found = passes(case)
    model = restated(case, found["params"], found["before"]).eval()
    with torch.no_grad():
        reference = model(torch.from_numpy(channels_first(inputs(case))))
    assert_close(found["token"][:, 0], reference)
    jax.tree.map(np.testing.assert_array_equal, found["untouched"], found["before"])


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_training_pass_is_torchs(case: tuple[Any, ...]) -> None:
    """Output, running statistics (the unbiased variance among them), and all gradients."""
    found = passes(case)
    model = restated(case, found["params"], found["before"]).train()
    x = torch.from_numpy(channels_first(inputs(case))).requires_grad_()
    reference = model(x)
    (reference * torch.from_numpy(cotangent((4, 1, reference.shape[-1]))[:, 0])).sum().backward()
    assert_close(found["trained"][:, 0], reference.detach())
    running = {name: value for name, value in model.state_dict().items() if "running" in name}
    assert_states_close(resnet.state(found["stats"], DEPTHS), running)
    weights, pixels = found["gradients"]
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()} | {"pixels": x.grad}
    ours = resnet.state(weights, DEPTHS) | {"pixels": channels_first(np.asarray(pixels))}
    assert ours.keys() == gradients.keys()
    for name, reference in gradients.items():
        assert relative_change(ours[name], reference) < GRADIENT_TOLERANCE, name


def test_batch_and_running_statistics_differ() -> None:
    """Else the tests above would not tell them apart."""
    found = passes(SMALL[0])
    assert relative_change(found["trained"], found["token"]) > 0.1
    assert all(
        relative_change(a, b) > 1e-3
        for a, b in zip(jax.tree.leaves(found["stats"]), jax.tree.leaves(found["before"]), strict=True)
    )


def test_remat_changes_nothing_but_what_is_computed_again() -> None:
    case = SMALL[0]
    plain, again = passes(case), passes(case, remat=True)
    for (path, a), b in zip(jax.tree.leaves_with_path(plain), jax.tree.leaves(again), strict=True):
        assert_close(b, a, name=jax.tree_util.keystr(path))
    programs = {}
    for remat in (False, True):
        graphdef, params, stats = shapes(*case, remat=remat)

        def loss(params: Any, stats: Any, graphdef: nnx.GraphDef = graphdef) -> jax.Array:
            return merge(graphdef, params, {}, stats)(inputs(case), key=KEY).sum()

        programs[remat] = str(jax.make_jaxpr(jax.grad(loss))(params, stats))
    assert programs[True].count("conv_general_dilated[") > programs[False].count("conv_general_dilated[")


def test_computes_in_dtype_with_statistics_in_float32() -> None:
    exact, found = passes(SMALL[0]), passes(SMALL[0], dtype="bfloat16")
    assert found["token"].dtype == found["trained"].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((found["stats"], found["gradients"]))} == {jnp.dtype("float32")}
    assert 1e-4 < relative_change(found["token"], exact["token"]) < 0.05
    for a, b in zip(jax.tree.leaves(found["stats"]), jax.tree.leaves(exact["stats"]), strict=True):
        assert relative_change(a, b) < 0.02


def test_single_value_per_channel_stays_finite() -> None:
    norm = BatchNorm(3, dtype=jnp.float32)
    y = norm(jnp.full((1, 1, 1, 3), 2.0), train=True)
    np.testing.assert_array_equal(y, np.zeros((1, 1, 1, 3)))
    np.testing.assert_allclose(norm.mean[...], 0.2, rtol=1e-6)
    np.testing.assert_allclose(norm.variance[...], 0.9, rtol=1e-6)


def test_starts_as_torchvisions() -> None:
    """He's normal initialisation by fan_out; norms at the identity, the last of a block too."""
    params, _, stats = jax.jit(lambda: split(small_resnet("basic", "acs", "small", 28, base_width=64))[1:])()
    last = params["blocks"][2]["convs"][1]
    for conv, fan_out in ((params["stem"]["conv"], 9 * 64), (last["conv"], 9 * 128)):
        kernel = np.asarray(conv["kernel"])
        assert kernel.std() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
        assert np.abs(kernel).max() > 2.5 * kernel.std()
    for tree in (last["norm"], stats["stem"]["norm"]):
        values = {"scale": 1, "bias": 0, "mean": 0, "variance": 1}
        assert all((np.asarray(value) == values[name]).all() for name, value in tree.items())


@pytest.mark.parametrize(
    ("width", "parts"), [(9, (3, 3, 3)), (10, (4, 3, 3)), (11, (4, 4, 3)), (64, (22, 21, 21)), (512, (171, 171, 170))]
)
def test_acs_shares_are_the_public_codes(width: int, parts: tuple[int, int, int]) -> None:
    assert tuple(np.diff([0, *acs_bounds(width), width])) == parts


def test_acs_planes() -> None:
    """A kernel of ones shows which neighbours of a single bright voxel each third of the channels sees."""
    conv = Convolution(1, 3, size=3, stride=1, kind="acs", dtype=jnp.float32, rngs=make_rngs(0))
    conv.kernel[...] = jnp.ones((3, 3, 1, 3))
    seen = np.asarray(conv(jnp.zeros((1, 5, 5, 5, 1)).at[0, 2, 2, 2].set(1)))[0]
    for axis in range(3):
        sides = [3, 3, 3]
        sides[axis] = 1
        found = np.argwhere(seen[..., axis])
        assert len(found) == 9
        assert (np.ptp(found, axis=0) + 1).tolist() == sides


FULL = {
    "resnet18": ("basic", (2, 2, 2, 2), "2d"),
    "resnet50": ("bottleneck", (3, 4, 6, 3), "2d"),
    "resnet18_3d": ("basic", (2, 2, 2, 2), "3d"),
    "resnet50_3d": ("bottleneck", (3, 4, 6, 3), "3d"),
    "resnet18_acs": ("basic", (2, 2, 2, 2), "acs"),
    "resnet50_acs": ("bottleneck", (3, 4, 6, 3), "acs"),
}


def classifier(name: str, image_size: int, classes: int, kind: str = "none") -> Any:
    return nnx.eval_shape(
        lambda: build(
            name,
            boost=BoostSpec(kind=kind, config=FAMILIES["llama-tiny"]),
            classes=classes,
            image_size=image_size,
            mean=(0.5,),
            std=(0.25,),
            dtype=jnp.float32,
            rngs=make_rngs(0),
        )
    )


@pytest.mark.parametrize(
    ("name", "image_size", "classes", "trained", "running"),
    [
        ("resnet18", 28, 10, 11_173_962, 9_600),
        ("resnet50", 28, 10, 23_520_842, 53_120),
        # torchvision's own figures.
        ("resnet18", 224, 1000, 11_689_512, 9_600),
        ("resnet50", 224, 1000, 25_557_032, 53_120),
        ("resnet18_3d", 28, 10, 33_148_362, 9_600),
        ("resnet50_3d", 28, 10, 46_158_794, 53_120),
        ("resnet18_acs", 28, 10, 11_173_962, 9_600),
        ("resnet50_acs", 28, 10, 23_520_842, 53_120),
    ],
)
def test_counts(name: str, image_size: int, classes: int, trained: int, running: int) -> None:
    model = classifier(name, image_size, classes)
    assert (model.encoder.tokens, model.encoder.width) == (1, 512 if "18" in name else 2048)
    assert model.head_norm is None
    _, params, frozen, stats = split(model)
    assert (count(params), count(stats), frozen) == (trained, running, {})
    block, depths, convolution = FULL[name]
    stem = "small" if image_size == 28 else "large"
    with torch.device("meta"):
        reference = resnet.make(block, depths, convolution=convolution, stem=stem, classes=classes)
    assert sum(p.numel() for p in reference.parameters()) == trained
    assert sum(b.numel() for name, b in reference.named_buffers() if "running" in name) == running


def test_every_resnet_is_listed() -> None:
    assert {name for name, backbone in BACKBONES.items() if backbone.encoder is ResNet} == set(FULL)
    for name, (block, depths, convolution) in FULL.items():
        spec = BACKBONES[name]
        assert spec.arguments == dict(block=block, depths=depths, convolution=convolution)
        assert (spec.ndim, spec.head_eps) == (2 if convolution == "2d" else 3, None)
        assert not spec.traits.gives_tokens


@pytest.mark.parametrize(("image_size", "pools"), [(28, False), (64, False), (65, True), (224, True)])
def test_stem_follows_the_image_size(image_size: int, pools: bool) -> None:
    model = nnx.eval_shape(lambda: small_resnet("basic", "2d", "auto", image_size))
    assert model.pools == pools
    assert model.stem.conv.kernel.shape[:2] == ((7, 7) if pools else (3, 3))


@pytest.mark.parametrize(("name", "image_size"), [("resnet18", 28), ("resnet18", 72), ("resnet50", 72)])
def test_logits_of_the_full_models_are_torchvisions(name: str, image_size: int) -> None:
    """From grey uint8 pixels; the second and third are torchvision's models as they are."""
    graphdef, params, _, stats = split(classifier(name, image_size, CLASSES))
    params, stats = randomise(params, 5), randomise(stats, 6)
    images = np.random.default_rng(7).integers(0, 256, (2, image_size, image_size, 1), np.uint8)
    logits = jax.jit(lambda p, s, x: merge(graphdef, p, {}, s)(x))(params, stats, images)
    block, depths, convolution = FULL[name]
    stem = "small" if image_size == 28 else "large"
    model = resnet.make(block, depths, convolution=convolution, stem=stem, classes=CLASSES)
    state = resnet.state(join(params, stats)["encoder"], depths) | resnet.head_state(params["head"])
    pixels = np.repeat((images / np.float32(255) - np.float32(0.5)) / np.float32(0.25), 3, -1)
    with torch.no_grad():
        reference = resnet.load(state, model).eval()(torch.from_numpy(channels_first(pixels)))
    assert_close(logits, reference)


@pytest.mark.parametrize("kind", VARIANTS)
def test_a_booster_has_nothing_to_mix(kind: str) -> None:
    with pytest.raises(ValueError, match=f"resnet18_acs gives one pooled feature, no tokens for boost {kind}"):
        classifier("resnet18_acs", 28, 2, kind)


@pytest.mark.usefixtures("on_cpu")
def test_a_convolution_of_one_pixel_is_a_product() -> None:
    """Values and gradients are those of XLA's convolution, which accelerators take; with and without a stride."""

    def run(convolve: Any, stride: int, x: Any, kernel: Any) -> Any:
        y, pull = jax.vjp(lambda x, kernel: convolve(x, kernel, stride), x, kernel)
        return y, *pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    def xlas(x: Any, kernel: Any, stride: int) -> Any:
        return xla_convolution((stride, stride), ((0, 0), (0, 0)), x, kernel)

    x, kernel = normal((2, 5, 4, 3), 1), normal((1, 1, 3, 6), 2)
    for stride in (1, 2):
        product, convolution = (jax.jit(functools.partial(run, form, stride)) for form in (_convolve, xlas))
        forms = ["convolution" in form.lower(x, kernel).as_text() for form in (product, convolution)]
        assert forms == [False, True]
        for ours, theirs in zip(product(x, kernel), convolution(x, kernel), strict=True):
            assert_close(ours, theirs)
