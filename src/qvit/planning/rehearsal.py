"""A rehearsal: the parts of a run, each made once on few images and timed.

    calibrate -> a short `fit` -> freeze -> judge          the verbs of the real run, its loaders and its augmentation

A short fit has every kind of step that the real one has, and each kind is timed by itself, because they differ and their
shares do not survive the shortening:

    step     0        1  2  3  4  5  6  7  8        9  10 11 12
             warm-up  plain, every third probed     after the lock
                                           lock

(with bits that AdamW moves, `Published`, the 16 steps before the lock are probed; without learned bits all are alike). A step
is what lies between two lines of the training log, waiting for its images included. Weights are random: time does not depend
on them, and nothing is downloaded.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from statistics import median

from torch import nn

from qvit_runtime.artifact import to_bytes

from ..bits.allocate import Lagrangian
from ..calibration.calibrate import fit_weights
from ..data import preprocess_of
from ..evaluation.evaluate import evaluate
from ..methods import METHODS, learns_bits
from ..pipeline.context import Context
from ..pipeline.rows import calibration_batches, judge
from ..settings.recipe import FLOAT, Recipe
from ..system.processes import model_device, process_state
from ..training.bit_schedule import PUBLISHED_PROBES
from ..training.fit import fit
from ..training.fit_config import FitConfig
from ..training.guide import Guide
from .memory import Memory, checkpoint_sizes, size_of, training_memory

FEW = 4  # steps of a kind that are enough for a median
EVERY = 3  # steps between two probes


@dataclass(frozen=True)
class StepSeconds:
    """Seconds of the kinds of steps; without learned bits there is one kind, and `lock` is 0.

    plain   before the lock, without a probe
    probed  before the lock, with a probe and the move of the bits that follows it
    locked  after the lock
    lock    what the lock adds to its step
    """

    plain: float
    probed: float
    locked: float
    lock: float


@dataclass(frozen=True)
class Rehearsal:
    """What was measured of one row of a recipe, in seconds; None, or 0, where the row has no such part.

    steps        of training
    memory       of training, on one device
    checkpoint   bytes of its last checkpoint, by kind
    calibration  of the rehearsal's calibration images together
    weights_fit  the scales of all weights, where weights are float at first (`activations_first`)
    freeze       the program, made and packed
    evaluation   of an image, as while training
    judgement    of an image: module, program in the interpreter, float model
    forward      of an image, the float model
    weights      bytes of the module's state
    artifact     bytes of the packed program
    """

    steps: StepSeconds | None
    memory: Memory | None
    checkpoint: dict[str, int]
    calibration: float
    weights_fit: float
    freeze: float
    evaluation: float
    judgement: float
    forward: float
    weights: int
    artifact: int


class Stopwatch:
    """Seconds since it was last looked at."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        before, self.start = self.start, time.perf_counter()
        return self.start - before


