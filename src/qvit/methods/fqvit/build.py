"""The modules of FQ-ViT in the places of those that `qvit.quantize` made, with the quantizers that they share.

A LayerNorm and the linear layers behind it are one move: the LayerNorm writes codes, so the grid of its output is the grid
of their input. Where something float comes between (the mean over tokens, a residual branch), the LayerNorm's codes turn
into values again and the reader has a grid of its own.
"""

from __future__ import annotations

from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from ...network.attention import QuantAttention, QuantWindowAttention
from ...network.layers import QuantLinear
from ...quantizers.quantizer import Quantizer
from ...spec import MAX_BITS, FixedBits, SwitchableScale
from .modules import (
    IntegerLayerNorm,
    LinearOnCodes,
    ShiftAttention,
    ShiftWindowAttention,
    StreamBlock,
    StreamSwinBlock,
)


class Builder:
    """Makes grids of `activation_bits`, log2 attention of `log2_bits` if that is not None, and the modules around them."""

    def __init__(self, activation_bits: int, log2_bits: int | None) -> None:
        self.activation_bits, self.log2_bits = activation_bits, log2_bits

    def _activation(self, *, groups: int = 1, bits: int = 0, signed: bool, offset: bool = False) -> Quantizer:
        return Quantizer(
            FixedBits(bits or self.activation_bits),
            bit_groups=1,
            scale_groups=groups,
            axis=-1,
            signed=signed,
            offset=offset,
            bank=SwitchableScale(),
            batched=True,
        )

    def asymmetric(self) -> Quantizer:
        """One unsigned grid with a zero point."""
        return self._activation(signed=False, offset=True)

    def _norm(self, source: nn.LayerNorm) -> IntegerLayerNorm:
        stream = self._activation(groups=source.normalized_shape[0], signed=False, offset=True)
        return IntegerLayerNorm(source, stream, self._activation(signed=True))

    def free_norm(self, parent: nn.Module, name: str) -> None:
        """A LayerNorm behind which no linear layer reads its codes; Identity is left."""
        if isinstance(getattr(parent, name), nn.LayerNorm):
            setattr(parent, name, self._norm(getattr(parent, name)))

    def norm_and_reader(self, parent: nn.Module, name: str, reader: nn.Module) -> LinearOnCodes:
        """Swap a LayerNorm, if that is not done yet, and return the linear layer that reads its codes."""
        assert isinstance(reader, QuantLinear)
        norm = getattr(parent, name)
        if not isinstance(norm, IntegerLayerNorm):
            norm = self._norm(norm)
            setattr(parent, name, norm)
        return LinearOnCodes(reader, reader.weight_quantizer, norm.output_quantizer, reader.positions)

    def _branches(self, block: Block | SwinTransformerBlock) -> None:
        attention = block.attn
        assert isinstance(attention, (QuantAttention, QuantWindowAttention))
        qkv = self.norm_and_reader(block, "norm1", attention.qkv)
        attention.proj.input_quantizer = self.asymmetric()
        if self.log2_bits is None:
            attention.qkv = qkv
        else:
            scores = self._activation(signed=True, bits=MAX_BITS)
            shift = ShiftWindowAttention if isinstance(attention, QuantWindowAttention) else ShiftAttention
            block.attn = shift(attention, qkv, scores, self.log2_bits)  # type: ignore[arg-type]
        block.mlp.fc1 = self.norm_and_reader(block, "norm2", block.mlp.fc1)  # type: ignore[arg-type]

    def block(self, block: Block) -> StreamBlock:
        """A block of ViT; fc2 has an asymmetric input already."""
        self._branches(block)
        return StreamBlock(block)

    def swin_block(self, block: SwinTransformerBlock) -> StreamSwinBlock:
        """A block of Swin."""
        self._branches(block)
        return StreamSwinBlock(block)

    def ends(self, model: nn.Module) -> None:
        """The norms in front of the first block and behind the last, and the classifiers."""
        if isinstance(model, SwinTransformer):
            self.free_norm(model, "norm")
            if isinstance(model.head.fc, QuantLinear):  # Identity where there are no classes
                model.head.fc.input_quantizer = self.asymmetric()
            return
        assert isinstance(model, VisionTransformer)
        self.free_norm(model, "norm_pre")
        self.free_norm(model, "norm")
        self.free_norm(model, "fc_norm")
        last = "norm" if model.global_pool == "token" and isinstance(model.fc_norm, nn.Identity) else "fc_norm"
        for name in ("head", "head_dist"):
            head = getattr(model, name, None)
            if not isinstance(head, QuantLinear):
                continue
            if isinstance(getattr(model, last), IntegerLayerNorm):
                setattr(model, name, self.norm_and_reader(model, last, head))
            else:
                head.input_quantizer = self.asymmetric()
