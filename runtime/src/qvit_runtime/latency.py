"""Measuring a LatencyTable: the engine itself is timed, on the program itself, at every pair of widths.

Time depends on shapes and widths and not on what the numbers are, so the same program *at other widths* is as good as one
that was trained at them: `at_bits` changes the grids and clips the weights. Two sweeps over the 49 pairs (left, right):

    linear      every Linear and QueryKey at the pair, AttentionValue at the reference pair (4, 4)
    attention   every Linear and AttentionValue at the pair, QueryKey at the reference pair

because the two products of an attention are one step of the engine (`Engine.profile` times steps). With S1 and S2 the
times of that step in the two sweeps, half of what it takes at the reference belongs to each product,

    T[QueryKey] = S1[pair] - S1[4, 4] / 2        T[AttentionValue] = S2[pair] - S2[4, 4] / 2

and a step with one product is that product's T. `fixed` is what whole calls take beyond the T of their products.

Noise. Something else can only make a call longer, so of the calls of one visit the least counts. A machine also has slow
minutes, in which everything takes a fifth longer; so the pairs are visited in rounds, in an order that changes, and beside
each visit the reference program is timed, call by call in turn. What a visit finds is divided by how slow the reference was
then, and of the rounds the median counts. The table tells the time of a quick minute. Last, T is made to rise with both
widths, as it does in truth: the mean of the running maximum from few bits up and the running minimum from many bits down.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from . import program as p
from .bench import random_images
from .engine import Engine
from .integer_ops import IntegerOp
from .latency_table import WIDTHS, LatencyTable
from .products import Product, products

Pair = tuple[int, int]  # left bits, right bits

REFERENCE: Pair = (4, 4)
SWEEPS = (p.AttentionValue, p.QueryKey)  # whose products stay at the reference in the first sweep, in the second
QUICK = 0.1  # the quick minutes of a machine: the tenth percentile
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
    return p.Weight(np.clip(weight.codes, -top, top - 1), np.full_like(weight.bits, bits), weight.scale)


def measure_table(
    program: p.Program, threads: int = 2, batch: int = 1, repeats: int = 30, rounds: int = 5, path: str = ""
) -> LatencyTable:
    """The latency table of a program on this machine; DeiT-Tiny takes about two minutes.

    repeats  calls per setting, in `rounds` visits
    path     kernel path by name; the default is the engine's own

    Raises ValueError for less than one repeat or round, and for a program with integer-only ops or two-scaled codes: their
    multipliers, bounds and scales are made for the widths that they have, so the program cannot be put at others.
    """
    if repeats < 1 or rounds < 1:
        raise ValueError(f"repeats is {repeats} and rounds is {rounds}; both take at least 1")
    if bound := [op for op in program.ops if isinstance(op, IntegerOp)]:
        raise ValueError(
            f"a table needs the program at every pair of widths, and {type(bound[0]).__name__} {bound[0].output!r} is one of "
            f"{len(bound)} ops on integers or two-scaled codes that are made for the widths they have; bench the program "
            "without a table, or measure the table on the same network with float ops between its products, as "
            "qvit.quantize makes it"
        )
    found = products(program)
    held = [{x.right for x in found if isinstance(program.ops[x.op], kind)} for kind in SWEEPS]
    images, rng = random_images(program, batch), np.random.default_rng(0)
    reference = Engine(at_bits(program, {x.right: REFERENCE for x in found}), threads, path)
    shape = (rounds, *SHAPE)
    seconds = _Seconds(np.empty(shape), np.empty(shape), {})
    for turn in range(rounds):
        for setting in rng.permutation(np.prod(SHAPE)):
            sweep, left, right = place = tuple(int(k) for k in np.unravel_index(setting, SHAPE))
            pair = (left + p.MIN_BITS, right + p.MIN_BITS)
            pairs = {x.right: REFERENCE if x.right in held[sweep] else pair for x in found}
            engine = Engine(at_bits(program, pairs), threads, path)
            seconds.visit((turn, *place), engine, reference, images, -(-repeats // rounds))
    slowness = seconds.reference / np.quantile(seconds.reference, QUICK)
    steps = {ops: np.median(each / slowness, axis=0) for ops, each in seconds.steps.items()}
    milliseconds = np.stack([_own_time(x, found, held, steps) for x in found]) * 1e3 / threads
    ms = rising(np.maximum(milliseconds, 0.0))
    calls = (seconds.calls / slowness).min(axis=0) * 1e3
    fixed = float(np.quantile(calls - _sum_at_settings(ms, found, held), QUICK))
    macs = {x.right: x.macs for x in found}
    return LatencyTable("the measured table", reference.path, threads, batch, fixed, macs, ms)


@dataclass(frozen=True)
class _Seconds:
    """The least seconds that each visit saw, as arrays (round, sweep, left, right).

    calls      of a whole call
    reference  of all steps of the reference program, timed beside
    steps      of each step, by the positions of its ops; as `reference`, summed over threads
    """

    calls: np.ndarray
    reference: np.ndarray
    steps: dict[tuple[int, ...], np.ndarray]

    def visit(self, place: tuple[int, ...], engine: Engine, reference: Engine, images: np.ndarray, calls: int) -> None:
        engine(images)  # the first call makes threads and memory
        whole, profiles, beside = [], [], []
        for _ in range(calls):
            start = time.perf_counter()
            engine(images)
            whole.append(time.perf_counter() - start)
            profiles.append(engine.profile(images))
            beside.append([step.seconds for step in reference.profile(images)])
        self.calls[place] = min(whole)
        self.reference[place] = np.min(beside, axis=0).sum()
        for same in zip(*profiles, strict=True):
            each = self.steps.setdefault(same[0].ops, np.empty_like(self.calls))
            each[place] = min(step.seconds for step in same)


def _own_time(
    product: Product, found: list[Product], held: list[set[str]], steps: dict[tuple[int, ...], np.ndarray]
) -> np.ndarray:
    """Seconds of a product at every pair (7, 7), summed over threads."""
    step = next(ops for ops in steps if product.op in ops)
    sweeps = [sweep for sweep, names in enumerate(held) if product.right not in names]
    seconds = steps[step][sweeps].mean(axis=0)
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
