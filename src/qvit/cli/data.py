"""What a verb reads: --data, --split and --class-map on top of the settings that a run, a recipe or a model has, and its float model."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from ..data import DataConfig
from ..data.sources import holds_images, split_folder
from ..pipeline.finished import read_recipe
from ..settings.recipe import FLOAT, LOCAL, ModelConfig, Recipe, load_recipe


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """--data, --split, --class-map and the columns for `data_from`, --checkpoint and --num-classes of a float model given by its timm name."""
    parser.add_argument(
        "--data",
        help="folder with train and validation folders of class folders, flat folder of images without labels, timm data "
        "set name such as hfds/FOLDER, or digits; a run and a recipe have their own",
    )
    parser.add_argument(
        "--split",
        help="to evaluate on; default: validation, or that of the run or recipe; '' is the folder itself",
    )
    parser.add_argument(
        "--class-map",
        metavar="FILE",
        help="which class is which output: one class (folder) name per line, in the order of the outputs; for images of "
        "other or fewer classes than the model has; '' sorts the names",
    )
    for column in ("image", "label"):
        parser.add_argument(
            f"--{column}-column",
            metavar="NAME",
            help=f"column of the {column}s in an hfds/ or hfids/ data set; default: {column}, or that of the run or recipe",
        )
    parser.add_argument(
        "--checkpoint",
        default="",
        metavar="FILE",
        help="float weights for a timm model name: .safetensors, a .pth (timm's train.py's too), or the directory of a float run",
    )
    parser.add_argument("--num-classes", type=int, default=0, metavar="N", help="size of the classifier of those")


def timm_model(name: str, arguments: argparse.Namespace) -> ModelConfig:
    """The float model of a timm name with the weights that the command line gives it, or the name's own."""
    if name.startswith(LOCAL):
        name = LOCAL + _absolute(name.removeprefix(LOCAL))
    checkpoint = _absolute(arguments.checkpoint)
    return ModelConfig(name, checkpoint=checkpoint, pretrained=not checkpoint, num_classes=arguments.num_classes)


def check_weights_are_wanted(arguments: argparse.Namespace, *models: str | None) -> None:
    """Raise ValueError for --checkpoint and --num-classes where no model is a timm name: runs, recipes and artifacts have theirs."""
    given = [f"--{name}" for name in ("checkpoint", "num-classes") if getattr(arguments, name.replace("-", "_"))]
    if given and not any(model and is_timm_name(model) for model in models):
        named = [model for model in models if model]
        belongs, out = ("belongs", "it") if len(given) == 1 else ("belong", "them")
        has = "has weights of its own" if len(named) == 1 else "have weights of their own"
        raise ValueError(
            f"{' and '.join(given)} {belongs} to a timm model name; {', '.join(named)} {has}, leave {out} out"
        )


def is_timm_name(what: str) -> bool:
    """Neither a recipe, nor an artifact, nor a run directory."""
    return Path(what).suffix not in (".toml", ".qvit") and not Path(what).is_dir()


def data_from(arguments: argparse.Namespace, base: DataConfig) -> DataConfig:
    """`base` with the data set, the evaluation split and the class map of the arguments, where they are given.

    The class map of `base` is kept for another data set, since it says what the outputs of the model stand for.
    """
    if arguments.class_map is not None:
        base = dataclasses.replace(base, class_map=_absolute(arguments.class_map))
    columns = {name: getattr(arguments, name) for name in ("image_column", "label_column")}
    base = dataclasses.replace(base, **{name: column for name, column in columns.items() if column is not None})
    split = arguments.split
    if not arguments.data:
        return base if split is None else dataclasses.replace(base, eval_split=split)
    split = "validation" if split is None else split
    kind, _, name = arguments.data.partition("/")
    if arguments.data == "digits" or kind in ("hfds", "hfids", "wds"):
        dataset = f"{kind}/{_absolute(name)}" if name.startswith(".") or _is_local(kind, name) else arguments.data
        root = base.root if kind in (base.dataset.partition("/")[0], "wds") else ""  # a folder of images is no cache
        return dataclasses.replace(base, dataset=dataset, root=root, eval_split=split)
    root = _absolute(arguments.data)
    flat = holds_images(arguments.data) and not (split and split_folder(arguments.data, split))
    if flat:  # no class folders: no labels
        return dataclasses.replace(base, dataset="images", root=root, eval_split="")
    return dataclasses.replace(base, dataset="folder", root=root, eval_split=split)


def _is_local(kind: str, name: str) -> bool:
    """Whether "hfds/NAME" or "hfids/NAME" is a folder here and no name on the hub."""
    return kind in ("hfds", "hfids") and Path(name).is_dir()


def _absolute(path: str) -> str:
    """A path from the working directory; a run directory remembers it, and may be read from elsewhere. "" stays."""
    return str(Path(path).resolve()) if path else ""


def recipe_with_weights(path: Path) -> Recipe:
    """The recipe at `path`. Raises ValueError where its float model is still to be trained: random weights say nothing, and
    neither does a new classifier on pretrained ones."""
    recipe = load_recipe(path)
    if not recipe.model.checkpoint and (recipe.train_float is not None or not recipe.model.pretrained):
        raise ValueError(
            f"{path} trains its float model, which is not there before; run it, and give the directory of its float row"
        )
    return recipe


def float_source(what: str, arguments: argparse.Namespace) -> tuple[ModelConfig, DataConfig]:
    """The float model called `what` (a recipe, the directory of a float run, a timm model name), and its data settings.

    arguments  data, split and class_map as above; checkpoint and num_classes of a timm model name

    Raises ValueError for a recipe without weights, a run that is not float, a name without data and weights that nobody takes,
    FileNotFoundError for no run directory.
    """
    check_weights_are_wanted(arguments, what)
    path = Path(what)
    if path.suffix == ".toml":
        recipe = recipe_with_weights(path)
        return recipe.model, data_from(arguments, recipe.data)
    if path.is_dir():
        recipe = read_recipe(path)
        if recipe.method != FLOAT:
            raise ValueError(f"{path} is a run of method {recipe.method!r}; give a float run, such as {path / 'float'}")
        model = dataclasses.replace(recipe.model, checkpoint=str(path.resolve()), pretrained=False)
        return model, data_from(arguments, recipe.data)
    if not arguments.data:
        raise ValueError(f"{what} does not say which images to read; give --data FOLDER, or digits")
    return timm_model(what, arguments), data_from(arguments, DataConfig(dataset="digits"))
