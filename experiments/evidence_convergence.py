"""Does learning bits and scales together converge? Numbers from the logs of one run, the same for every way of learning them.

Stage 1 is the part of a run in which bits move, from step 0 to the lock. A *flip* is one group (a head, or a tensor without
heads) whose bit-width in force changes; what the lock itself does is no flip. From bits.jsonl, scales.jsonl and metrics.jsonl:

    flip_rates       flips per 100 groups and 100 steps, of each quarter of stage 1
    reversed_share   of the flips in the last quarter, the share that undo the group's flip before: w, w', w
    per_bit          mean change of log2(scale) per bit gained, between the two lines of scales around a flip. A grid that keeps
                     its range while its steps halve has -1, a scale that has not noticed the flip 0
    moved_after      mean |change of log2(scale)| in 100 steps, of groups that flipped in the interval before and rest now
    moved_at_rest    the same of groups that flipped in neither: scales learn anyway
    loss_change      loss of the last quarter of stage 1 minus loss of the first
    loss_at_flips    change of the loss from one logged line to the next where more groups flip than in the median interval,
                     minus the change where fewer do
    loss_at_lock     mean of the 5 logged lines after the lock minus the 5 before

Losses are those of training batches and come with a standard error. In one word (`verdict`), the first that holds:

    diverges    a loss or gradient was not finite (the run was rolled back)
    too short to say   stage 1 has fewer than SHORTEST steps: a quarter has no five losses, and a flip more or less is a verdict
    diverges    loss_change is above 2 standard errors
    settles     the last quarter has fewer than SETTLED flips per 100 groups and 100 steps
    oscillates  reversed_share is at least one half: widths go to and fro
    drifts      otherwise: widths still move when they are locked, to where they have not been
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SETTLED = 1.0
"""A group would flip once in 10,000 steps; a run has 3,510, and its stage 1 up to 2,106."""
SHORTEST = 400
QUARTERS = 4
LINES_AT_LOCK = 5
INTERVALS_AFTER_LOCK = 2
"""Of scales: the lock flips many groups at once, so what their scales do next counts too."""

Estimate = tuple[float, float]  # value, standard error


@dataclass(frozen=True)
class Trajectory:
    """What a run logged, of the G groups whose bits are learned.

    tensors          name of the tensor of each group, (G,)
    lock             step after which bits are final
    bit_steps, bits  (K,), (K, G): after this step these widths are in force; the last line is that of the lock
    scale_steps, log2_scale   (S,), (S, G): scales in force, the mean over its channels where a group has one for each
    loss_steps, loss (L,): one training batch each
    rolled_back      something was not finite
    """

    tensors: tuple[str, ...]
    lock: int
    bit_steps: np.ndarray
    bits: np.ndarray
    scale_steps: np.ndarray
    log2_scale: np.ndarray
    loss_steps: np.ndarray
    loss: np.ndarray
    rolled_back: bool

    def bits_at(self, steps: np.ndarray) -> np.ndarray:
        """Widths in force after each of the steps, (len(steps), G)."""
        return self.bits[np.searchsorted(self.bit_steps, steps, side="right") - 1]

    @property
    def flips(self) -> tuple[np.ndarray, np.ndarray]:
        """(step, group) of every flip, in order of the steps; none of the lock."""
        line, group = np.nonzero(np.diff(self.bits[:-1], axis=0))
        return self.bit_steps[1:-1][line], group


def read_trajectory(folder: Path) -> Trajectory:
    """The logs of a finished run.

    Raises ValueError when its bits were never locked.
    """
    history, metrics = _lines(folder / "bits.jsonl"), _lines(folder / "metrics.jsonl")
    locks = [index for index, line in enumerate(history) if line["locked"]]
    if not locks:
        raise ValueError(f"{folder}/bits.jsonl has no locked line: the run is not finished, or learned no bits")
    history = history[: locks[0] + 1]
    learned = {
        name: len(widths) for name, widths in history[0]["bits"].items() if name.startswith(("blocks.", "layers."))
    }
    scales = _lines(folder / "scales.jsonl")
    losses = [line for line in metrics if line.get("loss") is not None]
    return Trajectory(
        tensors=tuple(name for name, groups in learned.items() for _ in range(groups)),
        lock=history[-1]["step"],
        bit_steps=np.array([line["step"] for line in history]),
        bits=np.array([[width for name in learned for width in line["bits"][name]] for line in history]),
        scale_steps=np.array([line["step"] for line in scales]),
        log2_scale=np.array(
            [[m for name, n in learned.items() for m in _per_group(line["log2_scale"][name], n)] for line in scales]
        ).reshape(-1, sum(learned.values())),
        loss_steps=np.array([line["step"] for line in losses]),
        loss=np.array([line["loss"] for line in losses]),
        rolled_back=any("rolled_back_from" in line for line in metrics),
    )


def keep_scales(run: Path, folder: Path) -> None:
    """Write the scales.jsonl of a run into `folder`, with the mean of each group's channels: all that is read of it, and short."""
    groups = {name: len(widths) for name, widths in _lines(run / "bits.jsonl")[0]["bits"].items()}
    with (folder / "scales.jsonl").open("w") as file:
        for line in _lines(run / "scales.jsonl"):
            means = {
                name: _per_group(each, groups[name]).round(4).tolist() for name, each in line["log2_scale"].items()
            }
            file.write(json.dumps({"step": line["step"], "log2_scale": means}) + "\n")


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _per_group(scales: list[float], groups: int) -> np.ndarray:
    """Means over the channels of each group: a group owns neighbouring scales (`Quantizer.per_scale`)."""
    return np.array(scales).reshape(groups, -1).mean(1)


