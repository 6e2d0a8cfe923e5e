"""Measuring a LatencyTable: the engine itself is timed, on the program itself, at every pair of widths.

Time depends on shapes and widths and not on what the numbers are, so the same program *at other widths* is as good as one
that was trained at them: `at_bits` changes the grids and clips the weights. Two sweeps over the 49 pairs (left, right):

    linear      every Linear and QueryKey at the pair, AttentionValue at the reference pair (4, 4)
    attention   every Linear and AttentionValue at the pair, QueryKey at the reference pair

because the two products of an attention are one step of the engine (`Engine.profile` times steps). With S1 and S2 the
times of that step in the two sweeps, half of what it takes at the reference belongs to each product,

    T[QueryKey] = S1[pair] - S1[4, 4] / 2        T[AttentionValue] = S2[pair] - S2[4, 4] / 2

and a step with one product is that product's T. `fixed` is what whole calls take beyond the sum of their steps' shares.

Noise. Something else can only make a call longer, and a shared machine has slow minutes. So the pairs are visited in
rounds, in an order that changes, and of each number the least is kept: the table tells the time of an undisturbed
machine. Then T is made to rise with both widths, as it does in truth: the mean of the running maximum from few bits up and
the running minimum from many bits down.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from . import program as p
from .bench import random_images
from .engine import Engine
from .latency_table import WIDTHS, LatencyTable
from .products import Product, products

Pair = tuple[int, int]  # left bits, right bits

REFERENCE: Pair = (4, 4)
SWEEPS = (p.AttentionValue, p.QueryKey)  # whose products stay at the reference in the first sweep, in the second
SHAPE = (len(SWEEPS), WIDTHS, WIDTHS)  # of everything measured: sweep, left bits, right bits
MOVES = (p.Patchify, p.MergeHeads, p.WindowPartition)  # codes in, the same codes out


def at_bits(program: p.Program, pairs: dict[str, Pair]) -> p.Program:
    """The program at other widths: for every product, by the name of its right operand, (left bits, right bits).

    Scales stay, codes are clipped: its answers mean nothing, its time is that of a network of these widths.
    """
    found = products(program)
    width = {product.left: pairs[product.right][0] for product in found}
    width |= {product.right: pairs[product.right][1] for product in found}
    for op in reversed(program.ops):
        if isinstance(op, MOVES) and op.output in width:
            width[op.input] = width[op.output]
    return replace(
        program,
        buffers={name: _buffer_at(buffer, width.get(name)) for name, buffer in program.buffers.items()},
        weights={name: _weight_at(weight, width[name]) for name, weight in program.weights.items()},
    )


def _buffer_at(buffer: p.Buffer, bits: int | None) -> p.Buffer:
    if buffer.grid is None or bits is None:
        return buffer
    return replace(buffer, grid=replace(buffer.grid, bits=(bits,) * buffer.grid.groups))


def _weight_at(weight: p.Weight, bits: int) -> p.Weight:
    top = 1 << (bits - 1)
    return replace(weight, codes=np.clip(weight.codes, -top, top - 1), bits=np.full_like(weight.bits, bits))


def measure_table(
    program: p.Program, threads: int = 2, batch: int = 1, repeats: int = 30, rounds: int = 3, path: str = ""
) -> LatencyTable:
    """The latency table of a program on this machine; DeiT-Tiny takes a minute or two.

    repeats  calls per setting, in `rounds` visits
    path     kernel path by name; the default is the engine's own

    Raises ValueError for less than one repeat or round.
    """
    if repeats < 1 or rounds < 1:
        raise ValueError(f"repeats is {repeats} and rounds is {rounds}; both take at least 1")
    found = products(program)
    held = [{x.right for x in found if isinstance(program.ops[x.op], kind)} for kind in SWEEPS]
    least = _Least(np.full(SHAPE, np.inf), {})
    images, rng = random_images(program, batch), np.random.default_rng(0)
    for _ in range(rounds):
        for setting in rng.permutation(np.prod(SHAPE)):
            sweep, left, right = place = np.unravel_index(setting, SHAPE)
            pair = (int(left) + p.MIN_BITS, int(right) + p.MIN_BITS)
            pairs = {x.right: REFERENCE if x.right in held[sweep] else pair for x in found}
            engine = Engine(at_bits(program, pairs), threads, path)
            least.time(place, engine, images, -(-repeats // rounds))
    milliseconds = np.stack([_own_time(x, found, held, least) for x in found]) * 1e3 / threads
    ms = rising(np.maximum(milliseconds, 0.0))
    fixed = float(np.median(least.whole * 1e3 - _sum_at_settings(ms, found, held)))
    return LatencyTable("the measured table", engine.path, threads, batch, fixed, {x.right: x.macs for x in found}, ms)


@dataclass
class _Least:
    """The least seconds seen at every setting, as arrays (sweep, left, right).

    whole  of a call
    steps  of each step, by the positions of its ops, summed over threads
    """

    whole: np.ndarray
    steps: dict[tuple[int, ...], np.ndarray]

    def time(self, place: tuple[np.intp, ...], engine: Engine, images: np.ndarray, calls: int) -> None:
        engine(images)  # the first call makes threads and memory
        for _ in range(calls):
            start = time.perf_counter()
            engine(images)
            self.whole[place] = min(self.whole[place], time.perf_counter() - start)
            for step in engine.profile(images):
                seconds = self.steps.setdefault(step.ops, np.full(SHAPE, np.inf))
                seconds[place] = min(seconds[place], step.seconds)


def _own_time(product: Product, found: list[Product], held: list[set[str]], least: _Least) -> np.ndarray:
    """Seconds of a product at every pair (7, 7), summed over threads."""
    step = next(ops for ops in least.steps if product.op in ops)
    seconds = np.min(
        [least.steps[step][sweep] for sweep in range(len(held)) if product.right not in held[sweep]], axis=0
    )
    sharing = sum(other.op in step for other in found)
    reference = seconds[REFERENCE[0] - p.MIN_BITS, REFERENCE[1] - p.MIN_BITS]
    return seconds - reference * (sharing - 1) / sharing


def _sum_at_settings(ms: np.ndarray, found: list[Product], held: list[set[str]]) -> np.ndarray:
    """What the products take at every setting, (sweep, left, right)."""
    sums = np.zeros(SHAPE)
    for sweep, names in enumerate(held):
        for product, times in zip(found, ms, strict=True):
            at_reference = times[REFERENCE[0] - p.MIN_BITS, REFERENCE[1] - p.MIN_BITS]
            sums[sweep] += at_reference if product.right in names else times
    return sums


def rising(table: np.ndarray) -> np.ndarray:
    """(..., 7, 7) made to rise along both of its last axes; a table that does already stays as it is."""
    up, down = table, np.flip(table, (-2, -1))
    for axis in (-2, -1):
        up, down = np.maximum.accumulate(up, axis), np.minimum.accumulate(down, axis)
    return (up + np.flip(down, (-2, -1))) / 2
