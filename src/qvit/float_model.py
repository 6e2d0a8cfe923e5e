"""The float model of a recipe: timm's factory, then the user's own weights.

Weights come from safetensors, or from a .pth that torch loads with weights_only=True; nothing is unpickled. A checkpoint
that does not fit is refused with the keys that are missing, left over or of another shape.
"""

from __future__ import annotations

import pickle
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .recipe import ModelConfig
from .runs import CheckpointError


def create_float_model(config: ModelConfig) -> nn.Module:
    """A timm model with its weights, in eval mode. Raises ValueError for a name or argument, CheckpointError for weights."""
    arguments: dict[str, Any] = dict(config.arguments)
    if config.num_classes:
        arguments["num_classes"] = config.num_classes
    if ":" not in config.name and not timm.is_model(config.name):  # hf-hub:NAME and local-dir:PATH are timm's to check
        close = get_close_matches(config.name, timm.list_models(), n=5, cutoff=0.5)
        raise ValueError(f"timm has no model {config.name!r}; similar: {', '.join(close) or 'none'}")
    try:
        model = timm.create_model(config.name, pretrained=config.pretrained, **arguments)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"timm cannot make {config.name} with {arguments}: {error}") from error
    if config.checkpoint:
        load_float_weights(model, Path(config.checkpoint))
    return model.eval()


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
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as weights ({error.__class__.__name__}); give a .safetensors file, or a .pth that "
            "holds tensors only"
        ) from error
    for key in ("model", "state_dict"):  # what training scripts wrap a state_dict in
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"{path} holds no state_dict; expected names mapped to tensors")
    return loaded


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
