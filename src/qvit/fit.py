"""fit(): quantization-aware training with learned bits under a budget, on Hugging Face Accelerate.

    step 0 ............ lock step ............ last step
      stage 1: weights,     the bits become      stage 2: weights and the scales of the
      scales and bits       final (`lock`)       final slots settle; the moving average runs

The loop is one for float and quantized models. What happens around a step is a function of (seed, step) alone: data order
and augmentation (`data_order`), mixup, dropout (the random state is set before every step), learning rates, the lock. So a
checkpoint holds tensors and a step number, and a resumed run continues bit for bit.

Accelerate owns device, precision, processes and gradient averaging; nothing distributed is written here. Evaluation and
files are the main process's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .allocate import Lagrangian, Published, penalty, spread, update
from .budget import Budget, check_reachable
from .convert import named_quantizers
from .cost import cost, costs
from .data import DataConfig, EpochOrder, SeededStream, epoch_batches, mixup_batch
from .distill import Teacher, distillation_loss
from .evaluate import evaluate
from .fit_config import FitConfig
from .lock import lock
from .optimizer import make_optimizer, make_schedule, parameter_groups
from .progress import Progress
from .runs import Run
from .seeds import seed_of
from .sensitivity import Sensitivity
from .training_state import TrainingState, first_nonfinite


class NonFiniteLossError(FloatingPointError):
    """Training met NaN or infinity; the text has the step, the tensor and the last good checkpoint."""


@dataclass(frozen=True)
class FitResult:
    """Outcome of a run.

    steps              optimizer steps of the whole run
    images_per_second  in this process's part of the run
    top1               percent on the evaluation loader, or None without one
    """

    steps: int
    images_per_second: float
    top1: float | None


def fit(
    model: nn.Module,
    train: DataLoader,
    *,
    budget: Budget | None = None,
    teacher: nn.Module | Teacher | None = None,
    config: FitConfig | None = None,
    order: EpochOrder | SeededStream | None = None,
    data: DataConfig | None = None,
    evaluation: Iterable[tuple[Tensor, Tensor]] | None = None,
    run: Run | Path | str | None = None,
    resume: bool = False,
    max_steps: int | None = None,
    quiet: bool = False,
) -> FitResult:
    """Train `model` in place.

    model       from quantize (calibrated), or a float model
    train       batches of (images, labels); `open_data(...).train` for exact resume
    budget      what the model may cost after the lock; needed when bits are learned
    teacher     float model for distillation (config.distillation > 0)
    order       `open_data(...).order`: gives every epoch its own order and lets a resume jump to its batch
    data        mixup, cutmix and label smoothing; None trains on plain labels
    evaluation  batches to report top-1 on
    run         directory for metrics, bit history and checkpoints
    resume      continue from the newest checkpoint in `run`, if there is one
    max_steps   stop early, without shortening the schedule (for trying things out)

    Raises BudgetError before training when the budget cannot be met, NonFiniteLossError when the loss stops being finite.
    """
    config = config or FitConfig()
    learned = [q for q in named_quantizers(model).values() if q.is_learned]
    if learned and budget is None:
        raise ValueError("the model has learned bits, so fit needs a budget: fit(..., budget=qvit.Budget(gbitops=...))")
    if budget is not None and learned:
        check_reachable(model, budget)
    if config.distillation > 0 and teacher is None:
        raise ValueError(f"fit.distillation is {config.distillation} but there is no teacher; pass teacher=float_model")
    folder = Run(run) if isinstance(run, (str, Path)) else run
    trainer = _Trainer(model, train, budget, teacher, config, order, data, evaluation, folder, quiet)
    return trainer.train(resume, max_steps)


class _Trainer:
    """One run of fit: the objects that live as long as the run."""

    def __init__(
        self,
        model: nn.Module,
        train: DataLoader,
        budget: Budget | None,
        teacher: nn.Module | Teacher | None,
        config: FitConfig,
        order: EpochOrder | SeededStream | None,
        data: DataConfig | None,
        evaluation: Iterable[tuple[Tensor, Tensor]] | None,
        run: Run | None,
        quiet: bool,
    ) -> None:
        self.config, self.budget, self.data, self.order, self.run = config, budget, data, order, run
        self.evaluation = evaluation
        self.accelerator = Accelerator(
            mixed_precision=config.precision,
            dataloader_config=DataLoaderConfiguration(split_batches=True),
            step_scheduler_with_optimizer=False,
        )
        self.main = self.accelerator.is_main_process
        self.quiet = quiet or not self.main
        self.batches_per_epoch = len(order) if isinstance(order, EpochOrder) else len(train)
        self.steps_per_epoch = self.batches_per_epoch // config.accumulate
        if not self.steps_per_epoch:
            raise ValueError(
                f"an epoch has {self.batches_per_epoch} batches, fewer than fit.accumulate {config.accumulate}"
            )
        self.steps = max(1, round(config.epochs * self.steps_per_epoch))
        self.lock_step = max(1, round(config.lock_at * self.steps))
        bit_rate = None
        if isinstance(config.allocation, Published):
            bit_rate = config.allocation.learning_rate or 2.0 / self.lock_step
        groups = parameter_groups(
            model, config.learning_rate, config.weight_decay, config.scale_learning_rate, bit_rate
        )
        optimizer = make_optimizer(groups, config.optimizer, config.learning_rate)
        self.schedule = make_schedule(
            optimizer,
            self.steps,
            round(config.warmup_epochs * self.steps_per_epoch),
            config.learning_rate_floor,
            config.learning_rate,
        )
        self.raw = model
        self.model, self.optimizer, self.train_loader = self.accelerator.prepare(model, optimizer, train)
        if isinstance(teacher, nn.Module):
            teacher = Teacher(teacher.to(self.accelerator.device))
        self.teacher = teacher
        learned = any(q.is_learned for q in named_quantizers(model).values())
        decay = config.allocation.decay if isinstance(config.allocation, Lagrangian) else 0.9
        self.sensitivity = Sensitivity(model, decay) if learned else None
        self.state = TrainingState(model, optimizer, self.sensitivity, config.ema_decay)

    # -- the run ------------------------------------------------------------------------------------------------------

    def train(self, resume: bool, max_steps: int | None) -> FitResult:
        """All steps from the newest checkpoint (or the start) to the end."""
        step = self.state.load_newest(self.run) if resume and self.run is not None else 0
        if self.run is not None and self.main:
            for log in ("metrics.jsonl", "bits.jsonl"):
                self.run.drop_after(log, step if step else -1)
        progress = Progress(self.steps, step, self.quiet)
        self.progress = progress
        if step == 0:
            self._first_allocation()
            self._note_bits(0)
        last = min(self.steps, max_steps) if max_steps is not None else self.steps
        top1: float | None = None
        evaluated = -1
        while step < last:
            epoch, within = divmod(step, self.steps_per_epoch)
            for batches in self._steps_of_epoch(epoch, within):
                record = self._step(step, batches)
                step += 1
                progress.images += sum(len(images) for images, _ in batches) * self.accelerator.num_processes
                self._report(step, record)
                at_epoch_end = step % self.steps_per_epoch == 0
                if self.evaluation is not None and at_epoch_end and self._evaluates(step // self.steps_per_epoch):
                    top1, evaluated = self._evaluate(step), step
                if self._checkpoints(step, at_epoch_end):
                    self.state.save(self.run, step, self.accelerator)
                if step == last:
                    break
        if step == self.steps:
            self.state.finish()
        if self.evaluation is not None and evaluated != step:
            top1 = self._evaluate(step)
        return FitResult(self.steps, progress.images_per_second(), top1)

    def _steps_of_epoch(self, epoch: int, within: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Lists of `accumulate` batches, from optimizer step `within` of the epoch on."""
        start = within * self.config.accumulate
        if self.order is not None:
            batches = epoch_batches(self.train_loader, self.order, epoch, start)
        else:
            batches = islice(self.train_loader, start, None)
        while len(group := list(islice(batches, self.config.accumulate))) == self.config.accumulate:
            yield group

    def _step(self, step: int, batches: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """One optimizer step: forward, backward, update, then what moves the bits."""
        self.model.train()
        self.schedule.step_update(step)
        allocation = self.config.allocation
        learning = self.sensitivity is not None and step < self.lock_step
        probing = learning and self._probes(step)
        total = 0.0
        for part, (images, labels) in enumerate(batches):
            torch.manual_seed(seed_of("step", self.config.seed, step, part, self.accelerator.process_index))
            probe = self._probe(len(images)) if probing and part == len(batches) - 1 else nullcontext()
            sync = nullcontext() if part == len(batches) - 1 else self.accelerator.no_sync(self.model)
            with sync, probe:
                loss = self._loss(images, labels, step * len(batches) + part)
                if not torch.isfinite(loss):
                    raise self._non_finite(step, images)
                if learning and isinstance(allocation, Published) and self.budget is not None:
                    loss = loss + penalty(self.raw, costs(self.raw), self.budget, allocation.weight).float()
                self.accelerator.backward(loss / len(batches))
            total += float(loss.detach()) / len(batches)
        norm = self._clip(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._forget_bit_gradients()
        if learning:
            self._move_bits(step, probing)
        if step + 1 == self.lock_step:
            self._lock(step)
        self.state.average(step - self.lock_step)
        return {"loss": total, "gradient_norm": norm}

    def _loss(self, images: Tensor, labels: Tensor, batch_number: int) -> Tensor:
        targets = labels
        if self.data is not None:
            images, targets = mixup_batch(images, labels, self.data, self.config.seed, batch_number)
        with self.accelerator.autocast():
            logits = self.model(images)
        loss = F.cross_entropy(logits.float(), targets)
        if self.config.distillation > 0 and self.teacher is not None:
            soft = distillation_loss(logits, self.teacher.logits(images, batch_number), self.config.temperature)
            loss = (1 - self.config.distillation) * loss + self.config.distillation * soft
        return loss

    # -- bits ---------------------------------------------------------------------------------------------------------

    def _probes(self, step: int) -> bool:
        """Lagrangian looks every few steps; Published only shortly before the lock, which needs an order of moves."""
        if isinstance(self.config.allocation, Lagrangian):
            return step % self.config.allocation.every == 0
        return self.lock_step - step <= 16

    def _probe(self, images: int) -> Any:
        assert self.sensitivity is not None
        return self.sensitivity.probe(images)

    def _reduce(self, tensor: Tensor) -> Tensor:
        """Mean over processes."""
        if self.accelerator.num_processes == 1:
            return tensor
        return self.accelerator.reduce(tensor.to(self.accelerator.device), "mean").to(tensor.device)

    def _move_bits(self, step: int, probed: bool) -> None:
        assert self.sensitivity is not None
        if probed:
            self.sensitivity.update(self._reduce)
            self.sensitivity.warm_slots(self._reduce)
        if isinstance(self.config.allocation, Lagrangian):
            if probed and self.budget is not None:
                update(self.raw, self.sensitivity, self.budget, self.config.allocation)
                self._note_bits(step + 1)
        else:
            if any([q.settle_bits() for q in self.sensitivity.quantizers.values()]):  # noqa: C419 - all must settle
                self._note_bits(step + 1)

    def _forget_bit_gradients(self) -> None:
        """Under Lagrangian the bits are not in the optimizer, whose zero_grad would not reach them."""
        for quantizer in named_quantizers(self.raw).values():
            quantizer.bits.grad = None

    def _first_allocation(self) -> None:
        """Before the first step: sensitivities of the calibrated model, and the allocation they ask for."""
        allocation = self.config.allocation
        if self.sensitivity is None or not isinstance(allocation, Lagrangian) or self.budget is None:
            return
        self.progress.say("measuring sensitivities for the first allocation")
        self.model.train()
        for number, (images, labels) in enumerate(
            islice(self._batches(0), min(allocation.warm_up, self.batches_per_epoch))
        ):
            torch.manual_seed(seed_of("probe", self.config.seed, number, self.accelerator.process_index))
            with self.sensitivity.probe(len(images)):
                self.accelerator.backward(self._loss(images, labels, number))
            self.optimizer.zero_grad(set_to_none=True)
            self._forget_bit_gradients()
            self.sensitivity.update(self._reduce)
        update(self.raw, self.sensitivity, self.budget, allocation, moves=60)

    def _batches(self, epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
        return self.train_loader if self.order is None else epoch_batches(self.train_loader, self.order, epoch, 0)

    def _lock(self, step: int) -> None:
        if self.sensitivity is None:
            return
        lock(self.raw, self.sensitivity, self.budget, self.config.refill)
        self._note_bits(step + 1)
        summary = cost(self.raw)
        self.progress.say(
            f"step {step + 1}: bits locked at {summary.gbitops:.4f} GBitOPs, "
            f"{summary.average_weight_bits:.2f} weight and {summary.average_activation_bits:.2f} activation bits on average"
        )

    def _note_bits(self, step: int) -> None:
        if self.run is not None and self.main and self.sensitivity is not None:
            record = {"step": step, "locked": step >= self.lock_step, "bits": spread(self.raw)}
            self.run.append("bits.jsonl", record)

    # -- reports ------------------------------------------------------------------------------------------------------

    def _clip(self, step: int) -> float:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        limit = self.config.clip_gradient or math.inf
        norm = float(self.accelerator.clip_grad_norm_(parameters, limit))
        if not math.isfinite(norm):
            names = {id(p): name for name, p in self.raw.named_parameters()}
            bad = next(
                names[id(p)] for p in parameters if p.grad is not None and not bool(torch.isfinite(p.grad).all())
            )
            raise NonFiniteLossError(self._diagnosis(step, f"the gradient of {bad}"))
        return norm

    def _non_finite(self, step: int, images: Tensor) -> NonFiniteLossError:
        return NonFiniteLossError(self._diagnosis(step, first_nonfinite(self.raw, images)))

    def _diagnosis(self, step: int, culprit: str) -> str:
        saved = self.run.checkpoints() if self.run is not None else []
        where = f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"
        return (
            f"the loss stopped being finite at step {step}: {culprit} is the first tensor with NaN or infinity; {where}; "
            "try a lower learning_rate, or a smaller clip_gradient"
        )

    def _report(self, step: int, record: dict[str, float]) -> None:
        if step % self.config.log_every and step != self.steps:
            return
        if self.sensitivity is not None:
            summary = cost(self.raw)
            record = {
                **record,
                "gbitops": summary.gbitops,
                "weight_bits": summary.average_weight_bits,
                "activation_bits": summary.average_activation_bits,
            }
        if self.run is not None and self.main:
            rate = {"learning_rate": self.optimizer.param_groups[0]["lr"]}
            self.run.append("metrics.jsonl", {"step": step, "epoch": step / self.steps_per_epoch, **record, **rate})
        self.progress.show(step, step / self.steps_per_epoch, record)

    def _evaluates(self, epoch: int) -> bool:
        every = self.config.evaluate_every
        return every > 0 and math.floor(epoch / every) > math.floor((epoch - 1) / every)

    def _checkpoints(self, step: int, at_epoch_end: bool) -> bool:
        if self.run is None:
            return False
        every = self.config.checkpoint_every
        due = step % every == 0 if every else at_epoch_end
        return due or step in (self.lock_step, self.steps)

    def _evaluate(self, step: int) -> float | None:
        assert self.evaluation is not None
        top1 = evaluate(self.state.averaged_model(), self.evaluation).top1
        if self.run is not None and self.main:
            self.run.append("metrics.jsonl", {"step": step, "epoch": step / self.steps_per_epoch, "top1": top1})
        if top1 is not None:
            self.progress.say(f"step {step}: top-1 {top1:.2f} %")
        return top1
