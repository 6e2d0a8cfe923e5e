"""docs/evidence.md: tables and verdicts, from the result files of the rows alone. A row that is missing is named as such."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evidence_found import (
    Found,
    above_half_way,
    best_control,
    best_uniform,
    compared,
    gap_closed,
    losses_compared,
    of_budget,
    read_rows,
    without_seeds,
)
from evidence_rows import BUDGETS, DEIT, DISTILLED, HEADS, HIDDEN, ROWS, SWIN, UNIFORM
from evidence_tradeoff import draw_tradeoff
from evidence_trajectories import section

LATENCY = "latency.json"
LEARNED = {HEADS: "Head-wise learned bits", HIDDEN: "Learned bits of heads and hidden groups"}
GROUPS = "uniform rows and rows of the README", "layer-wise rows and controls", "ablations below"
TUNED_ON = 0  # the seed
ALLOWED = 0.1  # points between the top-1 of the engine and of the interpreter
HEADER = """# Evidence: learned bits against uniform bits

Written by `python experiments/evidence.py --tables` from experiments/results/evidence; `python experiments/evidence.py` trains the
rows that are missing. Every row starts from the same float weights and trains on 450,000 images of CIFAR-10 (10 epochs of
45,000), without a teacher but in a table of its own; rows of one seed see the same images in the same order. Top-1 is that of the frozen program on all
5,000 validation images, which were set aside from CIFAR-10's training set; its test set was not looked at. Differences are paired by seed
and by image, with 95 % intervals over either (`experiments/evidence_statistics.py`); one counts as shown when neither interval
includes zero. A difference is over the seeds that both rows have, without "(seeds)" one, so it need not be the difference of the means beside it. Cross entropy, of the same images, is a second measure, which moves less by chance (`experiments/evidence_losses.py`). The program of every run is kept, so that others can judge it on images that nobody has tuned on:
`qvit eval experiments/results/evidence/headwise_3bit_s0/model.qvit --data hfds/FOLDER --split test` (`--image-column img` for the hub's own CIFAR-10).

*Float, fine-tuned* is the same start trained on like the rows. *Uniform LSQ* is LSQ with this library's scales: one per head, else per tensor, learned as logarithms,
started by least squares, first and last layers at 8 bits. *Learned* rows learn bits and besides
have scales per channel, 2-bit weights on a grid without zero, a gradient for clipped weights, bits that are final after 5 % of the steps and weights
whose errors count a tenth when bits are given away. These five were chosen on seed 0 of the same 5,000 images ([log](../experiments/LOG.md)).
*Hidden groups* are this project's: the hidden units of an MLP in eight groups that learn their bits as heads do (`qvit.network.hidden`), also
chosen on seed 0. *Same grids* rows are controls: the scales, grids and gradient of the learned rows, and fixed bits. What learned bits gain on a
control is what learning the bits is worth.
"""
FIGURE = """![{model}: top-1 against GBitOPs]({name})

Small marks are seeds, large ones their mean with its 95 % interval over seeds; rows of one budget stand side by side, their middle at
their cost. Other images would move all rows together, so whether one is above another is said by the paired differences below.
"""
SINGLE_SCALE = """A single scale is fitted for the 5 bits that training starts with. Weights of 2 bits want one five times as large, and in all of the
training it hardly moves: the weights go where the grid is instead ([log](../experiments/LOG.md), 2026-11-26). *One range* keeps one parameter per
group and scales it with the bit-width, so that it fits when a width is taken up: that is what the switchable scale is worth here.
"""
COLUMNS = (
    *("row", "seeds", "top-1 %, mean", "each", "cross entropy", "GBitOPs", "`.qvit` KiB", "ms (x eager)"),
    "minus uniform",
)

Latency = dict[str, Any]  # latency.json; {} where nothing was measured


def write_document(kept: Path, out: Path) -> None:
    """Write the page, and its figures beside it."""
    text = "\n".join([HEADER, *_document(kept, read_rows(kept), read_latency(kept), out.parent)])
    out.write_text(text.rstrip() + "\n")


def read_latency(kept: Path) -> Latency:
    """latency.json, or {}."""
    file = kept / LATENCY
    return json.loads(file.read_text()) if file.exists() else {}


def _document(kept: Path, found: list[Found], latency: Latency, docs: Path) -> Iterator[str]:
    for model in (DEIT, SWIN):
        figure = figure_of(model)
        if draw_tradeoff(model, found, docs / figure):
            yield FIGURE.format(model=model, name=figure)
        floats = of_budget(found, model, "float")
        for budget in BUDGETS:
            rows = of_budget(found, model, budget)
            if rows:
                yield f"## {model}, budget of uniform {budget}\n"
                yield from table([*floats, *rows], best_uniform(rows), latency)
                yield from verdict(rows, floats)
    yield from distilled(found, latency)
    yield from engine_words(latency)
    yield from ablations(found)
    yield from section(kept, docs)
    yield from devices(found)
    missing = {f.row.name: [seed for _, seed in f.row.runs if seed not in f.results] for f in found}
    if any(missing.values()):
        rows = [f"{name} ({', '.join(map(str, seeds))})" for name, seeds in missing.items() if seeds]
        yield f"Not trained yet, with their seeds: {', '.join(rows)}.\n"


def devices(found: list[Found]) -> Iterator[str]:
    """Which runs were not trained on a CPU; results from before it was recorded were."""
    elsewhere: dict[str, list[str]] = {}
    for f in found:
        for device in sorted({result.get("device", "cpu") for result in f.results.values()} - {"cpu"}):
            seeds = [str(seed) for seed, result in f.results.items() if result.get("device") == device]
            elsewhere.setdefault(device, []).append(f"{f.row.name} ({', '.join(seeds)})")
    for device, runs in elsewhere.items():
        yield f"Trained on a GPU ({device}), with their seeds: {', '.join(runs)}; the others on a CPU. Every program was judged by the interpreter, on a CPU.\n"


def distilled(found: list[Found], latency: Latency) -> Iterator[str]:
    """The table of rows with a teacher."""
    rows = of_budget(found, DISTILLED, "3 bits")
    if not rows:
        return
    yield f"## {DISTILLED}, budget of uniform 3 bits\n"
    yield "Half of the loss is the divergence from the logits of the float weights that all rows start from.\n"
    yield from table(rows, best_uniform(rows), latency)
    yield from verdict(rows, [])


def figure_of(model: str) -> str:
    """File name of a model's figure, beside the page."""
    return f"evidence_{model.lower().replace(' ', '_')}.svg"


def table(rows: list[Found], baseline: Found | None, latency: Latency) -> Iterator[str]:
    """Markdown lines of rows of one budget."""
    yield "| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS)
    for f in rows:
        first = next(iter(f.results.values()))
        minus = None if f is baseline else compared(f, baseline)
        cells = (
            f.row.title,
            str(len(f.results)),
            f"{f.mean:.2f}",
            ", ".join(f"{top1:.2f}" for top1 in f.top1),
            _loss(f),
            "" if first["gbitops"] is None else f"{first['gbitops']:.4f}",
            f"{first['artifact_kib']:.0f}" if first["artifact"] else "",
            milliseconds(f.row.name, latency),
            str(minus) if minus else "",
        )
        yield "| " + " | ".join(cells) + " |"
    yield ""


def _loss(found: Found) -> str:
    """Cell of a table."""
    return "" if found.loss is None else f"{found.loss:.4f}"


def milliseconds(row: str, latency: Latency) -> str:
    """Cell of a table: milliseconds, and how many times faster than the float model in PyTorch eager."""
    measured = latency.get("rows", {}).get(row)
    return f"{measured['ms']:.2f} ({measured['times_float']:.2f})" if measured else ""


def verdict(rows: list[Found], floats: list[Found]) -> Iterator[str]:
    """In words: what was gained, what share of the gap to float that is, and whether it is shown; of each kind of learned bits."""
    for title, words in LEARNED.items():
        yield from _verdict(rows, floats, title, words)


def _verdict(rows: list[Found], floats: list[Found], title: str, words: str) -> Iterator[str]:
    baseline, learned = best_uniform(rows), next((f for f in rows if f.row.title == title), None)
    gain = compared(learned, baseline)
    if baseline is None or gain is None:
        return
    name = "uniform bits" if baseline.row.title == UNIFORM else baseline.row.title
    text = f"{words} minus {name}: {gain}, {'shown' if gain.is_shown else 'not shown'}."
    reference = floats[0] if floats else None
    gap, closed = compared(reference, baseline), gap_closed(reference, baseline, learned)
    if gap is not None:
        text += f" Float minus the uniform row: {gap}{'' if closed is None else f'; {closed:.0f} % of it is closed'}."
    half_way = above_half_way(reference, baseline, learned)
    if half_way is not None:
        text += f" Minus the middle of that row and float: {half_way}."
    others = without_seeds([TUNED_ON], learned, baseline)
    if others is not None:
        text += f" Without seed {TUNED_ON}, on which settings were chosen: {others}, {'shown' if others.is_shown else 'not shown'}."
    seen = learned.row.seen if learned is not None else 0
    later = without_seeds(range(seen), learned, baseline) if seen else None
    if later is not None:
        text += f" Without the first {seen} seeds, which had been seen when the others were asked for: {later}, {'shown' if later.is_shown else 'not shown'}."
    control = best_control(rows)
    worth = compared(learned, control)
    if control is not None and worth is not None:
        text += f" Minus {control.row.title}: {worth}, {'shown' if worth.is_shown else 'not shown'}."
    yield text + "\n"
    yield from _in_losses(learned, baseline, reference, control)


def _in_losses(learned: Found | None, baseline: Found, reference: Found | None, control: Found | None) -> Iterator[str]:
    """The same in cross entropy, where less is better."""
    gain = losses_compared(learned, baseline)
    if gain is None:
        return
    text = f"In cross entropy, where less is better: {gain}, {'shown' if gain.is_shown else 'not shown'}"
    gap, worth = losses_compared(reference, baseline), losses_compared(learned, control)
    if gap is not None:
        text += f"; float minus the uniform row {gap}"
    if control is not None and worth is not None:
        text += f"; minus {control.row.title} {worth}, {'shown' if worth.is_shown else 'not shown'}"
    seen = learned.row.seen if learned is not None else 0
    later = losses_compared(learned, baseline, but=range(seen)) if seen else None
    if later is not None:
        text += f"; without the first {seen} seeds {later}, {'shown' if later.is_shown else 'not shown'}"
    yield text + ".\n"


def engine_words(latency: Latency) -> Iterator[str]:
    """How the milliseconds were measured, and whether the engine is right as often as the interpreter."""
    if not latency:
        return
    yield (
        f"Milliseconds: seed 0, {latency['isa']} path of the native engine, {latency['threads']} threads, batch {latency['batch']}, "
        f"medians of {latency['rounds']} interleaved rounds of {latency['calls']} calls, {latency['processor']}, {latency['date']}; "
        "in brackets how many times faster than the float model in PyTorch eager, by round.\n"
    )
    programs = {name: row for name, row in latency["rows"].items() if "top1_engine" in row}
    parts = []
    for group in GROUPS:
        if members := {name: row for name, row in programs.items() if _group_of(name) == group}:
            worst, apart, words = _apart(members)
            holds = "within" if round(apart, 6) <= ALLOWED else "NOT within"
            parts.append(f"of {group} {words} ({worst}), {holds} {ALLOWED}")
    text = f"Top-1 of the engine and of the interpreter: {'; '.join(parts)}"
    yield f"{text}. They differ where a value lies on a tie for the rounding of either.\n"


def _group_of(name: str) -> str:
    """Which of GROUPS a row is in."""
    row = next(row for row in ROWS if row.name == name)
    readme, rest, ablated = GROUPS
    if row.ablation:
        return ablated
    return readme if row.is_uniform or row.title in LEARNED else rest


def _apart(programs: dict[str, Any]) -> tuple[str, float, str]:
    """Name of the program whose engine and interpreter are most points of top-1 apart, how many, and all of it in words."""
    apart = {name: abs(row["top1_engine"] - row["top1_interpreter"]) for name, row in programs.items()}
    worst = max(apart, key=lambda name: apart[name])
    most = max(row["outcomes_that_differ"] for row in programs.values())
    words = f"{len(programs)} programs, at most {most} images right in only one of them, at most {apart[worst]:.2f} points apart"
    return worst, apart[worst], words


def ablations(found: list[Found]) -> Iterator[str]:
    """The section on rows that lack one part of head-wise learned bits."""
    changed = [f for f in found if f.row.ablation and f.results]
    if not changed:
        return
    full = next(f for f in found if f.row.name == "headwise_3bit")
    yield f"## {DEIT}, 3 bits: what each part is worth\n"
    yield "| head-wise learned bits, with one change | seeds | top-1 %, mean | minus unchanged | cross entropy minus unchanged |"
    yield "|---|---|---|---|---|"
    for f in changed:
        changes = f"{compared(f, full) or ''} | {losses_compared(f, full) or ''}"
        yield f"| {f.row.ablation} | {len(f.results)} | {f.mean:.2f} | {changes} |"
    yield ""
    if any("single_scale" in f.row.name for f in changed):
        yield SINGLE_SCALE
