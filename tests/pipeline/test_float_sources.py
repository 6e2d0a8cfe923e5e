"""Float models from a folder or a repository of timm's format: their weights and preprocessing, and never random weights."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import timm
import timm.models._hub
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from qvit.cli import main
from qvit.data import DataConfig, resolve_data
from qvit.pipeline.finished import load, read_recipe, read_result
from qvit.pipeline.float_model import architecture_of, create_float_model
from qvit.settings.recipe import ModelConfig, RecipeError, load_recipe
from toy_models import lively

ARGUMENTS = {"img_size": 28, "patch_size": 14, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 10}
LOOKS = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop_pct": 0.8, "interpolation": "bilinear"}
HUB = "hf-hub:someone/tiny"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What timm.models.save_for_hf writes."""
    place = tmp_path_factory.mktemp("hub") / "tiny_vit"
    model = lively(timm.create_model("vit_tiny_patch16_224", **ARGUMENTS))
    timm.models.save_for_hf(model, str(place), safe_serialization=True, data_config=LOOKS)
    return place


def same_weights(model: torch.nn.Module) -> bool:
    wanted = lively(timm.create_model("vit_tiny_patch16_224", **ARGUMENTS)).state_dict()
    return all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())


def test_a_folder_brings_weights_and_preprocessing(folder: Path) -> None:
    config = ModelConfig(f"local-dir:{folder}", pretrained=True)
    model = create_float_model(config)
    assert same_weights(model)
    data = resolve_data(DataConfig(dataset="digits"), model)
    assert (data.mean, data.std) == (LOOKS["mean"], LOOKS["std"])
    assert (data.crop, data.interpolation, data.image_size, data.num_classes) == (0.8, "bilinear", 28, 10)
    made = architecture_of(model, config)
    assert "tiny_vit" not in json.dumps(made)
    again = create_float_model(ModelConfig(made["architecture"], made["model_args"]))
    again.load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    ("lines", "pretrained"),
    [
        ('name = "local-dir:./tiny_vit"', True),
        ('name = "hf-hub:someone/tiny"', True),
        ('name = "local-dir:./tiny_vit"\ncheckpoint = "w.pth"', False),
        ('name = "deit_tiny_patch16_224"\npretrained = true', True),
        ('name = "deit_tiny_patch16_224"\ncheckpoint = "w.pth"', False),
    ],
)
def test_a_recipe_that_names_a_source_means_its_weights(lines: str, pretrained: bool, folder: Path) -> None:
    recipe = folder.parent / "recipe.toml"
    recipe.write_text(f'method = "lsq"\n[quantize]\nweights = {{ kind = "FixedBits", bits = 4 }}\nactivations = '
                      f'{{ kind = "FixedBits", bits = 4 }}\n[model]\n{lines}\n[data]\ndataset = "digits"\n')  # fmt: skip
    model = load_recipe(recipe).model
    assert model.pretrained is pretrained
    if "local-dir" in lines:
        assert model.name == f"local-dir:{folder}"  # from the recipe's folder, not from the working directory


FLOAT = 'method = "float"\n'
TRAINED = "[train_float]\nepochs = 1\n"


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("", False),  # no [model]: the default name is no better than another
        ('[model]\nname = "deit_tiny_patch16_224"', False),
        (FLOAT + '[model]\nname = "deit_tiny_patch16_224"', False),
        ("[model]\npretrained = false", False),
        ('[model]\nname = "local-dir:x"\npretrained = false', False),
        (FLOAT + "[model]\npretrained = false", True),
        ("[model]\npretrained = true", True),
        ('[model]\nname = "local-dir:x"', True),
        (TRAINED + "[model]\nnum_classes = 10", True),
        (TRAINED, True),
    ],
)
def test_a_recipe_says_where_weights_come_from(text: str, allowed: bool, tmp_path: Path) -> None:
    """A name alone means timm's weights on the command line, so random ones in a recipe would surprise."""
    recipe = tmp_path / "x.toml"
    recipe.write_text(text + '\n[data]\ndataset = "digits"\n')
    if allowed:
        load_recipe(recipe)
        return
    message = (
        r"^x.toml gives the float model no weights: write pretrained = true or checkpoint = FILE in \[model\], or add a table "
        r"\[train_float\]; with method = 'float' and pretrained = false it is trained from random ones$"
    )
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe)
    assert load_recipe(recipe, ["model.checkpoint=w.pth"]).model.checkpoint


def test_a_recipe_says_which_images(tmp_path: Path) -> None:
    recipe = tmp_path / "x.toml"
    recipe.write_text("[model]\npretrained = true\n")
    with pytest.raises(
        RecipeError, match=r"^x.toml does not say which images to read: give a table \[data\] with root = "
    ):
        load_recipe(recipe)
    assert load_recipe(recipe, ["data.root=images"]).data.dataset == "folder"


