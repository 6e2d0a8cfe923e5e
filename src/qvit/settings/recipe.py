"""Recipe: a whole experiment as values. A TOML file is read into frozen dataclasses, unknown keys are refused.

    recipe = load_recipe("recipes/demo.toml", ["fit.epochs=3", "model.name=deit_small_patch16_224"])

A recipe file says which images it reads, and where the float model's weights come from: `Recipe()` in Python has digits and
random weights, which nobody who left out a table means. Recipes hold values only: code picks classes. `method` names a row of
`methods.METHODS`, and the table [quantize] holds the options of that method, so it needs no `kind`. Paths in the file are
relative to its directory, paths in overrides to the working directory. What a run used, after overrides and after the data
settings have been completed from the model, is written beside its results.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..bits.budget import Budget
from ..data import DataConfig
from ..data.shards import is_address
from ..methods import METHODS, Config, learns_bits
from ..spec import MAX_BITS, MIN_BITS, LearnedBits, Spec
from ..training.fit_config import FitConfig
from .values import from_values, to_values

VERSION = 1
FLOAT = "float"  # the method of a row that is only trained
LOCAL = "local-dir:"  # a timm model in a folder


class RecipeError(ValueError):
    """A recipe that cannot be used; the text names the file, the key and what is allowed."""


@dataclass(frozen=True)
class ModelConfig:
    """The float model.

    name         timm model name, or hf-hub:ORG/NAME, or local-dir:FOLDER
    arguments    further arguments of timm.create_model, such as img_size or depth
    pretrained   timm's own weights (downloads), or those of the repository or folder; in a recipe file these two bring
                 theirs unless it says false or has a checkpoint, and a timm name needs true, a checkpoint or [train_float],
                 or, to train a float model from random weights, false
    checkpoint   the user's float weights: .safetensors, or a .pth of tensors or of timm's train.py
    num_classes  size of the classifier; 0 keeps what the model has
    """

    name: str = "deit_tiny_patch16_224"
    arguments: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    checkpoint: str = ""
    num_classes: int = 0


@dataclass(frozen=True)
class Recipe:
    """One experiment.

    version           of the recipe format
    method            one of methods.METHODS: quantize, calibrate, fit, freeze. "float": only fit, for a float row of a table
    seed              of everything that is random
    model             the float model
    train_float       train the float model first with these settings (for a model without weights), or None
    data              images and augmentation
    calibration       training images that calibration looks at, rounded up to whole batches of data.eval_batch_size
    quantize          options of the method; of qvit and lsq: what is quantized and how
    init_bits         init_bits.json of `qvit analyze --budget-gbitops`: learned bits start there, after calibration, and
                      fit goes on from them instead of solving a first allocation of its own; "": it does solve one
    budget            what the model may cost, or None when no bits are learned
    fit               training; fit.epochs = 0 stops after calibration
    uniform_baseline  also train a uniform model of this many bits with the same settings, 0: do not (qvit only)
    """

    version: int = VERSION
    method: str = "qvit"
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    train_float: FitConfig | None = None
    data: DataConfig = field(default_factory=lambda: DataConfig(dataset="digits"))
    calibration: int = 512
    quantize: Config = field(default_factory=Spec)
    init_bits: str = ""
    budget: Budget | None = None
    fit: FitConfig = field(default_factory=FitConfig)
    uniform_baseline: int = 0

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise RecipeError(f"recipe version {self.version} is not known; this qvit reads version {VERSION}")
        if self.calibration < 1:
            raise RecipeError(f"calibration is {self.calibration}; it takes at least one training image")
        if self.method != FLOAT:
            self._check_method()
        if self.init_bits and (self.method == FLOAT or not learns_bits(self.quantize)):
            raise RecipeError(
                f"init_bits is {self.init_bits!r}, but no bits are learned that could start there; leave it out, or use "
                "method 'qvit' with LearnedBits in quantize"
            )
        if self.uniform_baseline and not MIN_BITS <= self.uniform_baseline <= MAX_BITS:
            raise RecipeError(
                f"uniform_baseline is {self.uniform_baseline}; give {MIN_BITS} to {MAX_BITS} bits, or 0 for none"
            )
        if self.data.dataset == "images" and (self.fit.epochs or self.train_float is not None):
            raise RecipeError("data.dataset 'images' has no labels to train on; use 'folder', one sub-folder per class")
        for name, fit in (("fit", self.fit), ("train_float", self.train_float)):
            if fit is not None and fit.seed not in (0, self.seed):
                raise RecipeError(f"{name}.seed is {fit.seed}, but seed is {self.seed}; give the seed once, at the top")
            if fit is None or not (self.method == FLOAT or name == "train_float"):
                continue
            if not fit.epochs:
                raise RecipeError(
                    f"{name}.epochs is 0, and a float row is nothing but training; give its epochs, or leave "
                    + ("[train_float] out" if name == "train_float" else "method 'float' out")
                )
            if fit.activations_first:
                raise RecipeError(
                    f"{name}.activations_first is {fit.activations_first}, but a float model has no activations to quantize "
                    "first; leave it out"
                )
            if fit.needs_teacher:
                raise RecipeError(
                    f"{name} asks for a teacher, which a recipe has in its float model alone: the one that is trained here; leave "
                    f"{name}.distillation and {name}.features out"
                )

    def _check_method(self) -> None:
        _known(self.method)
        method = METHODS[self.method]
        if not isinstance(self.quantize, method.config):
            raise RecipeError(
                f"method {self.method!r} takes {method.config.__name__} in quantize, not {type(self.quantize).__name__}"
            )
        if self.budget is not None and not isinstance(self.quantize, Spec):
            raise RecipeError(
                f"method {self.method!r} is given its bits in [quantize] and meets no budget; leave [budget] out, or use "
                "method 'qvit', which learns bits"
            )
        if learns_bits(self.quantize):
            if self.method == "lsq":
                raise RecipeError(
                    f"method 'lsq' has fixed bits, and {_learned_in(self.quantize)} is of kind LearnedBits: give FixedBits, or use "
                    "method 'qvit'"
                )
            if not self.fit.epochs:
                raise RecipeError("bits cannot be learned without training: give fit.epochs, or FixedBits in quantize")
        if self.fit.epochs and not method.trains:
            raise RecipeError(f"method {self.method!r} is post-training quantization: set fit.epochs = 0")
        needs = {
            **{"compile": "compiles", "cuda_graph": "compiles"},
            **{"checkpoint_activations": "recomputes", "activations_first": "quantizers"},
        }
        for option, does in needs.items():
            if getattr(self.fit, option) and not getattr(method, does):
                able = [repr(name) for name, other in METHODS.items() if other.trains and getattr(other, does)]
                raise RecipeError(
                    f"method {self.method!r} does not go with fit.{option}: leave it out, or use {' or '.join(able)}"
                )
        if self.uniform_baseline and self.method != "qvit":
            raise RecipeError(
                f"uniform_baseline belongs to method 'qvit', not to {self.method!r}; give it a recipe of its own"
            )


def load_recipe(path: Path | str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read a recipe file; overrides are KEY=VALUE with dotted keys and TOML values (bare words are strings).

    Raises RecipeError for a missing or malformed file, for unknown keys, and where it does not say which images and weights.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"there is no recipe {path}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid TOML: {error}") from error
    for override in overrides:
        _override(table, override)
    _name_options(table)
    _imply_weights(table)
    try:
        recipe = from_values(Recipe, table, path.name)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    _check_sources(recipe, table, path.name)
    return _anchored(recipe, path.parent, {override.partition("=")[0] for override in overrides})


def _learned_in(config: Config) -> str:
    """The field of a Spec whose bits are learned, as a recipe calls it."""
    assert isinstance(config, Spec)
    learned = [name for name in ("weights", "activations", "edge") if isinstance(getattr(config, name), LearnedBits)]
    return f"quantize.{learned[0]}" if learned else "one of quantize.overrides"


def _known(method: object) -> None:
    if method not in (FLOAT, *METHODS):  # which compares a list, too, that no dictionary has
        raise RecipeError(f"method is {method!r}; allowed: {', '.join(map(repr, (*METHODS, FLOAT)))}")


def _name_options(table: dict[str, Any]) -> None:
    """[quantize] holds the options of the method: write down their class, which `from_values` goes by."""
    method = table.get("method", "qvit")
    _known(method)
    kind = Spec if method == FLOAT else METHODS[method].config
    options = table.setdefault("quantize", {})
    if isinstance(options, dict):
        options.setdefault("kind", kind.__name__)


def _imply_weights(table: dict[str, Any]) -> None:
    """Who names a repository or a folder means its weights: random ones in their place would go unnoticed."""
    model = table.get("model")
    if isinstance(model, dict) and ":" in str(model.get("name")) and not model.get("checkpoint"):
        model.setdefault("pretrained", True)


def _check_sources(recipe: Recipe, table: dict[str, Any], name: str) -> None:
    """Raise RecipeError where the file leaves images or weights to the defaults of `Recipe`, digits and random numbers."""
    if "data" not in table:
        raise RecipeError(
            f"{name} does not say which images to read: give a table [data] with root = a folder that holds train and "
            "validation, each with one folder per class, or with dataset = 'digits', 'hfds/NAME', ..."
        )
    model = recipe.model
    meant_random = recipe.method == FLOAT and "pretrained" in table.get("model", {})
    if not (model.pretrained or model.checkpoint or recipe.train_float or meant_random):
        raise RecipeError(
            f"{name} gives the float model no weights: write pretrained = true or checkpoint = FILE in [model], or add a table "
            f"[train_float]; with method = '{FLOAT}' and pretrained = false it is trained from random ones"
        )


def recipe_to_values(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON-ready values."""
    return to_values(recipe)


