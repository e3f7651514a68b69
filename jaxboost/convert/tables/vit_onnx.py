"""DINOv2 encoders in ONNX files. The graph may hold more after the encoder.

Most arguments follow from shapes; `_heads`, `_eps` and `_check_activation` read the others from the graph.
"""

import math
import pathlib

import numpy as np

from jaxboost.convert.formats.onnx_file import OnnxTensors
from jaxboost.convert.tables.vit import VitSource, locate
from jaxboost.convert.tables.vit_configs import FAMILIES
from jaxboost.convert.tables.vit_names import LAYOUTS, VitLayout
from jaxboost.errors import UserError

_FAMILY = "dinov2"


def encoder_of(path: pathlib.Path, source: str) -> VitSource:
    """The DINOv2 encoder in an ONNX file.

    Args:
      path: the file.
      source: what the manifest records.

    Raises:
      UserError: see `OnnxTensors`; or there is no such encoder in the file.
    """
    try:
        return _encoder_of(OnnxTensors(path, source, cls=LAYOUTS[_FAMILY][0].embedding["cls"]), path)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        # The graph's nodes do not fit their operators.
        raise UserError(f"{path} is damaged, its graph contradicts itself: download it again") from error


def _encoder_of(tensors: OnnxTensors, path: pathlib.Path) -> VitSource:
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
    return VitSource(
        tensors=tensors,
        layout=layout,
        prefix=prefix,
        arguments=arguments | dict(FAMILIES[_FAMILY].fixed),
        image_size=patch * math.isqrt(tensors.info(tokens).shape[-2] - 1),
    )


def _heads(tensors: OnnxTensors, layout: VitLayout, prefix: str, width: int) -> int:
    """From the reshaping of queries, keys and values into heads: (..., D) to (..., H, K)."""
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
    """From the LayerNorm with this scale: an attribute of its operator, or what is added to the variance."""
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
    """Raises UserError unless the MLP with this bias has GELU by the error function, in one node or several."""
    module = bias.rpartition(".")[0].rpartition(".")[0]
    nodes = list(tensors.nodes(module))
    is_gelu = any(node.op_type == "Gelu" and b"tanh" not in [a.s for a in node.attribute] for node in nodes)
    if not is_gelu and not any(node.op_type == "Erf" for node in nodes):
        raise UserError(
            f"{tensors.path}: the activation of {module} is not GELU, which DINOv2 has: convert another file"
        )
