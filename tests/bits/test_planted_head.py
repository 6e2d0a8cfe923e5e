"""A planted head: one attention head matters far more than the others, and the learned bits find it.

The logits come from head h of the only block; labels are the float model's own classes. Under the cost of uniform 3 bits, that head must get more bits than
the mean of the others, in every tensor that has heads, and with the roles swapped the other one must get them.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from qvit.bits.allocate import Lagrangian
from qvit.bits.budget import Budget
from qvit.bits.cost import cost
from qvit.calibration.calibrate import calibrate
from qvit.network.convert import quantize
from qvit.quantizers.quantizer import named_quantizers
from qvit.training.fit import fit
from qvit.training.fit_config import FitConfig
from toy_models import images, uniform
from toy_planted import HEADS, planted


@pytest.mark.parametrize("head", [0, 2])
def test_the_planted_head_gets_the_bits(head: int) -> None:
    model = planted(head)
    pixels = images(model, 64)
    with torch.no_grad():
        labels = model(pixels).argmax(1)
    quantized = quantize(model)
    calibrate(quantized, [pixels])
    budget = Budget(gbitops=cost(quantize(model, uniform(3))).gbitops)
    config = FitConfig(
        epochs=3, lock_at=0.7, learning_rate=1e-4, log_every=100, allocation=Lagrangian(every=2, warm_up=2)
    )
    loader = DataLoader(TensorDataset(pixels, labels), batch_size=32, shuffle=True)
    fit(quantized, loader, budget=budget, config=config, quiet=True)

    quantizers = named_quantizers(quantized)
    name = "blocks.0.attn"
    bits: dict[str, Tensor] = {
        "v": quantizers[f"{name}.v"].bit_width,
        "attention": quantizers[f"{name}.attention"].bit_width,
        "v rows": quantizers[f"{name}.qkv.weight"].bit_width[2 * HEADS :],
        "proj columns": quantizers[f"{name}.proj.weight"].bit_width,
        "proj input": quantizers[f"{name}.proj.input"].bit_width,
    }
    assert cost(quantized).gbitops <= budget.limit * (1 + 1e-9)
    for what, widths in bits.items():
        others = torch.cat([widths[:head], widths[head + 1 :]]).float()
        assert widths[head] > others.mean() + 0.5, f"{what}: {widths.tolist()}"
    every = torch.cat([q.bit_width for q in quantizers.values() if q.candidates != (8,)])
    assert every.unique().numel() >= 4, every
