"""Tables of the peer benchmark from its result files: every contender into docs/latency.md, a summary to standard output.

    python benchmarks/peers_tables.py experiments/results/peers_*.json

The summary is what the README shows.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from peers.table import markdown

DOCUMENT = Path("docs/latency.md")
SUMMARY = ("eager", "ort_dynamic", "openvino_int8", "qvit_8", "qvit_4", "qvit_3", "qvit_mixed", "qvit_ivit")
INTRODUCTION = """# Latency beside other stacks

Written by `python benchmarks/peers_tables.py experiments/results/peers_*.json`; `benchmarks/peers.py` measures. All contenders of a
table ran interleaved in one run, one process each, on the same images. Weights are random, so "same class" compares
arithmetic, not trained accuracy. ms is the median over all rounds; on this machine every contender has a fast and a slow
state, so the best round stands beside it.
"""


def chapter(name: str, result: dict[str, Any]) -> str:
    """Heading (the name of the result file), circumstances and the whole table of one run."""
    return (
        f"\n## {name.removeprefix('peers_')}\n\n{result['model']}, batch {result['batch']}, {result['threads']} threads, "
        f"{result['date']}, {result['processor']['model']}, {result['rounds']} rounds, "
        f"{result['cores_busy_with_others']:g} cores busy with other things.\n\n{markdown(result['rows'])}\n"
    )


def summary(results: list[dict[str, Any]]) -> str:
    """Milliseconds and, in brackets, times eager and times the best int8 peer, a column per run."""
    heads = [f"{result['model'].split('_patch')[0]}, batch {result['batch']}" for result in results]
    lines = ["| ms (x eager, x best int8 peer) | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for key in SUMMARY:
        rows = [next((row for row in result["rows"] if row["key"] == key and "ms" in row), None) for result in results]
        title = next((row["title"] for row in rows if row), key)
        texts = [
            f"{row['ms']:.2f} ({row['times_eager']:.2f}, {row['times_best_int8']:.2f})" if row else "" for row in rows
        ]
        lines.append(f"| {title} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def main(paths: list[str]) -> None:
    results = [json.loads(Path(path).read_text()) for path in paths]
    chapters = (chapter(Path(path).stem, result) for path, result in zip(paths, results, strict=True))
    DOCUMENT.write_text(INTRODUCTION + "".join(chapters))
    print(summary(results))


if __name__ == "__main__":
    main(sys.argv[1:])
