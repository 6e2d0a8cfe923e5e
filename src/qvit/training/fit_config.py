"""FitConfig: every choice of a training run that is not model, data, bits or budget. Values only, validated once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from ..bits.allocate import Allocation, Lagrangian, Published
from .feature_distill import FeatureDistillation

Precision = Literal["no", "bf16"]


@dataclass(frozen=True)
class FitConfig:
    """How `fit` trains, a quantized model or (the same loop) a float one."""

    epochs: float = 10.0
    """Length of the run; a fraction ends in the middle of an epoch. 0: no training, the recipe stops after calibration."""
    optimizer: str = "adamw"
    """A timm optimizer."""
    learning_rate: float = 5e-4
    """Peak rate of weights, for the global batch as it is (nothing is scaled by the batch size)."""
    learning_rate_floor: float = 0.01
    """The cosine ends at this fraction of the peak."""
    warmup_epochs: float = 0.0
    """Linear warm-up."""
    weight_decay: float = 0.05
    """Of weights with two or more dimensions; never of bits, scales and offsets."""
    scale_learning_rate: float = 2e-3
    """Peak rate of the logarithms of scales, and of offsets: under Adam about the relative step of a scale."""
    clip_gradient: float = 1.0
    """Largest norm of all gradients together; 0 switches clipping off."""
    accumulate: int = 1
    """Batches per optimizer step."""
    precision: Precision = "no"
    """Autocast of the float arithmetic; quantizers always compute in float32."""
    compile: bool = False
    """Compile the network (torch.compile): worth trying on a GPU, no gain was measured on a CPU."""
    cuda_graph: bool = False
    """On an NVIDIA GPU, replay the network's recorded passes once the bits are final (`graphed`): for models so small that a step
    waits for launches, and the more the earlier the lock. Same numbers, more memory."""
    checkpoint_activations: bool = False
    """Keep the input of each block alone and compute the rest a second time: less memory, same numbers, more time."""
    activations_first: float = 0.0
    """Fraction of the steps, at the start, in which weights stay float while activations are quantized (`activations_first`)."""
    lock_at: float = 0.6
    """Fraction of the steps after which the bits are final; the rest settles weights and scales."""
    refill: bool = True
    """At the lock, raise and exchange bits after rounding (off for the ablation)."""
    allocation: Allocation = field(default_factory=Lagrangian)
    """How bits are learned."""
    ema_decay: float = 0.0
    """Decay of the moving average of weights that starts at the lock and is returned; 0 switches it off."""
    distillation: float = 0.0
    """Weight of the teacher's logits in the loss, 0 to 1."""
    temperature: float = 1.0
    """Of the distillation."""
    hard_distillation: bool = False
    """Learn the teacher's class instead of its distribution (DeiT, arXiv 2012.12877, equation 3)."""
    features: FeatureDistillation | None = None
    """Also hold the features in front of the classifier to the teacher's (`feature_distill`); None does not."""
    cache_teacher: bool = False
    """Keep the teacher's logits of every step in a file that later runs with the same data and seed reuse; takes 2 bytes
    x images x epochs x classes."""
    seed: int = 0
    """Of mixup, dropout and probes, and of the order of a loader that brings none. Order and augmentation otherwise have the seed
    of `open_data`; a recipe has one seed for all."""
    log_every: int = 20
    """Steps between two lines of metrics."""
    checkpoint_every: int = 0
    """Steps between two checkpoints; 0 means at the end of every epoch. At the lock there is always one."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep; with 2, one that the disk damages costs the steps since the one before."""
    rollback_factor: float = 0.5
    """Where a loss or gradient is not finite, the run goes back to its newest checkpoint, once, and on at this fraction of
    the learning rates; 0 stops at once."""
    evaluate_every: float = 1.0
    """Epochs between two evaluations while training; 0 evaluates at the end only."""
    tensorboard: bool = False
    """Also write the metrics for TensorBoard, into the run directory."""

    def __post_init__(self) -> None:
        positive = ("learning_rate", "temperature", "accumulate", "log_every", "keep_checkpoints")
        for name in positive:
            if not getattr(self, name) > 0:
                raise ValueError(f"fit.{name} is {getattr(self, name)}; it must be positive")
        for name in (
            "epochs",
            "warmup_epochs",
            "weight_decay",
            "scale_learning_rate",
            "clip_gradient",
            "checkpoint_every",
            "evaluate_every",
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(f"fit.{name} is {getattr(self, name)}; it must not be negative")
        shares = ("learning_rate_floor", "activations_first", "lock_at", "ema_decay", "distillation", "rollback_factor")
        for name in shares:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"fit.{name} is {getattr(self, name)}; it must lie between 0 and 1")
        if self.precision not in ("no", "bf16"):
            raise ValueError(f"fit.precision is {self.precision!r}; allowed: 'no', 'bf16'")
        if 0 < self.evaluate_every < 1:
            raise ValueError(
                f"fit.evaluate_every is {self.evaluate_every}; evaluations come at the ends of epochs: give 1 or more, or 0 for "
                "one at the end only"
            )
        for name in ("hard_distillation", "cache_teacher"):
            if getattr(self, name) and not self.distillation:
                raise ValueError(
                    f"fit.{name} is set but fit.distillation is 0, so no logits of a teacher are asked for; give "
                    f"fit.distillation a weight, or set fit.{name} = false"
                )
        self._check_graph()
        if self.activations_first > self.lock_at:
            raise ValueError(
                f"fit.activations_first is {self.activations_first} and fit.lock_at {self.lock_at}: the bits of weights would be "
                f"final before a weight is quantized; give a lock_at of at least {self.activations_first}, or a shorter "
                "first stage"
            )
        if self.activations_first and isinstance(self.allocation, Published):
            raise ValueError(
                "fit.activations_first does not go with the allocation Published: the loss tells it nothing about the bits of "
                "weights that are float, and the budget alone would move them; use Lagrangian, or leave activations_first out"
            )

    def _check_graph(self) -> None:
        """What computes a pass in another way, or looks into it, cannot be recorded (`graphed`)."""
        options = {
            "compile": self.compile,
            "checkpoint_activations": self.checkpoint_activations,
            "accumulate": self.accumulate > 1,
            "features": self.features is not None,
            "activations_first": self.activations_first > 0,
        }
        refused = [f"fit.{name}" for name, there in options.items() if there]
        if self.cuda_graph and refused:
            raise ValueError(f"fit.cuda_graph does not go with {', '.join(refused)}; set fit.cuda_graph = false")

    @property
    def needs_teacher(self) -> bool:
        """The loss asks the float model for something."""
        return self.distillation > 0 or self.features is not None

    def steps(self, batches: int) -> tuple[int, int]:
        """(optimizer steps of an epoch of `batches` batches, of the whole run)."""
        per_epoch = batches // self.accumulate
        return per_epoch, max(1, round(self.epochs * per_epoch))

    def float_weight_steps(self, steps: int) -> int:
        """Steps of a run of `steps` steps in which weights stay float."""
        return max(1, round(self.activations_first * steps)) if self.activations_first else 0

    def lock_step(self, steps: int) -> int:
        """Steps of a run of `steps` steps after which the bits are final."""
        return max(1, round(self.lock_at * steps))

    def evaluates_after(self, epoch: int) -> bool:
        """Whether the end of epoch number `epoch`, counted from 1, is followed by an evaluation."""
        every = self.evaluate_every
        return every > 0 and math.floor(epoch / every) > math.floor((epoch - 1) / every)
