"""R-LLM (Lai et al. 2024) restated in plain eager PyTorch.

The tests compare the package with it. It runs the models the way their authors do: channels first, float32, every
product, softmax and norm a separate operation, every layer a separate module, norms on all tokens although only
CLS is pooled. Options that the authors never use (dropout, rotary embedding, masks) are left out. Modules and keyword
arguments have the names of the package's, so that weights can be copied by name (`tests.reference.weights`);
nothing here imports the package.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional


def pixels(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """uint8 (B, S, ..., S, c), c in {1, 3} -> normalised float32 (B, 3, S, ..., S), grey repeated."""
    x = images.movedim(-1, 1).to(torch.float32) / 255
    x = x.expand(-1, 3, *x.shape[2:])
    shape = (1, 3, *[1] * (x.ndim - 2))
    return (x - torch.tensor(mean, device=x.device).view(shape)) / torch.tensor(std, device=x.device).view(shape)


class Attention(nn.Module):
    """Multi-head self-attention, (B, N, D) -> (B, N, D); the queries' columns come first, then keys', then values'."""

    def __init__(self, width: int, *, heads: int, head_dim: int, qkv_bias: bool):
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.qkv = nn.Linear(width, 3 * heads * head_dim, bias=qkv_bias)
        self.out = nn.Linear(heads * head_dim, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        weights = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(dim=-1)  # (B, H, N, N)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, N, H * K) -> (B, H, N, K)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class Mlp(nn.Module):
    """Linear - GELU (erf) - Linear."""

    def __init__(self, width: int, mlp_width: int):
        super().__init__()
        self.up = nn.Linear(width, mlp_width)
        self.down = nn.Linear(mlp_width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(functional.gelu(self.up(x)))


class Block(nn.Module):
    """Pre-norm transformer block, (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, *, heads: int, head_dim: int, mlp_width: int, qkv_bias: bool, eps: float):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.attention = Attention(width, heads=heads, head_dim=head_dim, qkv_bias=qkv_bias)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, mlp_width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


def volume_blocks(width: int, depth: int, *, heads: int, head_dim: int, mlp_width: int) -> nn.Sequential:
    """The transformer of both 3D encoders: q, k and v without bias, LayerNorm eps 1e-5."""
    return nn.Sequential(
        *(
            Block(width, heads=heads, head_dim=head_dim, mlp_width=mlp_width, qkv_bias=False, eps=1e-5)
            for _ in range(depth)
        )
    )


class ViT(nn.Module):
    """Images (B, C, S, S) -> tokens (B, 1 + N, D), CLS first, before the final LayerNorm."""

    def __init__(
        self, *, image_size: int, patch: int, channels: int, width: int, depth: int, heads: int, mlp_width: int
    ):
        super().__init__()
        self.embedding = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        self.cls = nn.Parameter(0.02 * torch.randn(width))
        self.positions = nn.Parameter(0.02 * torch.randn(1 + (image_size // patch) ** 2, width))
        self.transformer = nn.Sequential(
            *(
                Block(width, heads=heads, head_dim=width // heads, mlp_width=mlp_width, qkv_bias=True, eps=1e-6)
                for _ in range(depth)
            )
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.embedding(images).flatten(2).transpose(1, 2)
        return self.transformer(prepend(self.cls, x) + self.positions)


def prepend(token: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """One token (D,) before the tokens x (B, N, D) -> (B, 1 + N, D)."""
    return torch.cat([token.expand(x.shape[0], 1, -1), x], dim=1)


class PatchEmbedding3D(nn.Module):
    """Volumes (B, C, S, S, S), slices first -> (B, frames, N, D), a frame being P slices: LayerNorm, Linear, LayerNorm.

    The reference flattens a patch in the order rows, columns, slices, channels.
    """

    def __init__(self, patch: int, channels: int, width: int):
        super().__init__()
        self.patch = patch
        self.norm_in = nn.LayerNorm(patch**3 * channels)
        self.linear = nn.Linear(patch**3 * channels, width)
        self.norm_out = nn.LayerNorm(width)

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        B, C, S = volumes.shape[:3]
        P, n = self.patch, S // self.patch
        x = volumes.reshape(B, C, n, P, n, P, n, P).permute(0, 2, 4, 6, 5, 7, 3, 1)
        return self.norm_out(self.linear(self.norm_in(x.reshape(B, n, n * n, P**3 * C))))


class ViT3D(nn.Module):
    """Volumes (B, C, S, S, S) -> tokens (B, 1 + N, D), CLS first; no final norm."""

    def __init__(
        self,
        *,
        image_size: int,
        patch: int,
        channels: int,
        width: int,
        depth: int,
        heads: int,
        head_dim: int,
        mlp_width: int,
    ):
        super().__init__()
        self.embedding = PatchEmbedding3D(patch, channels, width)
        self.cls = nn.Parameter(torch.randn(width))
        self.positions = nn.Parameter(torch.randn(1 + (image_size // patch) ** 3, width))
        self.transformer = volume_blocks(width, depth, heads=heads, head_dim=head_dim, mlp_width=mlp_width)

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        return self.transformer(prepend(self.cls, self.embedding(volumes).flatten(1, 2)) + self.positions)


class ViViT(nn.Module):
    """Volumes (B, C, S, S, S) -> temporal tokens (B, 1 + frames, D), CLS first, after the final LayerNorm."""

    def __init__(
        self,
        *,
        image_size: int,
        patch: int,
        channels: int,
        width: int,
        spatial_depth: int,
        temporal_depth: int,
        heads: int,
        head_dim: int,
        mlp_width: int,
    ):
        super().__init__()
        frames = image_size // patch
        shape = dict(heads=heads, head_dim=head_dim, mlp_width=mlp_width)
        self.embedding = PatchEmbedding3D(patch, channels, width)
        self.positions = nn.Parameter(torch.randn(frames, frames**2, width))
        self.spatial_cls = nn.Parameter(torch.randn(width))
        self.temporal_cls = nn.Parameter(torch.randn(width))
        self.spatial = volume_blocks(width, spatial_depth, **shape)
        self.spatial_norm = nn.LayerNorm(width)
        self.temporal = volume_blocks(width, temporal_depth, **shape)
        self.temporal_norm = nn.LayerNorm(width)

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        x = self.embedding(volumes) + self.positions  # (B, frames, N, D)
        frames = x.shape[1]
        x = self.spatial_norm(self.spatial(prepend(self.spatial_cls, x.flatten(0, 1))))
        x = x[:, 0].unflatten(0, (-1, frames))  # (B, frames, D)
        return self.temporal_norm(self.temporal(prepend(self.temporal_cls, x)))


class RmsNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, the statistics in float32."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        return normed.type_as(x) * self.weight


class LlamaLayer(nn.Module):
    """A LLaMA decoder layer as R-LLM applies it, (B, N, D) -> (B, N, D): every token attends to all, without positions.

    With fewer key/value heads than heads, each serves a group of neighbouring query heads.
    """

    def __init__(self, width: int, *, heads: int, kv_heads: int, head_dim: int, mlp_width: int, eps: float):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.attention_norm = RmsNorm(width, eps)
        self.q = nn.Linear(width, heads * head_dim, bias=False)
        self.k = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.v = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.o = nn.Linear(heads * head_dim, width, bias=False)
        self.mlp_norm = RmsNorm(width, eps)
        self.gate = nn.Linear(width, mlp_width, bias=False)
        self.up = nn.Linear(width, mlp_width, bias=False)
        self.down = nn.Linear(mlp_width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attend(self.attention_norm(x))
        y = self.mlp_norm(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        q = split_heads(self.q(x), self.heads)
        k, v = (
            split_heads(matrix(x), self.kv_heads).repeat_interleave(self.heads // self.kv_heads, dim=1)
            for matrix in (self.k, self.v)
        )
        weights = (q @ k.transpose(-2, -1) / self.head_dim**0.5).float().softmax(dim=-1).type_as(x)
        return self.o((weights @ v).transpose(1, 2).flatten(2))


class LlamaBlock(nn.Module):
    """F_L: decoder layers, then the final RMSNorm, which the reference leaves at ones; the result is float32.

    Frozen, as in all but the fine-tuning arm, after `block.requires_grad_(False)`.
    """

    def __init__(self, *, width: int, depth: int, heads: int, kv_heads: int, head_dim: int, mlp_width: int, eps: float):
        super().__init__()
        shape = dict(heads=heads, kv_heads=kv_heads, head_dim=head_dim, mlp_width=mlp_width, eps=eps)
        self.layers = nn.Sequential(*(LlamaLayer(width, **shape) for _ in range(depth)))
        self.final_norm = RmsNorm(width, eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.final_norm(self.layers(x)).float()


class Boost(nn.Module):
    """The boost variants on tokens x (B, N, D), each formula written out.

    `block` is F_L; None for the controls without it. "layer" is a whole transformer layer in the place of F_E, F_L and
    F_D, with the first MLP whose two products and biases bring it closest to the weights of F_E and F_D.
    """

    KINDS = ("rllm", "out", "hybrid", "bare", "out_nn", "mlp", "mlp_out", "identity", "mlp_gelu", "layer")

    def __init__(self, kind: str, *, width: int, block_width: int, block: nn.Module | None):
        super().__init__()
        if kind not in self.KINDS:
            raise ValueError(f"unknown kind {kind!r}, known: {', '.join(self.KINDS)}")
        self.kind = kind
        if kind == "layer":
            self.layer = closest_layer(width, 2 * width * block_width)
            return
        self.encode = nn.Linear(width, block_width, bias=False)  # F_E
        self.block = block
        self.decode = nn.Linear(block_width, width, bias=False)  # F_D
        self.skip = nn.Linear(width, width, bias=False) if kind == "out_nn" else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "layer":
            return self.layer(x)
        r = self.encode(x)
        match self.kind:
            case "rllm":
                return self.decode(self.block(r) + r)
            case "out":
                return self.decode(self.block(r)) + x
            case "hybrid":
                return self.decode(self.block(r) + r) + x
            case "bare":
                return self.decode(self.block(r))
            case "out_nn":
                return self.decode(self.block(r)) + functional.leaky_relu(self.skip(x), negative_slope=0.01)
            case "mlp":
                return self.decode(r)
            case "mlp_out":
                return self.decode(r) + x
            case "identity":
                return self.decode(2 * r)
            case "mlp_gelu":
                return self.decode(functional.gelu(r))


def closest_layer(width: int, weights: int) -> Block:
    """Of layers of one head the one whose number of weights is closest, with an MLP of a quarter of the width or more.

    Only for widths below 64, the width of a head elsewhere.
    """

    def make(mlp_width: int) -> Block:
        return Block(width, heads=1, head_dim=width, mlp_width=mlp_width, qkv_bias=True, eps=1e-6)

    def distance(mlp_width: int) -> int:
        return abs(sum(each.numel() for each in make(mlp_width).parameters()) - weights)

    return make(min(range(width // 4, 2 * width), key=distance))


class Classifier(nn.Module):
    """Normalised images (`pixels`) -> logits (B, classes); no LayerNorm before the head if `head_eps` is None."""

    def __init__(self, encoder: nn.Module, boost: Boost | None, *, width: int, classes: int, head_eps: float | None):
        super().__init__()
        self.encoder, self.boost = encoder, boost
        self.head_norm = None if head_eps is None else nn.LayerNorm(width, eps=head_eps)
        self.head = nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.encoder(images)
        if self.boost is not None:
            x = self.boost(x)
        if self.head_norm is not None:
            x = self.head_norm(x)
        return self.head(x[:, 0])
