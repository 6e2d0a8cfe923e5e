"""qvit against the other ways to run a Vision Transformer on a CPU, side by side in one run.

    python benchmarks/peers.py --model deit_tiny_patch16_224 --batch 1 --threads 2 --json - --markdown

One process per contender, interleaved rounds, the same images; `make bench` installs the peers (the extra `bench`) and runs
this. A contender that is not installed or fails keeps its row, with the reason. The files are in benchmarks/peers/:
contenders.py has the list, one file per family says how each is set up, task.py what they are given, worker.py and
process.py the two sides of a process, race.py the rounds, table.py what is made of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from peers.contenders import CONTENDERS, Contender
from peers.machine import RESTRICTIONS, processor
from peers.race import run
from peers.table import best_int8, markdown, rows
from peers.task import ISAS, Task

PACKAGES = ("qvit", "torch", "timm", "torchao", "onnx", "onnxruntime", "openvino", "nncf", "numpy")
RESULTS = Path("experiments/results")


def versions() -> dict[str, str | None]:
    """Version of each package, None where it is not installed."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def choose(names: str) -> list[Contender]:
    """The contenders called `names` (comma-separated), all of them when there is none."""
    known = {contender.key: contender for contender in CONTENDERS}
    wanted = [name for name in names.split(",") if name]
    for name in wanted:
        if name not in known:
            raise SystemExit(f"there is no contender {name!r}; there are {', '.join(known)}")
    return [known[name] for name in wanted] or list(CONTENDERS)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deit_tiny_patch16_224", help="a timm model that qvit supports")
    parser.add_argument(
        "--model-arguments", default="{}", metavar="JSON", help="for timm.create_model: makes a toy of it"
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", choices=ISAS, default="native", help="avx2 forbids wider instructions where it can")
    parser.add_argument("--images", type=int, default=64, help="how many images errors are taken over")
    parser.add_argument("--calibration", type=int, default=32, help="how many other images calibrate")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a turn; at least one call is made")
    parser.add_argument(
        "--only", default="", metavar="KEY,...", help="some contenders: " + ", ".join(c.key for c in CONTENDERS)
    )
    parser.add_argument("--work", metavar="DIR", help="keep prepared files there, and use those that are there already")
    parser.add_argument("--json", metavar="FILE", help="write the result there; - is the standard output")
    parser.add_argument("--markdown", action="store_true", help="print the table")
    parser.add_argument("--name", default="", help="end of the file's name in --out, for another choice of contenders")
    parser.add_argument(
        "--out", nargs="?", const=RESULTS, type=Path, metavar="DIR", help=f"write it to DIR ({RESULTS})"
    )
    return parser.parse_args()


def target(options: argparse.Namespace) -> Path:
    """File in --out. Ends the program where it has the result of other contenders, which would be lost."""
    parts = ["" if options.isa == "native" else options.isa, options.name]
    path = options.out / "_".join([f"peers_{options.model}_b{options.batch}", *filter(None, parts)])
    path = path.with_name(f"{path.name}.json")
    if path.exists():
        there = {row["key"] for row in json.loads(path.read_text())["rows"]}
        if there != {contender.key for contender in choose(options.only)}:
            raise SystemExit(f"{path} has the result of other contenders ({', '.join(sorted(there))}); give a --name")
    return path


def contest(options: argparse.Namespace, work: str) -> dict[str, Any]:
    """Everything that goes into the JSON."""
    task = Task(
        options.model,
        options.batch,
        options.threads,
        options.isa,
        work,
        options.images,
        options.calibration,
        json.loads(options.model_arguments),
    )
    contenders = choose(options.only)
    load_before = os.getloadavg()[0]
    results, others = run(task, contenders, options.rounds, options.seconds)
    table = rows(contenders, results, task.isa)
    return {
        "model": task.model,
        "model_arguments": task.arguments,
        "batch": task.batch,
        "threads": task.threads,
        "isa": task.isa,
        "isa_environment": RESTRICTIONS[task.isa],
        "rounds": options.rounds,
        "turn_seconds": options.seconds,
        "images": task.images,
        "calibration_images": task.calibration,
        "weights": "random, variance 1 / fan-in (benchmarks/peers/network.py)",
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor(),
        "load_average_before": load_before,
        "cores_busy_with_others": round(others, 3),
        "python": platform.python_version(),
        "versions": versions(),
        "best_int8_peer": best_int8(contenders, {row["key"]: row["ms"] for row in table if "ms" in row}),
        "rows": table,
    }


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that the contenders are ended too
    options = parse()
    path = target(options) if options.out else None
    if options.work:
        Path(options.work).mkdir(parents=True, exist_ok=True)
        result = contest(options, str(Path(options.work).resolve()))
    else:
        with tempfile.TemporaryDirectory() as work:
            result = contest(options, work)
    text = json.dumps(result, indent=1) + "\n"
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(f"wrote {path}", file=sys.stderr)
    if options.json == "-":
        sys.stdout.write(text)
    elif options.json:
        Path(options.json).write_text(text)
    if options.markdown or not (options.json or options.out):
        print(markdown(result["rows"]))


if __name__ == "__main__":
    main()
