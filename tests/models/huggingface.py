"""LLaMA layers of transformers, with rotary embedding and causal mask as switches, to compare ours with."""

from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig as HuggingFaceConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from jaxboost.models.llama import LlamaConfig


def huggingface_config(
    config: LlamaConfig, *, depth: int = 1, rope_parameters: dict[str, Any] | None = None
) -> HuggingFaceConfig:
    """transformers' configuration for ours; `rope_parameters` adds a scaling rule to the base."""
    return HuggingFaceConfig(
        vocab_size=8,
        hidden_size=config.width,
        intermediate_size=config.mlp_width,
        num_hidden_layers=depth,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.eps,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_base, **(rope_parameters or {})},
        attn_implementation="eager",
    )


class HuggingFaceBlock(nn.Module):
    """Decoder layers and the final norm, under the names they have in transformers' LlamaModel; (B, N, D) -> (B, N, D).

    Attributes:
      mask: (B, N), True where a token is real; None where all are.
    """

    def __init__(
        self,
        config: LlamaConfig,
        *,
        depth: int = 1,
        rope: bool,
        causal: bool,
        mask: torch.Tensor | None = None,
        rope_parameters: dict[str, Any] | None = None,
    ):
        super().__init__()
        theirs = huggingface_config(config, depth=depth, rope_parameters=rope_parameters)
        self.rope, self.causal, self.mask = rope, causal, mask
        self.layers = nn.ModuleList(LlamaDecoderLayer(theirs, i) for i in range(depth))
        self.norm = LlamaRMSNorm(config.width, eps=config.eps)
        self.rotary = LlamaRotaryEmbedding(theirs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, attention_mask=self.additive_mask(x), position_embeddings=self.cos_and_sin(x))
        return self.norm(x)

    def cos_and_sin(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The rotary embedding's, or those of the rotation by nothing."""
        cos, sin = self.rotary(x, torch.arange(x.shape[1])[None])
        return (cos, sin) if self.rope else (torch.ones_like(cos), torch.zeros_like(sin))

    def additive_mask(self, x: torch.Tensor) -> torch.Tensor | None:
        """(B or 1, 1, N, N), the lowest float where a query may not see a key."""
        N = x.shape[1]
        allowed = torch.ones(1, 1, N, N, dtype=torch.bool)
        if self.causal:
            allowed = allowed.tril()
        if self.mask is not None:
            allowed = allowed & self.mask[:, None, None, :]
        return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
