"""TrainingState: what a checkpoint holds besides the step, and how it becomes tensors and JSON.

Layout of the tensors in a checkpoint file (`runs`):

    model.NAME              state_dict of the module, bits, widths, lock and scales included
    average.NAME            the same of the moving average, from the lock on
    optimizer.I.KEY         state KEY of the I-th parameter (exp_avg, exp_avg_sq, step)
    sensitivity.NAME        running tables of learned bits

and in its JSON the optimizer's group settings. Random states are not there: they are functions of (seed, step).
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from .runs import CheckpointError, Run, load_tensors
from .sensitivity import Sensitivity


class TrainingState:
    """Model, optimizer, sensitivities and moving average of one run."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, sensitivity: Sensitivity | None, ema_decay: float
    ) -> None:
        self.model, self.optimizer, self.sensitivity = model, optimizer, sensitivity
        self.ema_decay = ema_decay
        self.ema: ModelEmaV3 | None = None

    def average(self, steps_since_lock: int) -> None:
        """Fold the weights of this step into the moving average; it starts at the lock."""
        if self.ema_decay <= 0 or steps_since_lock < -1:
            return
        if self.ema is None:
            self.ema = ModelEmaV3(self.model, decay=self.ema_decay, use_warmup=True)
        self.ema.update(self.model, step=steps_since_lock + 1)

    def averaged_model(self) -> nn.Module:
        """The moving average when there is one, else the model."""
        return self.model if self.ema is None else self.ema.module

    def finish(self) -> None:
        """Put the moving average into the model: it is what the run returns."""
        if self.ema is not None:
            self.model.load_state_dict(self.ema.module.state_dict())

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything as tensors and JSON-ready values."""
        packed = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self.ema is not None:
            packed |= {f"average.{name}": value for name, value in self.ema.module.state_dict().items()}
        if self.sensitivity is not None:
            packed |= {f"sensitivity.{name}": value for name, value in self.sensitivity.state_dict().items()}
        state = self.optimizer.state_dict()
        for index, values in state["state"].items():
            packed |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
        return packed, {"groups": state["param_groups"], "averaged": self.ema is not None}

    def save(self, run: Run | None, step: int, accelerator: Accelerator) -> None:
        """Write a checkpoint (main process only)."""
        if run is None or not accelerator.is_main_process:
            return
        packed, state = self.tensors()
        run.save_checkpoint(step, packed, state)

    def load_newest(self, run: Run) -> int:
        """Restore the newest checkpoint of a run; returns its step, 0 when there is none.

        Raises CheckpointError when the file is damaged or belongs to another model.
        """
        saved = run.checkpoints()
        if not saved:
            return 0
        try:
            tensors, state = load_tensors(saved[-1])
        except CheckpointError as error:
            raise CheckpointError(f"{error}; delete it to continue from the one before") from error
        try:
            self._load(tensors, state)
        except (RuntimeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(
                f"{saved[-1]} does not fit this recipe ({reason}); use the recipe that made it, or another run directory"
            ) from error
        return int(state["step"])

    def _load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}, "sensitivity": {}}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            parts[kind][rest] = value
        self.model.load_state_dict(parts["model"])
        if state["averaged"]:
            self.ema = ModelEmaV3(self.model, decay=self.ema_decay, use_warmup=True)
            self.ema.module.load_state_dict(parts["average"])
        if self.sensitivity is not None:
            self.sensitivity.load_state_dict(parts["sensitivity"])
        per_parameter: dict[int, dict[str, Tensor]] = {}
        for name, value in parts["optimizer"].items():
            index, _, key = name.partition(".")
            per_parameter.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({"state": per_parameter, "param_groups": state["groups"]})


@torch.no_grad()
def first_nonfinite(model: nn.Module, images: Tensor) -> str:
    """Name of the first tensor with NaN or infinity: a parameter, or a module's output in the order of the forward pass."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"the parameter {name}"
    if not torch.isfinite(images).all():
        return "the input image batch"
    found: list[str] = []

    def hook_for(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(name or type(module).__name__)

        return hook

    handles = [module.register_forward_hook(hook_for(name)) for name, module in model.named_modules()]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return f"the output of {found[0]}" if found else "the loss itself"
