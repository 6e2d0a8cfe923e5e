"""RegionQuantizer: two-scaled codes for values whose small ones are many and whose large ones count (V-2SF).

Softmax and GELU outputs crowd near zero and reach far: one scale either clips the few large values or rounds the many
small ones away. TSPTQ-ViT (arXiv 2305.12901) cuts the axis into two regions with scales s and 2^m s. A k-bit code is one
region flag and n = k - 1 bits of magnitude; Q = 2^n - 1 is the largest code of a region. The paper's text was not
available: the formulas are OUR RECONSTRUCTION from its abstract, and those of `QuantizeRegions` in the runtime.

    y = (x - o) / s;  c = max(rint(y), 0)
    low region,  c <= Q:   x_hat = o + s c
    high region, else:     x_hat = o + s 2^m min(rint(y / 2^m), Q)

The scales are a power of two apart, so a product of high codes joins one of low codes by a shift.

Monotone. The smallest y of the high region is just above Q + 1/2 = 2^n - 1/2 and becomes 2^m rint(2^(n-m) - 2^-(m+1)),
which is 2^n >= Q for every m in 1..n. With m = n + 1 it would be 0; m = 0 adds nothing to the low region. So m is in 1..n.
At k = 2 there is one magnitude bit and m = 1: three levels, 0, s and 2 s.

Below zero. GELU goes down to -0.17. 5.2 of our notes gives the small region a sign; here the offset is o = -z s with the
whole number z = rint(0.17 / s): everything is unsigned, which the byte kernels want, zero is a code, and no GELU value is
further than s / 2 from a level (a multiple at or below -0.17 would waste a level whenever 0.17 is just above one). A sign
bit would spend half of the low region on the 0.17 below zero. z stops at Q, so that zero stays in the low region. The
offset folds into the bias of the layer behind (`freeze`).

Post-training only: a `RegionQuantizer` has no gradient, and refuses to take part in training.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..spec import FixedBits, SingleScale
from .quantizer import Quantizer, UncalibratedError

GELU_DEPTH = 0.169971  # GELU's minimum is -0.169971, at -0.751792


class RegionQuantizer(Quantizer):
    """Fake-quantizes an unsigned activation, one pair of scales for the tensor.

    bits   k, 2..8: the flag and k - 1 bits of magnitude
    axis   as in Quantizer; with one group it names nothing
    depth  how far values go below zero: 0 after softmax, GELU_DEPTH after GELU

    State beside Quantizer's: `shift`, buffer () int64, the m in force. log_scale is that of the low region.
    """

    calibrated_by = "qvit.methods.tsptq.calibrate"

    def __init__(self, bits: int, *, axis: int, depth: float = 0.0) -> None:
        super().__init__(
            FixedBits(bits),
            bit_groups=1,
            scale_groups=1,
            axis=axis,
            signed=False,
            offset=False,
            bank=SingleScale(),
            batched=True,
        )
        self.depth = depth
        self.register_buffer("shift", torch.ones((), dtype=torch.int64))
        self.shift: Tensor

    @property
    def magnitude_bits(self) -> int:
        """n = k - 1, the bits of a code inside its region."""
        return self.widths[0] - 1

    @property
    def largest_code(self) -> int:
        """Q = 2^n - 1."""
        return (1 << self.magnitude_bits) - 1

    def offset_for(self, scale: Tensor) -> Tensor:
        """o = -z s, same shape as the scale."""
        return 0.0 - torch.round(self.depth / scale).clamp(max=self.largest_code) * scale  # + 0 and not - 0

    def offset_at(self, widths: Tensor) -> Tensor:
        """(1,) offset of the low region; the high region has none, x_hat is one sum."""
        return self.offset_for(self.scale_at(widths))

    def values_with(self, x: Tensor, scale: Tensor, shift: int) -> Tensor:
        """x on the levels of low scale (1,) and m = shift, float32, whatever is in force."""
        offset = self.offset_for(scale)
        steps = (x - offset).div_(scale)
        low = steps.round().clamp_(min=0)
        high = steps.mul_(2.0**-shift).round_().clamp_(max=self.largest_code).mul_(2.0**shift)
        return torch.where(low <= self.largest_code, low, high).mul_(scale).add_(offset)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantized x, same shape. Arithmetic is float32, also under autocast; a float64 x comes back as float64."""
        if self.training and x.requires_grad:
            raise RuntimeError(
                "two-scaled quantizers have no gradient, so nothing in front of them would learn: TSPTQ-ViT is post-training "
                "quantization; train with method 'qvit' or 'lsq', or put the model into eval mode"
            )
        if not self.is_calibrated:
            raise UncalibratedError(
                "this two-scaled quantizer has no scale yet: run qvit.methods.tsptq.calibrate(model, images), or load a "
                "calibrated checkpoint"
            )
        values = self.values_with(x.float(), self.scale_at(self.bit_width), int(self.shift))
        return values.double() if x.dtype == torch.float64 else values

    @torch.no_grad()
    def set_regions(self, scale: Tensor, shift: int) -> None:
        """Put a low scale (1,) and m in force. Raises ValueError for an m whose levels would not be monotone."""
        if not 1 <= shift <= self.magnitude_bits:
            raise ValueError(
                f"shift is {shift}; with {self.widths[0]} bits it must lie in 1..{self.magnitude_bits}, "
                "or the levels would not be monotone"
            )
        self.set_bank(scale.view(1, 1), None)
        self.shift.fill_(shift)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, two regions, depth={self.depth}"
