"""Quantizer: learned step size, learned bit-width and switchable scale in one module, for weights and activations.

Groups. Bits have `bit_groups` groups, scales `scale_groups` (a multiple: several channels may share one bit-width). Both
divide the same axis into equal contiguous blocks.

State, all of it there after __init__ with its final shape:

    bits       parameter (bit_groups,)         the continuous bit-width that learning moves
    bit_width  buffer (bit_groups,) int64      the whole number in force; `forward` quantizes with it
    log_scale  parameter (bank rows, slots)    the switchable scale: scale = exp(log_scale[group, slot of bit_width]); of a
                                               SingleRange one column, the scale at the lowest width, halved with every bit more
    offset     parameter, same shape, or None  in the unit of the values, for unsigned tensors that go below zero (GELU)

`forward` never writes them. After each optimizer step `fit` clamps `bits` and updates `bit_width` with hysteresis
(`settle_bits`), so that a bit at x.5 does not dither between two slots; the gradient of `bits` is that of `bit_width`
(straight through).

Why the logarithm of the scale. Adam moves every parameter by about its learning rate, whatever the gradient's size. Scales
range from 1e-3 (8-bit weights) to 1 (2-bit activations), so a step of 1e-3 is either 100 % or 0.1 % of them. In the
logarithm every step is relative, the scale stays positive without a clamp, and dL/dlog s = s dL/ds keeps the published
gradient (arXiv 2201.07703; LSQ, arXiv 1902.08153).

Differences from the authors' code: each group owns its bank (theirs shares one bank of 7 among the heads; SharedScale
gives that), the gradient factor counts the elements of one image and not of the batch, and a quantizer that has not been
calibrated refuses to run.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..spec import Bits, FixedBits, LearnedBits, ScaleBank, SharedScale, SingleRange, SingleScale
from .fake_quantize import code_range, fake_quantize
from .fake_quantize_native import Grids
from .fused import fused_pass

HYSTERESIS = 0.05  # a bit must pass the tie at x.5 by this much before the slot changes


class UncalibratedError(RuntimeError):
    """A quantizer was asked to quantize before anything told it its scale."""


class Quantizer(nn.Module):
    """Fake-quantizes tensors of one role.

    bits          FixedBits or LearnedBits
    bit_groups    groups that own a bit-width
    scale_groups  groups that own a scale, a multiple of bit_groups
    axis          axis that the groups divide (batch axis included for activations)
    signed        codes are signed; unsigned may have an offset
    offset        learn an offset (unsigned only)
    bank          SwitchableScale, SharedScale, SingleScale or SingleRange
    batched       axis 0 of the input is a batch (activations); its size does not enter the gradient factor
    pass_through  elements outside the range get the gradient too (`Spec.weight_gradient`)
    """

    def __init__(
        self,
        bits: Bits,
        *,
        bit_groups: int,
        scale_groups: int,
        axis: int,
        signed: bool,
        offset: bool,
        bank: ScaleBank,
        batched: bool,
        pass_through: bool = False,
    ) -> None:
        super().__init__()
        if scale_groups % bit_groups:
            raise ValueError(f"scale_groups ({scale_groups}) must be a multiple of bit_groups ({bit_groups})")
        if offset and signed:
            raise ValueError("an offset needs unsigned codes: a signed grid is centred on zero already")
        self.bits_spec, self.bank = bits, bank
        self.bit_groups, self.scale_groups = bit_groups, scale_groups
        self.axis, self.signed, self.batched, self.pass_through = axis, signed, batched, pass_through
        start = float(bits.bits) if isinstance(bits, FixedBits) else bits.start
        learned = isinstance(bits, LearnedBits)
        self.bits = nn.Parameter(torch.full((bit_groups,), start), requires_grad=learned)
        self.register_buffer("bit_width", torch.full((bit_groups,), round(start), dtype=torch.int64))
        slots = len(self.candidates)
        columns = 1 if isinstance(bank, (SingleScale, SingleRange)) else slots
        shape = (1 if isinstance(bank, SharedScale) else scale_groups, columns)
        self.log_scale = nn.Parameter(torch.zeros(shape))
        self.offset = nn.Parameter(torch.zeros(shape)) if offset else None
        self.is_calibrated = False
        self.bit_width: Tensor

    @property
    def candidates(self) -> tuple[int, ...]:
        """The bit-widths that this quantizer may take."""
        if isinstance(self.bits_spec, FixedBits):
            return (self.bits_spec.bits,)
        return tuple(range(self.bits_spec.low, self.bits_spec.high + 1))

    @property
    def is_learned(self) -> bool:
        """Bits still move: they were to be learned and are not locked."""
        return self.bits.requires_grad

    @property
    def widths(self) -> list[int]:
        """The bit-widths in force, one per bit group."""
        return self.bit_width.tolist()

    def slot_of(self, widths: Tensor) -> Tensor:
        """Column of the bank for each bit-width."""
        if isinstance(self.bank, SingleScale):
            return torch.zeros_like(widths)
        return widths - self.candidates[0]

    def per_scale(self, per_bit: Tensor) -> Tensor:
        """(bit_groups, ...) -> (scale_groups, ...)"""
        if self.scale_groups == self.bit_groups:
            return per_bit
        return per_bit.repeat_interleave(self.scale_groups // self.bit_groups, dim=0)

    def pick(self, bank: Tensor, widths: Tensor) -> Tensor:
        """Entries of a bank (rows, slots) for each scale group at the given (bit_groups,) widths."""
        slots = self.per_scale(self.slot_of(widths))
        rows = torch.zeros_like(slots) if bank.shape[0] == 1 else torch.arange(len(slots), device=slots.device)
        return bank[rows, slots]

    def rise(self, bits: int) -> float:
        """Steps between a code and its level that no offset says: 0, but for a grid without zero (`midrise`)."""
        return 0.0

    def banks(self, elements: float) -> tuple[Tensor, Tensor | None]:
        """Scales and offsets (or None) of every slot, (bank rows, slots); `elements` share a scale (for gradients)."""
        offset: Tensor | None = self.offset
        if offset is not None and isinstance(self.bank, SingleRange):
            offset = offset.expand(-1, len(self.candidates)).contiguous()
        return self._log_scales().exp(), offset

    def _log_scales(self) -> Tensor:
        """Logarithm of the scale of every slot."""
        if not isinstance(self.bank, SingleRange):
            return self.log_scale
        return self.log_scale - math.log(2) * torch.arange(len(self.candidates), device=self.log_scale.device)

    def scale_at(self, widths: Tensor) -> Tensor:
        """(scale_groups,) scales that would be in force at the given widths."""
        return self.pick(self._log_scales(), widths).exp()

    def offset_at(self, widths: Tensor) -> Tensor | None:
        """(scale_groups,) offsets at the given widths, or None."""
        offset = self.banks(1.0)[1]
        return None if offset is None else self.pick(offset, widths)

    def elements_per_group(self, x: Tensor) -> float:
        """Elements that share a scale in one row of the batch: an image, or a window of Swin's attention."""
        return (math.prod(x.shape[1:]) if self.batched else x.numel()) / self.scale_groups

    def gradient_factor(self, x: Tensor, qmax: Tensor) -> Tensor:
        """LSQ's g per scale group."""
        return (self.elements_per_group(x) * qmax).rsqrt()

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantized x, same shape, on the grid that float32 arithmetic gives.

        The result is an operand of a matrix product: float32, or already in the type that autocast would turn it into. A
        float64 x comes back as float64.
        """
        if not self.is_calibrated:
            raise UncalibratedError(
                "this quantizer has no scale yet: run the `calibrate` of the method that quantized the model (qvit.calibrate for "
                "qvit.quantize, qvit.methods.fqvit.calibrate for FQ-ViT, and so on), or load a calibrated checkpoint"
            )
        if x.dtype == torch.float64:
            return self._passed(x.float(), torch.float32).double()
        device = x.device.type
        autocast = torch.is_autocast_enabled(device)
        return self._passed(x, torch.get_autocast_dtype(device) if autocast else torch.float32)

    def _passed(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        if not self.pass_through:
            return self._quantized(x, dtype)
        fixed = x.detach()
        return self._quantized(fixed, dtype) + (x - fixed).to(dtype)  # adds nothing but the gradient

    def _quantized(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        elements = self.elements_per_group(x)
        scales, offsets = self.banks(elements)
        fused = fused_pass(x, self.log_scale, dtype)
        if fused is not None:
            grids = Grids(self.scale_groups, self.axis, self.signed, self.candidates[0])
            return fused(x, scales, offsets, self.bits, self.bit_width, elements, grids, dtype)
        widths = self.per_scale(self.bit_width).float()
        bits = widths + self.per_scale(self.bits - self.bits.detach()) if self.is_learned else widths
        with torch.no_grad():
            factor = self.gradient_factor(x, code_range(widths, self.signed)[1])
        scale = self.pick(scales, self.bit_width)
        offset = None if offsets is None else self.pick(offsets, self.bit_width)
        with torch.autocast(x.device.type, enabled=False):
            return fake_quantize(x.float(), scale, offset, bits, factor, self.axis, self.signed).to(dtype)

    @torch.no_grad()
    def set_bank(self, scale: Tensor, offset: Tensor | None) -> None:
        """Fill the bank from tensors of its shape, a single range from scales at the widths in force.

        A shared bank takes tensors with a row for every group, too, and of those the mean of the logarithms.
        """
        log_scale = scale.to(self.log_scale).log()
        if isinstance(self.bank, SingleRange):
            log_scale = log_scale + math.log(2) * self.per_scale(self.bit_width - self.candidates[0])[:, None]
        self.log_scale.copy_(log_scale.mean(0, keepdim=True) if self.log_scale.shape[0] == 1 else log_scale)
        if self.offset is not None and offset is not None:
            mean = offset.mean(0, keepdim=True) if self.offset.shape[0] == 1 else offset
            self.offset.copy_(mean.to(self.offset))
        self.is_calibrated = True

    @torch.no_grad()
    def settle_bits(self) -> bool:
        """Clamp `bits` and update `bit_width` with hysteresis; true when a width changed. Called by fit, not forward."""
        if not self.is_learned:
            return False
        low, high = self.candidates[0], self.candidates[-1]
        self.bits.clamp_(low, high)
        moved = (self.bits - self.bit_width).abs() > 0.5 + HYSTERESIS
        new = torch.where(moved, self.bits.round().to(torch.int64), self.bit_width)
        changed = bool((new != self.bit_width).any())
        self.bit_width.copy_(new)
        return changed

    @torch.no_grad()
    def set_bits(self, bits: Tensor) -> None:
        """Set continuous bits and the widths in force, (bit_groups,)."""
        self.bits.copy_(bits.clamp(self.candidates[0], self.candidates[-1]))
        self.bit_width.copy_(self.bits.round().to(torch.int64))

    def lock(self) -> None:
        """Bits are final from here on."""
        self.bits.requires_grad_(False)
        with torch.no_grad():
            self.bits.copy_(self.bit_width.float())

    def get_extra_state(self) -> Tensor:
        """What is not a tensor: calibrated, and bits still learned."""
        return torch.tensor([self.is_calibrated, self.is_learned])

    def set_extra_state(self, state: Tensor) -> None:
        """Restore what get_extra_state gave; a lock survives loading."""
        self.is_calibrated = bool(state[0])
        self.bits.requires_grad_(bool(state[1]) and isinstance(self.bits_spec, LearnedBits))

    def extra_repr(self) -> str:
        sign = "signed" if self.signed else "unsigned"
        return f"{self.bits_spec}, {sign}, bit_groups={self.bit_groups}, scale_groups={self.scale_groups}"


def named_quantizers(model: nn.Module) -> dict[str, Quantizer]:
    """Tensor name -> quantizer, in the order of the model: 'blocks.0.attn.qkv.weight', 'blocks.0.attn.q', ..."""
    return {
        name.removesuffix("_quantizer"): module
        for name, module in model.named_modules()
        if isinstance(module, Quantizer)
    }


def require_quantized(model: nn.Module) -> dict[str, Quantizer]:
    """named_quantizers, or ValueError when there are none."""
    quantizers = named_quantizers(model)
    if not quantizers:
        raise ValueError(f"this {type(model).__name__} has no quantizers; call qvit.quantize(model, spec) first")
    return quantizers


def calibrate_of(model: nn.Module) -> str:
    """Name of the function that calibrates this model: a module that only one method makes says it in `calibrated_by`."""
    return _said(model, "calibrated_by", "qvit.calibrate")


def freeze_of(model: nn.Module) -> str:
    """Name of the function that freezes this model; said in `frozen_by` where it is not qvit.freeze."""
    return _said(model, "frozen_by", "qvit.freeze")


def _said(model: nn.Module, what: str, otherwise: str) -> str:
    return next((getattr(module, what) for module in model.modules() if hasattr(module, what)), otherwise)


def require_calibrated(model: nn.Module) -> None:
    """Raise UncalibratedError naming the first tensor without a scale, and the function that would give it one."""
    for tensor, quantizer in require_quantized(model).items():
        if not quantizer.is_calibrated:
            raise UncalibratedError(
                f"{tensor} has no scale yet: run {calibrate_of(model)}(model, loader) before freeze"
            )
