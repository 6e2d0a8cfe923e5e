"""The architecture that README.md and the packages' docstrings describe is the one that is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from paths import ROOT, TESTS

SOURCE = ROOT / "src" / "qvit"
TREE = re.search(r"^src/qvit/.*\n((?:  .+\n)+)", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
assert TREE is not None
LAYERS = re.findall(r"^  (\w+)(?:\.py|/) ", TREE[1], flags=re.MULTILINE)
"""Names under src/qvit in the order of README.md: each imports from those before it only."""
DESCRIBED = (
    *("system", "settings", "quantizers", "calibration", "network", "bits", "training", "freezing", "evaluation"),
    *("planning", "pipeline"),
)
"""Packages whose docstring is a list of their modules."""


def imported(file: Path) -> set[str]:
    """Names under src/qvit that `file` imports from, in functions too, and for annotations."""
    package = ["qvit", *file.relative_to(SOURCE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            path = base + (node.module.split(".") if node.module else [])
            found |= {path[1]} if len(path) > 1 and path[0] == "qvit" else set()
            found |= {alias.name for alias in node.names} if path == ["qvit"] else set()
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("qvit.")}
    return found


def test_readme_names_every_module() -> None:
    present = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert sorted(LAYERS) == sorted(present - {"__init__", "__main__"})


def test_tests_are_where_their_package_is() -> None:
    folders = {path.parent.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py")}
    assert folders - {".", "repository"} <= set(LAYERS)


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_upwards(layer: str) -> None:
    files = [*(SOURCE / layer).rglob("*.py")] or [SOURCE / f"{layer}.py"]
    allowed = set(LAYERS[: LAYERS.index(layer) + 1])
    wrong = {str(file.relative_to(SOURCE)): sorted(imported(file) - allowed) for file in files}
    assert not {file: names for file, names in wrong.items() if names}


@pytest.mark.parametrize("package", DESCRIBED)
def test_docstring_names_every_file(package: str) -> None:
    module = ast.parse((SOURCE / package / "__init__.py").read_text(encoding="utf-8"))
    listed = re.findall(r"\w+\.py", ast.get_docstring(module) or "")
    assert sorted(listed) == sorted(path.name for path in (SOURCE / package).glob("*.py") if path.name != "__init__.py")
