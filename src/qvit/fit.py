"""fit(): quantization-aware training with learned bits under a budget, on Hugging Face Accelerate.

    step 0 ............ lock step ............ last step
      stage 1: weights,     the bits become      stage 2: weights and the scales of the
      scales and bits       final (`lock`)       final slots settle; the moving average runs

The loop is one for float and quantized models; what moves the bits is `bit_schedule`'s business. What happens around a
step is a function of (seed, step) alone: data order and augmentation (`data_order`), mixup, dropout (the random state is
set before every step), learning rates, the lock. So a checkpoint holds tensors and a step number, and a resumed run
continues bit for bit. A method that adds to the loss does so through a `guide`.

Accelerate owns device, processes and gradient averaging; nothing distributed is written here. Every process evaluates,
files are the main process's (`training_log`). Precision is one torch.autocast around the forward pass: Accelerate's own would stay in
force for the whole process and patch `forward` of the model that the user gets back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .allocate import Published
from .bit_schedule import BitSchedule
from .budget import Budget, check_budget
from .data import DataConfig, EpochOrder, SeededStream, mixup_batch
from .distill import Teacher, distillation_loss, hard_distillation_loss
from .evaluate import evaluate
from .feature_distill import FeatureDistillation, FeatureGuide, principal_components
from .fit_config import FitConfig
from .guide import Guide
from .optimizer import make_optimizer, make_schedule, parameter_groups
from .processes import on_cpu
from .quantizer import named_quantizers
from .runs import Run
from .seeds import seed_of
from .step_batches import StepBatches, batches_in_epoch
from .training_log import TrainingLog, evaluated_before
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
    guide: Guide | None = None,
    config: FitConfig | None = None,
    order: EpochOrder | SeededStream | None = None,
    data: DataConfig | None = None,
    evaluation: Iterable[tuple[Tensor, Tensor]] | None = None,
    allocated: bool = False,
    run: Run | Path | str | None = None,
    resume: bool = False,
    max_steps: int | None = None,
    on_log: Callable[[], None] | None = None,
    quiet: bool = False,
) -> FitResult:
    """Train `model` in place.

    model       from quantize (calibrated), or a float model
    train       batches of (images, labels); `open_data(...).train` for exact resume
    budget      what the model may cost after the lock; needed when bits are learned
    teacher     float model for distillation (config.distillation > 0, config.features)
    guide       what the method of `model` adds to the loss of logits, and does after each step
    order       `open_data(...).order`: gives every epoch its own order and lets a resume jump to its batch. Without it
                the loader is iterated anew each epoch, its shuffling seeded by the epoch, and a resume skips batches;
                random augmentation of such a loader is not reproduced
    data        mixup, cutmix and label smoothing; None trains on plain labels
    evaluation  batches to report top-1 on
    allocated   the learned bits are an allocation already (`apply_init_bits`): go on from there instead of solving a first
                one; the probes before the first step are made all the same, for the moves that follow
    run         directory for metrics, bit history and checkpoints
    resume      continue from the newest checkpoint in `run`, if there is one
    max_steps   stop early, without shortening the schedule (for trying things out)
    on_log      called in the main process after each line of metrics; a view of the run (`live_page`)

    Raises BudgetError before training when the budget cannot be met, NonFiniteLossError when the loss stops being finite.
    """
    config = config or FitConfig()
    if not config.epochs:
        raise ValueError("fit.epochs is 0, so there is nothing to train; qvit.calibrate alone is the post-training way")
    check_budget(model, budget)
    if config.distillation > 0 and teacher is None:
        raise ValueError(f"fit.distillation is {config.distillation} but there is no teacher; pass teacher=float_model")
    if config.features is not None and teacher is None:
        raise ValueError("fit.features is set but there is no teacher; pass teacher=float_model")
    folder = Run(run) if isinstance(run, (str, Path)) else run
    if folder is not None and folder.checkpoints() and not resume:
        raise FileExistsError(
            f"{folder.folder} holds checkpoints of an earlier run; continue it with resume=True, or give another directory"
        )
    trainer = _Trainer(
        model, train, budget, teacher, guide, config, order, data, evaluation, allocated, folder, on_log, quiet
    )
    return trainer.train(resume, max_steps)


class _Trainer:
    """One run of fit: the objects that live as long as the run."""

    def __init__(
        self,
        model: nn.Module,
        train: DataLoader,
        budget: Budget | None,
        teacher: nn.Module | Teacher | None,
        guide: Guide | None,
        config: FitConfig,
        order: EpochOrder | SeededStream | None,
        data: DataConfig | None,
        evaluation: Iterable[tuple[Tensor, Tensor]] | None,
        allocated: bool,
        run: Run | None,
        on_log: Callable[[], None] | None,
        quiet: bool,
    ) -> None:
        self.config, self.data, self.run, self.evaluation = config, data, run, evaluation
        self.guides = [] if guide is None else [guide]
        self.allocated, self.on_log = allocated, on_log
        self.accelerator = Accelerator(
            cpu=on_cpu(),
            mixed_precision="no",
            dataloader_config=DataLoaderConfiguration(split_batches=True),
            step_scheduler_with_optimizer=False,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],  # the bits, from the lock on
        )
        self.main = self.accelerator.is_main_process
        self.quiet = quiet or not self.main
        per_epoch = batches_in_epoch(train, order)
        self.steps_per_epoch, self.steps = config.steps(per_epoch)
        self.lock_step = config.lock_step(self.steps)
        bit_rate = None
        if isinstance(config.allocation, Published):
            bit_rate = config.allocation.learning_rate or 2.0 / self.lock_step
        groups = parameter_groups(
            model, config.learning_rate, config.weight_decay, config.scale_learning_rate, bit_rate
        )
        optimizer = make_optimizer(groups, config.optimizer, config.learning_rate)
        warmup_steps = round(config.warmup_epochs * self.steps_per_epoch)
        self.schedule = make_schedule(optimizer, self.steps, warmup_steps, config.learning_rate_floor)
        self.raw = model
        self.model, self.optimizer, loader = self.accelerator.prepare(model, optimizer, train)
        self.batches = StepBatches(loader, order, per_epoch, config.accumulate, config.seed)
        if isinstance(teacher, nn.Module):
            teacher = Teacher(teacher.to(self.accelerator.device))
        self.teacher = teacher
        self.bits: BitSchedule | None = None
        if budget is not None and any(q.is_learned for q in named_quantizers(model).values()):
            self.bits = BitSchedule(model, budget, config, self.lock_step)
        sensitivity = self.bits.sensitivity if self.bits is not None else None
        self.state = TrainingState(model, optimizer, sensitivity, config.ema_decay)

    # -- the run ------------------------------------------------------------------------------------------------------

    def train(self, resume: bool, max_steps: int | None) -> FitResult:
        """All steps from the newest checkpoint (or the start) to the end."""
        step = self.state.load_newest(self.run) if resume and self.run is not None else 0
        sizes = self.steps, self.steps_per_epoch
        self.log = log = TrainingLog(self.config, self.run, self.main, self.quiet, *sizes, step, self.on_log)
        if self.config.features is not None:
            self.guides.append(self._feature_guide(self.config.features))
        if step == 0:
            self._first_allocation()
            self._note_bits(0)
        last = min(self.steps, max_steps) if max_steps is not None else self.steps
        evaluated, top1 = evaluated_before(self.run, step)
        while step < last:
            epoch, within = divmod(step, self.steps_per_epoch)
            for batches in self.batches.steps(epoch, within):
                record = self._step(step, batches)
                step += 1
                log.progress.images += sum(len(images) for images, _ in batches) * self.accelerator.num_processes
                learned = self.raw if self.bits is not None else None
                log.step(step, record, self.optimizer.param_groups[0]["lr"], learned)
                at_epoch_end = step % self.steps_per_epoch == 0
                if self.evaluation is not None and at_epoch_end and self._evaluates(step // self.steps_per_epoch):
                    evaluated, top1 = step, self._evaluate(step)
                if self._checkpoints(step, at_epoch_end):
                    self.state.save(self.run, step, self.accelerator)
                if step == last:
                    break
        if step == self.steps:
            self.state.finish()
        if self.evaluation is not None and evaluated != step:
            top1 = self._evaluate(step)
        log.close()
        return FitResult(self.steps, log.progress.images_per_second(), top1)

    def _step(self, step: int, batches: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """One optimizer step: forward, backward, update, then what moves the bits."""
        self.model.train()
        self.schedule.step_update(step)
        probed = self.bits is not None and self.bits.probes(step)
        total, parts = 0.0, len(batches)
        for part, (images, labels) in enumerate(batches):
            torch.manual_seed(seed_of("step", self.config.seed, step, part, self.accelerator.process_index))
            last = part == parts - 1
            probe = self.bits.probe(len(images), parts) if self.bits and probed and last else nullcontext()
            sync = nullcontext() if last else self.accelerator.no_sync(self.model)
            with sync, probe:
                loss = self._loss(images, labels, step * parts + part)
                if not torch.isfinite(loss):
                    raise NonFiniteLossError(self._diagnosis(step, first_nonfinite(self.raw, images)))
                total += float(loss.detach()) / parts
                penalty = self.bits.penalty() if self.bits is not None else None
                self.accelerator.backward((loss if penalty is None else loss + penalty) / parts)
        norm = self._clip(step)
        self.optimizer.step()
        self.raw.zero_grad(set_to_none=True)  # not the optimizer's: it may not hold the bits
        if self.bits is not None and self.bits.after_step(step, probed):
            self._note_bits(step + 1)
        for guide in self.guides:
            guide.after_step()
        self.state.average(step - self.lock_step)
        return {"loss": total, "gradient_norm": norm}

    def _loss(self, images: Tensor, labels: Tensor, batch_number: int) -> Tensor:
        targets = labels
        if self.data is not None:
            images, targets = mixup_batch(images, labels, self.data, self.config.seed, batch_number)
        with ExitStack() as watching:
            for guide in self.guides:
                watching.enter_context(guide.watch())
            loss = self._watched_loss(images, targets, batch_number)
            for guide in self.guides:
                further = guide.loss(images)
                loss = loss if further is None else loss + further
        return loss

    def _watched_loss(self, images: Tensor, targets: Tensor, batch_number: int) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            logits = self.model(images)
        loss = F.cross_entropy(logits.float(), targets)
        if self.config.distillation > 0 and self.teacher is not None:
            wanted = self.teacher.logits(images, batch_number)
            if self.config.hard_distillation:
                taught = hard_distillation_loss(logits, wanted)
            else:
                taught = distillation_loss(logits, wanted, self.config.temperature)
            loss = (1 - self.config.distillation) * loss + self.config.distillation * taught
        return loss

    def _feature_guide(self, options: FeatureDistillation) -> FeatureGuide:
        """A resume finds the same components: they come from the first batches of the first epoch."""
        assert self.teacher is not None
        images = (images for images, _ in islice(self.batches.batches(0), options.batches))
        components = principal_components(self.teacher.model, images, options.variance)
        return FeatureGuide(self.raw, self.teacher.model, components, options.weight)

    # -- bits ---------------------------------------------------------------------------------------------------------

    def _first_allocation(self) -> None:
        """Before the first step: sensitivities of the calibrated model, and (unless it has one) the allocation they ask for."""
        if self.bits is None or not self.bits.warm_up:
            return
        self.log.progress.say("measuring sensitivities before the first step")
        self.model.train()
        for number, (images, labels) in enumerate(
            islice(self.batches.batches(0), min(self.bits.warm_up, self.batches.per_epoch))
        ):
            torch.manual_seed(seed_of("probe", self.config.seed, number, self.accelerator.process_index))
            with self.bits.probe(len(images), 1):
                self.accelerator.backward(self._loss(images, labels, number))
            self.raw.zero_grad(set_to_none=True)
            self.bits.remember()
        if not self.allocated:
            self.bits.allocate_first()

    def _note_bits(self, step: int) -> None:
        if self.bits is not None:
            self.log.bits(step, self.raw, locked=not self.bits.learning)

    # -- what can go wrong, and when to look --------------------------------------------------------------------------

    def _clip(self, step: int) -> float:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        limit = self.config.clip_gradient or math.inf
        norm = float(self.accelerator.clip_grad_norm_(parameters, limit))
        if not math.isfinite(norm):
            names = {id(p): name for name, p in self.raw.named_parameters()}
            bad = [names[id(p)] for p in parameters if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
            raise NonFiniteLossError(
                self._diagnosis(step, f"the gradient of {bad[0]}" if bad else "the norm of all gradients together")
            )
        return norm

    def _diagnosis(self, step: int, culprit: str) -> str:
        saved = self.run.checkpoints() if self.run is not None else []
        where = f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"
        return (
            f"training stopped being finite at step {step}: {culprit} is the first tensor with NaN or infinity; {where}; "
            "try a lower learning_rate, or a smaller clip_gradient"
        )

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
        self.log.top1(step, top1)
        return top1
