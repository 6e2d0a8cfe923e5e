"""integer_only: a static proof that a program computes on integers alone, and how wide they get.

"Integer-only" is claimed by papers whose code runs on floats with integer values (methods of this kind are judged by
it). A Program makes the claim decidable: values enter once, through Quantize on the image, leave through Dequantize, and
every op in between reads and writes codes. Whether that holds is a matter of reading the list of ops; no image is needed.

  widths = prove(program)       one `Width` for the codes of every op and for each of its intermediate results

A width is the worst case over all images, from `integer_bounds`, so the list also says which multiplier and accumulator
a piece of hardware needs: in I-ViT 32 bits for every sum, 64 for the products of a requantization.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import integer_ops as i
from . import program as p
from .integer_bounds import bounds, largest
from .interpreter import inputs_of

CODES = "codes"


class NotIntegerOnly(ValueError):  # noqa: N818, a verdict and not a fault
    """The program computes on float values; the message names the first op that does."""


@dataclass(frozen=True)
class Width:
    """How large one integer of an op can get.

    op        kind of the op
    buffer    the buffer it writes
    quantity  "codes" for what it writes, else the intermediate result, in the words of the op's docstring
    worst     the largest |quantity|, whatever the image
    bits      signed bits that hold it, or the bits of the codes
    """

    op: str
    buffer: str
    quantity: str
    worst: int
    bits: int

    @property
    def register(self) -> int:
        """8, 16, 32 or 64: the machine integer for it."""
        return next(size for size in (8, 16, 32, 64) if self.bits <= size)


def prove(program: p.Program) -> list[Width]:
    """The widths of a well-formed program that is integer-only, in the order of its ops.

    Raises NotIntegerOnly for the first op that computes on values: any but a Quantize of the program's input, which may
    be the only one to read values, and a Dequantize, which may be the only one to write them.
    """
    widths = []
    for step, op in enumerate(program.ops):
        reads_values = any(program.buffers[name].grid is None for name in inputs_of(op))
        writes_values = program.buffers[op.output].grid is None
        enters = isinstance(op, p.Quantize) and op.input == program.input
        leaves = isinstance(op, i.Dequantize)
        if (reads_values and not enters) or (writes_values and not leaves):
            raise NotIntegerOnly(
                f"op {step} {type(op).__name__} {op.output!r} {'reads' if reads_values else 'writes'} float values, "
                "allowed: Quantize of the image first, Dequantize last, and integers in between"
            )
        if not leaves:
            widths += _widths(program, op)
    return widths


def _widths(program: p.Program, op: p.Op) -> list[Width]:
    kind, grid = type(op).__name__, program.buffers[op.output].grid
    assert grid is not None
    codes = Width(kind, op.output, CODES, largest(program, op.output), max(grid.bits))
    inside = [Width(kind, op.output, b.quantity, b.worst, b.worst.bit_length() + 1) for b in bounds(program, op)]
    return [codes, *inside]


def widest(widths: list[Width]) -> list[tuple[Width, int]]:
    """The widest of each kind of op and quantity, in order of first appearance, and how many there are of it."""
    found: dict[tuple[str, str], list[Width]] = {}
    for width in widths:
        found.setdefault((width.op, width.quantity), []).append(width)
    return [(max(same, key=lambda width: (width.bits, width.worst)), len(same)) for same in found.values()]