def recipe_from_values(table: dict[str, Any]) -> Recipe:
    """The inverse of recipe_to_values."""
    return from_values(Recipe, table, "recipe")


def read_resolved(path: Path) -> Recipe:
    """The resolved recipe that a run wrote. Raises RecipeError naming the file that is damaged or of a newer qvit."""
    try:
        return recipe_from_values(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise RecipeError(f"{path} is damaged or of another version of qvit: {error}") from error


def _override(table: dict[str, Any], text: str) -> None:
    key, equals, raw = text.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {text!r} is not KEY=VALUE, such as fit.epochs=3")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw
    *parents, last = key.split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise RecipeError(f"override {text!r}: {parent} is a value, not a table")
    table[last] = value


def _anchored(recipe: Recipe, base: Path, typed: set[str]) -> Recipe:
    """Make relative paths absolute: those of `typed` keys and tables from the working directory, the others from `base`."""

    def anchor(path: str, key: str) -> str:
        start = Path.cwd() if any(f"{key}.".startswith(f"{given}.") for given in typed) else base
        return path if not path or Path(path).is_absolute() else str((start / path).resolve())

    data, model = recipe.data, recipe.model
    dataset = data.dataset
    prefix, _, local = dataset.partition("/")
    if prefix in ("hfds", "hfids"):
        folder = anchor(local, "data.dataset")
        if local.startswith(".") or Path(folder).is_dir():  # else a name on the hub
            dataset = f"{prefix}/{folder}"
    name = model.name
    if name.startswith(LOCAL):
        name = LOCAL + anchor(name.removeprefix(LOCAL), "model.name")
    root = data.root if prefix == "wds" and is_address(data.root) else anchor(data.root, "data.root")
    class_map = anchor(data.class_map, "data.class_map")
    budget = recipe.budget
    if budget is not None and budget.table is not None:
        budget = dataclasses.replace(budget, table=anchor(budget.table, "budget.table"))
    return dataclasses.replace(
        recipe,
        init_bits=anchor(recipe.init_bits, "init_bits"),
        budget=budget,
        model=dataclasses.replace(model, name=name, checkpoint=anchor(model.checkpoint, "model.checkpoint")),
        data=dataclasses.replace(data, dataset=dataset, root=root, class_map=class_map),
    )
