"""Rectifier: information rectification of queries and keys (IRM) of Q-ViT, Li et al., arXiv 2210.06707.

A code carries most information when all its 2^b values are equally frequent, and what a fixed grid makes of q and k depends
on where their distribution lies. IRM puts it in a known place before quantization, for every layer and head:

    q~ = gamma (q - mu) / sqrt(sigma^2 + eps) + beta          k~ likewise; gamma, beta learned, one each per head

(the paper's typesetting has gamma in the denominator, its entropy 1/2 log(2 pi e gamma^2 (sigma^2 + eps)) wants a factor;
gamma is free, so the two are one). Attention uses the quantized q~ and k~.

Which mu and sigma. They are running statistics over images, tokens and the channels of a head, in training as in
evaluation: the network that is trained is the network that is frozen. `forward` reads them, `update` moves them, and `fit`
calls that after each step (through a `Guide`). Statistics of the image at hand would be another network for every image and
cannot be folded; the authors' published code has nn.LayerNorm over the channels of each token instead, which is QK-norm, a
float operation, and not what the paper describes.

Why a frozen program needs no operation for it. With fixed statistics q~ = a q + c, one a > 0 and one c per head, and

    q = s_x s_w (codes of W) (codes of x) + b     gives     q~ = s_x (a s_w) (codes of W) (codes of x) + (a b + c)

so the map multiplies scales of rows of the fused qkv weight and changes its bias (`folded`). The codes of W are untouched,
which is why a is not folded into W before it is quantized: a W / (a s) could round differently. `log_gamma` keeps a positive.

Where it starts. Calibration sets mu and sigma of the float network, beta = 0 and gamma = sqrt(sigma^2 + eps): scores keep the
temperature of the float model, only the means go. With gamma = 1 a trained network would begin with another attention (the
micro DeiT on CIFAR-10 in float: 75.7 % as it was, 75.9 % rectified like this, 68.3 % with gamma = 1).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from qvit_runtime.program import Weight

from .layers import QuantLinear

EPS = 1e-6


class Rectifier(nn.Module):
    """Rectifies q and k in the output of a fused qkv layer; v passes.

    State, all (2 H,), the heads of q and then those of k:

        mean, variance   buffers, the running statistics
        log_gamma, beta  parameters
    """

    calibrated_by = "qvit.methods.qvit_irm.calibrate"

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.register_buffer("mean", torch.zeros(2 * heads))
        self.register_buffer("variance", torch.ones(2 * heads))
        self.log_gamma = nn.Parameter(torch.zeros(2 * heads))
        self.beta = nn.Parameter(torch.zeros(2 * heads))
        self.mean: Tensor
        self.variance: Tensor

    def affine(self) -> tuple[Tensor, Tensor]:
        """(factor, shift), float32 (3 H,) each: the heads of q, k and v; 1 and 0 for v."""
        mean, variance = self.mean.float(), self.variance.float()
        factor = self.log_gamma.float().exp() * (variance + EPS).rsqrt()
        shift = self.beta.float() - factor * mean
        rest = factor.new_ones(self.heads)
        return torch.cat([factor, rest]), torch.cat([shift, 0 * rest])

    def forward(self, x: Tensor) -> Tensor:
        """(..., N, 3 H d) -> same"""
        factor, shift = (t.to(x.dtype)[:, None] for t in self.affine())
        return (x.unflatten(-1, (3 * self.heads, -1)) * factor + shift).flatten(-2)

    @torch.no_grad()
    def start(self, mean: Tensor, variance: Tensor) -> None:
        """Statistics (2 H,) of a calibrated network; keeps its temperature, see above."""
        self.mean.copy_(mean)
        self.variance.copy_(variance)
        self.log_gamma.copy_((variance + EPS).log() / 2)
        self.beta.zero_()

    @torch.no_grad()
    def update(self, mean: Tensor, variance: Tensor, momentum: float) -> None:
        """Move the running statistics towards those of a batch, (2 H,)."""
        self.mean.lerp_(mean.to(self.mean), momentum)
        self.variance.lerp_(variance.to(self.variance), momentum)


class RectifiedLinear(QuantLinear):
    """The fused qkv layer with a rectifier behind it: x -> rectifier(Q(x) Q(W)^T + b)."""

    def __init__(self, source: QuantLinear, heads: int) -> None:
        super().__init__(source, source.weight_quantizer, source.input_quantizer, source.positions)
        self.rectifier = Rectifier(heads)

    def forward(self, x: Tensor) -> Tensor:
        """(..., N, C) -> (..., N, 3 C)"""
        return self.rectifier(super().forward(x))

    def folded(self, weight: Weight, bias: np.ndarray) -> tuple[Weight, np.ndarray]:
        """Integer weight and bias (3 C,) of the layer without its rectifier -> the same with it."""
        factor, shift = (t.detach().cpu().numpy().astype(np.float64) for t in self.rectifier.affine())
        groups = max(len(factor), len(weight.scale))
        bits, scale, midrise = (
            np.repeat(table, groups // len(table), axis=0) for table in (weight.bits, weight.scale, weight.midrise)
        )
        scaled = scale * np.repeat(factor, groups // len(factor))[:, None]
        rows = len(bias) // len(factor)
        moved = bias * np.repeat(factor, rows) + np.repeat(shift, rows)
        return Weight(weight.codes, bits, scaled.astype(np.float32), midrise), moved.astype(np.float32)
