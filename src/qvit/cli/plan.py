"""qvit plan: before spending a night on a recipe, what it will take.

qvit plan RECIPE [--devices 8] [--images N]
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..planning.memory import Memory
from ..planning.plan import Plan, RowPlan, plan
from .output import say
from .run import add_recipe_options, command_of, recipe_of


def add_plan(verbs: Any) -> argparse.ArgumentParser:
    """Add the verb to the sub-parsers of `qvit`."""
    parser = verbs.add_parser("plan", help="time, memory and disk that a recipe will take, measured in a minute or two")
    parser.add_argument("recipe", type=Path, help="a TOML file of values; recipes/ has examples")
    parser.add_argument("--out", type=Path, metavar="DIR", help="run directory (default: runs/NAME of the recipe)")
    add_recipe_options(parser)
    parser.add_argument(
        "--devices", type=int, default=1, metavar="N", help="devices that share every batch (default: 1)"
    )
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="training images there will be: plan on generated ones, before the data is here",
    )
    parser.add_argument(
        "--eval-images", type=int, metavar="N", help="evaluation images there will be (default: a 25th of --images)"
    )
    parser.add_argument(
        "--seconds", type=float, default=60.0, metavar="S", help="that measuring a row may take, roughly (default: 60)"
    )
    parser.set_defaults(verb=plan_verb)
    return parser


def plan_verb(arguments: argparse.Namespace) -> dict[str, Any]:
    """qvit plan"""
    recipe = recipe_of(arguments.recipe, arguments)
    out = arguments.out or Path("runs") / arguments.recipe.stem
    found = plan(recipe, arguments.devices, arguments.images, arguments.eval_images, arguments.seconds)
    say(arguments, *lines_of(found, out), f"next: {command_of(arguments)}")
    return {
        **dataclasses.asdict(found),
        "budget": None if found.budget is None else found.budget.record,
        "seconds": found.seconds,
        "disk": found.disk,
        "peak_memory": max((row.rehearsal.memory.peak for row in found.rows if row.rehearsal.memory), default=0),
        "out": str(out),
    }


def lines_of(found: Plan, out: Path) -> Iterator[str]:
    """The plan for people."""
    data = "generated images in the place of its own" if found.generated else "its own images"
    size = f"{found.rehearsed_batch} of the {found.batch_size} images of a batch"
    if found.rehearsed_batch == found.batch_size:
        size = f"whole batches of {found.batch_size} images"
    else:
        size += ", scaled in proportion: an upper estimate"
    yield f"{found.model}, {found.parameters / 1e6:.2f} M parameters"
    yield f"{found.train_images} training images, {found.eval_images} evaluation images"
    yield f"measured on {found.device}, {found.threads} threads, {data}, {size}"
    if found.devices > 1:
        yield f"{found.devices} devices, each as fast as this one: taken to lose no time between them"
    if found.budget is not None and found.reach is not None:
        least, most = found.reach
        yield f"budget {found.budget.limit:g} {found.budget.unit}; the bits can cost {least:.6g} to {most:.6g}"
    for row in found.rows:
        yield ""
        yield from _lines_of_row(row, out)
    yield ""
    yield f"together {duration(found.seconds)}, of which {duration(found.opening)} to open the data and check the recipe"
    yield f"         {size_of_file(found.disk)} on disk"


def _lines_of_row(row: RowPlan, out: Path) -> Iterator[str]:
    yield f"{out / row.folder}: {duration(sum(row.seconds.values()))}"
    steps = row.rehearsal.steps
    if row.schedule is not None and steps is not None:
        counts = f"  {row.schedule.steps} steps, {row.schedule.steps_per_epoch} to an epoch"
        if row.schedule.lock_step:
            counts += f", {row.schedule.probes} of them probed, bits locked after step {row.schedule.lock_step}"
            kinds = f"plain {steps.plain:.3f} s, probed {steps.probed:.3f} s, after the lock {steps.locked:.3f} s"
        else:
            kinds = f"{steps.plain:.3f} s"
        yield f"{counts}; measured step: {kinds}"
    yield f"  time    {', '.join(f'{part} {duration(value)}' for part, value in row.seconds.items())}"
    if row.rehearsal.memory is not None:
        yield f"  memory  {_memory(row.rehearsal.memory)}"
    yield f"  disk    {', '.join(f'{part} {size_of_file(value)}' for part, value in row.disk.items())}"


def _memory(memory: Memory) -> str:
    parts = {name: value for name, value in dataclasses.asdict(memory).items() if name != "batch" and value}
    listed = ", ".join(f"{name} {size_of_file(value)}" for name, value in parts.items())
    return f"about {size_of_file(memory.peak)} on a device with {memory.batch} images: {listed}"


def duration(seconds: float) -> str:
    """Seconds as people say them, two units at most."""
    for unit, name, smaller, small_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= unit:
            whole, rest = divmod(round(seconds / smaller), unit // smaller)
            return f"{whole} {name} {rest} {small_name}"
    return f"{seconds:.1f} s"


def size_of_file(size: int) -> str:
    """Bytes in a binary unit."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"
