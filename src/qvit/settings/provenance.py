"""What a run directory was made of: the resolved recipe and the circumstances, written at the start and checked on a resume.

A directory, finished or not, must not be passed off as the result of another recipe. A resume may change what changes the
speed and nothing else, and how many broken images it bears.

The version of a package says little while it is developed: rows of many states of the source all carry the same one. So
where qvit runs from a git checkout, the commit is recorded, too (`source`).
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..bits.budget import Budget
from ..data.shards import PREFIXES as STREAMS
from ..system.processes import device_name, process_state
from ..system.runs import Run
from .recipe import Recipe, RecipeError, read_resolved, recipe_to_values

HARMLESS = (
    "data.cache_decoded",
    "data.max_corrupt",
    "fit.tensorboard",
    "fit.checkpoint_every",
    "fit.checkpoint_activations",
    "fit.cuda_graph",
    "fit.keep_checkpoints",
)
GIT_SECONDS = 5.0  # it takes milliseconds; a file system that hangs must not hold a run up
NOT_OF_FLOAT_ROWS = ("quantize", "budget", "calibration", "uniform_baseline")


def is_harmless(key: str, row: Recipe) -> bool:
    """A change of this dotted key does not make a row the result of another recipe."""
    if key == "data.workers":
        return not row.data.dataset.startswith(STREAMS)  # their order depends on it
    return key in HARMLESS or (row.method == "float" and key.partition(".")[0] in NOT_OF_FLOAT_ROWS)


def begin(run: Run, row: Recipe, budget: Budget | None) -> None:
    """Write recipe.json and provenance.json of a resolved recipe; a resume is added to the latter. Main process only.

    budget  as a number, which the recipe may have in uniform bits (`budget.resolve_budget`)
    """
    check_recipe(run, row)
    run.write_json("recipe.json", recipe_to_values(row))
    start = {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "seed": row.seed,
        "budget": None if budget is None else budget.record,
        "versions": versions(),
        "source": source(Path(__file__).parent),
        "device": device_name(process_state().device),
        "threads": torch.get_num_threads(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    provenance = run.folder / "provenance.json"
    if provenance.exists():  # a resume: how the run began stays known
        first = json.loads(provenance.read_text())
        start = {**first, "resumed": [*first.get("resumed", []), start]}
    run.write_json(provenance.name, start)


def check_recipe(run: Run, row: Recipe) -> None:
    """Raise RecipeError when the directory, finished or not, was made of another resolved recipe."""
    written = run.folder / "recipe.json"
    if not written.exists():
        return
    before = read_resolved(written)  # fields that came later have their defaults
    different = _differences(*(json.loads(json.dumps(recipe_to_values(recipe))) for recipe in (before, row)))
    changed = sorted(key for key in different if not is_harmless(key, row))
    if changed:
        raise RecipeError(
            f"{run.folder} was started with another recipe, which differs in {', '.join(changed)}; resume it with the "
            "same recipe, or choose another --out"
        )


def _differences(old: dict[str, Any], new: dict[str, Any], where: str = "") -> set[str]:
    """Dotted keys whose values differ."""
    found: set[str] = set()
    for key in old.keys() | new.keys():
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found |= _differences(before, after, f"{where}{key}.")
        elif before != after:
            found.add(f"{where}{key}")
    return found


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    packages = ("qvit", "qvit-runtime", "torch", "timm", "accelerate", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


@cache  # what was imported stays what it was, whatever happens to the checkout while a run lasts
def source(package: Path) -> str | None:
    """Commit of the git checkout that a package was imported from, with "+changes" where its tracked files differ from it.

    None when it is no checkout, or git does not answer. A checkout that merely surrounds the installed package (a virtual
    environment in somebody's project) is not its source.
    """
    git = ["git", "-C", str(package)]
    try:
        _ask([*git, "ls-files", "--error-unmatch", "__init__.py"])
        commit = _ask([*git, "rev-parse", "HEAD"]).strip()
        changes = _ask([*git, "diff", "--name-only", "HEAD", "--", "."])
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+changes" if changes else commit


def _ask(command: list[str]) -> str:
    """Standard output of a command that succeeds within GIT_SECONDS."""
    answer = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=GIT_SECONDS
    )
    return answer.stdout
