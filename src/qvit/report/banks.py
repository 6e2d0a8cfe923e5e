"""read_banks(): the switchable scale of every tensor, from the trained module's state (`quantizer` says what it holds).

    log_scale  (bank rows, slots)     one scale per bit-width; a single slot where the scale is not switchable
    bit_width  (bit groups,)          which slot is in use

A bank has one row per group, one row for all (SharedScale), or several rows per bit group (scales per channel); of several the
geometric mean is shown. The bit-width of the first slot is the `low` that the spec gives the tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch

from torch import Tensor

from ..spec import LearnedBits, Spec

LOG_SCALE, BIT_WIDTH = "_quantizer.log_scale", "_quantizer.bit_width"


@dataclass(frozen=True)
class Bank:
    """The scales of one group of one tensor.

    in_use  bit-width in force
    scales  bit-width -> scale, for each slot
    """

    tensor: str
    group: int
    groups: int
    in_use: int
    scales: dict[int, float]


def read_banks(tensors: dict[str, Tensor], spec: Spec) -> tuple[Bank, ...]:
    """Banks of all tensors that a spec quantized, in the order of the file; none for a module without quantizers."""
    banks: list[Bank] = []
    for key, log_scale in tensors.items():
        if not key.endswith(LOG_SCALE):
            continue
        tensor = key.removesuffix(LOG_SCALE)
        widths = tensors[tensor + BIT_WIDTH].tolist()
        groups, slots = len(widths), log_scale.shape[1]
        rows = log_scale.expand(max(groups, len(log_scale)), slots).reshape(groups, -1, slots).mean(1).exp().tolist()
        for group, (width, row) in enumerate(zip(widths, rows, strict=True)):
            first = _first_slot(spec, tensor) if slots > 1 else width
            banks.append(Bank(tensor, group, groups, width, {first + slot: scale for slot, scale in enumerate(row)}))
    return tuple(banks)


def _first_slot(spec: Spec, tensor: str) -> int:
    bits = spec.weights if tensor.endswith(".weight") else spec.activations
    if not tensor.startswith(("blocks.", "layers.")):  # patch embedding and classifier
        bits = spec.edge
    for pattern, override in spec.overrides:
        if fnmatch(tensor, pattern):
            bits = override
    assert isinstance(bits, LearnedBits)  # fixed bits have one slot
    return bits.low
