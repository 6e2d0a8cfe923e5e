"""A grid without a zero level for 2-bit weights: MidRiseQuantizer.

Problem. Four levels {-2, -1, 0, 1} s on weights that are symmetric about zero waste one: the outermost negative level has no
partner, and a quarter of the levels goes to zero. Raising every level by half a step gives

    x_hat = s (q + 1/2) = (s / 2) (2 q + 1)        q = round(clamp(x / s - 1/2, -2, 1)):  {-3, -1, 1, 3} s / 2

which on a Gaussian has a fifth less squared error (0.119 of the variance instead of 0.149, at the best scale of each). Signal
processing calls it a mid-rise quantizer, the usual one mid-tread; binary and 2-bit weights have had it since DoReFa-Net
(arXiv 1606.06160), OFQ (arXiv 2302.02210) has it at every width. With 3 and 4 bits it has 8 and 3 % less squared error, which in
training was worth nothing (experiments/LOG.md), and 2 q + 1 of 8 bits would not fit a byte: so only 2-bit groups rise, and a
group changes its grid with its width.

Cost. Codes are integers, 2 q + 1 with the scale s / 2, and take two bits in a file: products cost what they cost.

To `fake_quantize` it is a signed grid with the offset o = s / 2. The offset hangs on the scale, so the scale's gradient gets
do/ds = 1/2 of the offset's, under the same LSQ factor g:

    dL/ds = g sum d (I (round(u) - u) + L (Qn + 1/2) + U (Qp + 1/2))
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..spec import Bits, ScaleBank
from .quantizer import Quantizer
from .ste import scale_grad

RAISED = 2  # bits: the only width whose grid has no zero


class MidRiseQuantizer(Quantizer):
    """Quantizer of a weight whose 2-bit groups have a grid without zero; other widths are Quantizer's, as are the arguments.

    Raises ValueError for one scale for all widths of a group: 2 bits need their own.
    """

    def __init__(
        self,
        bits: Bits,
        *,
        bit_groups: int,
        scale_groups: int,
        axis: int,
        bank: ScaleBank,
        pass_through: bool = False,
    ) -> None:
        super().__init__(
            bits,
            bit_groups=bit_groups,
            scale_groups=scale_groups,
            axis=axis,
            signed=True,
            offset=False,
            bank=bank,
            batched=False,
            pass_through=pass_through,
        )
        if len(self.candidates) > self.log_scale.shape[1]:
            raise ValueError(
                "a grid without zero at 2 bits needs a scale of its own there: use SwitchableScale() or SharedScale(), not "
                f"{type(bank).__name__}(), with weight_grid=MidRise()"
            )
        self.register_buffer("rises", torch.tensor([self.rise(bits) for bits in self.candidates]), persistent=False)
        self.rises: Tensor

    def rise(self, bits: int) -> float:
        """Steps between a code and its level."""
        return 0.5 if bits == RAISED else 0.0

    def banks(self, elements: float) -> tuple[Tensor, Tensor]:
        """Scales and, half a step above zero at 2 bits, offsets."""
        scale = self.log_scale.exp()
        factor = scale.new_full((), elements).rsqrt()  # g at 2 bits, where Qp is 1
        return scale, scale_grad(scale, factor) * self.rises

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, no zero at {RAISED} bits"
