"""The section on convergence: numbers of `evidence_convergence` as a table, and a figure of how bits and scales moved.

The figure has a row per run: on the left the bit-widths in force of every group of the middle block, on the right their scales
as log2 relative to the first logged ones, up to half of stage 1 beyond the lock (the dashed rule). Groups of one width are spread
a little around it, so that they can be told apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from evidence_convergence import SETTLED, Convergence, Estimate, Trajectory, convergence, read_trajectory
from evidence_rows import ROWS, TRAJECTORIES
from evidence_svg import Panel, figure, legend, path

FIGURE = "evidence_trajectories.svg"
LEFTS, PANEL_WIDTH, PANEL_HEIGHT, PITCH = (40, 470), 370, 150, 218
SPREAD = 0.7  # of a bit
BEYOND = 1.5  # of stage 1 is drawn
WORDS = f"""## Convergence: bits and scales learned together

Stage 1 is the part of a run in which bits move; every number is defined in `experiments/evidence_convergence.py`. Flips: changed widths per 100 groups
and 100 steps, in the four quarters of stage 1. Undone: the share of the flips in the last quarter that undo the one before. Per bit: change of log2(scale)
around a flip per bit gained (a grid that keeps its range has -1). Moved: |change of log2(scale)| in 100 steps after a flip, and of groups at rest.
Losses are those of training batches, ± one standard error: last quarter minus first, intervals with many flips minus those with few, after the
lock minus before. A run *diverges* when its loss rises in stage 1, *settles* when fewer than {SETTLED:g} flips are left in the last quarter, *oscillates* when half of
those left undo the one before, and else *drifts*.
"""
COLUMNS = ("run", "lock", "flips", "undone", "per bit", "moved", "loss", "loss at flips", "loss at the lock", "verdict")


def section(kept: Path, docs: Path) -> Iterator[str]:
    """Markdown lines, and the figure in `docs`; nothing where no run kept its logs."""
    runs = {
        title_of(name): read_trajectory(kept / name) for name in TRAJECTORIES if (kept / name / "bits.jsonl").exists()
    }
    if not runs:
        return
    yield WORDS
    yield "| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS)
    for title, run in runs.items():
        yield "| " + " | ".join((title, *cells(convergence(run)))) + " |"
    (docs / FIGURE).write_text(draw(runs))
    yield f"\n![Bit-widths and scales of the middle block over the steps]({FIGURE})\n"
    yield "Every line is one group of the middle block; the dashed rule is the lock.\n"


def title_of(run: str) -> str:
    """What the run changes, or that it is the unchanged one."""
    row = next(row for row in ROWS if (run, 0) in row.runs)
    return row.ablation or row.title


def cells(found: Convergence) -> tuple[str, ...]:
    """The numbers of a run, in the order of COLUMNS."""
    return (
        str(found.lock),
        ", ".join(f"{rate:.1f}" for rate in found.flip_rates),
        "-" if found.reversed_share is None else f"{100 * found.reversed_share:.0f} %",
        _plain(found.per_bit, "+"),
        f"{_plain(found.moved_after)}; {_plain(found.moved_at_rest)}",
        _estimate(found.loss_change),
        _estimate(found.loss_at_flips),
        _estimate(found.loss_at_lock),
        found.verdict,
    )


def _plain(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.2f}"


def _estimate(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate[0]:+.3f} ± {estimate[1]:.3f}"


def draw(runs: dict[str, Trajectory]) -> str:
    """The figure of runs by title."""
    elements = legend(LEFTS[0], 18, [(2, "activations"), (0, "weights")])
    for place, (title, run) in enumerate(runs.items()):
        elements += _row(title, run, 56 + PITCH * place)
    width, height = LEFTS[1] + PANEL_WIDTH + 16, 56 + PITCH * len(runs) - 20
    return figure(width, height, "Bit-widths and scales of the middle block over the steps", elements)


def _row(title: str, run: Trajectory, top: float) -> Iterator[str]:
    shown = middle_block(run.tensors)
    end = BEYOND * run.lock
    within = run.scale_steps <= end
    moved = (run.log2_scale - run.log2_scale[:1])[within][:, shown]
    reach = max(1.0, float(np.abs(moved).max(initial=0.0)))
    widths = Panel(LEFTS[0], top, PANEL_WIDTH, PANEL_HEIGHT, (0, end), (1.5, 8.5))
    scales = Panel(LEFTS[1], top, PANEL_WIDTH, PANEL_HEIGHT, (0, end), (-reach, reach))
    for panel, heading, unit in ((widths, title, "bits"), (scales, "", "log2(scale), change")):
        yield from panel.axes(heading, "step", unit)
        yield path([(panel.x(run.lock), panel.top), (panel.x(run.lock), panel.top + panel.height)], "quiet dash")
    for place, group in enumerate(shown):
        classes = f"thin s{0 if run.tensors[group].endswith('weight') else 2}"
        beside = SPREAD * (place / max(1, len(shown) - 1) - 0.5)
        yield path(list(_stairs(widths, run, group, end, beside)), classes)
        yield path(
            [(round(scales.x(s)), scales.y(m)) for s, m in zip(run.scale_steps[within], moved[:, place], strict=True)],
            classes,
        )


def middle_block(tensors: tuple[str, ...]) -> list[int]:
    """Places of the groups that belong to the middle one of the blocks."""
    blocks = [re.match(r"(layers\.\d+\.)?blocks\.\d+", name) for name in tensors]
    names = list(dict.fromkeys(block[0] for block in blocks if block))
    middle = names[len(names) // 2]
    return [place for place, block in enumerate(blocks) if block and block[0] == middle]


def _stairs(panel: Panel, run: Trajectory, group: int, end: float, beside: float) -> Iterator[tuple[float, float]]:
    """Corners of the path of one width."""
    width = run.bits[0, group]
    yield panel.x(0), panel.y(width + beside)
    for step, now in zip(run.bit_steps[1:], run.bits[1:, group], strict=True):
        if now != width:
            yield round(panel.x(step)), panel.y(width + beside)
            width = now
            yield round(panel.x(step)), panel.y(width + beside)
    yield panel.x(end), panel.y(width + beside)
