"""QuantLinear and QuantConv2d: timm's own layers with a quantizer on the weight and one on the input.

They are subclasses of the torch layers and keep the float parameters under their own names, so a float checkpoint loads
unchanged and only quantizer keys are new. `positions` is how many rows one image sends through the layer (tokens, or
windows x tokens): the multiply-accumulates of one image are positions * weight.numel().
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..quantizers.quantizer import Quantizer


class QuantLinear(nn.Linear):
    """y = Q(x) Q(W)^T + b, W (out, in)."""

    def __init__(
        self, linear: nn.Linear, weight_quantizer: Quantizer, input_quantizer: Quantizer, positions: int
    ) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.weight_quantizer = weight_quantizer
        self.input_quantizer = input_quantizer
        self.positions = positions
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        return F.linear(self.input_quantizer(x), self.weight_quantizer(self.weight), self.bias)


class QuantConv2d(nn.Conv2d):
    """The patch embedding: a convolution whose kernel equals its stride, that is a linear map of flattened patches."""

    def __init__(
        self, conv: nn.Conv2d, weight_quantizer: Quantizer, input_quantizer: Quantizer, positions: int
    ) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            bias=conv.bias is not None,
            device="meta",
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.weight_quantizer = weight_quantizer
        self.input_quantizer = input_quantizer
        self.positions = positions
        self.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, height, width) -> (B, out, rows, cols)"""
        return F.conv2d(self.input_quantizer(x), self.weight_quantizer(self.weight), self.bias, self.stride)
