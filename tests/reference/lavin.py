"""LaVIN (Luo et al. 2023) restated in plain eager PyTorch, without dropout; its modality token comes first."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tests.reference import pneumollm
from tests.reference.weights import State, Tree, layers_of, tensor


class MixtureAdapter(nn.Module):
    """Two adapters with one `down`, weighted by a router that reads the first token; tokens (B, N, D)."""

    def __init__(self, width: int):
        super().__init__()
        self.down = nn.Conv1d(width, 8, 1)
        self.up0, self.up1 = (nn.Conv1d(8, width, 1, groups=2) for _ in range(2))
        self.router = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = (self.router(x[:, 0]) / 10).softmax(-1)[..., None, None]
        hidden = self.down(x.transpose(1, 2))
        return x + (weights[:, 0] * self.up0(hidden) + weights[:, 1] * self.up1(hidden)).transpose(1, 2)


class Llama(pneumollm.Llama):
    """transformers' decoder layers under a causal mask; no other token attends to the first one if `routed`."""

    def forward(self, x: torch.Tensor, adapters: nn.ModuleList, routed: bool) -> torch.Tensor:
        mask = self.additive_mask(x).clone()
        if routed:
            mask[..., 1:, 0] = torch.finfo(torch.float32).min
        for layer, adapter in zip(self.layers, adapters, strict=True):
            normed = adapter(layer.input_layernorm(x))
            x = x + layer.self_attn(normed, attention_mask=mask, position_embeddings=self.cos_and_sin(x))[0]
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.norm(x)


class Lavin(nn.Module):
    """Normalised images -> scores (B, C). `question` is the tree of ours; `parts`: the modules."""

    def __init__(self, *, every: int, place: int, cap: float | None, routed: bool, question: Tree, **parts: nn.Module):
        super().__init__()
        self.every, self.place, self.cap = every, place, cap
        self.question = {name: tensor(value) for name, value in question.items()}
        for name, part in parts.items():
            setattr(self, name, part)
        self.modality = nn.Parameter(torch.zeros(self.question["tokens"].shape[1])) if routed else None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.encoder(images, self.vision_adapters, self.every)
        image = self.neck_out(functional.silu(self.neck_in(x)))
        words = self.question["tokens"].expand(len(x), -1, -1)
        y = torch.cat([words[:, : self.place], image, words[:, self.place :]], dim=1)
        if self.modality is not None:
            y = torch.cat([self.modality.expand(len(x), 1, -1), y], dim=1)
        y = self.llama(y, self.llama_adapters, self.modality is not None)
        scores = y[:, -1] @ self.question["answers"].T + self.question["bias"]
        return scores if self.cap is None else self.cap * torch.tanh(scores / self.cap)


def adapters(kind: str, width: int, depth: int) -> nn.ModuleList:
    """An adapter of a kind for each layer."""
    made = {"rep": pneumollm.RepAdapter, "mixture": MixtureAdapter}[kind]
    return nn.ModuleList(made(width) for _ in range(depth))


def state_of(tree: Tree) -> State:
    """State of `Lavin` from the tree of ours, frozen weights included (`weights.join`); also of its gradients."""
    state, rest = {}, {}
    for name, part in tree.items():
        if name == "modality":
            state[name] = tensor(part)
        elif name in ("vision_adapters", "llama_adapters") and "router" in part:
            for i, layer in enumerate(layers_of(part)):
                state |= _mixture_state(layer, f"{name}.{i}.")
        elif name != "question":
            rest[name] = part
    return state | pneumollm.state_of(rest)


def _mixture_state(tree: Tree, prefix: str) -> State:
    state = {
        f"{prefix}router.weight": tensor(np.asarray(tree["router"]["kernel"]).T),
        f"{prefix}router.bias": tensor(tree["router"]["bias"]),
    }
    for path in range(2):
        one = {**tree, "up": np.asarray(tree["up"])[path], "up_bias": np.asarray(tree["up_bias"])[path]}
        names = pneumollm.adapter_state(one, prefix)
        state |= {name.replace(".up.", f".up{path}."): value for name, value in names.items()}
    return state
