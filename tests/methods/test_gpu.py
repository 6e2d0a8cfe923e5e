"""A model on a GPU: trained with the fused kernels there, frozen to what it computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import qvit_runtime
from qvit import Budget, FitConfig, Spec, calibrate, fit, freeze, quantize
from qvit.methods import METHODS
from qvit.quantizers.exact import in_float64
from qvit.quantizers.quantizer import named_quantizers
from qvit.spec import MidRise, PerChannel
from toy_models import images, swin, vit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("make", [vit, swin])
def test_trained_there_it_freezes_to_what_it_computes(make: Callable[..., nn.Module], precision: str) -> None:
    model = quantize(make().cuda(), Spec(weight_scale=PerChannel(), weight_grid=MidRise()), quiet=True)
    batch = images(model, 8)
    calibrate(model, [batch])
    train = DataLoader(TensorDataset(batch, torch.arange(8) % 3), batch_size=4)
    fit(model, train, budget=Budget(uniform=3), config=FitConfig(epochs=4, precision=precision), quiet=True)
    model.eval()
    assert {p.device.type for p in model.parameters()} == {"cuda"}
    assert not any(q.is_learned for q in named_quantizers(model).values())
    expected = in_float64(model)(batch.double().cuda()).float().cpu()
    found = torch.from_numpy(qvit_runtime.run(freeze(model), batch.numpy()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [vit, swin])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_calibrates_and_freezes_there(make: Callable[..., nn.Module], method: str) -> None:
    verbs, model = METHODS[method], make().cuda()
    config, batch = verbs.uniform(8, 8), images(model, 8)
    module = verbs.quantize(model, config)
    verbs.calibrate(module, config, [batch], 1)
    program = verbs.freeze(module, None, None, "toy", {})
    exact = verbs.exact(module.eval())
    expected = exact(batch.to(next(exact.parameters()))).float().cpu()
    found = torch.from_numpy(qvit_runtime.run(program, batch.numpy()))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)  # a tie may fall the other way: one code of 8 bits
