"""Without the extras: qvit is imported, its commands explain themselves, and Python says what to install for the rest."""

from __future__ import annotations

import subprocess
import sys
import tomllib

from paths import ROOT

IMPORTED_AS = {"vl-convert-python": "vl_convert"}
WITHOUT = """
import sys
sys.modules.update(dict.fromkeys({names}))  # None: as if it were not there
import qvit
from qvit.cli import main
sys.exit(main({arguments}))
"""


def extras() -> list[str]:
    """What the extras for users bring, by the names under which it is imported."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    users = [wish.split(">=")[0] for name, wishes in table.items() if name not in ("dev", "bench") for wish in wishes]
    return [IMPORTED_AS.get(name, name) for name in users]


def run_without_extras(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`qvit ARGUMENTS` in a process where no extra is installed."""
    program = WITHOUT.format(names=extras(), arguments=list(arguments))
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_the_extras_are_those_of_the_project() -> None:
    assert {"altair", "jinja2", "vl_convert", "datasets", "webdataset", "mlxtend", "onnx"} <= set(extras())


def test_cost_needs_none() -> None:
    done = run_without_extras("cost", str(ROOT / "recipes" / "imagenet" / "deit_tiny_3bit.toml"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("gbitops ")


def test_a_verb_that_needs_one_says_so() -> None:
    done = run_without_extras("report", "somewhere")
    assert done.returncode == 2
    assert done.stderr.strip().endswith("a report needs altair: pip install 'qvit[report]'")
