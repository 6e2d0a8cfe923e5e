"""The figure of the main result: top-1 against GBitOPs, the rows of one model.

Every seed is a small mark and every row a large one at its mean, with the 95 % interval of the mean over seeds
(`evidence_statistics`) where there are two or more. Fine-tuned float has no BitOPs: a dashed line at its mean. Rows of one budget
cost the same to four digits, so they stand side by side, their middle at the cost. Ablations are not drawn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evidence_found import Found, of_budget
from evidence_rows import BUDGETS, HEADS, HIDDEN, LAYERS, UNIFORM
from evidence_statistics import interval_over_seeds
from evidence_svg import Panel, figure, legend, mark, path, text

WIDTH, HEIGHT = 640, 360
BESIDE = 36  # pixels between the rows of one budget
CONTROL = "fixed bits, same grids"
MARKS = {UNIFORM: 0, CONTROL: 3, LAYERS: 1, HEADS: 2, HIDDEN: 4}


def draw_tradeoff(model: str, found: Sequence[Found], out: Path) -> bool:
    """Write the figure of a model; False when there is nothing to draw."""
    floats = of_budget(found, model, "float")
    budgets = [sorted(of_budget(found, model, budget), key=_place) for budget in BUDGETS]
    priced = [f for rows in budgets for f in rows]
    if not priced:
        return False
    everything = [end for f in (*floats, *priced) for end in _ends(f)]
    costs = [cost_of(f) for f in priced]
    room, high = 0.15 * max(costs), max(everything)
    margin = max(0.5, 0.08 * (high - min(everything)))
    panel = Panel(
        *(52, 40, WIDTH - 72, HEIGHT - 84),
        (max(0.0, min(costs) - room), max(costs) + room),
        (min(everything) - margin, high + margin),
    )
    elements = panel.axes("", "GBitOPs per image", "top-1 %")
    for f in floats:
        y = panel.y(f.mean)
        elements += [
            path([(panel.left, y), (panel.left + panel.width, y)], "quiet dash"),
            text(panel.left + 4, y - 5, f"{f.row.title} {f.mean:.2f}"),
        ]
    for rows in budgets:
        for place, f in enumerate(rows):
            elements += _row(panel, f, panel.x(cost_of(f)) + BESIDE * (place - (len(rows) - 1) / 2))
    kinds = [(kind, name) for name, kind in MARKS.items() if any(mark_of(f) == kind for f in priced)]
    elements += legend(panel.left + 60, 20, kinds)
    out.write_text(figure(WIDTH, HEIGHT, f"{model}: top-1 against GBitOPs", elements))
    return True


def cost_of(found: Found) -> float:
    """GBitOPs of a row, the mean over its seeds."""
    return float(np.mean([result["gbitops"] for result in found.results.values()]))


def mark_of(found: Found) -> int:
    """Kind of the mark; the rows uniform W2A3 and uniform W3A2 are uniform LSQ."""
    return MARKS[CONTROL] if found.row.control else MARKS.get(found.row.title, MARKS[UNIFORM])


def _place(found: Found) -> int:
    """From left to right in the order of the legend."""
    return list(MARKS.values()).index(mark_of(found))


def _ends(found: Found) -> list[float]:
    mean, half = found.mean, interval_over_seeds(found.top1) or 0.0
    return [*found.top1, mean - half, mean + half]


def _row(panel: Panel, found: Found, x: float) -> list[str]:
    kind, mean, half = mark_of(found), found.mean, interval_over_seeds(found.top1)
    elements = [mark(x + 8, panel.y(top1), kind, 1.8) for top1 in found.top1]
    if half is not None:
        elements.append(path([(x, panel.y(mean - half)), (x, panel.y(mean + half))], f"s{kind}"))
    elements.append(mark(x, panel.y(mean), kind, 4.5))
    widths = re.search(r"W\dA\d", found.row.title)
    if widths:  # which of two uniform rows, or of two controls
        elements.append(text(x, panel.top + panel.height - 6, widths[0], "middle"))
    return elements
