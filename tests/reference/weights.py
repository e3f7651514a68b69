"""Copies the package's weights into PyTorch modules: our restatement, Hugging Face's and vit-pytorch's.

Every function `*_state` turns nested dicts of arrays into a state dict, by transposing, cutting and reordering only: it
converts gradients as well as weights. `copy` loads a state strictly: nothing may be missing or left over.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch
from torch import nn

Tree = Mapping[str, Any]
State = dict[str, torch.Tensor]

# Subtrees that hold a sequence of layers.
STACKED = ("transformer", "spatial", "temporal", "layers")
# Leaves of a LLaMA layer, stored without the `kernel` and `scale` of Flax's modules.
LLAMA_MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
LLAMA_NORMS = ("attention_norm", "mlp_norm", "final_norm")


def copy(state: State, module: nn.Module) -> nn.Module:
    """Loads a state dict into a module strictly, and returns the module."""
    module.load_state_dict(state, strict=True)
    return module


def join(params: Tree, frozen: Tree) -> dict[str, Any]:
    """Merges the trainable and the frozen tree, which share no leaf."""
    joined = dict(params)
    for key, value in frozen.items():
        joined[key] = join(joined[key], value) if key in joined else value
    return joined


def module_state(tree: Tree, prefix: str = "") -> State:
    """State of a restated module other than `rllm.ViT`, or of a classifier around one, from the tree of ours."""
    state = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if key in STACKED:
            for i, layer in enumerate(layers_of(value)):
                state |= module_state(layer, f"{name}.{i}.")
        elif isinstance(value, Mapping):
            state |= module_state(value, f"{name}.")
        elif key == "kernel":
            state[f"{prefix}weight"] = tensor(np.asarray(value).T)
        elif key == "scale":
            state[f"{prefix}weight"] = tensor(value)
        elif key in LLAMA_MATRICES:
            state[f"{name}.weight"] = tensor(np.asarray(value).T)
        elif key in LLAMA_NORMS:
            state[f"{name}.weight"] = tensor(value)
        else:
            state[name] = tensor(value)
    return state


def vit_state(tree: Tree, *, channels: int = 3, prefix: str = "") -> State:
    """State of `rllm.ViT`, whose patch embedding is a convolution, from the tree of our ViT."""
    state = module_state({key: value for key, value in tree.items() if key != "embedding"}, prefix)
    return state | _convolution(f"{prefix}embedding", tree["embedding"], channels)


def classifier_state(tree: Tree, *, ndim: int, channels: int = 3) -> State:
    """State of `rllm.Classifier` from the tree of ours, frozen weights included (`join`); `ndim` as in `Backbone`."""
    if ndim == 3:
        return module_state(tree)
    rest = {key: value for key, value in tree.items() if key != "encoder"}
    return module_state(rest) | vit_state(tree["encoder"], channels=channels, prefix="encoder.")


def huggingface_vit_state(encoder: Tree, norm: Tree, *, channels: int = 3) -> State:
    """State of transformers' `ViTModel` without pooler; `norm` is the classifier's head norm, its final LayerNorm."""
    state = _convolution("embeddings.patch_embeddings.projection", encoder["embedding"], channels)
    state["embeddings.cls_token"] = tensor(np.asarray(encoder["cls"])[None, None])
    state["embeddings.position_embeddings"] = tensor(np.asarray(encoder["positions"])[None])
    for i, layer in enumerate(layers_of(encoder["transformer"])):
        name = f"layers.{i}"
        for part, projection in enumerate(("q_proj", "k_proj", "v_proj")):
            columns = {key: np.split(np.asarray(a), 3, -1)[part] for key, a in layer["attention"]["qkv"].items()}
            state |= _linear(f"{name}.attention.{projection}", columns)
        state |= _linear(f"{name}.attention.o_proj", layer["attention"]["out"])
        state |= _linear(f"{name}.mlp.fc1", layer["mlp"]["up"])
        state |= _linear(f"{name}.mlp.fc2", layer["mlp"]["down"])
        state |= _norm(f"{name}.layernorm_before", layer["attention_norm"])
        state |= _norm(f"{name}.layernorm_after", layer["mlp_norm"])
    return state | _norm("layernorm", norm)


def vit_pytorch_vit3d_state(encoder: Tree, norm: Tree, head: Tree, *, patch: int) -> State:
    """State of vit-pytorch's `vit_3d.ViT`; `norm` and `head` are the classifier's."""
    state = _volume_embedding("to_patch_embedding", encoder["embedding"], patch)
    state["cls_token"] = tensor(np.asarray(encoder["cls"])[None, None])
    state["pos_embedding"] = tensor(np.asarray(encoder["positions"])[None])
    state |= _volume_blocks("transformer", encoder["transformer"])
    return state | _norm("mlp_head.0", norm) | _linear("mlp_head.1", head)


def vit_pytorch_vivit_state(encoder: Tree, head: Tree, *, patch: int) -> State:
    """State of vit-pytorch's `vivit.ViViT` with factorised encoder; `head` is the classifier's."""
    state = _volume_embedding("to_patch_embedding", encoder["embedding"], patch)
    state["pos_embedding"] = tensor(np.asarray(encoder["positions"])[None])
    for axis in ("spatial", "temporal"):
        state[f"{axis}_cls_token"] = tensor(np.asarray(encoder[f"{axis}_cls"])[None, None])
        state |= _volume_blocks(f"{axis}_transformer", encoder[axis])
        state |= _norm(f"{axis}_transformer.norm", encoder[f"{axis}_norm"])
    return state | _linear("mlp_head", head)


def huggingface_llama_layer_state(layer: Tree, prefix: str = "") -> State:
    """State of transformers' `LlamaDecoderLayer` from the tree of one LlamaLayer, not stacked."""
    matrices = {name: f"self_attn.{name}_proj" for name in ("q", "k", "v", "o")}
    matrices |= {name: f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    state = {f"{prefix}{theirs}.weight": tensor(np.asarray(layer[ours]).T) for ours, theirs in matrices.items()}
    return state | {f"{prefix}{theirs}.weight": tensor(layer[ours]) for ours, theirs in norms.items()}


def huggingface_llama_state(block: Tree) -> State:
    """State of transformers' `LlamaModel` without the token embedding, from the tree of a LlamaBlock."""
    state = {"norm.weight": tensor(block["final_norm"])}
    for i, layer in enumerate(layers_of(block["layers"])):
        state |= huggingface_llama_layer_state(layer, f"layers.{i}.")
    return state


def layers_of(tree: Tree) -> Sequence[Tree]:
    """The layers of a stack, whose weights have a leading axis, or of a transformer, whose last block is separate."""
    if "last" in tree:
        return [*(layers_of(tree["blocks"]) if "blocks" in tree else []), tree["last"]]
    # numpy's, because JAX would compile a program for each shape and layer.
    tree = jax.tree.map(np.asarray, tree)
    depth = jax.tree.leaves(tree)[0].shape[0]
    return [jax.tree.map(lambda a, i=i: a[i], tree) for i in range(depth)]


def tensor(array: Any) -> torch.Tensor:
    """A float32 tensor that owns its memory, so that nothing writes into a JAX buffer."""
    return torch.from_numpy(np.array(array, np.float32))


def _linear(name: str, tree: Tree) -> State:
    return module_state(tree, f"{name}.")


def _norm(name: str, tree: Tree) -> State:
    return module_state(tree, f"{name}.")


def _convolution(name: str, tree: Tree, channels: int) -> State:
    """Our patches are flattened in the order rows, columns, channels; a convolution's kernel is (D, C, P, P)."""
    kernel = tree["kernel"]
    side = round((kernel.shape[0] // channels) ** 0.5)
    weight = np.asarray(kernel).reshape(side, side, channels, -1).transpose(3, 2, 0, 1)
    return {f"{name}.weight": tensor(weight), f"{name}.bias": tensor(tree["bias"])}


def _volume_embedding(name: str, tree: Tree, patch: int) -> State:
    """Ours and the reference's flatten rows, columns, slices, channels; vit-pytorch now begins with the slices."""

    def slices_first(a: Any) -> np.ndarray:
        cube = np.asarray(a).reshape(patch, patch, patch, -1, *a.shape[1:])
        return np.moveaxis(cube, 2, 0).reshape(a.shape)

    linear = {"kernel": slices_first(tree["linear"]["kernel"]), "bias": tree["linear"]["bias"]}
    norm_in = {key: slices_first(value) for key, value in tree["norm_in"].items()}
    # Index 0 is the rearrangement, which has no weights.
    return _norm(f"{name}.1", norm_in) | _linear(f"{name}.2", linear) | _norm(f"{name}.3", tree["norm_out"])


def _volume_blocks(name: str, stacked: Tree) -> State:
    state = {}
    for i, layer in enumerate(layers_of(stacked)):
        attention, mlp = f"{name}.layers.{i}.0", f"{name}.layers.{i}.1.net"
        state |= _norm(f"{attention}.norm", layer["attention_norm"])
        state |= _linear(f"{attention}.to_qkv", layer["attention"]["qkv"])
        state |= _linear(f"{attention}.to_out.0", layer["attention"]["out"])
        state |= _norm(f"{mlp}.0", layer["mlp_norm"])
        state |= _linear(f"{mlp}.1", layer["mlp"]["up"])
        state |= _linear(f"{mlp}.4", layer["mlp"]["down"])
    return state
