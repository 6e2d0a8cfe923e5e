"""Writes docs/recipe.md: every key of a recipe with its default and meaning, from the dataclasses themselves.

    python docs/make_recipe_page.py

What a field means stands either in the docstring of its class, as `name  meaning` lines, or in a string under the field. A
field without either is an error, and a test holds the page to what this writes.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from qvit import spec
from qvit.bits.allocate import Lagrangian, Published
from qvit.bits.budget import Budget
from qvit.calibration.range_observers import Observer
from qvit.data.config import DataConfig
from qvit.methods import METHODS
from qvit.settings.recipe import ModelConfig, Recipe
from qvit.settings.values import to_values
from qvit.training.feature_distill import FeatureDistillation
from qvit.training.fit_config import FitConfig

PAGE = Path(__file__).with_name("recipe.md")
HEAD = """# Recipes: every key

Written by `python docs/make_recipe_page.py` from the docstrings of the code. A recipe is a TOML file; what it leaves out has its
default, an unknown key is an error that lists the known ones, and `qvit run RECIPE --set KEY=VALUE` overrides any key by its dotted
name (`--set fit.epochs=3`). Paths in a file are relative to the file, paths in `--set` to the working directory.
[recipes](../recipes) has complete examples, [guide.md](guide.md) a first one of your own.
"""
TABLES = (
    ("The file itself", "", Recipe),
    ("[model]", "model.", ModelConfig),
    ("[data]", "data.", DataConfig),
    ("[budget]", "budget.", Budget),
    ("[fit], and [train_float] with the same keys", "fit.", FitConfig),
    ("fit.features", "fit.features.", FeatureDistillation),
)
OWN_TABLES = (ModelConfig, DataConfig, FitConfig, spec.Spec)
BELOW = "see below"
KINDS = (
    ("Bits: `quantize.weights`, `.activations`, `.edge`", (spec.FixedBits, spec.LearnedBits)),
    ("Groups: `quantize.heads`, `quantize.weight_scale`", (spec.PerTensor, spec.PerHead, spec.PerChannel)),
    ("Scales: `quantize.scale`", (spec.SwitchableScale, spec.SharedScale, spec.SingleScale, spec.SingleRange)),
    ("Grid: `quantize.weight_grid`", (spec.MidTread, spec.MidRise)),
    ("Gradient: `quantize.weight_gradient`", (spec.ClippedGradient, spec.PassThroughGradient)),
    ("Where the ends of a grid come from: `quantize.observer`", get_args(Observer)),
    ("How bits are learned: `fit.allocation`", (Lagrangian, Published)),
)


def page() -> str:
    """The text of docs/recipe.md."""
    return "\n".join([HEAD, *_page()]).rstrip() + "\n"


def _page() -> Iterator[str]:
    for title, prefix, owner in TABLES:
        yield from _table(title, prefix, owner)
    for config in dict.fromkeys(method.config for method in METHODS.values()):
        names = ", ".join(f"`{name}`" for name, method in METHODS.items() if method.config is config)
        yield from _table(f"[quantize] of method {names}", "quantize.", config)
    yield "## Choices\n"
    yield 'A choice is a table with its `kind`: `weights = { kind = "LearnedBits", low = 2, high = 4 }`.\n'
    for title, kinds in KINDS:
        yield f"**{title}**\n"
        for kind in kinds:
            keys = ", ".join(f"`{field.name} = {_default(field)}`" for field in dataclasses.fields(kind))
            yield f"- `{kind.__name__}`{f' ({keys})' if keys else ''}: {_summary(kind)}"
        yield ""


def _table(title: str, prefix: str, owner: type) -> Iterator[str]:
    yield f"## {title}\n\n{_summary(owner)}\n\n| key | default | |\n|---|---|---|"
    meanings, types = meanings_of(owner), get_type_hints(owner)
    for field in dataclasses.fields(owner):
        meaning = meanings[field.name].replace("|", r"\|") + _allowed(types[field.name])
        yield f"| `{prefix}{field.name}` | {_cell(_default(field))} | {meaning} |"
    yield ""


def meanings_of(owner: type) -> dict[str, str]:
    """Field -> what it means. Raises ValueError for a field that nobody describes."""
    documented = re.findall(r"^(\w+) {2,}(\S.*(?:\n {4,}\S.*)*)", inspect.getdoc(owner) or "", re.MULTILINE)
    found = {name: " ".join(text.split()) for name, text in documented}
    body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body  # type: ignore[attr-defined]
    for field, text in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(field.target, ast.Name):
            found[field.target.id] = " ".join(ast.literal_eval(text.value).split())
    missing = {field.name for field in dataclasses.fields(owner)} - found.keys()
    if missing:
        raise ValueError(f"{owner.__name__} says nothing of {', '.join(sorted(missing))}: describe it in its docstring")
    return found


def _allowed(kind: Any) -> str:
    """The values of a field that takes one of a few words."""
    words = [word for part in (kind, *get_args(kind)) if get_origin(part) is Literal for word in get_args(part)]
    return f" ({', '.join(map(_toml, words))})" if words else ""


def _summary(owner: type) -> str:
    return " ".join((inspect.getdoc(owner) or "").partition("\n\n")[0].split())


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
        return BELOW if isinstance(value, OWN_TABLES) else _toml(value)
    return "needed" if field.default is dataclasses.MISSING else _toml(field.default)


def _toml(value: Any) -> str:
    """A value as a recipe writes it; None is what stands there when nothing does."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if dataclasses.is_dataclass(value):
        inside = ", ".join(f"{name} = {_toml(part)}" for name, part in to_values(value).items())
        return f"{{ {inside} }}"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_toml(part)}" for name, part in value.items()) + " }" if value else "{}"
    return f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


def _cell(default: str) -> str:
    return default if default in ("none", "needed", BELOW) else f"`{default}`"


if __name__ == "__main__":
    PAGE.write_text(page())
