"""ONNX files that torch.onnx.export made of a DINOv2 encoder, with whatever follows it.

The exporter keeps the names of most weights, but folds two kinds into anonymous constants: kernels of linear maps, as
(in, out), whose MatMul nodes are named after their modules; and the positions, CLS and grid apart, where they are
interpolated. Shapes say the rest, but for what `_heads`, `_eps` and `_check_activation` find in the graph.
"""

import math
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from jaxboost.convert import file_kinds
from jaxboost.convert.encoder_configs import FAMILIES
from jaxboost.convert.encoder_layouts import LAYOUTS, EncoderLayout
from jaxboost.convert.encoder_names import EncoderSource, locate
from jaxboost.convert.names import TensorInfo
from jaxboost.errors import UserError

if TYPE_CHECKING:
    import onnx

_FAMILY = "dinov2"
_DTYPES = ("float32", "float16", "bfloat16")


class OnnxTensors:
    """The weights of a graph under the names that they have in the model; see `names.Tensors`."""

    source_format = "onnx"

    def __init__(self, path: pathlib.Path, source: str):
        """Reads the file.

        Raises:
          UserError: if onnx is not installed, or the file is truncated or no ONNX file.
        """
        self.source, self.path = source, path
        graph = _opened(path).graph
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._constants = {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
        self._nodes = [(node.name.strip("/").rpartition("/")[0].replace("/", "."), node) for node in graph.node]
        # Name of a weight -> the constants that lie in it one after the other, and whether they are (in, out).
        named = dict(self._kernels()) | dict(self._positions())
        anonymous = {part for parts, _ in named.values() for part in parts}
        self._parts = {name: ((name,), False) for name in self._initializers if name not in anonymous} | named
        self.names = self._parts.keys()

    def info(self, name: str) -> TensorInfo:
        from onnx.helper import tensor_dtype_to_np_dtype

        parts, is_transposed = self._parts[name]
        tensors = [self._initializers[part] for part in parts]
        shape = tuple(tensors[0].dims)
        if len(tensors) > 1:
            shape = (shape[0], sum(tensor.dims[1] for tensor in tensors), *shape[2:])
        dtype = tensor_dtype_to_np_dtype(tensors[0].data_type).name
        obstacle = None if dtype in _DTYPES else f"is stored as {dtype}: only {', '.join(_DTYPES)} are read"
        if obstacle is None and not all(map(_is_whole, tensors)):
            obstacle = "has a shape that contradicts its size in bytes"
        return TensorInfo(shape[::-1] if is_transposed else shape, obstacle)

    def read(self, name: str) -> np.ndarray:
        from onnx.numpy_helper import to_array

        parts, is_transposed = self._parts[name]
        arrays = [to_array(self._initializers[part]) for part in parts]
        array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=1)
        return array.T if is_transposed else array

    def nodes(self, module: str) -> "Iterator[onnx.NodeProto]":
        """The nodes of a module, such as `backbone.encoder.layer.0.mlp`, and of those inside it."""
        return (node for of, node in self._nodes if f"{of}.".startswith(f"{module}."))

    def constants(self, node: "onnx.NodeProto") -> list[np.ndarray | None]:
        """The inputs of a node, None for those that are computed."""
        from onnx.numpy_helper import to_array

        values = [self._initializers.get(name) or self._constants.get(name) for name in node.input]
        return [None if value is None else to_array(value) for value in values]

    def _kernels(self) -> Iterator[tuple[str, tuple[tuple[str, ...], bool]]]:
        for module, node in self._nodes:
            if node.op_type == "MatMul" and node.input[1] in self._initializers:
                yield f"{module}.weight", ((node.input[1],), True)

    def _positions(self) -> Iterator[tuple[str, tuple[tuple[str, ...], bool]]]:
        """The grid is reshaped to be interpolated, then the CLS token's position is put before it."""
        ending = LAYOUTS[_FAMILY][0].embedding["cls"]
        for name in self._initializers:
            if name.endswith(ending):
                module, found = name.rpartition(".")[0], {}
                for of, node in self._nodes:
                    if of == module and node.op_type in ("Concat", "Reshape") and node.input[0] in self._initializers:
                        found[node.op_type] = node.input[0]
                if len(found) == 2:
                    yield f"{module}.position_embeddings", ((found["Concat"], found["Reshape"]), False)


def encoder_of(path: pathlib.Path, source: str) -> EncoderSource:
    """The DINOv2 encoder in an ONNX file.

    Args:
      source: what the manifest records.

    Raises:
      UserError: see `OnnxTensors`; or there is no such encoder in the file.
    """
    try:
        return _encoder_of(OnnxTensors(path, source), path)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        # The graph's nodes are not what their operators ask for.
        raise UserError(f"{path} is damaged, its graph contradicts itself: download it again") from error


