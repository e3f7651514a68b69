"""PneumoLLM (Song et al. 2024) restated in plain eager PyTorch, without dropout; see `tests.reference.rllm`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tests.models.huggingface import HuggingFaceBlock
from tests.reference import rllm
from tests.reference.weights import State, Tree, huggingface_llama_state, layers_of, module_state, tensor


class RepAdapter(nn.Module):
    """x + up(down(x)) over tokens (B, N, D), with convolutions of kernel size 1 as in the paper's code."""

    def __init__(self, width: int):
        super().__init__()
        self.down = nn.Conv1d(width, 8, 1)
        self.up = nn.Conv1d(8, width, 1, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.up(self.down(x.transpose(1, 2))).transpose(1, 2)


class Block(nn.Module):
    """A frozen encoder's block, with CLIP's activation or DINOv2's LayerScale; `adapter` goes before the attention."""

    def __init__(self, width: int, *, heads: int, mlp_width: int, eps: float, activation: str, layer_scale: bool):
        super().__init__()
        self.activation = activation
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.attention = rllm.Attention(width, heads=heads, head_dim=width // heads, qkv_bias=True)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)
        self.mlp = rllm.Mlp(width, mlp_width)
        self.attention_scale = nn.Parameter(torch.ones(width)) if layer_scale else None
        self.mlp_scale = nn.Parameter(torch.ones(width)) if layer_scale else None

    def forward(self, x: torch.Tensor, adapter: nn.Module) -> torch.Tensor:
        change = self.attention(adapter(self.attention_norm(x)))
        x = x + (change if self.attention_scale is None else self.attention_scale * change)
        hidden = self.mlp.up(self.mlp_norm(x))
        quick = self.activation == "quick_gelu"
        change = self.mlp.down(hidden * torch.sigmoid(1.702 * hidden) if quick else functional.gelu(hidden))
        return x + (change if self.mlp_scale is None else self.mlp_scale * change)


class Encoder(nn.Module):
    """Images (B, 3, S, S) and an adapter for each block -> the CLS token after each `every`-th block (B, d, W)."""

    def __init__(
        self,
        *,
        image_size: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        mlp_width: int,
        eps: float,
        activation: str,
        patch_bias: bool,
        pre_norm: bool,
        layer_scale: bool,
    ):
        super().__init__()
        self.embedding = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=patch_bias)
        self.cls = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.zeros(1 + (image_size // patch) ** 2, width))
        self.pre_norm = nn.LayerNorm(width, eps=eps) if pre_norm else nn.Identity()
        shape = dict(heads=heads, mlp_width=mlp_width, eps=eps, activation=activation, layer_scale=layer_scale)
        self.transformer = nn.ModuleList(Block(width, **shape) for _ in range(depth))

    def forward(self, images: torch.Tensor, adapters: nn.ModuleList, every: int) -> torch.Tensor:
        x = self.embedding(images).flatten(2).transpose(1, 2)
        x = self.pre_norm(rllm.prepend(self.cls, x) + self.positions)
        cls = []
        for number, (block, adapter) in enumerate(zip(self.transformer, adapters, strict=True), start=1):
            x = block(x, adapter)
            if number % every == 0:
                cls.append(x[:, 0])
        return torch.stack(cls, dim=1)


class Llama(HuggingFaceBlock):
    """transformers' decoder layers with an adapter before each attention; no token attends to those in `hidden`."""

    def forward(self, x: torch.Tensor, adapters: nn.ModuleList, hidden: torch.Tensor | None) -> torch.Tensor:
        mask = self.additive_mask(x)
        if hidden is not None:
            mask[..., hidden] = torch.finfo(torch.float32).min
        for layer, adapter in zip(self.layers, adapters, strict=True):
            normed = adapter(layer.input_layernorm(x))
            x = x + layer.self_attn(normed, attention_mask=mask, position_embeddings=self.cos_and_sin(x))[0]
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.norm(x)


class PneumoLLM(nn.Module):
    """Normalised images -> logits (B, classes). `parts`: what `make` gave."""

    def __init__(self, *, every: int, tokens: str, emitter: bool, **parts: nn.Module | None):
        super().__init__()
        self.every, self.tokens, self.emitter = every, tokens, emitter
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.encoder(images, self.vision_adapters, self.every)
        d = x.shape[1]
        x = torch.cat([x, self.diagnosis_tokens(x)], dim=1)
        y = self.neck_out(functional.silu(self.neck_in(x)))
        if self.llama is not None:
            y = self.llama(y, self.llama_adapters, torch.arange(d, y.shape[1]) if self.emitter else None)
        return self.head(y.mean(dim=1))

    def diagnosis_tokens(self, x: torch.Tensor) -> torch.Tensor:
        match self.tokens:
            case "none":
                return x[:, :0]
            case "engine":
                scores = self.engine.scores(functional.relu(self.engine.hidden(x)))
                return torch.einsum("bdm,bdw->bmw", scores.softmax(dim=1), x)
            case "coop":
                return self.engine.prompts.expand(x.shape[0], -1, -1)
            case "cocoop":
                return self.engine.prompts + self.engine.shift(functional.relu(self.engine.hidden(x[:, -1:])))


def adapters(width: int, depth: int, used: bool) -> nn.ModuleList:
    """An adapter for each layer, or identities if `used` is False."""
    return nn.ModuleList(RepAdapter(width) if used else nn.Identity() for _ in range(depth))


def engine(tokens: str, width: int, count: int) -> nn.Module | None:
    """The weights that make the diagnosis tokens."""
    if tokens == "none":
        return None
    module = nn.Module()
    if tokens == "engine":
        module.hidden, module.scores = nn.Linear(width, 12), nn.Linear(12, count)
        return module
    module.prompts = nn.Parameter(torch.zeros(count, width))
    if tokens == "cocoop":
        module.hidden, module.shift = nn.Linear(width, width // 16), nn.Linear(width // 16, width)
    return module


def state_of(tree: Tree) -> State:
    """State of `PneumoLLM` from the tree of ours, frozen weights included (`weights.join`); also of its gradients."""
    state = {}
    for name, part in tree.items():
        if name in ("vision_adapters", "llama_adapters"):
            for i, layer in enumerate(layers_of(part)):
                state |= adapter_state(layer, f"{name}.{i}.")
        elif name == "llama":
            state |= {f"llama.{key}": value for key, value in huggingface_llama_state(part).items()}
        elif name == "encoder":
            state |= _encoder_state(part)
        else:
            state |= module_state(part, f"{name}.")
    return state


def _encoder_state(tree: Tree) -> State:
    kernel = np.asarray(tree["embedding"]["kernel"])
    side = round((kernel.shape[0] // 3) ** 0.5)
    rest: dict[str, Any] = {key: value for key, value in tree.items() if key != "embedding"}
    state = module_state(rest, "encoder.")
    state["encoder.embedding.weight"] = tensor(kernel.reshape(side, side, 3, -1).transpose(3, 2, 0, 1))
    if "bias" in tree["embedding"]:
        state["encoder.embedding.bias"] = tensor(tree["embedding"]["bias"])
    return state


def adapter_state(tree: Mapping[str, Any], prefix: str) -> State:
    """State of a `RepAdapter` from the tree of ours."""
    up = np.asarray(tree["up"])  # (groups, hidden / groups, width / groups)
    return {
        f"{prefix}down.weight": tensor(np.asarray(tree["down"]).T[..., None]),
        f"{prefix}down.bias": tensor(tree["down_bias"]),
        f"{prefix}up.weight": tensor(up.transpose(0, 2, 1).reshape(-1, up.shape[1], 1)),
        f"{prefix}up.bias": tensor(tree["up_bias"]),
    }
