"""Where the bits of a Program are: one row per role of a tensor, and the tensors in which groups (heads, hidden units) differ.

Widths are read off the Program, which is what is shipped, so every method has this table. Its tensors have the names that the
quantized module had (`components.ROLES`); a buffer that only some method has is called by its own name inside the block.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from qvit_runtime.inspection import describe
from qvit_runtime.program import Program

from ..analysis.components import ROLES

NUMBERED = re.compile(r"(.*\.\d+)\.(.*)")  # layers.1.blocks.0.attn.q -> layers.1.blocks.0 and attn.q
SHARED = ("classifier", "patch merging")  # roles of a weight and of its input
MERGED = ".heads"  # the codes of a tensor while it still has a head axis


@dataclass(frozen=True)
class Widths:
    """The bit-widths of the groups of one tensor, or of the q, k or v part of the fused qkv weight; `layer` is "" outside."""

    layer: str
    role: str
    bits: tuple[int, ...]

    @property
    def differ(self) -> bool:
        return len(set(self.bits)) > 1

    @property
    def text(self) -> str:
        """One number where all agree, else one per group."""
        return " ".join(map(str, self.bits)) if self.differ else str(self.bits[0])


def widths(program: Program) -> list[Widths]:
    """All tensors of a program, weights first."""
    about = describe(program)
    found = [part for w in about["weights"] for part in _parts(w["name"], [bits for row in w["bits"] for bits in row])]
    return found + [part for a in about["activations"] for part in _parts(a["name"].removesuffix(MERGED), a["bits"])]


def _parts(tensor: str, bits: list[int]) -> Iterator[Widths]:
    numbered = NUMBERED.match(tensor)
    layer, inside = numbered.groups() if numbered else ("", tensor)
    roles = ROLES.get(inside, (inside,))
    if roles[0] in SHARED:
        roles = (f"{roles[0]} {inside.rpartition('.')[2]}",)
    if len(bits) % len(roles):  # one width for all of qkv
        roles = (", ".join(roles),)
    size = len(bits) // len(roles)
    for place, role in enumerate(roles):
        yield Widths(layer, role, tuple(bits[place * size : (place + 1) * size]))


def role_table(found: list[Widths]) -> list[list[str]]:
    """Rows (role, tensors, mean bits, lowest to highest, groups differ in), header first."""
    rows = [["tensor", "how many", "mean bits", "lowest to highest", "groups differ in"]]
    for role in dict.fromkeys(w.role for w in found):
        tensors = [w for w in found if w.role == role]
        bits = [width for w in tensors for width in w.bits]
        span = str(min(bits)) if len(set(bits)) == 1 else f"{min(bits)} to {max(bits)}"
        differing = sum(w.differ for w in tensors)
        rows.append([role, str(len(tensors)), f"{sum(bits) / len(bits):.2f}", span, str(differing or "")])
    return rows


def group_table(found: list[Widths]) -> list[list[str]]:
    """Rows (layer, widths of its groups by role) of the roles in which groups differ somewhere, header first; or nothing."""
    differing = {w.role for w in found if w.differ}
    roles = [role for role in dict.fromkeys(w.role for w in found) if role in differing]
    cells = {(w.layer, w.role): w.text for w in found}
    layers = list(dict.fromkeys(w.layer for w in found if w.role in roles))
    table = [[layer, *(cells.get((layer, role), "") for role in roles)] for layer in layers]
    return [["block", *roles], *table] if roles else []
