"""in_float64: the simulation that agrees with the integer program."""

from __future__ import annotations

import torch

import qvit_runtime
from qvit.calibration.calibrate import calibrate
from qvit.freezing.freeze import freeze
from qvit.network.convert import quantize
from qvit.quantizers.exact import in_float64
from qvit.quantizers.quantizer import named_quantizers
from qvit.spec import FixedBits, Spec
from toy_models import images, vit


def test_codes_of_the_program_without_a_single_flip() -> None:
    """At 3 bits one flipped code moves the logits by far more than rounding: none flips in float64."""
    model = quantize(vit(), Spec(FixedBits(3), FixedBits(3)), quiet=True)
    batch = images(model, 64)
    calibrate(model, [batch])
    program = torch.from_numpy(qvit_runtime.run(freeze(model), batch.numpy())).double()
    with torch.no_grad():
        exact = in_float64(model)(batch.double())
    assert exact.dtype == torch.float64
    assert float((exact - program).abs().max()) < 1e-5 * float(program.abs().max())


def test_the_model_itself_is_not_touched() -> None:
    model = quantize(vit(), quiet=True)
    calibrate(model, [images(model, 8)])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    exact = in_float64(model.train())
    assert model.training
    assert not exact.training
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
    for quantizer in named_quantizers(exact).values():
        assert quantizer.log_scale.dtype == torch.float32
