"""CoOp (Zhou et al. 2022a) and CoCoOp (Zhou et al. 2022b) restated in PyTorch around transformers' CLIP.

As in their papers: the context goes between the token that starts a text and the class name, and CLIP is frozen.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class Prompted(nn.Module):
    """Pixels (B, 3, S, S) -> logits (B, C).

    Args:
      clip: transformers' CLIPModel.
      tokenizer: its tokenizer.
      names: of the classes.
      context: number of learned vectors.
      conditional: whether a meta-network of the image shifts them, one image after the other, as in CoCoOp's code.
    """

    def __init__(self, clip: Any, tokenizer: Any, names: list[str], *, context: int, conditional: bool):
        super().__init__()
        self.clip = clip.requires_grad_(False)
        self.numbers = [tokenizer(f"{name}.")["input_ids"] for name in names]
        width, shared = clip.config.text_config.hidden_size, clip.config.projection_dim
        self.prompts = nn.Parameter(torch.zeros(context, width))
        hidden = max(1, shared // 16)
        self.hidden = nn.Linear(shared, hidden) if conditional else None
        self.shift = nn.Linear(hidden, width) if conditional else None

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        images = self.clip.visual_projection(self.clip.vision_model(pixels).pooler_output)
        images = functional.normalize(images, dim=-1)
        scale = self.clip.logit_scale.exp()
        rows = []
        for image in images:
            vectors = self.prompts
            if self.hidden is not None:
                vectors = vectors + self.shift(torch.relu(self.hidden(image)))
            texts = torch.stack([self.text(vectors, numbers) for numbers in self.numbers])
            rows.append(scale * functional.normalize(texts, dim=-1) @ image)
        return torch.stack(rows)

    def text(self, vectors: torch.Tensor, numbers: list[int]) -> torch.Tensor:
        """The embedding of one prompt, which is as long as it needs to be: its last token is the end."""
        tower = self.clip.text_model
        tokens = tower.embeddings.token_embedding(torch.tensor(numbers))
        x = torch.cat([tokens[:1], vectors, tokens[1:]])[None]
        x = x + tower.embeddings.position_embedding.weight[: x.shape[1]]
        mask = torch.full((x.shape[1], x.shape[1]), torch.finfo(x.dtype).min).triu(1)[None, None]
        for layer in tower.encoder.layers:
            x = x + layer.self_attn(layer.layer_norm1(x), attention_mask=mask)[0]
            x = x + layer.mlp(layer.layer_norm2(x))
        return self.clip.text_projection(tower.final_layer_norm(x)[0, -1])
