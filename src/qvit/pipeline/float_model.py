"""The float model of a recipe: timm's factory, then the user's own weights.

    deit_tiny_patch16_224      timm's registry
    hf-hub:ORG/NAME            a repository of the hub in timm's format: config.json and weights
    local-dir:FOLDER           the same as a folder, as timm.models.save_for_hf writes it

The last two bring their preprocessing with them: config.json becomes `model.pretrained_cfg`, which `resolve_data` reads.

Weights come from safetensors, or from a .pth that torch loads with weights_only=True; nothing is unpickled but tensors,
plain containers and `argparse.Namespace`, in which timm's train.py keeps its options. A training checkpoint holds more than
weights: of timm's (model_best.pth.tar, last.pth.tar) the averaged ones are taken where there are any, as
`timm.models.load_checkpoint` does. A checkpoint that does not fit is refused with the keys that are missing, left over or of
another shape.
"""

from __future__ import annotations

import argparse
import pickle
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import clean_state_dict
from torch import Tensor, nn

from ..settings.recipe import ModelConfig
from ..system.runs import CheckpointError

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # of a training checkpoint; the first one counts


def create_float_model(config: ModelConfig) -> nn.Module:
    """A timm model with its weights, in eval mode.

    Raises ValueError for a name, an argument, or weights that do not fit or cannot be fetched, FileNotFoundError for a
    local-dir: that is no folder of a model, CheckpointError for `config.checkpoint`.
    """
    arguments = _arguments(config)
    if ":" not in config.name and not timm.is_model(config.name):  # hf-hub:NAME and local-dir:PATH are timm's to check
        raise ValueError(_unknown(config.name))
    try:
        model = timm.create_model(config.name, pretrained=config.pretrained, **arguments)
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError) as error:
        raise ValueError(
            f"{config.name} could not be fetched ({type(error).__name__}): there is no network here, no such repository, or it "
            "needs a login. Download it as a folder where that is possible, then write local-dir:FOLDER"
        ) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{config.name} is no folder of a timm model ({error}); timm.models.save_for_hf writes one"
        ) from error
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"timm cannot make {config.name} with {arguments}: {error}") from error
    if config.checkpoint:
        load_float_weights(model, Path(config.checkpoint))
    return model.eval()


def _unknown(name: str) -> str:
    if "/" in name or Path(name).is_dir():
        return (
            f"{name!r} looks like a folder or a repository, and not like the name of a timm model; write local-dir:{name} for a "
            f"folder with config.json and weights, or hf-hub:{name}"
        )
    close = get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
    return f"timm has no model {name!r}; similar: {', '.join(close) or 'none'}"


def _arguments(config: ModelConfig) -> dict[str, Any]:
    return {**config.arguments, **({"num_classes": config.num_classes} if config.num_classes else {})}


def architecture_of(model: nn.Module, config: ModelConfig) -> dict[str, Any]:
    """What timm makes this float model again from: `architecture`, a name of its registry, and `model_args`.

    For a model from a repository or a folder that is what stood in its config.json, and not where that was.
    """
    made_with = getattr(model, "_model_args", _arguments(config))  # older versions of timm do not keep them
    described: Any = model.pretrained_cfg
    return {"architecture": described["architecture"], "model_args": made_with}


def load_float_weights(model: nn.Module, path: Path) -> None:
    """Load a state_dict file, or that of a float run's directory, into `model`. Raises CheckpointError that lists what does not fit."""
    if path.is_dir():
        path = path / "model.safetensors"
    weights, own = _read(path), model.state_dict()
    missing = sorted(set(own) - set(weights))
    left_over = sorted(set(weights) - set(own))
    reshaped = [
        f"{name} is {tuple(weights[name].shape)}, the model has {tuple(own[name].shape)}"
        for name in sorted(set(own) & set(weights))
        if weights[name].shape != own[name].shape
    ]
    if missing or left_over or reshaped:
        parts = [
            f"{len(missing)} missing ({_some(missing)})" if missing else "",
            f"{len(left_over)} unknown ({_some(left_over)})" if left_over else "",
            f"{len(reshaped)} of another shape ({_some(reshaped)})" if reshaped else "",
        ]
        raise CheckpointError(
            f"{path} does not fit the model: {'; '.join(part for part in parts if part)}. "
            "Check the model name, its arguments (img_size, num_classes, ...) and that the file is a float state_dict"
        )
    model.load_state_dict(weights)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise CheckpointError(
            f"there is no checkpoint {path}; a run directory has model.safetensors when it is finished"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as weights ({error.__class__.__name__}); give a .safetensors file, or a .pth of "
            "tensors and plain values; torch.save(model.state_dict(), FILE) writes one"
        ) from error
    if isinstance(loaded, dict):
        loaded = next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), dict)), loaded)
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"{path} holds no state_dict; expected names mapped to tensors")
    return clean_state_dict(loaded)  # of the prefixes that DistributedDataParallel and torch.compile put before names


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