def rehearse(context: Context, row: Recipe, device_batch: int) -> Rehearsal:
    """Make and time every part of a row on the data of `context`, which has few images and small batches.

    row           of `context.recipe`; where it is a float row, the float model of `context` is trained in place
    device_batch  images of the real run on one device, for its memory
    """
    if row.method == FLOAT:
        context.model.to(process_state().device)  # where it is trained, and judged
    images = evaluate(context.model, context.splits.eval).images  # first passes are slower
    watch = Stopwatch()
    evaluate(context.model, context.splits.eval)
    forward = watch.lap() / images
    if row.method == FLOAT:
        memory, checkpoint = _sizes(context, row, context.model, False, device_batch)
        steps = time_steps(context, row, context.model, None)
        return Rehearsal(steps, memory, checkpoint, 0.0, 0.0, 0.0, forward, 0.0, forward, checkpoint["model"], 0)
    method = METHODS[row.method]
    model = method.quantize(context.model, row.quantize)
    watch.lap()
    method.calibrate(model, row.quantize, context.splits.calibration, calibration_batches(row, context.data))
    calibration = watch.lap()
    weights_fit = 0.0
    if row.fit.activations_first:
        fit_weights(model)
        weights_fit = watch.lap()
    trained: tuple[StepSeconds | None, Memory | None, dict[str, int]] = (None, None, {})
    if row.fit.epochs:
        guide = method.guide(model, row.quantize, context.model)
        memory, checkpoint = _sizes(context, row, model, guide is not None, device_batch)
        trained = (time_steps(context, row, model, guide), memory, checkpoint)
    watch.lap()
    evaluate(model, context.splits.eval)
    evaluation = watch.lap() / images
    program = method.freeze(
        model.eval(), row.budget, preprocess_of(context.data, context.splits.class_names), row.model.name
    )
    artifact = len(to_bytes(program))
    freeze = watch.lap()
    judge(context, method.exact(model), program)
    judgement = watch.lap() / images
    weights = size_of(model.state_dict().values())
    return Rehearsal(*trained, calibration, weights_fit, freeze, evaluation, judgement, forward, weights, artifact)


def _sizes(
    context: Context, row: Recipe, model: nn.Module, guided: bool, device_batch: int
) -> tuple[Memory, dict[str, int]]:
    assert context.data.image_size is not None  # resolved
    image = (3, context.data.image_size, context.data.image_size)
    beside = model is not context.model and model_device().type != "cpu"  # the float model stays there
    teacher = context.model if row.fit.needs_teacher or guided or beside else None
    return training_memory(model, row.fit, image, device_batch, teacher), checkpoint_sizes(model, row.fit)


def time_steps(context: Context, row: Recipe, model: nn.Module, guide: Guide | None) -> StepSeconds:
    """A short fit of `model`, calibrated or float, and what its kinds of steps took."""
    learned = row.method != FLOAT and learns_bits(row.quantize)
    config, lock_step, probed = short_fit(row.fit, learned, context.splits.train_batches)
    watch, laps = Stopwatch(), []
    fit(
        model,
        context.splits.train,
        budget=row.budget if row.method != FLOAT else None,
        teacher=context.model if config.needs_teacher else None,
        guide=guide,
        config=config,
        order=context.splits.order,
        data=context.data,
        quiet=True,
        on_log=lambda: laps.append(watch.lap()),
    )
    if not learned:
        usual = median(laps[1:])
        return StepSeconds(usual, usual, usual, 0.0)
    before = range(1, lock_step - 1)
    plain = median(laps[step] for step in before if step not in probed)
    with_probe = median(laps[step] for step in before if step in probed)
    lock = laps[lock_step - 1] - (with_probe if lock_step - 1 in probed else plain)
    return StepSeconds(plain, with_probe, median(laps[lock_step + 1 :]), max(0.0, lock))


def short_fit(config: FitConfig, learned: bool, batches: int) -> tuple[FitConfig, int, frozenset[int]]:
    """The config of the short fit on epochs of `batches` batches, its lock step, and the steps that it probes."""
    allocation = config.allocation
    if isinstance(allocation, Lagrangian):
        lock_step = 3 * EVERY
        allocation = dataclasses.replace(allocation, every=EVERY, warm_up=1)
        probed = frozenset(range(0, lock_step, EVERY))
    else:
        lock_step = FEW + PUBLISHED_PROBES
        probed = frozenset(range(FEW, lock_step))
    steps = lock_step + FEW if learned else 1 + FEW
    short = dataclasses.replace(
        config,
        epochs=steps / batches,
        lock_at=min(1.0, lock_step / steps),
        activations_first=0.0,
        warmup_epochs=0.0,
        accumulate=1,
        allocation=allocation,
        features=dataclasses.replace(config.features, batches=1) if config.features is not None else None,
        evaluate_every=0.0,
        log_every=1,
        tensorboard=False,
    )
    return short, lock_step, probed
