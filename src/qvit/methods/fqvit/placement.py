"""placement() of an FQ-ViT network: the table of `qvit.network.placement` with the rows of what FQ-ViT makes integer.

`qvit.network.placement` takes every LayerNorm and softmax for a float operation and every grid with an offset for the input of a
linear layer. Here they are rows of their own; the rest, biases and additions among it, stays float.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ...network.placement import Placement
from ...network.placement import placement as uniform_placement
from .modules import IntegerLayerNorm, ShiftAttention, ShiftWindowAttention, StreamBlock, StreamSwinBlock


def placement(model: nn.Module) -> list[Placement]:
    """Rows of all quantized tensors in the order of the model, then of everything that stays float.

    Raises ValueError for a model without quantizers.
    """
    ours = dict(_integer_rows(model))
    return [new for row in uniform_placement(model) for new in ours.get(row.tensor, [row])]


def _integer_rows(model: nn.Module) -> Iterator[tuple[str, list[Placement]]]:
    """What takes the place of the row of that name."""
    for name, module in model.named_modules():
        if isinstance(module, IntegerLayerNorm):
            bits = module.input_quantizer.widths[0]
            kind, why = "per channel: step x 1, 2, 4 or 8", "factors are shifts inside the integer LayerNorm"
            yield f"{name}.input", [Placement(f"{name}.input", bits, "unsigned + offset", kind, why)]
            yield name, []
        elif isinstance(module, (ShiftAttention, ShiftWindowAttention)):
            scores = Placement(
                f"{name}.scores", module.scores_quantizer.widths[0], "signed", "per tensor", "integers of i-exp"
            )
            log2 = Placement(f"{name}.attention", module.softmax.bits, "unsigned log2", "per tensor", "shifts of v")
            yield f"{name}.scores", [scores, log2]
            yield f"{name}.softmax", []
            if isinstance(module, ShiftWindowAttention):
                bias = f"{name}.position_bias"
                yield bias, [Placement(bias, 32, "signed", "constant", "codes of the scores, added to theirs")]
        elif isinstance(module, (StreamBlock, StreamSwinBlock)):
            why = "on dequantized values: the sum is quantized where the next LayerNorm reads it"
            yield f"{name}.residual", [Placement(f"{name}.residual", None, "", "residual adds", why)]
