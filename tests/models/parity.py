"""What the parity tests share: random weights, pull-backs on both sides, and the tolerance."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from jaxboost.models.frozen import merge, split
from tests.reference.weights import State

Tree = Mapping[str, Any]

# Relative to each element, and to the largest of the compared array where an element is the small rest of large terms.
TOLERANCE = 1e-5


def randomise(tree: Tree, seed: int) -> dict[str, Any]:
    """Random float32 arrays of the same shapes (real or abstract), none at its initial value.

    Products keep their input's variance, except that queries and keys are made larger: attention is far from uniform.
    Raises KeyError for a weight of unknown kind.
    """
    rng = np.random.default_rng(seed)

    def leaf(path: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
        noise = rng.standard_normal(shape, np.float32)
        name = path[-1]
        if name in ("q", "k") or path[-2:] == ("qkv", "kernel"):
            return 1.5 * noise / np.float32(np.sqrt(shape[-2]))
        if path[-2:-1] == ("lora",):
            # The changes are smaller than the matrices: float32 noise grows with them.
            return (0.3 if name.endswith("_b") else 1) * noise / np.float32(np.sqrt(shape[-2]))
        if name in ("kernel", "v", "o", "gate", "up", "down"):
            return noise / np.float32(np.sqrt(shape[-2]))
        if name.endswith("_norm") or name == "scale" or name.endswith("_scale"):
            return 1 + 0.3 * noise
        if name.endswith("bias") or name in ("cls", "spatial_cls", "temporal_cls", "positions", "prompts", "probe"):
            return 0.5 * noise
        if name in ("modality", "tokens", "answers"):
            return noise / np.float32(np.sqrt(shape[-1]))
        raise KeyError("/".join(map(str, path)))

    def walk(path: tuple[str, ...], node: Any) -> Any:
        if isinstance(node, Mapping):
            return {key: walk((*path, key), value) for key, value in node.items()}
        # jnp.asarray would compile a program for each shape.
        return jax.device_put(leaf(path, node.shape))

    return walk((), tree)


def abstract(make: Callable[[], nnx.Module]) -> tuple[Callable[..., jax.Array], dict[str, Any], dict[str, Any]]:
    """Shapes of a module without its initialisation.

    Returns:
      apply(params, frozen, *args, **kwargs) calling the module, and the shapes of params and frozen.
    """
    graphdef, params, frozen, _ = split(nnx.eval_shape(make))

    def apply(params: Tree, frozen: Tree, *args: Any, **kwargs: Any) -> jax.Array:
        return merge(graphdef, params, frozen)(*args, **kwargs)

    return apply, params, frozen


def randomised(make: Callable[[], nnx.Module], seed: int) -> Any:
    """The module with random weights, without its initialisation: that would compile many small programs."""
    graphdef, params, frozen, _ = split(nnx.eval_shape(make))
    return merge(graphdef, randomise(params, seed), randomise(frozen, seed + 1))


def uniform_attention(tree: Tree) -> dict[str, Any]:
    """The same weights with every query zero, which makes all attention exactly uniform."""
    changed = {}
    for key, value in tree.items():
        if key == "qkv":
            kept = np.array([0, 1, 1], np.float32)
            parts = {name: np.asarray(a) * np.repeat(kept, a.shape[-1] // 3) for name, a in value.items()}
            changed[key] = jax.device_put(parts)
        elif key == "q":
            changed[key] = jax.device_put(np.zeros_like(value))
        else:
            changed[key] = uniform_attention(value) if isinstance(value, Mapping) else value
    return changed


FAINT = 3e-3


def faint(tree: Tree) -> dict[str, Any]:
    """The same weights, those that write into a residual stream made FAINT.

    With inputs as faint, what a norm sees has a variance near 1e-5: there its eps decides about the result, where the
    variance is 1 it is lost in rounding.
    """
    writing = {"embedding", "norm_out", "spatial_norm", "out", "down", "o"}
    writing |= {"cls", "spatial_cls", "temporal_cls", "positions"}

    def shrink(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        names = [entry.key for entry in path]
        shrunk = writing & set(names[-2:]) or names[-3:-1] == ["embedding", "linear"]
        return jax.device_put(np.float32(FAINT) * np.asarray(leaf)) if shrunk else leaf

    return jax.tree_util.tree_map_with_path(shrink, dict(tree))


def normal(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def cotangent(shape: tuple[int, ...]) -> np.ndarray:
    """Weights of the scalar loss sum(weight * output), to which every output contributes."""
    return normal(shape, 99)


def pull_back(function: Callable[..., jax.Array], *primals: Any) -> tuple[jax.Array, tuple[Any, ...]]:
    """function(*primals), and the loss's gradients with respect to each primal."""

    @jax.jit
    def run(*primals: Any) -> tuple[jax.Array, tuple[Any, ...]]:
        output, vjp = jax.vjp(function, *primals)
        return output, vjp(jnp.asarray(cotangent(output.shape)))

    return run(*primals)


def torch_pull_back(
    module: torch.nn.Module, x: np.ndarray, prepare: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
) -> tuple[torch.Tensor, torch.Tensor, State]:
    """module(prepare(x)), and the loss's gradients with respect to x and to every parameter that is not frozen."""
    x = torch.tensor(x, requires_grad=True)
    output = module(prepare(x))
    (output * torch.from_numpy(cotangent(tuple(output.shape)))).sum().backward()
    return output.detach(), x.grad, {name: p.grad for name, p in module.named_parameters() if p.requires_grad}


def channels_first(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(x, -1, 1))


def assert_close(actual: Any, reference: Any, *, name: str = "", scale: float | None = None) -> None:
    """Equal shapes, and equal values within TOLERANCE of each element or of `scale` (the reference's largest)."""
    actual, reference = np.asarray(actual), np.asarray(reference)
    assert actual.shape == reference.shape, name
    scale = float(np.abs(reference).max()) if scale is None else scale
    assert scale > 0, f"{name} is zero everywhere, which proves nothing"
    np.testing.assert_allclose(actual, reference, rtol=TOLERANCE, atol=TOLERANCE * scale, err_msg=name)


def assert_states_close(actual: State, reference: State, scales: Mapping[str, float] | None = None) -> None:
    """The same names on both sides, and each array close; `scales` replaces the scale of single arrays."""
    assert actual.keys() == reference.keys()
    for name, value in reference.items():
        assert_close(actual[name], value, name=name, scale=(scales or {}).get(name))


def relative_change(changed: Any, original: Any) -> float:
    """Largest difference in units of the largest original value."""
    changed, original = np.asarray(changed, np.float32), np.asarray(original, np.float32)
    return float(np.abs(changed - original).max() / np.abs(original).max())
