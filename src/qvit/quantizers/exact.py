"""in_float64(): a quantized module whose rounding noise does not decide near ties.

Fake quantization computes integer products as float32 sums of dequantized values. Such a sum is off by about 1e-6 of its
size; where a value lies that close to a tie, its code comes out one higher or lower than that of the integer program. At 3
bits one code is a large step, an image has some 10^5 codes, and so a handful of flips per image reach the logits: on the
micro DeiT, 0.8 % of the images change their class, up and down alike. It is noise of the simulation, not of the model.

So the module that is compared with its program is this copy: everything between quantizers in float64, which is what the
interpreter does inside its ops; quantizers stay in float32, which is what the interpreter's `quantize` is defined in.
"""

from __future__ import annotations

import copy

from torch import nn

from .quantizer import Quantizer


def in_float64(model: nn.Module) -> nn.Module:
    """A copy of `model` in float64 around float32 quantizers, in eval mode. Float32 values convert without loss.

    On the model's device, or the CPU where that has no float64 (Apple's GPU).
    """
    copied = copy.deepcopy(model)
    exact = (copied.cpu() if next(model.parameters()).device.type == "mps" else copied).double().eval()
    for module in exact.modules():
        if isinstance(module, Quantizer):
            module.float()
    return exact
