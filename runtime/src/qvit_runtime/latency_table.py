"""LatencyTable: how long a network takes for every choice of bits, measured once on the machine that will run it.

    ms(bits) = fixed + sum over products of  mean over the pairs of bits that meet of  T[product][left bits, right bits]

A product takes time in proportion to its multiply-accumulates, at a speed that depends on the two widths that meet
(`products`): on AVX2 by how many products fit into 16 bits before they must be widened, with AVX-512 VNNI not at all. So T
is a 7 x 7 table per product, left bits 2..8 by right bits 2..8; groups that meet at different widths take the mean of
their entries; mid-rise weights of b bits, whose codes have b + 1, are as fast as other weights of b + 1. `fixed` is the rest: LayerNorm, quantization, threads that wait for each other. Softmax, GELU and additions
run inside the step of a product and are in its T.

More bits never take less time, so a table that falls anywhere is refused; `latency` measures one and irons out noise.

The file is JSON:

    {"format": "qvit latency table", "version": 1, "path": "avx2", "threads": 2, "batch": 1, "fixed_ms": 0.61,
     "products": {"blocks.0.attn.qkv.weight": {"macs": 21786624, "ms": [[0.11, ...], ...]}, ...}}

Products are named by their right operand, as `freeze` names it: a weight, keys or values.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import atomic
from . import program as p
from .products import multiplied_bits, products
from .tensor_file import FormatError, parse_json

FORMAT, VERSION = "qvit latency table", 1
WIDTHS = p.MAX_BITS - p.MIN_BITS + 1
DIGITS = 6  # nanoseconds
FLAT = 0.05  # a gain from 8 bits to 2 below this share is noise


class LatencyError(ValueError):
    """A latency table that cannot be used; the text names the file, what was found and what is allowed."""


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """Milliseconds of one call.

    source  where it was read from, for errors
    path    kernel path of the engine
    threads, batch  of the measured calls
    fixed   milliseconds that do not depend on bits
    macs    multiply-accumulates per image of each product, by name, in the order of `ms`
    ms      float64 (products, 7, 7): left bits 2..8 by right bits 2..8
    """

    source: str
    path: str
    threads: int
    batch: int
    fixed: float
    macs: dict[str, int]
    ms: np.ndarray

    def rows(self, wanted: dict[str, int]) -> list[int]:
        """Where in `ms` the products of a network are, given as {name: multiply-accumulates}.

        Raises LatencyError when the table is of another network.
        """
        place = {name: row for row, name in enumerate(self.macs)}
        for name in [*wanted, *self.macs]:
            here, there = self.macs.get(name), wanted.get(name)
            if here != there:
                raise LatencyError(
                    f"{self.source} was measured on another network: {name} has {_macs(here)} in the table and "
                    f"{_macs(there)} in the model; measure this one with qvit-runtime bench MODEL --table FILE"
                )
        return [place[name] for name in wanted]

    def predict(self, program: p.Program) -> float:
        """Milliseconds of a call of this program. Raises LatencyError when the table is of another network."""
        found = products(program)
        total = self.fixed
        for product, row in zip(found, self.rows({x.right: x.macs for x in found}), strict=True):
            left, right = multiplied_bits(program, product)
            total += float(self.ms[row, left - p.MIN_BITS, right - p.MIN_BITS].mean())
        return total

    def uniform(self, bits: int) -> float:
        """Milliseconds when every width of the network is `bits`."""
        return self.fixed + float(self.ms[:, bits - p.MIN_BITS, bits - p.MIN_BITS].sum())

    @property
    def bits_matter(self) -> bool:
        """Whether fewer bits make this network faster on the measured path by more than noise."""
        return self.uniform(p.MIN_BITS) < (1 - FLAT) * self.uniform(p.MAX_BITS)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON, atomically."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "path": self.path,
            "threads": self.threads,
            "batch": self.batch,
            "fixed_ms": round(self.fixed, DIGITS),
            "products": {
                name: {"macs": macs, "ms": np.round(times, DIGITS).tolist()}
                for (name, macs), times in zip(self.macs.items(), self.ms, strict=True)
            },
        }
        atomic.write(path, (json.dumps(content) + "\n").encode())


def read_table(path: str | os.PathLike[str]) -> LatencyTable:
    """Read a table. Raises LatencyError when there is none, or when it is damaged or something else."""
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise LatencyError(
            f"there is no latency table {path}; measure one with qvit-runtime bench MODEL --table {path}"
        ) from None
    try:
        return _table(str(path), parse_json("the file", content))
    except FormatError as error:
        raise LatencyError(f"{path} is not a latency table that this version reads: {error}") from None


def _table(source: str, content: dict[str, Any]) -> LatencyTable:
    for key, allowed in (("format", FORMAT), ("version", VERSION)):
        if content.get(key) != allowed:
            raise FormatError(f"{key} is {str(content.get(key))[:40]!r}, allowed: {allowed!r}")
    path, measured = content.get("path"), content.get("products")
    if not isinstance(path, str):
        raise FormatError(f"path is {str(path)[:40]!r}, allowed: the name of a kernel path")
    if not isinstance(measured, dict) or not measured:
        raise FormatError("products is not a table of products")
    macs, tables = {}, []
    for name, entry in measured.items():
        where = f"products[{name[:100]!r}]"
        if not isinstance(entry, dict):
            raise FormatError(f"{where} is not a table of macs and ms")
        macs[name] = _count(entry, "macs", where + ".")
        tables.append(_times(entry.get("ms"), where))
    fixed = content.get("fixed_ms")
    if type(fixed) not in (int, float):
        raise FormatError(f"fixed_ms is {str(fixed)[:40]!r}, allowed: a number")
    counts = _count(content, "threads"), _count(content, "batch")
    return LatencyTable(source, path, *counts, float(fixed), macs, np.array(tables))  # type: ignore[arg-type]


def _count(content: dict[str, Any], key: str, where: str = "") -> int:
    value = content.get(key)
    if type(value) is not int or value < 1:
        raise FormatError(f"{where}{key} is {str(value)[:40]!r}, allowed: a whole number from 1 on")
    return value


def _times(rows: object, where: str) -> np.ndarray:
    square = isinstance(rows, list) and len(rows) == WIDTHS
    if not square or not all(isinstance(row, list) and len(row) == WIDTHS for row in rows):  # type: ignore[attr-defined]
        raise FormatError(f"{where}.ms is not {WIDTHS} rows of {WIDTHS} numbers")
    if not all(type(item) in (int, float) and item >= 0 for row in rows for item in row):  # type: ignore[attr-defined]
        raise FormatError(f"{where}.ms holds something else than numbers from 0 on")
    times = np.array(rows, np.float64)
    if (np.diff(times, axis=0) < 0).any() or (np.diff(times, axis=1) < 0).any():
        raise FormatError(f"{where}.ms falls with more bits somewhere; it must not")
    return times


def _macs(count: int | None) -> str:
    return "no product" if count is None else f"{count} multiply-accumulates"
