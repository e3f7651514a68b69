"""ONNX files that torch.onnx.export wrote.

The exporter keeps the names of most weights, but folds two kinds into anonymous constants: kernels of linear maps, as
(in, out), whose MatMul nodes are named after their modules; and position embeddings that are interpolated, CLS and grid
separately.
"""

import math
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from jaxboost.convert.formats import kinds
from jaxboost.convert.formats.tensors import TensorInfo, obstacle_of
from jaxboost.errors import UserError

if TYPE_CHECKING:
    import onnx


class OnnxTensors:
    """The weights of a graph under the names that they have in the model; see `tensors.Tensors`."""

    source_format = "onnx"

    def __init__(self, path: pathlib.Path, source: str, *, cls: str):
        """Reads the file.

        Args:
          path: the file.
          source: what the manifest records.
          cls: ending of the CLS token's name; the positions are in the same module.

        Raises:
          UserError: onnx is not installed, or the file is truncated or no ONNX file.
        """
        self.source, self.path = source, path
        graph = _opened(path).graph
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._constants = {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
        self._nodes = [(node.name.strip("/").rpartition("/")[0].replace("/", "."), node) for node in graph.node]
        # Name of a weight -> the constants that it consists of, one after the other, and whether they are (in, out).
        named = dict(self._kernels()) | dict(self._positions(cls))
        anonymous = {part for parts, _ in named.values() for part in parts}
        self._parts = {name: ((name,), False) for name in self._initializers if name not in anonymous} | named
        self.names = self._parts.keys()

    def info(self, name: str) -> TensorInfo:
        """See `tensors.Tensors`."""
        from onnx.helper import tensor_dtype_to_np_dtype

        parts, is_transposed = self._parts[name]
        tensors = [self._initializers[part] for part in parts]
        shape = tuple(tensors[0].dims)
        if len(tensors) > 1:
            shape = (shape[0], sum(tensor.dims[1] for tensor in tensors), *shape[2:])
        dtype = tensor_dtype_to_np_dtype(tensors[0].data_type).name
        obstacle = obstacle_of(dtype)
        if obstacle is None and not all(map(_is_whole, tensors)):
            obstacle = "has a shape that contradicts its size in bytes"
        return TensorInfo(shape[::-1] if is_transposed else shape, obstacle)

    def read(self, name: str) -> np.ndarray:
        """See `tensors.Tensors`."""
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

    def _positions(self, cls: str) -> Iterator[tuple[str, tuple[tuple[str, ...], bool]]]:
        """The grid is reshaped to be interpolated, then the CLS token's position is put before it."""
        for name in self._initializers:
            if name.endswith(cls):
                module, found = name.rpartition(".")[0], {}
                for of, node in self._nodes:
                    if of == module and node.op_type in ("Concat", "Reshape") and node.input[0] in self._initializers:
                        found[node.op_type] = node.input[0]
                if len(found) == 2:
                    yield f"{module}.position_embeddings", ((found["Concat"], found["Reshape"]), False)


def _is_whole(tensor: "onnx.TensorProto") -> bool:
    """Whether a tensor of a readable dtype holds as many numbers as its shape says."""
    from onnx.helper import tensor_dtype_to_np_dtype

    if tensor.HasField("raw_data"):
        count = len(tensor.raw_data) / tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    else:
        count = len(tensor.float_data) + len(tensor.int32_data)
    return count == math.prod(tensor.dims)


def _opened(path: pathlib.Path) -> "onnx.ModelProto":
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ModuleNotFoundError as error:
        if error.name not in ("onnx", "google", "google.protobuf"):
            raise
        raise UserError(
            f"{path} is an ONNX file and the Python package onnx is not installed: `pip install onnx`"
        ) from error
    try:
        kinds.refuse_known(str(path), kinds.head_of(path))
        model = onnx.load(path)
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{path} is truncated or damaged, is not an ONNX file, or lacks a file of its weights: download it again"
        ) from error
    if not model.graph.node:
        raise UserError(f"{path} is not an ONNX file, or its download is incomplete: download it again")
    return model
