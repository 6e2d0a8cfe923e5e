"""The README's block of headline results: one line per model and budget, between two marker comments."""

from __future__ import annotations

from pathlib import Path

from evidence_found import Found, best_uniform, compared, gap_closed, of_budget, read_rows
from evidence_report import Latency, figure_of, milliseconds, read_latency
from evidence_rows import BUDGETS, DEIT, HEADS, SWIN

BEGIN = "<!-- evidence: written by python experiments/evidence.py --tables -->"
END = "<!-- end of evidence -->"
WORDS = """`python experiments/evidence.py`: CIFAR-10, every row trained on 450,000 images from the same float weights, no teacher; mean top-1 over the
seeds of the frozen programs, paired differences with 95 % intervals. All rows, ablations, convergence: [docs/evidence.md](docs/evidence.md).
"""
COLUMNS = (
    *("at the GBitOPs of uniform", "seeds of each", "float %", "uniform %", "head-wise learned %"),
    *("learned minus uniform", "of the gap to float", "`.qvit` KiB", "ms (x eager)"),
)


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
        lines += [_line(f"{budget}, {model}", rows[budget], floats, latency) for budget in BUDGETS if rows[budget]]
        if any(rows.values()):
            pictures.append(f"![{model}: top-1 against GBitOPs](docs/{figure_of(model)})")
    if not lines:
        return f"{WORDS}\nNo row is trained yet.\n"
    head = "| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS)
    return "\n".join([WORDS, head, *lines, "", *pictures, ""])


def _line(title: str, rows: list[Found], floats: list[Found], latency: Latency) -> str:
    """The line of a budget."""
    uniform, learned = best_uniform(rows), next((f for f in rows if f.row.title == HEADS), None)
    reference = floats[0] if floats else None
    gain = compared(learned, uniform)
    closed = gap_closed(gain, compared(reference, uniform))
    shown = "" if gain is None else f"{gain}, {'shown' if gain.is_shown else 'not shown'}"
    first = next(iter(learned.results.values())) if learned else None
    cells = (
        title,
        ", ".join(str(len(f.results)) for f in (reference, uniform, learned) if f),
        *("" if f is None else f"{f.mean:.2f}" for f in (reference, uniform, learned)),
        shown,
        "" if closed is None else f"{closed:.0f} %",
        f"{first['artifact_kib']:.0f}" if first else "",
        milliseconds(learned.row.name, latency) if learned else "",
    )
    return "| " + " | ".join(cells) + " |"
