"""fit(): quantization-aware training with learned bits under a budget, on Hugging Face Accelerate.

    step 0 ............ lock step ............ last step
      stage 1: weights,     the bits become      stage 2: weights and the scales of the
      scales and bits       final (`lock`)       final slots settle; the moving average runs

One loop for float and quantized models (`trainer`); what moves the bits is `bit_schedule`'s business. Weights may stay float at
the start, while activations are quantized (`activations_first`). What is minimised is `step_loss`; a method adds to it
through a `guide`. What a signal does to a run is said in `interruption`, what a loss that is not finite does in `rollback`,
how a step is computed in `compute`.

This file is the verb: what it takes, what it refuses before anything is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path

from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..bits.budget import Budget, check_budget
from ..data import DataConfig, EpochOrder, SeededStream, StreamLoader
from ..system.processes import is_main, process_state
from ..system.runs import Run
from ..system.storage import check_writable
from .compute import activations_recomputed, check_compute, check_graph
from .distill import Teacher
from .fit_config import FitConfig
from .guide import Guide
from .trainer import FitResult, Trainer


def fit(
    model: nn.Module,
    train: DataLoader | StreamLoader,
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

    With a `run`, SIGTERM and SIGINT end the training after the step under way, with a checkpoint (`interruption`). A loss or
    gradient that is not finite leads back to the newest checkpoint and on at a lower learning rate, once (`rollback`).

    Raises BudgetError before training when the budget cannot be met, StorageError when `run` cannot be written (before
    training, or later when the disk is full), NonFiniteLossError when training stops being finite a second time,
    InterruptionError on a signal.
    """
    config = config or FitConfig()
    if not config.epochs:
        raise ValueError("fit.epochs is 0, so there is nothing to train; qvit.calibrate alone is the post-training way")
    budget = check_budget(model, budget)
    if config.distillation > 0 and teacher is None:
        raise ValueError(f"fit.distillation is {config.distillation} but there is no teacher; pass teacher=float_model")
    if config.features is not None and teacher is None:
        raise ValueError("fit.features is set but there is no teacher; pass teacher=float_model")
    hooked = guide is not None or config.features is not None or config.activations_first > 0
    check_compute(config, model, hooked)
    if config.cuda_graph:
        check_graph(train, guide is not None, process_state().device, process_state().num_processes)
    folder = Run(run) if isinstance(run, (str, Path)) else run
    if folder is not None and is_main():
        check_writable(folder.folder)
    if folder is not None and folder.checkpoints() and not resume:
        raise FileExistsError(
            f"{folder.folder} holds checkpoints of an earlier run; continue it with resume=True, or give another directory"
        )
    trainer = Trainer(
        model, train, budget, teacher, guide, config, order, data, evaluation, allocated, folder, on_log, quiet
    )
    with activations_recomputed(model) if config.checkpoint_activations else nullcontext():
        return trainer.train(resume, max_steps)
