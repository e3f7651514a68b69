"""LoRA (Hu et al. 2021) restated in plain eager PyTorch, beside the matrices of `rllm.LlamaBlock` or `rllm.ViT`."""

from collections.abc import Collection, Mapping
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


def add_to_vit(vit: rllm.ViT, names: Collection[str], rank: int, alpha: float) -> rllm.ViT:
    """Puts LoRA beside the linear layers of these names in all blocks of a frozen ViT, in place, as PEFT does."""
    vit.requires_grad_(False)
    for module in list(vit.transformer.modules()):
        for name, child in list(module.named_children()):
            if name in names:
                setattr(module, name, LoraLinear(child, rank, alpha))
    return vit


def vit_state(tree: Mapping[str, Any]) -> weights.State:
    """State of such a ViT from the tree of ours, or of the gradients of its trained weights."""
    plain = weights.vit_state(tree) if "embedding" in tree else weights.module_state(tree)
    changed = {name.partition(".lora.")[0] for name in plain if ".lora." in name}
    found = {}
    for name, value in plain.items():
        place, part = name.rpartition(".")[::2]
        if part.startswith("kernel_"):
            found[f"{place.removesuffix('.lora')}.{part[-1]}"] = value.T.contiguous()
        else:
            found[f"{place}.linear.{part}" if place in changed else name] = value
    return found


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
