"""TrainingState: what a checkpoint holds besides the step, and how it becomes tensors and JSON.

Layout of the tensors in a checkpoint file (`runs`):

    model.NAME              state_dict of the module, bits, widths, lock and scales included
    average.NAME            the same of the moving average, from the lock on
    optimizer.I.KEY         state KEY of the I-th parameter where that is a tensor (exp_avg, exp_avg_sq, step)
    group.I.KEY             setting KEY of the I-th parameter group where that is a tensor (LAMB counts its steps there)
    sensitivity.NAME        running tables of learned bits

and in its JSON what else the optimizer keeps of parameters (AdamP counts its steps in Python: as a tensor the number would
round other products to float32) and of groups, how often the run was rolled back, and the seconds that it took. Random states
are not there: they are functions of (seed, step).
"""

from __future__ import annotations

import json
import warnings
from typing import Any

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ..bits.sensitivity import Sensitivity
from ..system.runs import CheckpointError, Run

KINDS = ("model", "average", "optimizer", "group", "sensitivity")


class TrainingState:
    """Model, optimizer, sensitivities and moving average of one run.

    rollbacks  how often it went back to an older state of itself (`rollback`)
    seconds    of training up to the last checkpoint; None after loading one that does not say

    Raises ValueError for an optimizer whose settings a checkpoint cannot hold.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, sensitivity: Sensitivity | None, ema_decay: float
    ) -> None:
        self.model, self.optimizer, self.sensitivity = model, optimizer, sensitivity
        self._optimizer_state()  # may raise: now, and not at the first checkpoint
        self.ema_decay = ema_decay
        self.ema: ModelEmaV3 | None = None
        self.rollbacks = 0
        self.seconds: float | None = 0.0

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
        tensors, plain = self._optimizer_state()
        counts = {"rollbacks": self.rollbacks, "seconds": self.seconds}
        return packed | tensors, {**plain, "averaged": self.ema is not None, **counts}

    def _optimizer_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What the optimizer keeps, as tensors and JSON-ready values. Raises ValueError for what is neither."""
        state = self.optimizer.state_dict()
        tensors: dict[str, Tensor] = {}
        plain: dict[str, Any] = {"optimizer": {}, "groups": []}
        for index, values in state["state"].items():
            own, rest = _parted(values)
            plain["optimizer"] |= {str(index): rest} if rest else {}
            tensors |= {f"optimizer.{index}.{key}": value for key, value in own.items()}
        for index, group in enumerate(state["param_groups"]):
            own, rest = _parted(group)
            plain["groups"].append(rest)
            tensors |= {f"group.{index}.{key}": value for key, value in own.items()}
        try:
            json.dumps(plain)
        except TypeError as error:
            raise ValueError(
                f"the optimizer {type(self.optimizer).__name__} keeps what a checkpoint cannot hold ({error}): tensors, numbers "
                "and text alone; choose another fit.optimizer, such as 'adamw'"
            ) from error
        return tensors, plain

    def copied(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """`tensors`, as copies in main memory that training does not change; for `load`."""
        packed, state = self.tensors()
        return {name: value.detach().to("cpu", copy=True) for name, value in packed.items()}, state

    def save(self, run: Run, step: int, keep: int, accelerator: Accelerator) -> None:
        """Write a checkpoint and keep the newest `keep` (main process only)."""
        if accelerator.is_main_process:
            run.save_checkpoint(step, *self.tensors(), keep)

    def load_newest(self, run: Run, accelerator: Accelerator) -> int:
        """Restore the newest checkpoint of a run; returns its step, 0 when there is none.

        A damaged one is set aside with a warning, and the one before is taken: the steps between are made again.

        Raises CheckpointError when none can be read, when it belongs to another model, or when the processes do not see
        the same ones.
        """
        newest, damaged = run.newest_checkpoint()
        step = 0 if newest is None else int(newest.state["step"])
        steps = accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist()
        if len(set(steps)) > 1:
            raise CheckpointError(
                f"the processes found checkpoints of different steps in {run.folder} ({', '.join(map(str, steps))}); every "
                "machine must see the same run directory"
            )
        if newest is None:
            return 0
        for path in damaged if accelerator.is_main_process else []:
            aside = path.replace(path.with_name(f"{path.name}.damaged"))
            warnings.warn(
                f"{path} is damaged; it is now {aside.name}, and the run goes on from {newest.path.name}", stacklevel=2
            )
        try:
            self.load(newest.tensors, newest.state)
        except (RuntimeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(
                f"{newest.path} does not fit this recipe ({reason}); use the recipe that made it, or another run directory"
            ) from error
        return step

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """The inverse of `tensors`."""
        parts: dict[str, dict[str, Tensor]] = {kind: {} for kind in KINDS}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            parts[kind][rest] = value
        self.model.load_state_dict(parts["model"])
        self.rollbacks = state.get("rollbacks", 0)  # absent before there were any
        self.seconds = state.get("seconds")  # absent before they were counted
        self.ema = None
        if state["averaged"]:
            self.ema = ModelEmaV3(self.model, decay=self.ema_decay, use_warmup=True)
            self.ema.module.load_state_dict(parts["average"])
        if self.sensitivity is not None:
            self.sensitivity.load_state_dict(parts["sensitivity"])
        plain = state.get("optimizer", {})  # absent where numbers were kept as tensors
        per_parameter: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in plain.items()}
        for name, value in parts["optimizer"].items():
            index, _, key = name.partition(".")
            per_parameter.setdefault(int(index), {})[key] = value
        groups = [dict(group) for group in state["groups"]]
        for name, value in parts["group"].items():
            index, _, key = name.partition(".")
            groups[int(index)][key] = value
        self.optimizer.load_state_dict({"state": per_parameter, "param_groups": groups})


def _parted(values: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors among `values`, and the rest."""
    tensors = {key: value for key, value in values.items() if isinstance(value, Tensor)}
    return tensors, {key: value for key, value in values.items() if key not in tensors}
