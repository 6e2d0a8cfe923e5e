"""The command line: `qvit-runtime predict MODEL IMAGE...`, `inspect MODEL` and `bench MODEL`.

Exit codes: 0 everything answered; 1 some image could not be answered, the others were; 2 nothing could be done (wrong
usage, no such model). Answers go to standard output, errors to standard error. `--json FILE` writes the same facts for
machines; `--json -` puts them on standard output in place of the text.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any, TextIO

from . import program as p
from .artifact import load
from .bench import by_name, measure, random_images, step_times
from .engine import Engine
from .inspection import describe
from .integer_only import NotIntegerOnly, prove, widest
from .latency import measure_table
from .predict import Answer, Execute, predict

ALL_WELL, SOME_FAILED, NOTHING_DONE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(arguments)
    warnings.simplefilter("ignore")  # Pillow's remarks about odd files; what matters is an error
    try:
        return int(options.command(options))
    except (ValueError, ImportError, OSError) as error:  # a bad file, no native engine, an unknown QVIT_CPU
        say(f"qvit-runtime: {error}", sys.stderr)
        return NOTHING_DONE


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="qvit-runtime", description="Run and look into .qvit models. No torch needed.")
    top.add_argument("--version", action="version", version=f"qvit-runtime {version('qvit-runtime')}")
    verbs = top.add_subparsers(required=True, metavar="COMMAND")

    verb = verbs.add_parser("predict", help="name the most probable classes of images")
    verb.add_argument("model", help="a .qvit file")
    verb.add_argument(
        "images", nargs="+", metavar="image", help="an image, a folder of images, or - for standard input"
    )
    verb.add_argument("--top", type=positive, default=5, help="classes per image (default: 5)")
    verb.set_defaults(command=predict_command)

    other = verbs.add_parser("inspect", help="show bits per layer and head, sizes, and what runs on integers")
    other.add_argument("model", help="a .qvit file")
    other.add_argument("--integers", action="store_true", help="is it integer-only, and how wide is each integer?")
    other.set_defaults(command=inspect_command)

    timed = verbs.add_parser("bench", help="measure how long an image takes, and where the time goes")
    timed.add_argument("model", help="a .qvit file")
    timed.add_argument("--batch", type=positive, default=1, help="images per call (default: 1)")
    timed.add_argument("--repeats", type=positive, default=30, help="calls that are counted (default: 30)")
    timed.add_argument("--profile", action="store_true", help="also the time of each kind of step")
    timed.add_argument("--table", metavar="FILE", help="measure every pair of widths instead, for a budget in ms")
    timed.set_defaults(command=bench_command)

    for each in (verb, timed):
        each.add_argument("--threads", type=positive, default=default_threads(), help="default: %(default)s")
    for each in (verb, other, timed):
        each.add_argument("--json", metavar="FILE", help="also write the result as JSON; - for standard output instead")
    return top


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def default_threads() -> int:
    """As many as this process may use, at most four: a small image is too little work for more."""
    may_use = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # macOS has none
    return min(4, may_use or 1)


def engine_for(program: p.Program, threads: int) -> Execute:
    """What runs a program: the native engine."""
    return Engine(program, threads)


def predict_command(options: argparse.Namespace) -> int:
    program = load(options.model)
    answers = []
    for answer in predict(program, engine_for(program, options.threads), options.images, options.top):
        answers.append(answer)
        if answer.error:
            say(f"qvit-runtime: {answer.error}", sys.stderr)
        elif options.json != "-":
            say(answer_text(answer))
    images = [
        {"file": a.file, "error": a.error} if a.error else {"file": a.file, "top": [asdict(g) for g in a.guesses]}
        for a in answers
    ]
    write_json(options.json, {"model": options.model, "images": images})
    return SOME_FAILED if any(answer.error for answer in answers) else ALL_WELL


def answer_text(answer: Answer) -> str:
    lines = [f"  {guess.probability:7.2%}  {guess.index:5d}  {guess.label}".rstrip() for guess in answer.guesses]
    return "\n".join([answer.file, *lines])


def inspect_command(options: argparse.Namespace) -> int:
    program = load(options.model)
    if options.integers:
        return integers_command(options, program)
    description = describe(program) | {"file": options.model, "bytes": os.path.getsize(options.model)}
    if options.json != "-":
        say(description_text(description))
    write_json(options.json, description)
    return ALL_WELL


def integers_command(options: argparse.Namespace, program: p.Program) -> int:
    """Either verdict is an answer."""
    try:
        widths, verdict = prove(program), "integer-only from the first Quantize to the last Dequantize"
    except NotIntegerOnly as error:
        widths, verdict = [], f"not integer-only: {error}"
    if options.json != "-":
        rows = [
            [w.op, str(count), w.quantity, f"{w.worst:,}", str(w.bits), str(w.register)] for w, count in widest(widths)
        ]
        lines = ["", *table(["op", "count", "what", "worst case", "bits", "register"], rows)] if rows else []
        say("\n".join([f"{options.model}: {verdict}", *lines]))
    content = [asdict(width) | {"register": width.register} for width in widths]
    write_json(
        options.json, {"file": options.model, "integer_only": bool(widths), "verdict": verdict, "widths": content}
    )
    return ALL_WELL


def description_text(about: dict[str, Any]) -> str:
    totals = about["totals"]
    return "\n".join(
        [
            f"{about['file']}: {about['name']}, {about['bytes'] / 1024:,.1f} KiB",
            f"image {sizes(about['input'])} -> {sizes(about['output'])}, {totals['ops']} ops, "
            f"{totals['macs'] / 1e6:,.1f} M MACs, {totals['gbitops']:,.3f} GBitOPs",
            f"weights {totals['weight_codes']:,} codes of {totals['average_weight_bits']:.2f} bits on average, "
            f"{totals['packed_weight_bytes'] / 1024:,.1f} KiB packed; constants {totals['constant_bytes'] / 1024:,.1f} KiB, "
            f"integers {totals['integer_bytes'] / 1024:,.1f} KiB",
            "",
            *table(
                ["weight", "shape", "bits", "KiB"],
                [
                    [
                        w["name"],
                        sizes(w["shape"]),
                        weight_bits_text(w["bits"], w["midrise"]),
                        f"{w['packed_bytes'] / 1024:,.1f}",
                    ]
                    for w in about["weights"]
                ],
            ),
            "",
            *table(
                ["activation", "shape", "bits", "codes"],
                [
                    [a["name"], sizes(a["shape"]), bits_text(a["bits"]), codes_text(a["signed"], a["offset"])]
                    for a in about["activations"]
                ],
            ),
            "",
            *table(["op", "count", "runs"], [[o["op"], str(o["count"]), o["placement"]] for o in about["placement"]]),
        ]
    )


def bench_command(options: argparse.Namespace) -> int:
    program = load(options.model)
    if options.table:
        return table_command(options, program)
    engine = Engine(program, options.threads)
    images = random_images(program, options.batch)
    timing = measure(engine, images, options.repeats)
    result: dict[str, Any] = {"model": options.model, **asdict(timing), "spread": timing.spread}
    text = [
        f"{options.model}: {timing.median * 1e3:.2f} ms for {timing.batch} image{'s' if timing.batch > 1 else ''}, "
        f"{timing.batch / timing.median:,.0f} images/s",
        f"minimum {timing.minimum * 1e3:.2f} ms, quartiles {timing.lower_quartile * 1e3:.2f} and "
        f"{timing.upper_quartile * 1e3:.2f} ms of {timing.repeats}; {timing.threads} threads, {timing.path}",
    ]
    if options.profile:
        steps = step_times(engine, images)
        result["steps"] = [asdict(step) for step in steps]
        total = sum(step.seconds for step in steps)
        rows = [[f"{s * 1e3:.3f}", f"{s / total:.1%}", str(n), name] for name, n, s in by_name(steps)]
        text += ["", *table(["ms (all threads)", "share", "steps", "ops"], rows)]
    if options.json != "-":
        say("\n".join(text))
    write_json(options.json, result)
    return ALL_WELL


def table_command(options: argparse.Namespace, program: p.Program) -> int:
    latency = measure_table(program, options.threads, options.batch, options.repeats)
    latency.save(options.table)
    uniform = {bits: latency.uniform(bits) for bits in range(p.MIN_BITS, p.MAX_BITS + 1)}
    advice = f"next: qvit.Budget(milliseconds={uniform[4]:.2f}, table={options.table!r})"
    if not latency.bits_matter:
        advice = f"bits do not change the time on this path ({latency.path}): a budget in milliseconds has no use here"
    if options.json != "-":
        say(f"wrote {options.table}: {latency.path}, {latency.threads} threads, batch {latency.batch}")
        say(", ".join(f"{bits}/{bits} {ms:.2f} ms" for bits, ms in uniform.items()))
        say(advice)
    write_json(options.json, {"model": options.model, "table": options.table, "uniform_ms": uniform})
    return ALL_WELL


def sizes(shape: list[int]) -> str:
    return " x ".join(map(str, shape))


def codes_text(signed: bool, offset: bool) -> str:
    return ("signed" if signed else "unsigned") + (" + offset" if offset else "")


def weight_bits_text(bits: list[list[int]], midrise: list[list[bool]]) -> str:
    """Row groups and column groups are never both many in practice; where they are, rows are parted by "|"."""
    rows = [[row[0] for row in bits]] if len(bits[0]) == 1 else bits
    odd, blocks = sum(map(sum, midrise)), len(bits) * len(bits[0])
    note = "" if odd == 0 else ", mid-rise" if odd == blocks else f", {odd} of {blocks} mid-rise"
    return " | ".join(map(bits_text, rows)) + note


def bits_text(bits: list[int]) -> str:
    """One number where all are equal, every group's number where they are few (heads), else their range."""
    if len(set(bits)) == 1:
        return str(bits[0]) if len(bits) == 1 else f"{bits[0]} (all {len(bits)})"
    if len(bits) <= 3 * 24:
        return " ".join(map(str, bits))
    return f"{min(bits)}..{max(bits)}, mean {sum(bits) / len(bits):.2f} of {len(bits)}"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]
    ]


def write_json(path: str | None, content: dict[str, Any]) -> None:
    if path is None:
        return
    text = json.dumps(content, indent=1, allow_nan=False)
    if path == "-":
        print(text)
    else:
        with open(path, "w") as file:
            file.write(text + "\n")


def say(text: str, stream: TextIO | None = None) -> None:
    """Print even what the terminal's encoding cannot show, such as a file name that is not UTF-8."""
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)


if __name__ == "__main__":
    sys.exit(main())
