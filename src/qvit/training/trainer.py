"""Trainer: one run of `fit`, step by step.

Accelerate owns device, processes and gradient averaging; nothing distributed is written here. Processes share each batch
and each evaluation; files are the main process's (`log`).

What happens around a step is a function of (seed, step) alone: data order and augmentation (`data.order`), mixup, dropout (the
random state is set before every step), learning rates, the lock, whether weights are float. So a checkpoint holds tensors
and a step number, and a resumed run continues bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..bits.allocate import Published
from ..bits.budget import Budget
from ..data import DataConfig, EpochOrder, SeededStream, StreamLoader
from ..data.seeds import seed_of
from ..evaluation.shared_evaluation import evaluate_together, share_of
from ..quantizers.quantizer import named_quantizers
from ..system.interruption import Interruption, InterruptionError
from ..system.processes import mean_over_processes, on_cpu
from ..system.runs import Run
from .activations_first import ActivationsFirst
from .bit_schedule import BitSchedule
from .distill import Teacher
from .feature_distill import FeatureDistillation, FeatureGuide, principal_components
from .fit_config import FitConfig
from .graphed import GraphedNetwork
from .guide import Guide
from .log import TrainingLog, evaluated_before
from .nonfinite import NonFiniteLossError, first_nonfinite, first_nonfinite_gradient, nonfinite_parameter
from .optimizer import make_optimizer, make_schedule, parameter_groups
from .rollback import Rollback
from .state import TrainingState
from .step_batches import StepBatches, batches_in_epoch, check_divides
from .step_loss import Network, StepLoss


@dataclass(frozen=True)
class FitResult:
    """Outcome of a run.

    steps      optimizer steps of the whole run
    seconds    that it took, evaluations included; of a process that was ended, up to its last checkpoint. None when the
               run was resumed from a checkpoint of a version that did not count them
    top1       percent on the evaluation loader, or None without one
    rollbacks  how often the run went back to a checkpoint and on at lower learning rates
    """

    steps: int
    seconds: float | None
    top1: float | None
    rollbacks: int


class Trainer:
    """One run of fit: the objects that live as long as the run. Arguments are those of `fit`, which has checked them."""

    def __init__(
        self,
        model: nn.Module,
        train: DataLoader | StreamLoader,
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
        self.config, self.run = config, run
        self.guides = [] if guide is None else [guide]
        self.allocated, self.on_log = allocated, on_log
        self.accelerator = Accelerator(
            cpu=on_cpu(),
            mixed_precision="no",
            dataloader_config=DataLoaderConfiguration(split_batches=True),
            step_scheduler_with_optimizer=False,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],  # the bits, from the lock on
        )
        processes = self.accelerator.num_processes
        check_divides(train, order, processes)
        if isinstance(order, EpochOrder):
            order.deal(processes)
        self.evaluation = None if evaluation is None else share_of(evaluation)
        self.main = self.accelerator.is_main_process
        self.signals = Interruption(alone=self.accelerator.num_processes == 1)
        self.quiet = quiet or not self.main
        per_epoch = batches_in_epoch(train, order)
        self.steps_per_epoch, self.steps = config.steps(per_epoch)
        self.lock_step = config.lock_step(self.steps)
        self.first = ActivationsFirst(model, config.float_weight_steps(self.steps))
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
        self.graphed = GraphedNetwork(self.model, config.precision) if config.cuda_graph else None
        self.fast: Network = self.graphed or (torch.compile(self.model) if config.compile else self.model)
        self.batches = StepBatches(loader, order, per_epoch, config.accumulate, config.seed)
        if isinstance(teacher, nn.Module):
            teacher = Teacher(teacher.to(self.accelerator.device))
        self.teacher = teacher
        self.loss = StepLoss(config, data, teacher, self.guides)
        self.bits: BitSchedule | None = None
        if budget is not None and any(q.is_learned for q in named_quantizers(model).values()):
            self.bits = BitSchedule(model, budget, config, self.lock_step, self.first.steps)
        sensitivity = self.bits.sensitivity if self.bits is not None else None
        self.state = TrainingState(model, optimizer, sensitivity, config.ema_decay)

    # -- the run ------------------------------------------------------------------------------------------------------

    def train(self, resume: bool, max_steps: int | None) -> FitResult:
        """All steps from the newest checkpoint (or the start) to the end."""
        step = self.state.load_newest(self.run, self.accelerator) if resume and self.run is not None else 0
        self.earlier = self.state.seconds
        self.evaluated, self.top1 = evaluated_before(self.run, step)
        sizes = self.steps, self.steps_per_epoch
        self.log = TrainingLog(self.config, self.run, self.main, self.quiet, *sizes, step, self.on_log)
        self.way_back = Rollback(self.state, self.run, self.accelerator, self.config.rollback_factor)
        if self.config.features is not None:
            self.guides.append(self._feature_guide(self.config.features))
        if step == 0:
            self._first_allocation()
            self._note_bits(0)
            self.way_back.keep_start()
        last = min(self.steps, max_steps) if max_steps is not None else self.steps
        recorded = nullcontext() if self.graphed is None else closing(self.graphed)
        with closing(self.log), recorded, self.signals if self.run is not None else nullcontext():
            if step and self._evaluates(step) and self.evaluated != step:  # killed between checkpoint and evaluation
                self._evaluate(step)
            while step < last:
                try:
                    step = self._train_epoch(step, last)
                except NonFiniteLossError as error:
                    step = self._roll_back(error)
            if step == self.steps:
                self.state.finish()
            if self.evaluation is not None and self.evaluated != step:
                self._evaluate(step)
            if self.run is not None and _means(self.signals.received is not None)[0]:  # since the last step
                if 0 < step < self.steps and not self._checkpoints(step):  # `max_steps`, between two checkpoints
                    self._save(self.run, step)
                raise InterruptionError(self.signals.received, step, self.steps, self.run.folder)
        return FitResult(self.steps, self._seconds(), self.top1, self.state.rollbacks)

    def _train_epoch(self, step: int, last: int) -> int:
        """Steps from `step` on, to the end of its epoch or to `last`; returns how many have been made by then."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if within and isinstance(self.batches.order, SeededStream):
            self.log.progress.say(f"the stream of epoch {epoch} is read again from its beginning, up to step {step}")
        for batches in self.batches.steps(epoch, within):
            with self.first.network(step):
                record = self._step(step, batches)
            self.state.average(step - self.lock_step)  # not inside: a copy of the model would keep the hooks
            step += 1
            self.log.progress.images += sum(len(images) for images, _ in batches) * self.accelerator.num_processes
            learned = self.raw if self.bits is not None else None
            self.log.step(step, record, self.optimizer.param_groups[0]["lr"], learned)
            self.log.scales(step, self.raw)
            if self.run is not None and (self.stopping or self._checkpoints(step)):
                self._save(self.run, step)
            if self._evaluates(step):
                self._evaluate(step)
            if step == last:
                break
        return step

    def _step(self, step: int, batches: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """One optimizer step: forward, backward, update, then what moves the bits."""
        self.model.train()
        self.schedule.step_update(step)
        probed = self.bits is not None and self.bits.probes(step)
        total, parts = 0.0, len(batches)
        if self.graphed is not None and not (self.bits is not None and self.bits.learning):
            self.graphed.record(batches[0][0])
        bad: Tensor | None = None
        for part, (images, labels) in enumerate(batches):
            torch.manual_seed(seed_of("step", self.config.seed, step, part, self.accelerator.process_index))
            last = part == parts - 1
            probe = self.bits.probe(len(images), parts) if self.bits and probed and last else nullcontext()
            sync = nullcontext() if last else self.accelerator.no_sync(self.model)
            with sync, probe:
                network = self.model if probed and last else self.fast  # compiled code does not see hooks
                loss = self.loss(network, images, labels, step * parts + part)
                if bad is None and not torch.isfinite(loss):
                    bad = images  # go on: other processes are waiting for the gradients of this one
                total += float(loss.detach()) / parts
                penalty = self.bits.penalty() if self.bits is not None else None
                self.accelerator.backward((loss if penalty is None else loss + penalty) / parts)
        total, failed, told = _means(total, bad is not None, self.signals.received is not None)
        self.stopping = told > 0
        if failed:
            self._stop_being_finite(
                step, "a loss in another process" if bad is None else first_nonfinite(self.raw, bad)
            )
        norm = self._clip(step)
        self.optimizer.step()
        self.raw.zero_grad(set_to_none=True)  # not the optimizer's: it may not hold the bits
        if self.bits is not None and self.bits.after_step(step, probed):
            self._note_bits(step + 1)
        for guide in self.guides:
            guide.after_step()
        if self.first.after_step(step):
            self.log.progress.say(f"step {step + 1}: weights are quantized from here on, their scales fitted to them")
        return {"loss": total, "gradient_norm": norm}

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
        trained_on = self.steps_per_epoch * self.config.accumulate  # the batches left over share numbers with epoch 1
        for number, (images, labels) in enumerate(islice(self.batches.batches(0), min(self.bits.warm_up, trained_on))):
            torch.manual_seed(seed_of("probe", self.config.seed, number, self.accelerator.process_index))
            with self.first.network(0), self.bits.probe(len(images), 1):
                self.accelerator.backward(self.loss(self.model, images, labels, number))
            self.raw.zero_grad(set_to_none=True)
            for guide in self.guides:
                guide.drop_step()
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
            self._stop_being_finite(step, first_nonfinite_gradient(self.raw, parameters))
        return norm

    def _stop_being_finite(self, step: int, culprit: str) -> NoReturn:
        saved = self.run.checkpoints() if self.run is not None else []
        raise NonFiniteLossError(step, culprit, saved, self.config.rollback_factor if self.state.rollbacks else None)

    def _roll_back(self, error: NonFiniteLossError) -> int:
        """The step to go on from, at lower rates; raises the error when that was tried already."""
        if not self.way_back.is_open:
            raise error
        self.raw.zero_grad(set_to_none=True)
        for guide in self.guides:
            guide.drop_step()
        if self.graphed is not None:
            self.graphed.close()
        step = self.way_back.take()
        self.log.roll_back(error.step, step, self.config.rollback_factor, str(error))
        return step

    def _save(self, run: Run, step: int) -> None:
        """Write a checkpoint, which is always a good one; then raise InterruptionError if it is time to stop."""
        culprit = nonfinite_parameter(self.raw)
        if culprit is not None:
            self._stop_being_finite(step, culprit)
        self.state.seconds = self._seconds()
        self.state.save(run, step, self.config.keep_checkpoints, self.accelerator)
        self.way_back.forget_start()
        if self.stopping:
            raise InterruptionError(self.signals.received, step, self.steps, run.folder)

    def _seconds(self) -> float | None:
        """Of the run so far, of all processes that one after the other have made it."""
        return None if self.earlier is None else self.earlier + self.log.progress.seconds()

    def _evaluates(self, step: int) -> bool:
        """Whether step number `step` is followed by an evaluation."""
        if self.evaluation is None or step % self.steps_per_epoch:
            return False
        return self.config.evaluates_after(step // self.steps_per_epoch)

    def _checkpoints(self, step: int) -> bool:
        """Whether step number `step` is followed by a checkpoint."""
        every = self.config.checkpoint_every or self.steps_per_epoch
        return step % every == 0 or step in (self.first.steps, self.lock_step, self.steps)

    def _evaluate(self, step: int) -> None:
        assert self.evaluation is not None
        with self.first.network(step):
            self.evaluated, self.top1 = step, evaluate_together(self.state.averaged_model(), self.evaluation).top1
        self.log.top1(step, self.top1, self.first.lasts(step))


def _means(*numbers: float) -> list[float]:
    """Of each number the mean over processes, which of a flag is above 0 where any has raised it. Small: one message a step."""
    return mean_over_processes(torch.tensor(numbers, dtype=torch.float64)).tolist()
