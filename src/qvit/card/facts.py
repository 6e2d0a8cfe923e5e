"""read_facts(): what a model card says, read from the files of a finished run. No model is made and no image is read.

    result.json            what came out                      model.qvit               the network itself
    recipe.json            every setting                      predictions.safetensors  for the interval (older runs have none)
    provenance.json        command, versions, seed

A card is published, and the files of a run know the machine that they were written on: the folder of the images, a home
directory. `public` is the one door: a text that may be a path becomes "...", unless it is the name of something on the hub.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import qvit_runtime
from qvit_runtime.program import Program

from ..evaluation.outcome import PREDICTIONS, load_predictions
from ..evaluation.paired import Paired, paired
from ..pipeline.finished import read_recipe, read_result
from ..settings.recipe import FLOAT, Recipe, recipe_to_values

HUB = "hf-hub:"
HIDDEN = "..."
VERBS = ("run", "ptq", "compare")  # that make runs; `python -m qvit` is __main__.py in provenance, as any package is
ON_THE_HUB = re.compile(r"(hf-hub:|hfds/|hfids/)(\w[\w.-]*(/\w[\w.-]*)?(@\w[\w.-]*)?)")


class CardError(ValueError):
    """A run of which no card can be written, or an option of the card; the text says what to do."""


@dataclass(frozen=True)
class Facts:
    """A finished run without its paths.

    result      result.json                     architecture  name in timm's registry
    recipe      the resolved recipe              model_args    what timm makes the float model from
    provenance  provenance.json                 difference    top-1 of the program minus float, in points, or None
    program     the network                     dataset       its public name, or ""
    """

    result: dict[str, Any]
    recipe: Recipe
    provenance: dict[str, Any]
    program: Program
    architecture: str
    model_args: dict[str, Any]
    difference: Paired | None
    dataset: str

    @property
    def base_model(self) -> str:
        """The repository that the float model came from, with its revision where one was named, or ""."""
        name = self.recipe.model.name
        return name.removeprefix(HUB) if name.startswith(HUB) else ""

    @property
    def name(self) -> str:
        """What the network is called: the repository of the float model, or its architecture."""
        return self.base_model or self.architecture

    @property
    def split(self) -> str:
        """The split that it was judged on, or ""."""
        name = public(self.recipe.data.eval_split)
        return "" if name == HIDDEN else name

    @property
    def command(self) -> str:
        """The command of qvit that made it, without paths; "" where a script did."""
        program, *arguments = self.provenance["command"]
        by_module = program == "__main__.py" and bool(arguments) and arguments[0] in VERBS
        if Path(program).stem != "qvit" and not by_module:
            return ""
        return " ".join(["qvit", *map(_argument, arguments)])

    @property
    def calibrated_on_what_judged(self) -> bool:
        """The images that the scales were fitted to are among those that judged: only without labels, see `data.open_data`."""
        data = self.recipe.data
        train, judged = PurePath(data.train_split), PurePath(data.eval_split)
        return data.dataset == "images" and (train.is_relative_to(judged) or judged.is_relative_to(train))


def read_facts(run: Path, dataset: str = "") -> Facts:
    """The facts of a run directory; `dataset` is the public name of its images, default that of the hub if they are from there.

    Raises FileNotFoundError for a run that is not finished, CardError for a float run, ArtifactError for a damaged artifact.
    """
    recipe, result = read_recipe(run), read_result(run)
    if recipe.method == FLOAT:
        raise CardError(
            f"{run} is a float run and has no artifact; give a quantized run, whose folder has a model.qvit"
        )
    program = qvit_runtime.load(run / "model.qvit")
    facts = Facts(
        result=public(result),
        recipe=recipe,
        provenance=json.loads((run / "provenance.json").read_text()),
        program=program,
        architecture=_architecture(recipe, result),
        model_args=public(result.get("model_args", recipe.model.arguments)),
        difference=_difference(run),
        dataset=dataset or _dataset(recipe),
    )
    named = dataclasses.replace(program, name=facts.name, metadata=public(program.metadata))
    return dataclasses.replace(facts, program=named)


def public(value: Any) -> Any:
    """A JSON value in which every text that may be a path is "..."."""
    if isinstance(value, dict):
        return {key: public(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [public(item) for item in value]
    if isinstance(value, str) and re.search(r"[/\\~]", value) and not ON_THE_HUB.fullmatch(value):
        return HIDDEN
    return value


def public_recipe(recipe: Recipe) -> dict[str, Any]:
    """recipe.json without paths."""
    return public(recipe_to_values(recipe))


def _argument(text: str) -> str:
    """An argument of a command line: a recipe by the name of its file, KEY=VALUE with a public value."""
    key, equals, value = text.partition("=")
    if equals:
        return public(key) + equals + public(value)
    return re.split(r"[/\\]", text)[-1] if text.endswith(".toml") else public(text)


def _architecture(recipe: Recipe, result: dict[str, Any]) -> str:
    name = result.get("architecture", recipe.model.name)  # runs from before it was kept had names of timm's registry
    if ":" in name:
        raise CardError(
            f"the run was made by an older qvit from {public(name)} and does not say which architecture that is"
        )
    return name.partition(".")[0]


def _dataset(recipe: Recipe) -> str:
    name = recipe.data.dataset
    on_the_hub = ON_THE_HUB.fullmatch(name)
    return on_the_hub[2] if on_the_hub else "digits" if name == "digits" else ""


def _difference(run: Path) -> Paired | None:
    if not (run / PREDICTIONS).exists():
        return None
    found = load_predictions(run)
    labels = found["labels"]
    if (labels < 0).any():  # images without labels
        return None
    return paired(found["program"] == labels, found["float"] == labels)
