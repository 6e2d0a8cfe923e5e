"""The README's block of headline results: one line per model and budget, between two marker comments."""

from __future__ import annotations

from pathlib import Path

from evidence_found import (
    Found,
    best_control,
    best_uniform,
    common_seeds,
    compared,
    gap_closed,
    losses_compared,
    of_budget,
    read_rows,
)
from evidence_report import Latency, figure_of, milliseconds, read_latency
from evidence_rows import BUDGETS, DEIT, HEADS, HIDDEN, SWIN
from evidence_statistics import Difference

BEGIN = "<!-- evidence: written by python experiments/evidence.py --tables -->"
END = "<!-- end of evidence -->"
WORDS = """`python experiments/evidence.py`: CIFAR-10, every row trained on 450,000 images (10 epochs of 45,000) from the same float weights, no
teacher; top-1 of the frozen programs on 5,000 images set aside from the training set, mean over the seeds that float, uniform and learned
share; paired differences (over seeds that both rows have, how many stands in brackets where it is another number; without "(seeds)" one) with 95 % intervals, of cross entropy too, where less is better and chance moves less. Uniform is LSQ with a scale per head, else per tensor; learned also has scales per channel and, at 2 bits, a grid without zero
and a gradient for clipped weights, chosen on seed 0, and so are hidden groups (`quantize.hidden_groups = 8`). Fixed bits with the same grids are the control. All rows, what is missing,
convergence: [docs/evidence.md](docs/evidence.md).
"""
COLUMNS = (
    *("at the GBitOPs of uniform", "bits learned of", "seeds", "float, fine-tuned %", "uniform LSQ %", "learned %"),
    *(
        "learned minus uniform",
        "cross entropy, learned minus uniform",
        "of the gap to float",
        "learned minus control",
        "`.qvit` KiB",
        "ms (x eager)",
    ),
)


WHOSE = {HEADS: "heads", HIDDEN: "heads and hidden groups"}


def write_readme(kept: Path, readme: Path) -> None:
    """Replace what stands between the markers.

    Raises ValueError when the file has not one of each, in their order.
    """
    text = readme.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in after:
        raise ValueError(
            f"{readme} needs one line {BEGIN!r} and after it one line {END!r}: the results go between them"
        )
    readme.write_text(f"{before}{BEGIN}\n\n{block(kept)}\n{END}{after}")


def block(kept: Path) -> str:
    """What goes between the markers."""
    found, latency = read_rows(kept), read_latency(kept)
    lines, pictures = [], []
    for model in (DEIT, SWIN):
        floats = of_budget(found, model, "float")
        rows = {budget: of_budget(found, model, budget) for budget in BUDGETS}
        lines += [
            _line((f"{budget}, {model}", whose), learned, rows[budget], floats, latency)
            for budget in BUDGETS
            for title, whose in WHOSE.items()
            for learned in rows[budget]
            if learned.row.title == title
        ]
        if any(rows.values()):
            pictures.append(f"![{model}: top-1 against GBitOPs](docs/{figure_of(model)})")
    if not lines:
        return f"{WORDS}\nNo row is trained yet.\n"
    head = "| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS)
    return "\n".join([WORDS, head, *lines, "", *pictures, ""])


def _line(titles: tuple[str, str], learned: Found, rows: list[Found], floats: list[Found], latency: Latency) -> str:
    """The line of a row of a budget with learned bits."""
    uniform = best_uniform(rows)
    reference = floats[0] if floats else None
    gain, control = compared(learned, uniform), best_control(rows)
    closed = gap_closed(reference, uniform, learned)
    seeds, pairs = common_seeds(reference, uniform, learned), common_seeds(uniform, learned)
    first = next(iter(learned.results.values()))
    cells = (
        *titles,
        f"{len(seeds)}" if len(seeds) == len(pairs) else f"{len(seeds)} ({len(pairs)})",
        *(f"{100 * f.outcomes(seeds).mean():.2f}" if f and seeds else "" for f in (reference, uniform, learned)),
        _difference(gain),
        _difference(losses_compared(learned, uniform)),
        "" if closed is None else f"{closed:.0f} %",
        f"{_difference(worth)} ({control.row.title})" if control and (worth := compared(learned, control)) else "",
        f"{first['artifact_kib']:.0f}",
        milliseconds(learned.row.name, latency),
    )
    return "| " + " | ".join(cells) + " |"


def _difference(found: Difference | None) -> str:
    """A cell."""
    return "" if found is None else f"{found}, {'shown' if found.is_shown else 'not shown'}"