@pytest.mark.parametrize("weights", ["", "[model]\npretrained = true\nnum_classes = 10\n"], ids=["random", "new head"])
@pytest.mark.parametrize("verb", ["ptq", "eval", "analyze"])
def test_the_float_model_of_a_recipe_that_trains_it(
    verb: str, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "x.toml"
    recipe.write_text(weights + TRAINED + '[data]\ndataset = "digits"\n')
    assert main([verb, str(recipe)]) == 2
    text = f"qvit: {recipe} trains its float model, which is not there before; run it, and give the directory of its float row\n"
    assert capsys.readouterr().err == text


def test_a_recipe_named_on_the_command_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    recipe = folder / "float.toml"
    recipe.write_text('method = "float"\n[data]\ndataset = "digits"\n')
    model = load_recipe(recipe, ["model.name=local-dir:tiny_vit"]).model
    assert (model.name, model.pretrained) == (f"local-dir:{folder}", True)


def test_ptq_of_a_folder(
    folder: Path, done: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The run judges the folder's weights, remembers where it was, and is read from another working directory."""
    monkeypatch.chdir(folder.parent)
    arguments = ["ptq", "local-dir:tiny_vit", "--data", str(done[0].parent / "digits"), "--out", str(tmp_path / "run")]
    assert main([*arguments, "--calibration-images", "8"]) == 0
    monkeypatch.chdir(tmp_path)
    recipe, result = read_recipe(tmp_path / "run"), read_result(tmp_path / "run")
    assert (recipe.model.name, recipe.model.pretrained, recipe.data.crop) == (f"local-dir:{folder}", True, 0.8)
    assert result["architecture"] == "vit_tiny_patch16_224"
    assert result["model_args"]["embed_dim"] == 16
    trained = load(tmp_path / "run").state_dict()
    assert all(torch.equal(trained[name], value) for name, value in _folder_model(folder).items() if "blocks" in name)


def _folder_model(folder: Path) -> dict[str, torch.Tensor]:
    return create_float_model(ModelConfig(f"local-dir:{folder}", pretrained=True)).state_dict()


@pytest.mark.parametrize("verb", ["ptq", "analyze", "eval", "cost"])
def test_a_plain_folder_says_local_dir(verb: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = [] if verb == "cost" else ["--data", "digits"]
    assert main([verb, str(folder), *data]) == 2
    text = f"has no recipe.json, so it is no run directory; for the timm model in it write local-dir:{folder}"
    assert text in capsys.readouterr().err


def test_a_plain_folder_in_a_recipe_says_local_dir() -> None:
    for name in ("./folder", "someone/tiny"):
        text = f"'{name}' looks like a folder or a repository.* write local-dir:{name} for .* or hf-hub:{name}"
        with pytest.raises(ValueError, match=text):
            create_float_model(ModelConfig(name))


def test_folders_that_are_no_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"local-dir:.* is no folder of a timm model .*save_for_hf writes one"):
        create_float_model(ModelConfig(f"local-dir:{tmp_path}", pretrained=True))
    shutil.copy(folder / "config.json", tmp_path)
    with pytest.raises(ValueError, match=r"timm cannot make local-dir:.*No suitable checkpoints found"):
        create_float_model(ModelConfig(f"local-dir:{tmp_path}", pretrained=True))
    weights = lively(timm.create_model("vit_tiny_patch16_224", **{**ARGUMENTS, "embed_dim": 32}))
    torch.save(weights.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"timm cannot make local-dir:(.|\n)*size mismatch"):
        create_float_model(ModelConfig(f"local-dir:{tmp_path}", pretrained=True))
    with pytest.raises(ValueError, match="Unknown model source 'zip'"):
        create_float_model(ModelConfig("zip:tiny"))


def test_a_repository_of_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm asks the hub's client for files by name; here a folder answers."""
    asked = []

    def download(repo_id: str, filename: str, **_: object) -> str:
        asked.append((repo_id, filename))
        return str(folder / filename)

    monkeypatch.setattr(timm.models._hub, "hf_hub_download", download)
    model = create_float_model(ModelConfig(HUB, pretrained=True))
    assert same_weights(model)
    assert set(asked) == {("someone/tiny", "config.json"), ("someone/tiny", "model.safetensors")}
    assert resolve_data(DataConfig(dataset="digits"), model).mean == LOOKS["mean"]
    other = create_float_model(dataclasses.replace(ModelConfig(HUB), arguments={"depth": 2}))
    assert len(other.blocks) == 2  # type: ignore[arg-type]


def test_the_hub_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(timm.models._hub, "hf_hub_download", download)
    text = "hf-hub:someone/tiny could not be fetched (LocalEntryNotFoundError): there is no network here"
    with pytest.raises(ValueError, match=re.escape(text) + ".*then write local-dir:FOLDER"):
        create_float_model(ModelConfig(HUB, pretrained=True))
