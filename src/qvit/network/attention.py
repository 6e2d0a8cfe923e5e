"""Quantized attention for ViT blocks and for Swin windows.

Both products of attention have two activations as operands, and each operand is quantized per head:

    q, k, v     (B, H, N, d)  signed
    scores      q k^T / sqrt(d), float, plus Swin's bias and mask
    attention   softmax(scores), (B, H, N, N), unsigned
    output      attention v, (B, H, N, d), quantized per head as the input of proj: (B, N, H d), H groups of columns

The float children keep timm's names (qkv, q_norm, k_norm, proj, ...), so checkpoints load as they are. The fused
scaled_dot_product_attention has no place for a quantizer between softmax and v, so attention is written out.

`windows` is how many windows one image has (1 for ViT), `tokens` how many tokens each has: the multiply-accumulates of
either product are windows * tokens^2 * H * d.
"""

from __future__ import annotations

from dataclasses import dataclass

from timm.layers.attention import Attention
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn

from ..quantizers.quantizer import Quantizer
from .layers import QuantLinear


@dataclass(frozen=True)
class HeadQuantizers:
    """The quantizers of q, k, v and of the attention map."""

    q: Quantizer
    k: Quantizer
    v: Quantizer
    attention: Quantizer


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(..., N, 3 H d), the output of a fused qkv layer -> q, k, v, each (..., H, N, d)"""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).movedim(-3, 0).transpose(-3, -2).unbind(0)
    return q, k, v


class _QuantAttention(nn.Module):
    """What ViT and Swin attention share: the two quantized products."""

    qkv: QuantLinear
    proj: QuantLinear

    def _share(self, source: nn.Module, qkv: QuantLinear, proj: QuantLinear, heads: HeadQuantizers) -> None:
        self.num_heads: int = source.num_heads  # type: ignore[assignment]
        self.scale: float = source.scale  # type: ignore[assignment]
        self.qkv, self.proj = qkv, proj
        self.attn_drop: nn.Module = source.attn_drop  # type: ignore[assignment]
        self.proj_drop: nn.Module = source.proj_drop  # type: ignore[assignment]
        self.q_quantizer, self.k_quantizer, self.v_quantizer = heads.q, heads.k, heads.v
        self.attention_quantizer = heads.attention
        self.head_dim = qkv.out_features // (3 * self.num_heads)
        self.train(source.training)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, C) -> q, k, v, each (B, H, N, d)"""
        return split_heads(self.qkv(x), self.num_heads)

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        return (self.q_quantizer(q) @ self.k_quantizer(k).transpose(-2, -1)) * self.scale

    def _mix(self, scores: Tensor, v: Tensor) -> Tensor:
        """(B, H, N, N), (B, H, N, d) -> (B, N, C)"""
        attention = self.attn_drop(self.attention_quantizer(scores.softmax(dim=-1)))
        output = (attention @ self.v_quantizer(v)).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(output))


class QuantAttention(_QuantAttention):
    """timm's Attention with fused qkv and optional QK-norm."""

    def __init__(
        self, source: Attention, qkv: QuantLinear, proj: QuantLinear, heads: HeadQuantizers, tokens: int
    ) -> None:
        super().__init__()
        self._share(source, qkv, proj, heads)
        self.q_norm, self.k_norm = source.q_norm, source.k_norm
        self.tokens, self.windows = tokens, 1

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, C) -> (B, N, C). Masks are refused: a frozen program has a fixed set of tokens."""
        if attn_mask is not None or is_causal:
            raise NotImplementedError("quantized attention takes no attn_mask and is not causal")
        q, k, v = self._split(x)
        return self._mix(self._scores(self.q_norm(q), self.k_norm(k)), v)


class QuantWindowAttention(_QuantAttention):
    """timm's Swin WindowAttention: relative position bias, and a mask for shifted windows."""

    def __init__(
        self,
        source: WindowAttention,
        qkv: QuantLinear,
        proj: QuantLinear,
        heads: HeadQuantizers,
        tokens: int,
        windows: int,
    ) -> None:
        super().__init__()
        self._share(source, qkv, proj, heads)
        self.relative_position_bias_table: nn.Parameter = source.relative_position_bias_table
        index = source.get_buffer("relative_position_index").clone()
        self.register_buffer("relative_position_index", index, persistent=False)
        self.relative_position_index: Tensor
        self.tokens, self.windows = tokens, windows

    def position_bias(self) -> Tensor:
        """(H, T, T) from the learned table."""
        flat = self.relative_position_bias_table[self.relative_position_index.flatten()]
        return flat.view(self.tokens, self.tokens, -1).permute(2, 0, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B windows, T, C) -> same; mask (windows, T, T) of 0 and -100, or None."""
        q, k, v = self._split(x)
        scores = self._scores(q, k) + self.position_bias()
        if mask is not None:
            shaped = scores.view(-1, len(mask), *scores.shape[1:]) + mask[:, None]
            scores = shaped.view(scores.shape)
        return self._mix(scores, v)
