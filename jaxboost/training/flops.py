"""Counts the floating point operations of a traced function."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

# Functions of `models.depthwise`, whose products are elementwise -> place of the images that the kernel is applied at.
_DEPTHWISE = {"depthwise_products": -1, "depthwise_kernel_gradient": 1}
_FUSED = "dot_product_attention"  # how jax names the primitives of cuDNN's attention, with queries and keys in front


def count_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Counts the FLOPs of the matrix products and convolutions of `function(*arguments)`, two per multiply-add.

    The body of a scan counts once per iteration, unlike in XLA's cost analysis (`Compiled.cost_analysis`), which also
    knows nothing of cuDNN's kernels. That of a loop whose length is not known counts once, so several steps in one call
    count as one. Elementwise operations, a few percent in a transformer, are not counted.

    Args:
      function: the function; it is traced, nothing is computed.
      *arguments: arrays, or shapes (`jax.ShapeDtypeStruct`).
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    shapes: list[Any] = [getattr(variable.aval, "shape", ()) for variable in (*equation.invars, *equation.outvars)]
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * math.prod(shapes[-1]) * math.prod(shapes[0][axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = shapes[1]
        out_features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(shapes[-1]) * math.prod(kernel) // out_features
    if name.startswith(_FUSED):
        # Of q k^T and the product with v, and in the backward pass of their four gradients. That the kernel computes
        # q k^T again there is not counted.
        products = 4 if name.startswith(f"{_FUSED}_bwd") else 2
        B, Q, H, K = shapes[0]
        return products * 2 * B * Q * shapes[1][1] * H * K
    if (which := _DEPTHWISE.get(params.get("name", ""))) is not None:
        # The kernel (k, k, 1, C) is the second operand, or the result.
        kernel = shapes[1] if which == -1 else shapes[-1]
        return 2 * math.prod(shapes[which]) * kernel[0] * kernel[1]
    inner = [_count(jaxpr) for value in params.values() for jaxpr in _jaxprs(value)]
    if name == "scan":
        return params["length"] * sum(inner)
    return max(inner, default=0) if name == "cond" else sum(inner)


def _jaxprs(value: Any) -> list[Jaxpr]:
    if isinstance(value, ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, Jaxpr):
        return [value]
    return [jaxpr for entry in value for jaxpr in _jaxprs(entry)] if isinstance(value, list | tuple) else []
