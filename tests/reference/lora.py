"""LoRA (Hu et al. 2021) restated in plain eager PyTorch, as an addition to the linear layers of `rllm.LlamaBlock`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tests.reference import rllm, weights


class LoraLinear(nn.Module):
    """W x + (alpha / r) B A x, equation 3 of the paper, for W (out, in), A (r, in) and B (out, r); W is frozen."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, linear.in_features))
        self.b = nn.Parameter(torch.zeros(linear.out_features, rank))
        self.scale = alpha / rank

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + self.scale * ((x @ self.a.T) @ self.b.T)


def add(block: rllm.LlamaBlock, rank: int, alpha: float) -> rllm.LlamaBlock:
    """Puts LoRA beside every matrix of a frozen block, in place."""
    block.requires_grad_(False)
    for layer in block.layers:
        for name in weights.LLAMA_MATRICES:
            setattr(layer, name, LoraLinear(getattr(layer, name), rank, alpha))
    return block


def state(tree: Mapping[str, Any]) -> weights.State:
    """State of such a block from the tree of ours, or of the gradients of its trained weights."""
    layers = dict(tree["layers"])
    lora = layers.pop("lora")
    found = {}
    for index, layer in enumerate(weights.layers_of(lora)):
        for name in weights.LLAMA_MATRICES:
            for part in ("a", "b"):
                found[f"layers.{index}.{name}.{part}"] = weights.tensor(layer[f"{name}_{part}"].T)
    for name, value in weights.module_state({**tree, "layers": layers}).items() if layers else ():
        place = name.removesuffix(".weight")
        inside = place.rpartition(".")[2] in weights.LLAMA_MATRICES
        found[f"{place}.linear.weight" if inside else name] = value
    return found