def _encoder_of(tensors: OnnxTensors, path: pathlib.Path) -> EncoderSource:
    layout, prefix = locate(tensors.names, LAYOUTS[_FAMILY], where=str(path))
    patches, tokens = (prefix + layout.embedding[name] for name in ("embedding.kernel", "positions"))
    hidden = prefix + layout.names("0")["mlp.up.bias"][0]
    for name in (patches, tokens, hidden):
        if name not in tensors.names:
            raise UserError(
                f"{path} holds no DINOv2 encoder as torch.onnx.export names its parts: there is no weight {name!r}: "
                "convert from the Hugging Face checkpoint"
            )
    for name, axes in ((patches, 4), (tokens, 3), (hidden, 1)):
        if len(shape := tensors.info(name).shape) != axes or 0 in shape:
            raise UserError(f"{path}: {name} has the shape {shape} instead of {axes} axes: download it again")
    width, _, patch, _ = tensors.info(patches).shape
    depth = 0
    while prefix + layout.names(str(depth))["mlp.up.bias"][0] in tensors.names:
        depth += 1
    _check_activation(tensors, hidden)
    arguments = {
        "patch": patch,
        "width": width,
        "depth": depth,
        "heads": _heads(tensors, layout, prefix, width),
        "mlp_width": tensors.info(hidden).shape[0],
        "eps": _eps(tensors, prefix + layout.names("0")["attention_norm.scale"][0]),
        "activation": "gelu",
    }
    return EncoderSource(
        tensors=tensors,
        layout=layout,
        prefix=prefix,
        arguments=arguments | dict(FAMILIES[_FAMILY].fixed),
        image_size=patch * math.isqrt(tensors.info(tokens).shape[-2] - 1),
        qkv_bias=True,
    )


def _is_whole(tensor: "onnx.TensorProto") -> bool:
    """Whether a tensor of one of _DTYPES holds as many numbers as its shape says."""
    from onnx.helper import tensor_dtype_to_np_dtype

    if tensor.HasField("raw_data"):
        count = len(tensor.raw_data) / tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    else:
        count = len(tensor.float_data) + len(tensor.int32_data)
    return count == math.prod(tensor.dims)


def _heads(tensors: OnnxTensors, layout: EncoderLayout, prefix: str, width: int) -> int:
    """From where queries, keys and values are cut into heads: (..., D) is reshaped to (..., H, K)."""
    module = (prefix + layout.names("0")["attention.qkv.kernel"][0]).rpartition(".")[0].rpartition(".")[0]
    for node in tensors.nodes(module):
        shape = []
        if node.op_type == "Concat":
            shape = tensors.constants(node)  # an input per axis
        elif node.op_type == "Reshape" and tensors.constants(node)[1] is not None:
            shape = list(tensors.constants(node)[1])
        if len(shape) == 4 and not any(value is None for value in shape[2:]):
            heads, head_dim = (int(np.ravel(value)[0]) for value in shape[2:])
            if heads > 0 and heads * head_dim == width:
                return heads
    raise UserError(f"{tensors.path} does not say how many heads {module} has: convert from the original checkpoint")


def _eps(tensors: OnnxTensors, scale: str) -> float:
    """From the LayerNorm whose scale is given: an attribute of its own operator, or what is added to the variance."""
    module = scale.rpartition(".")[0]
    for node in tensors.nodes(module):
        found = [attribute.f for attribute in node.attribute if attribute.name == "epsilon"]
        if node.op_type == "Add":
            found = [value.item() for value in tensors.constants(node) if value is not None and value.size == 1]
        if found:
            # 1e-6 as it was written, not with the digits of its rounding to float32.
            return float(str(np.float32(found[0])))
    raise UserError(f"{tensors.path} does not say the eps of {module}: convert from the original checkpoint")


def _check_activation(tensors: OnnxTensors, bias: str) -> None:
    """Raises a `UserError` unless the MLP with this bias has GELU by the error function, spelt out or in one node."""
    module = bias.rpartition(".")[0].rpartition(".")[0]
    nodes = list(tensors.nodes(module))
    is_gelu = any(node.op_type == "Gelu" and b"tanh" not in [a.s for a in node.attribute] for node in nodes)
    if not is_gelu and not any(node.op_type == "Erf" for node in nodes):
        raise UserError(
            f"{tensors.path}: the activation of {module} is not GELU, which DINOv2 has: convert another file"
        )


def _opened(path: pathlib.Path) -> "onnx.ModelProto":
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ModuleNotFoundError as error:
        if error.name not in ("onnx", "google", "google.protobuf"):
            raise
        raise UserError(
            f"{path} is an ONNX file and the Python package onnx is not installed: run this with "
            "`uv run --extra quickstart`, or install onnx"
        ) from error
    try:
        file_kinds.refuse_known(str(path), file_kinds.head_of(path))
        model = onnx.load(path)
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{path} is truncated or damaged, is not an ONNX file, or lacks a file of its weights: download it again"
        ) from error
    if not model.graph.node:
        raise UserError(f"{path} is not an ONNX file, or its download is incomplete: download it again")
    return model
