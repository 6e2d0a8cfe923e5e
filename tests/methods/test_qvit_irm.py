"""Q-ViT of Li et al. as a method: DGD by its definition, mechanisms off, training, resume, errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qvit.calibration.calibrate import calibrate as calibrate_quantizers
from qvit.calibration.calibrate import float_forward
from qvit.methods import METHODS, qvit_irm
from qvit.methods.qvit_irm import QViTIRM
from qvit.methods.qvit_irm.guide import IRMGuide, patch_similarity, similarity_distance
from qvit.network.convert import quantize as quantize_spec
from qvit.network.support import UnsupportedModelError
from qvit.training.fit_config import FitConfig
from toy_models import images, swin, vit
from toy_training import same_state, toy_data, toy_run

SHORT = FitConfig(epochs=0.5, log_every=1)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# -- the loss ---------------------------------------------------------------------------------------------------------


def test_similarity_is_that_of_patches() -> None:
    """(N, d) -> (N, N), norm 1; equal patches have equal rows."""
    x = random(2, 3, 5, 4)
    x[..., 1, :] = x[..., 0, :]
    found = patch_similarity(x)
    assert found.shape == (2, 3, 5, 5)
    torch.testing.assert_close(torch.linalg.matrix_norm(found), torch.ones(2, 3))
    torch.testing.assert_close(found[..., 0, :], found[..., 1, :])
    assert patch_similarity(torch.zeros(1, 1, 3, 2)).abs().max() == 0


def test_distance_by_its_closed_form() -> None:
    """||G_s - G_t||^2 = 2 - 2 CKA, from d x d products that the code never forms; summed over heads, mean over images."""
    student, teacher = random(2, 3, 5, 4), random(2, 3, 5, 4, seed=1)

    def gram(x: Tensor, y: Tensor) -> Tensor:
        return torch.linalg.matrix_norm(x.transpose(-2, -1) @ y)

    cka = gram(student, teacher) ** 2 / (gram(student, student) * gram(teacher, teacher))
    torch.testing.assert_close(similarity_distance(student, teacher), (2 - 2 * cka).sqrt().sum(1).mean())


def test_zero_for_equal_and_scaled_operands() -> None:
    x = random(2, 3, 5, 4).requires_grad_()
    distance = similarity_distance(x, x.detach())
    distance.backward()
    assert distance == 0
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert similarity_distance(x, 4 * x) == 0  # a power of two: exact
    assert similarity_distance(x, x + 1) > 0.1


def irm(float_model: nn.Module, config: QViTIRM) -> nn.Module:
    model = qvit_irm.quantize(float_model, config)
    qvit_irm.calibrate(model, [images(float_model, 32, seed=7)])
    return model.train()


@pytest.mark.parametrize("family", [vit, swin])
@pytest.mark.parametrize("rectify", [True, False])
def test_the_guide_reaches_q_and_k_of_every_layer_and_nothing_behind(family: type, rectify: bool) -> None:
    float_model = family()
    config = QViTIRM(2, 2, rectify=rectify)
    model = irm(float_model, config)
    guide = qvit_irm.guide(model, config, float_model)
    assert guide is not None
    batch = images(float_model)
    with guide.watch():
        model(batch)
        loss = guide.loss(batch)
    assert loss is not None
    loss.backward()
    for module in guide.attention.values():
        gradient = module.qkv.weight.grad.unflatten(0, (3, module.num_heads, -1)).abs().sum((-2, -1))  # (3, H)
        assert (gradient[:2] > 0).all()
    assert (gradient[2] == 0).all()  # v of the last layer changes no q or k
    assert module.proj.weight.grad is None
    if rectify:
        assert all(module.qkv.rectifier.beta.grad.abs().min() > 0 for module in guide.attention.values())
    assert all(parameter.grad is None for parameter in float_model.parameters())


def test_the_teacher_runs_once_a_step() -> None:
    """Not again where its logits were distilled in the same step; by itself where they came from elsewhere."""
    float_model = vit()
    config = QViTIRM(2, 2)
    model = irm(float_model, config)
    guide = IRMGuide(model, float_model, 1.0, 0.1)
    calls = []
    float_model.register_forward_hook(lambda *_: calls.append(1))
    batch = images(float_model)
    losses = []
    for teacher_runs in (True, False):
        with guide.watch():
            model(batch)
            if teacher_runs:
                with torch.no_grad():
                    float_model(batch)
            losses.append(guide.loss(batch))
    assert calls == [1, 1]
    assert torch.equal(*losses)


def test_the_loss_falls_as_bits_rise() -> None:
    """Towards zero, for a network that equals its teacher; nothing is left hooked after the step."""
    found = {}
    for bits in (2, 4, 8):
        float_model = vit()
        config = QViTIRM(bits, bits)
        model = irm(float_model, config)
        guide = qvit_irm.guide(model, config, float_model)
        assert guide is not None
        batch = images(float_model)
        with guide.watch():
            model(batch)
            found[bits] = guide.loss(batch).detach()
    assert found[2] > 2 * found[4] > 4 * found[8] > 0
    hooked = [m for net in (model, float_model) for m in net.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert hooked == []


def test_a_student_that_equals_its_teacher_has_no_loss() -> None:
    """Quantizers stepped over, on the images of calibration: both take the same mean from every head, and nothing else."""
    float_model = vit(depth=1)
    config = QViTIRM(2, 2)
    model = irm(float_model, config)
    guide = qvit_irm.guide(model, config, float_model)
    assert guide is not None
    batch = images(float_model, 32, seed=7)
    with torch.no_grad(), float_forward(model), guide.watch():
        model(batch)
        assert guide.loss(batch) < 1e-4


# -- statistics -------------------------------------------------------------------------------------------------------


def moments(qkv: Tensor, heads: int) -> Tensor:
    """(B, N, 3 H d) -> means and variances (2, 2 H) of the heads of q, then of k."""
    both = qkv.unflatten(-1, (3, heads, -1))[:, :, :2]  # (B, N, 2, H, d)
    return torch.stack([both.mean((0, 1, 4)).flatten(), both.var((0, 1, 4), correction=0).flatten()])


def test_calibration_takes_the_moments_of_the_float_network() -> None:
    float_model = vit(depth=1)
    seen: list[Tensor] = []
    float_model.blocks[0].attn.qkv.register_forward_hook(lambda _, args, output: seen.append(output))  # type: ignore[union-attr, index]
    with torch.no_grad():
        float_model(images(float_model, 32, seed=7))
    rectifier = irm(vit(depth=1), QViTIRM()).blocks[0].attn.qkv.rectifier  # type: ignore[union-attr, index]
    mean, variance = moments(seen[0], 2)
    torch.testing.assert_close(rectifier.mean, mean, rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]
    torch.testing.assert_close(rectifier.variance, variance, rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]


@pytest.mark.parametrize("count", [2, 4])
def test_calibration_from_a_generator_sees_the_images_twice(count: int) -> None:
    """Statistics and scales of the same two batches, whether more follow or not."""
    float_model, config = vit(depth=1), QViTIRM(3, 3)
    batches = [images(float_model, 4, seed=seed) for seed in range(count)]
    from_list, from_generator = (qvit_irm.quantize(float_model, config) for _ in range(2))
    qvit_irm.calibrate(from_list, batches, 2)
    qvit_irm.calibrate(from_generator, (batch for batch in batches), 2)
    assert same_state(from_list, from_generator) == []


def test_a_step_moves_the_statistics_towards_the_mean_of_its_batches() -> None:
    """Two accumulated batches of one optimizer step, by the momentum."""
    float_model = vit(depth=1)
    config = QViTIRM(2, 2, momentum=0.25)
    model = irm(float_model, config)
    guide = qvit_irm.guide(model, config, float_model)
    assert guide is not None
    rectifier = model.blocks[0].attn.qkv.rectifier  # type: ignore[union-attr, index]
    seen: list[Tensor] = []
    rectifier.register_forward_pre_hook(lambda _, args: seen.append(moments(args[0], 2)))  # type: ignore[union-attr]
    before = torch.stack([rectifier.mean, rectifier.variance])  # type: ignore[union-attr, list-item]
    for seed in (1, 2):
        with torch.no_grad(), guide.watch():
            model(3 * images(float_model, seed=seed))
    guide.after_step()
    expected = before + 0.25 * (torch.stack(seen).mean(0) - before)
    torch.testing.assert_close(torch.stack([rectifier.mean, rectifier.variance]), expected)  # type: ignore[union-attr, list-item]


# -- training ---------------------------------------------------------------------------------------------------------


def trained(config: QViTIRM, folder: Path | None = None, **arguments: object) -> nn.Module:
    float_model = vit(depth=1, drop_path_rate=0.1, proj_drop_rate=0.1)
    model = qvit_irm.quantize(float_model, config)
    qvit_irm.calibrate(model, [images for images, _ in toy_data().eval])
    guide = qvit_irm.guide(model, config, float_model)
    given = {"guide": guide, "teacher": float_model, "budget": None, "evaluation": None, **arguments}
    settings = FitConfig(epochs=0.5, log_every=1, distillation=0.5, hard_distillation=True)
    return toy_run(settings, folder, model, **given)[0]


def test_with_both_mechanisms_off_it_is_plain_training_bit_for_bit() -> None:
    config = QViTIRM(2, 2, rectify=False, guide=0.0)
    float_model = vit(depth=1, drop_path_rate=0.1, proj_drop_rate=0.1)
    plain = quantize_spec(float_model, config.spec, quiet=True)
    calibrate_quantizers(plain, [images for images, _ in toy_data().eval])
    settings = FitConfig(epochs=0.5, log_every=1, distillation=0.5, hard_distillation=True)
    plain, _ = toy_run(settings, None, plain, teacher=float_model, budget=None, evaluation=None)
    assert same_state(plain, trained(config)) == []


def test_each_mechanism_changes_training() -> None:
    plain, guided, rectified = (
        trained(QViTIRM(2, 2, rectify=r, guide=g)) for r, g in ((False, 0.0), (False, 1.0), (True, 0.0))
    )
    assert same_state(plain, guided)
    rectifier = rectified.blocks[0].attn.qkv.rectifier  # type: ignore[union-attr, index]
    before, after = plain.state_dict(), rectified.state_dict()
    assert after.keys() - before.keys() == {f"blocks.0.attn.qkv.rectifier.{name}" for name in rectifier.state_dict()}  # type: ignore[union-attr]
    for name in ("blocks.0.attn.qkv.weight", "blocks.0.attn.q_quantizer.log_scale", "head.weight"):
        assert not torch.equal(before[name], after[name]), name
    assert (rectifier.beta != 0).all()  # type: ignore[union-attr]


def test_statistics_move_with_training_and_not_with_evaluation() -> None:
    model = trained(QViTIRM(2, 2, momentum=0.5))
    rectifier = model.blocks[0].attn.qkv.rectifier  # type: ignore[union-attr, index]
    before = rectifier.mean.clone()  # type: ignore[union-attr]
    start = qvit_irm.quantize(vit(depth=1), QViTIRM(2, 2))
    qvit_irm.calibrate(start, [images for images, _ in toy_data().eval])
    assert not torch.equal(before, start.blocks[0].attn.qkv.rectifier.mean)  # type: ignore[union-attr, index]
    model.train()(images(model))
    assert torch.equal(before, rectifier.mean)  # type: ignore[union-attr]


def test_resumes_bit_for_bit(tmp_path: Path) -> None:
    config = QViTIRM(2, 2, momentum=0.5)
    whole = trained(config)
    trained(config, tmp_path, max_steps=2)
    assert same_state(whole, trained(config, tmp_path, resume=True)) == []


# -- options ----------------------------------------------------------------------------------------------------------


def test_labels() -> None:
    label = METHODS["qvit-irm"].label
    assert label(QViTIRM()) == "IRM + DGD W2A2"
    assert label(QViTIRM(3, 4, guide=0.0)) == "IRM W3A4"
    assert label(QViTIRM(rectify=False)) == "DGD W2A2"
    assert label(QViTIRM(rectify=False, guide=0.0)) == "baseline W2A2"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"guide": -1.0}, r"QViTIRM.guide is -1.0; it must not be negative"),
        ({"momentum": 2.0}, r"QViTIRM.momentum is 2.0; it must lie between 0 and 1"),
    ],
)
def test_options_are_checked(change: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        QViTIRM(**change)


def test_qk_norm_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"blocks.0.attn has QK-norm: .*; use method 'lsq'"):
        qvit_irm.quantize(vit(qk_norm=True), QViTIRM())