@dataclass(frozen=True)
class Convergence:
    """The numbers of the module's docstring; None where the log has no occasion to measure one."""

    lock: int
    groups: int
    flip_rates: tuple[float, ...]
    reversed_share: float | None
    per_bit: float | None
    moved_after: float | None
    moved_at_rest: float | None
    loss_change: Estimate | None
    loss_at_flips: Estimate | None
    loss_at_lock: Estimate | None
    rolled_back: bool

    @property
    def verdict(self) -> str:
        """diverges, settles, oscillates or drifts, or that it is too short to say."""
        value, error = self.loss_change or (0.0, 0.0)
        if self.rolled_back:
            return "diverges"
        if self.lock < SHORTEST:
            return "too short to say"
        if value > 2 * error:
            return "diverges"
        if self.flip_rates[-1] < SETTLED:
            return "settles"
        return "oscillates" if self.reversed_share is not None and self.reversed_share >= 0.5 else "drifts"


def convergence(run: Trajectory) -> Convergence:
    """All numbers of a run."""
    per_bit, moved_after, moved_at_rest = scale_moves(run)
    quarter = run.lock / QUARTERS
    stage1 = run.loss_steps <= run.lock
    first, last = run.loss[run.loss_steps <= quarter], run.loss[stage1 & (run.loss_steps > run.lock - quarter)]
    before, after = run.loss[stage1][-LINES_AT_LOCK:], run.loss[~stage1][:LINES_AT_LOCK]
    return Convergence(
        lock=run.lock,
        groups=run.bits.shape[1],
        flip_rates=flip_rates(run),
        reversed_share=reversed_share(run),
        per_bit=per_bit,
        moved_after=moved_after,
        moved_at_rest=moved_at_rest,
        loss_change=_minus(last, first),
        loss_at_flips=loss_at_flips(run),
        loss_at_lock=_minus(after, before),
        rolled_back=run.rolled_back,
    )


def flip_rates(run: Trajectory) -> tuple[float, ...]:
    """Flips per 100 groups and 100 steps, of each quarter of stage 1."""
    edges = np.linspace(0, run.lock, QUARTERS + 1)
    counts, _ = np.histogram(run.flips[0], edges)
    return tuple(float(100 * 100 * count / (run.bits.shape[1] * run.lock / QUARTERS)) for count in counts)


def reversed_share(run: Trajectory) -> float | None:
    """Of the flips in the last quarter of stage 1, the share that undo the flip before; None without flips."""
    last_quarter = run.lock * (1 - 1 / QUARTERS)
    undone = []
    for group in range(run.bits.shape[1]):
        widths = run.bits[:-1, group]
        turns = np.concatenate([[0], 1 + np.nonzero(np.diff(widths))[0]])  # lines at which the group takes a new width
        taken = widths[turns]
        undone += [
            turn >= 2 and taken[turn] == taken[turn - 2]
            for turn in range(1, len(turns))
            if run.bit_steps[turns[turn]] > last_quarter
        ]
    return float(np.mean(undone)) if undone else None


def scale_moves(run: Trajectory) -> tuple[float | None, float | None, float | None]:
    """(per_bit, moved_after, moved_at_rest), from stage 1 and the first lines of scales after the lock."""
    used = np.searchsorted(run.scale_steps, run.lock, side="right") + INTERVALS_AFTER_LOCK
    steps, scales = run.scale_steps[:used], run.log2_scale[:used]
    moved = np.diff(scales, axis=0)
    per_100 = np.abs(moved) * (100 / np.diff(steps))[:, None]
    widths = np.diff(run.bits_at(steps), axis=0)
    flipped = _changes_between(run, steps)
    after, rest = flipped[:-1] & ~flipped[1:], ~flipped[:-1] & ~flipped[1:]
    net = widths != 0
    return _mean(moved[net] / widths[net]), _mean(per_100[1:][after]), _mean(per_100[1:][rest])


def _changes_between(run: Trajectory, steps: np.ndarray) -> np.ndarray:
    """Whether a group changed its width at all between two lines of scales, there and back included, bool (S - 1, G)."""
    so_far = (np.diff(run.bits, axis=0, prepend=run.bits[:1]) != 0).cumsum(0)
    return np.diff(so_far[np.searchsorted(run.bit_steps, steps, side="right") - 1], axis=0) > 0


def loss_at_flips(run: Trajectory) -> Estimate | None:
    """Change of the loss where more groups flip than in the median interval of stage 1, minus where fewer do."""
    steps = run.loss_steps[run.loss_steps <= run.lock]
    changes = np.diff(run.loss[: len(steps)])
    counts, _ = np.histogram(run.flips[0], steps - 0.5)  # a flip after step f is in the losses of steps f + 1, ...
    many = counts > np.median(counts)
    return _minus(changes[many], changes[~many])


def _minus(first: np.ndarray, second: np.ndarray) -> Estimate | None:
    """mean(first) - mean(second) and its standard error; None where one has fewer than two values."""
    if min(len(first), len(second)) < 2:
        return None
    error = np.sqrt(first.var(ddof=1) / len(first) + second.var(ddof=1) / len(second))
    return float(first.mean() - second.mean()), float(error)


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None
